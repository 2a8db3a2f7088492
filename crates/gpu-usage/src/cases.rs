use flashtile_core::{Align, DType, Problem, ProblemError, TensorView};
use std::fmt;

/// A problem whose kernels are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// B, H, Sq, D.
    pub shape: [usize; 4],
    /// Hkv.
    pub kv_heads: usize,
    /// Skv.
    pub seq_kv: usize,
    /// Storage type.
    pub dtype: DType,
    /// Whether it is causal. A decode step then stands at the last key.
    pub causal: bool,
}

impl Case {
    /// A case with as many keys as queries, and as many heads of keys as of queries.
    pub fn new(shape: [usize; 4], dtype: DType, causal: bool) -> Self {
        Self { shape, kv_heads: shape[1], seq_kv: shape[2], dtype, causal }
    }

    /// The problem.
    ///
    /// # Errors
    /// The sizes contradict each other.
    pub fn problem(&self) -> Result<Problem, ProblemError> {
        let [batch, heads, seq_q, head_dim] = self.shape;
        let q = TensorView::bshd(self.dtype, [batch, seq_q, heads, head_dim])?;
        let kv = TensorView::bshd(self.dtype, [batch, self.seq_kv, self.kv_heads, head_dim])?;
        Problem::builder(q, kv, kv).causal(self.causal).align(Align::BottomRight).build()
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [batch, heads, seq_q, head_dim] = self.shape;
        write!(f, "{} {batch}x{heads}", self.dtype)?;
        if self.kv_heads != heads {
            write!(f, "/{}", self.kv_heads)?;
        }
        write!(f, "x{seq_q}")?;
        if self.seq_kv != seq_q {
            write!(f, "/{}", self.seq_kv)?;
        }
        write!(f, "x{head_dim}")?;
        if self.causal { f.write_str(" causal") } else { Ok(()) }
    }
}

/// The cases whose kernels are on record: causal attention of 1024 queries, and a decode step over
/// 4096 keys, at D 64 and 128, for each storage type.
///
/// The plan decides which kernels these are, so a new kernel needs no change here. To put another
/// kind of problem on record, add a line.
pub fn tuned() -> Vec<Case> {
    let mut cases = Vec::new();
    for &dtype in DType::ALL {
        for head_dim in [64, 128] {
            cases.push(Case::new([1, 8, 1024, head_dim], dtype, true));
            cases.push(Case {
                shape: [1, 8, 1, head_dim],
                kv_heads: 8,
                seq_kv: 4096,
                dtype,
                causal: true,
            });
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tuned_case_is_a_problem_with_a_name_of_its_own() {
        let cases = tuned();
        for case in &cases {
            case.problem().unwrap_or_else(|e| panic!("{case}: {e}"));
        }
        let mut names: Vec<_> = cases.iter().map(Case::to_string).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), cases.len());
        assert!(names.contains(&"f16 1x8x1/4096x128 causal".to_owned()), "{names:?}");
    }
}
