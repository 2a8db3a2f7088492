//! Functions of whole vectors, accurate to a few ulp.

use pulp::Simd;

/// The running maximum before the first key: the lowest finite f32.
pub(crate) const LOWEST: f32 = f32::MIN;

/// The score of a key that is masked. Scores of visible keys saturate, so they are never infinite.
pub(crate) const ABSENT: f32 = f32::NEG_INFINITY;

/// The exponential of this is less than half of the smallest subnormal number: 0.
const LEAST: f32 = -104.0;

/// Moves the exponent of 2^n away from that of subnormal numbers: 2^24.
const SHIFT: i32 = 24;

/// The coefficients of f^5, f^4, ... in 2^f for |f| <= 1/2. The constant term is 1, so that the
/// exponential of 0 is exactly 1. Fitted for the smallest relative error: 9.1e-8.
#[expect(clippy::approx_constant, reason = "fitted: the first coefficient is not ln 2")]
const EXP2: [f32; 6] =
    [0.001_326_472_7, 0.009_671_513, 0.055_507_336, 0.240_222_42, 0.693_147, 1.0];

/// e^x for x <= 70. Exactly 1 at 0, NaN for NaN. Results may be subnormal: with dropout, such a
/// weight may be the largest that is kept.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let [result] = exps(simd, [x]);
    result
}

/// [`exp`] of several vectors, step by step: each step waits for the one before, so processors need
/// other vectors to work on.
///
/// 2^n 2^f with n the integer nearest to x log2(e). Adding 1.5 * 2^23 rounds to an integer, which
/// is then in the low bits of the sum; 127 more makes these bits the exponent of 2^n. The factors
/// are 2^(n + 24) and 2^(f - 24), so that 2^n is a normal number even where the result is not.
#[inline(always)]
pub(crate) fn exps<S: Simd, const N: usize>(simd: S, mut x: [S::f32s; N]) -> [S::f32s; N] {
    // A power of two: it changes no digit of the coefficients.
    const DOWN: f32 = 1.0 / (1 << SHIFT) as f32;
    let least = simd.splat_f32s(LEAST);
    for x in &mut x {
        *x = if S::IS_SCALAR {
            // A comparison with NaN is false.
            simd.select_f32s(simd.less_than_f32s(*x, least), least, *x)
        } else {
            // Where one is NaN, the result is the second number (x86), or NaN (others).
            simd.max_f32s(least, *x)
        };
    }
    let log2_e = simd.splat_f32s(std::f32::consts::LOG2_E);
    let to_integer = simd.splat_f32s((12_582_912 + 127 + SHIFT) as f32);
    let mut shifted = x;
    for n in 0..N {
        shifted[n] = simd.mul_add_e_f32s(x[n], log2_e, to_integer);
    }
    let mut f = x;
    for n in 0..N {
        f[n] = simd.mul_add_e_f32s(x[n], log2_e, simd.sub_f32s(to_integer, shifted[n]));
    }
    let mut two_f = [simd.splat_f32s(EXP2[0] * DOWN); N];
    for &c in &EXP2[1..] {
        let c = simd.splat_f32s(c * DOWN);
        for n in 0..N {
            two_f[n] = simd.mul_add_e_f32s(two_f[n], f[n], c);
        }
    }
    let mut results = x;
    for n in 0..N {
        let bits = simd.transmute_u32s_f32s(shifted[n]);
        let two_n = simd.wrapping_dyn_shl_u32s(bits, simd.splat_u32s(23));
        results[n] = simd.mul_f32s(two_f[n], simd.transmute_f32s_u32s(two_n));
    }
    results
}

/// tanh: the Taylor series below 0.55, and 1 - 2 / (e^2x + 1) beyond. A softcap scales its error,
/// so it has to be accurate near 0 too.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    const SERIES: [f32; 7] = [
        -929_569.0 / 638_512_875.0,
        21_844.0 / 6_081_075.0,
        -1_382.0 / 155_925.0,
        62.0 / 2_835.0,
        -17.0 / 315.0,
        2.0 / 15.0,
        -1.0 / 3.0,
    ];
    let z = simd.mul_f32s(x, x);
    let mut series = simd.splat_f32s(SERIES[0]);
    for &c in &SERIES[1..] {
        series = simd.mul_add_e_f32s(series, z, simd.splat_f32s(c));
    }
    let near = simd.mul_add_e_f32s(simd.mul_f32s(x, z), series, x);
    let a = simd.abs_f32s(x);
    let twice = simd.splat_f32s(20.0);
    let bounded = simd.select_f32s(simd.greater_than_f32s(a, twice), twice, a);
    let (one, two) = (simd.splat_f32s(1.0), simd.splat_f32s(2.0));
    let e = exp(simd, simd.mul_f32s(bounded, two));
    let far = simd.sub_f32s(one, simd.div_f32s(two, simd.add_f32s(e, one)));
    let negative = simd.less_than_f32s(x, simd.splat_f32s(0.0));
    let far = simd.select_f32s(negative, simd.neg_f32s(far), far);
    // NaN takes `far`, which is NaN.
    simd.select_f32s(simd.less_than_f32s(a, simd.splat_f32s(0.55)), near, far)
}

