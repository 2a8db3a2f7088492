use crate::ProblemError;

/// The result of attention over a part of the keys.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Partial<'a> {
    /// Output rows, densely packed: rows * width numbers.
    pub out: &'a [f32],
    /// Log-sum-exp of each row (natural log); -inf where no key was allowed.
    pub lse: &'a [f32],
}

impl<'a> Partial<'a> {
    /// The output rows and the log-sum-exps of one part.
    pub const fn new(out: &'a [f32], lse: &'a [f32]) -> Self {
        Self { out, lse }
    }
}

/// Merges the results of disjoint ranges of keys into the result over all of them: (out, lse).
///
/// out = sum_r exp(lse_r - lse) out_r with lse = log sum_r exp(lse_r) (Flash-Decoding's reduction),
/// in f64. `width` is head_dim_v. A row that has no keys in any part is 0, with lse -inf. NaN
/// passes through.
///
/// # Errors
/// [`ProblemError::MergeShape`] if the parts differ in length.
pub fn merge(parts: &[Partial<'_>], width: usize) -> Result<(Vec<f32>, Vec<f32>), ProblemError> {
    let rows = parts.first().map_or(0, |part| part.lse.len());
    for (index, part) in parts.iter().enumerate() {
        for (what, given, expected) in
            [("lse", part.lse.len(), rows), ("out", part.out.len(), rows.saturating_mul(width))]
        {
            if given != expected {
                return Err(ProblemError::MergeShape { index, what, expected, given });
            }
        }
    }
    let mut out = vec![0.0; rows * width];
    let mut lse = vec![f32::NEG_INFINITY; rows];
    for row in 0..rows {
        let seen = || parts.iter().filter(|part| part.lse[row] != f32::NEG_INFINITY);
        let max = seen().map(|part| f64::from(part.lse[row])).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = seen().map(|part| (f64::from(part.lse[row]) - max).exp()).sum();
        if seen().next().is_none() {
            continue;
        }
        lse[row] = (max + total.ln()) as f32;
        for d in 0..width {
            let sum: f64 = seen()
                .map(|part| {
                    (f64::from(part.lse[row]) - max).exp() * f64::from(part.out[row * width + d])
                })
                .sum();
            out[row * width + d] = (sum / total) as f32;
        }
    }
    Ok((out, lse))
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;

    #[test]
    fn merging_is_attention_over_all_keys() {
        // Keys with scores ln 1, ln 3 | ln 4 and values 10, 20 | 50; then a part without keys.
        let (ln4, ln8) = (4f32.ln(), 8f32.ln());
        let parts = [
            Partial { out: &[17.5], lse: &[ln4] },
            Partial { out: &[50.0], lse: &[ln4] },
            Partial { out: &[f32::NAN], lse: &[f32::NEG_INFINITY] },
        ];
        let (out, lse) = merge(&parts, 1).expect("same shape");
        assert_abs_diff_eq!(out[0], 33.75, epsilon = 5e-6);
        assert_abs_diff_eq!(lse[0], ln8, epsilon = 5e-7);
    }

    #[test]
    fn rows_without_keys_stay_empty() {
        let empty = Partial { out: &[0.0, 0.0], lse: &[f32::NEG_INFINITY] };
        assert_eq!(
            merge(&[empty, empty], 2).expect("same shape"),
            (vec![0.0, 0.0], vec![f32::NEG_INFINITY])
        );
        assert_eq!(merge(&[], 3).expect("nothing"), (vec![], vec![]));
    }

    #[test]
    fn parts_that_differ_in_shape_are_refused() {
        let a = Partial { out: &[0.0, 0.0], lse: &[0.0] };
        let b = Partial { out: &[0.0], lse: &[0.0] };
        assert!(merge(&[a, b], 2).is_err());
    }
}
