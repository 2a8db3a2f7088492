//! The error rule. There is no fixed tolerance: the oracle computes a bound for every row.
//!
//! With u = 2^-24, u_t half an ulp of the storage type, and n the number of keys allowed in the
//! row:
//!
//! ```text
//! |out - o| <= 1 ulp_t(max_d |o_d|) + smallest normal
//!              + u ((8 + sqrt(D)) kappa + (8 + sqrt(n)/4) mu) + 4 u_t rho
//! ```
//!
//! For lse, which is f32 for every storage type:
//!
//! ```text
//! |lse - L| <= 1 ulp(L) + u ((8 + sqrt(D)) alpha + 8 + sqrt(n)/4)
//! ```
//!
//! docs/NUMERICS.md derives it.

use crate::DType;

/// The terms of one row's bound. p and o are the oracle's; c_j is the dropout factor of key j (1
/// without dropout).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowTerms {
    /// n: the number of keys allowed in the row.
    pub keys: usize,
    /// max_d |o_d|.
    pub max_out: f64,
    /// max_d sum_j p_j a_j |c_j v_jd - o_d| with a_j = |scale| sum_d |q_d k_jd| + |mask_j|: the
    /// effect of f32 scores on the row.
    pub kappa: f64,
    /// max_d sum_j p_j c_j |v_jd|: the effect of the f32 sum.
    pub mu: f64,
    /// max_d sqrt(sum_j (p_j c_j v_jd)^2): the effect of rounding weights once to the storage type.
    pub rho: f64,
    /// sum_j p_j a_j: the effect of f32 scores on lse.
    pub alpha: f64,
    /// The row's lse.
    pub lse: f64,
}

const U: f64 = 1.0 / (1u64 << 24) as f64;

impl RowTerms {
    /// The largest error that any output of this row may have.
    pub fn out_bound(&self, dtype: DType, head_dim: usize) -> f64 {
        let scores = (8.0 + (head_dim as f64).sqrt()) * self.kappa;
        let sum = (8.0 + (self.keys as f64).sqrt() / 4.0) * self.mu;
        dtype.ulp(self.max_out)
            + dtype.min_positive()
            + U * (scores + sum)
            + 4.0 * dtype.unit_roundoff() * self.rho
    }

    /// The largest error that the lse of this row may have; 0 for a row without keys, whose lse
    /// must be -inf.
    pub fn lse_bound(&self, head_dim: usize) -> f64 {
        if self.keys == 0 {
            return 0.0;
        }
        let scores = (8.0 + (head_dim as f64).sqrt()) * self.alpha;
        DType::F32.ulp(self.lse) + U * (scores + 8.0 + (self.keys as f64).sqrt() / 4.0)
    }
}

/// The error of `got` as a share of `bound`: at most 1 where the rule holds.
///
/// NaN is correct only where `expected` is NaN, and an expected infinity must be met exactly. Where
/// `expected` is within the bound of the largest number of `dtype`, or beyond it, storing the
/// result may overflow: an infinity of the same sign is then correct too, with a share of 1.
pub fn share(got: f64, expected: f64, bound: f64, dtype: DType) -> f64 {
    if expected.is_nan() {
        return if got.is_nan() { 0.0 } else { f64::INFINITY };
    }
    if got == expected {
        return 0.0;
    }
    if got.is_nan() || expected.is_infinite() {
        return f64::INFINITY;
    }
    if got.is_infinite() {
        let reaches = expected * got.signum() + bound > dtype.max();
        return if reaches { 1.0 } else { f64::INFINITY };
    }
    let share = (got - expected).abs() / bound;
    if share.is_nan() { f64::INFINITY } else { share }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_one_key_is_exact_except_for_storage() {
        // p = 1: kappa and the softmax do not matter, only storing the value.
        let row = RowTerms {
            keys: 1,
            max_out: 1.5,
            mu: 1.5,
            rho: 1.5,
            alpha: 3.0,
            ..RowTerms::default()
        };
        let bound = row.out_bound(DType::F32, 64);
        let ulp = f64::from(f32::EPSILON);
        assert!(bound > ulp && bound < 16.0 * ulp, "{bound}");
        assert!(row.out_bound(DType::BF16, 64) > 1000.0 * bound);
    }

    #[test]
    fn shares_of_the_bound() {
        let f = |got, expected| share(got, expected, 0.5, DType::F16);
        assert_eq!(f(1.0, 1.25), 0.5);
        assert_eq!(f(f64::NAN, f64::NAN), 0.0);
        assert_eq!(f(f64::NEG_INFINITY, f64::NEG_INFINITY), 0.0);
        assert_eq!(f(f64::INFINITY, 70_000.0), 1.0);
        for (got, expected) in [
            (f64::NAN, 1.0),
            (1.0, f64::NAN),
            (f64::INFINITY, 1.0),
            (f64::INFINITY, -70_000.0),
            (1.0, f64::INFINITY),
        ] {
            assert_eq!(f(got, expected), f64::INFINITY, "{got} {expected}");
        }
    }
}