/// Infinities become the largest finite number of their sign; NaN stays NaN.
#[inline(always)]
pub(crate) fn finite<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let (low, high) = (simd.splat_f32s(f32::MIN), simd.splat_f32s(f32::MAX));
    let x = simd.select_f32s(simd.greater_than_f32s(x, high), high, x);
    simd.select_f32s(simd.less_than_f32s(x, low), low, x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulp::{Arch, WithSimd};

    /// Applies a function to numbers, with the best instructions of this machine.
    struct Apply<'a> {
        numbers: &'a mut [f32],
        which: Function,
    }

    #[derive(Clone, Copy)]
    enum Function {
        Exp,
        Tanh,
        Finite,
    }

    impl WithSimd for Apply<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let (vectors, rest) = S::as_mut_simd_f32s(self.numbers);
            assert!(rest.is_empty());
            for x in vectors {
                *x = match self.which {
                    Function::Exp => exp(simd, *x),
                    Function::Tanh => tanh(simd, *x),
                    Function::Finite => finite(simd, *x),
                };
            }
        }
    }

    fn apply(which: Function, numbers: &[f32]) -> Vec<f32> {
        let mut padded = numbers.to_vec();
        padded.resize(numbers.len().next_multiple_of(64), 0.0);
        Arch::new().dispatch(Apply { numbers: &mut padded, which });
        padded.truncate(numbers.len());
        padded
    }

    #[test]
    fn exp_is_accurate_and_exact_at_its_edges() {
        let numbers: Vec<f32> = (0..200_000).map(|n| -110.0 * n as f32 / 200_000.0).collect();
        let u = 2f64.powi(-24);
        for (&x, got) in numbers.iter().zip(apply(Function::Exp, &numbers)) {
            let exact = f64::from(x).exp();
            // log2(e) as an f32 is off by 0.3 u relative.
            let bound = u * (4.0 + 0.4 * f64::from(x.abs())) * exact + 2f64.powi(-149);
            assert!((f64::from(got) - exact).abs() <= bound, "{x}: {got:e}, {exact:e}");
        }
        let edges = [0.0, -0.0, -104.0, -1e6, f32::MIN, f32::NEG_INFINITY];
        assert_eq!(apply(Function::Exp, &edges), [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
        for payload in [0x7fc0_0000, 0xffc0_0000, 0x7f80_0001, 0x7fff_ffff] {
            assert!(apply(Function::Exp, &[f32::from_bits(payload)])[0].is_nan(), "{payload:x}");
        }
    }

    #[test]
    fn tanh_is_accurate() {
        let numbers: Vec<f32> = (-100_000..100_000).map(|n| n as f32 / 5_000.0).collect();
        for (&x, got) in numbers.iter().zip(apply(Function::Tanh, &numbers)) {
            let exact = f64::from(x).tanh();
            let bound = 4.0 * 2f64.powi(-24) * exact.abs();
            assert!((f64::from(got) - exact).abs() <= bound, "{x}: {got:e}, {exact:e}");
        }
        assert_eq!(apply(Function::Tanh, &[1e30, f32::MIN, 1e-30]), [1.0, -1.0, 1e-30]);
        assert!(apply(Function::Tanh, &[f32::NAN])[0].is_nan());
    }

    #[test]
    fn infinities_saturate() {
        let given = [f32::INFINITY, f32::NEG_INFINITY, 1.5, f32::MAX, f32::MIN];
        let expected = [f32::MAX, f32::MIN, 1.5, f32::MAX, f32::MIN];
        assert_eq!(apply(Function::Finite, &given), expected);
        assert!(apply(Function::Finite, &[f32::NAN])[0].is_nan());
    }
}
