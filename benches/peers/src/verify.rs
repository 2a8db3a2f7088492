//! The error of an output.

use crate::case::Inputs;
use anyhow::{Result, ensure};
use flashtile::{DType, HostInputs, bound, reference};

/// What the oracle computes for a case.
pub(crate) struct Oracle {
    out: Vec<f64>,
    /// The error bound of each row.
    bounds: Vec<f64>,
    head_dim: usize,
}

impl Oracle {
    /// Runs the oracle on every row.
    pub(crate) fn new(inputs: &Inputs) -> Result<Self> {
        let bytes = bytemuck::cast_slice::<f32, u8>;
        let Inputs { case, problem, q, k, v } = inputs;
        let answer = reference::attention(problem, &HostInputs::new(bytes(q), bytes(k), bytes(v)))?;
        let [.., head_dim] = case.shape;
        let bounds = answer.rows.iter().map(|row| row.out_bound(DType::F32, head_dim)).collect();
        Ok(Self { out: answer.out, bounds, head_dim })
    }

    /// The largest error in `out` as a share of its row's bound: at most 1 where flashtile's error
    /// rule holds, infinite where a number is not finite.
    ///
    /// # Errors
    /// If `out` has the wrong length.
    pub(crate) fn error(&self, out: &[f32]) -> Result<f64> {
        let Self { out: expected, bounds, head_dim } = self;
        ensure!(
            out.len() == expected.len(),
            "the output has {} numbers instead of {}",
            out.len(),
            expected.len()
        );
        let share = |(n, (&got, &expected)): (usize, (&f32, &f64))| {
            bound::share(f64::from(got), expected, bounds[n / head_dim], DType::F32)
        };
        Ok(out.iter().zip(expected).enumerate().map(share).fold(0.0, f64::max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Case;

    #[test]
    fn errors_are_shares_of_the_bound_of_their_row() {
        for causal in [false, true] {
            let inputs = Inputs::new(Case { shape: [2, 3, 9, 4], causal }).expect("valid");
            let oracle = Oracle::new(&inputs).expect("computes");
            let right: Vec<f32> = oracle.out.iter().map(|&number| number as f32).collect();
            let error = oracle.error(&right).expect("an error");
            assert!(error < 0.5, "{error}");
            // Head 1 of entry 1, query 3, column 2: half again as far off as the row allows.
            let at = ((3 + 1) * 9 + 3) * 4 + 2;
            let mut wrong = right.clone();
            wrong[at] += (1.5 * oracle.bounds[at / 4]) as f32;
            let error = oracle.error(&wrong).expect("an error");
            assert!((1.0..2.0).contains(&error), "{error}");
            wrong[at] = f32::NAN;
            assert_eq!(oracle.error(&wrong).expect("an error"), f64::INFINITY);
            assert!(oracle.error(&right[1..]).is_err());
        }
    }
}
