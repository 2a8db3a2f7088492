use flashtile_core::{Align, DType, Mask, MaskKind, Problem, ProblemError, TensorView};
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
    /// What it has besides.
    pub option: Option<CaseOption>,
}

/// An option of a problem that changes its kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaseOption {
    /// An additive mask of (Sq, Skv) in the storage type.
    Mask,
    /// A softcap.
    Softcap,
    /// A number of valid keys for each batch entry.
    KvLens,
    /// Dropout.
    Dropout,
}

impl CaseOption {
    /// Every option.
    pub const ALL: [CaseOption; 4] =
        [CaseOption::Mask, CaseOption::Softcap, CaseOption::KvLens, CaseOption::Dropout];
}

impl fmt::Display for CaseOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CaseOption::Mask => "mask",
            CaseOption::Softcap => "softcap",
            CaseOption::KvLens => "kv_lens",
            CaseOption::Dropout => "dropout",
        })
    }
}

impl Case {
    /// A case with as many keys as queries, and as many heads of keys as of queries.
    pub fn new(shape: [usize; 4], dtype: DType, causal: bool) -> Self {
        Self { shape, kv_heads: shape[1], seq_kv: shape[2], dtype, causal, option: None }
    }

    /// The problem.
    ///
    /// # Errors
    /// The sizes contradict each other.
    pub fn problem(&self) -> Result<Problem, ProblemError> {
        let [batch, heads, seq_q, head_dim] = self.shape;
        let q = TensorView::bshd(self.dtype, [batch, seq_q, heads, head_dim])?;
        let kv = TensorView::bshd(self.dtype, [batch, self.seq_kv, self.kv_heads, head_dim])?;
        let problem = Problem::builder(q, kv, kv).causal(self.causal).align(Align::BottomRight);
        let problem = match self.option {
            None => problem,
            Some(CaseOption::Mask) => {
                let kind = MaskKind::Additive(self.dtype);
                problem.mask(Mask::contiguous(kind, &[seq_q, self.seq_kv])?)
            }
            Some(CaseOption::Softcap) => problem.softcap(20.0),
            Some(CaseOption::KvLens) => problem.kv_lens(true),
            Some(CaseOption::Dropout) => problem.dropout_p(0.1),
        };
        problem.build()
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
        if self.causal {
            f.write_str(" causal")?;
        }
        match self.option {
            Some(option) => write!(f, " {option}"),
            None => Ok(()),
        }
    }
}

/// The cases whose kernels are on record: causal attention of 1024 queries, and a decode step over
/// 4096 keys, at D 64 and 128, for each storage type. In f32 and f16 also each option alone, at D
/// 64; in f16 the other widths of kernels on matrix units; and a decode step whose heads share keys.
///
/// The plan decides which kernels these are, so a new kernel needs no change here. To put another
/// kind of problem on record, add a line.
pub fn tuned() -> Vec<Case> {
    let mut cases = Vec::new();
    for &dtype in DType::ALL {
        for head_dim in [64, 128] {
            cases.push(Case::new([1, 8, 1024, head_dim], dtype, true));
            let step = Case::new([1, 8, 1, head_dim], dtype, true);
            cases.push(Case { seq_kv: 4096, ..step });
        }
    }
    for dtype in [DType::F32, DType::F16] {
        let plain = Case::new([1, 8, 1024, 64], dtype, true);
        cases.extend(CaseOption::ALL.map(|option| Case { option: Some(option), ..plain }));
    }
    cases.extend([32, 96, 256].map(|d| Case::new([1, 8, 1024, d], DType::F16, true)));
    let step = Case::new([1, 32, 1, 128], DType::F16, true);
    cases.push(Case { kv_heads: 8, seq_kv: 32768, ..step });
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
        for name in ["f16 1x8x1/4096x128 causal", "f32 1x8x1024x64 causal dropout"] {
            assert!(names.contains(&name.to_owned()), "{names:?}");
        }
    }
}
