//! What is measured.

use crate::{
    args::{BenchArgs, DTypeArg},
    shape::Shape,
};
use anyhow::{Error, Result, anyhow, bail};
use clap::ValueEnum as _;
use flashtile::{Call, Cost, DType, Problem};
use std::{fmt, str::FromStr};

/// The testkit's named shapes of plain self-attention, smallest first.
fn named() -> Vec<Shape> {
    let plain = |case: &flashtile_testkit::Case| {
        case.kv_heads == case.heads
            && case.seq_kv == case.seq_q
            && case.softcap.is_none()
            && case.seq_q > 1
    };
    let named = flashtile_testkit::named_shapes().into_iter().map(|(_, case)| case).filter(plain);
    let shape = |case: flashtile_testkit::Case| {
        Shape::of_self([case.batch, case.heads, case.seq_q, case.head_dim])
    };
    let mut shapes: Vec<_> = named.map(shape).collect();
    shapes.sort_by_key(Shape::work);
    shapes
}

/// Sequence lengths of the curves, with 8 heads of 64.
const CURVE: [usize; 7] = [256, 512, 1024, 2048, 4096, 8192, 16384];

/// One case: attention over dense tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Case {
    pub(crate) shape: Shape,
    pub(crate) dtype: DType,
    pub(crate) causal: bool,
    /// Whether it is a point of the curves.
    pub(crate) on_curve: bool,
}

impl Case {
    /// One that is no point of the curves.
    pub(crate) fn new(shape: Shape, dtype: DType, causal: bool) -> Self {
        Self { shape, dtype, causal, on_curve: false }
    }

    pub(crate) fn problem(&self) -> Result<Problem> {
        Ok(self.shape.problem(self.dtype, self.causal)?)
    }

    /// The least operations and bytes. They do not depend on the tiles.
    pub(crate) fn cost(&self) -> Result<Cost> {
        let problem = self.problem()?;
        Ok(Cost::new(&problem, &Call::default().resolve(&problem)?, 64, 64, None))
    }
}

/// `1x8x1024x64 f16 causal`.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let causal = if self.causal { " causal" } else { "" };
        write!(f, "{} {}{causal}", self.shape, self.dtype)
    }
}

/// `BxHxSxD,dtype[,causal]`, with the sizes of [`Shape`].
impl FromStr for Case {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.split(',');
        let shape: Result<Shape, _> = parts.next().unwrap_or_default().parse();
        let shape = shape.map_err(|e| anyhow!("`{text}`: {e}"))?;
        let dtype = parts.next().unwrap_or_default();
        let dtype = DTypeArg::from_str(dtype, false)
            .map_err(|_| anyhow!("`{text}`: expected dtype f32, f16 or bf16, but got `{dtype}`"))?;
        let causal = match (parts.next(), parts.next()) {
            (None, _) => false,
            (Some("causal"), None) => true,
            _ => bail!("`{text}`: expected nothing or `causal` after the dtype"),
        };
        Ok(Self::new(shape, dtype.dtype(), causal))
    }
}

/// The cases to measure. With --shape, one case; otherwise the named ones, and with --plot the
/// points of the curves.
pub(crate) fn cases(args: &BenchArgs) -> Vec<Case> {
    let dtype = args.dtype.map(|dtype| dtype.dtype());
    if let Some(shape) = args.shape {
        return vec![Case {
            shape,
            dtype: dtype.unwrap_or(DType::F32),
            causal: args.causal,
            on_curve: true,
        }];
    }
    let dtypes = dtype.map_or(vec![DType::F32, DType::F16], |dtype| vec![dtype]);
    let mut cases = Vec::new();
    for shape in named() {
        for &dtype in &dtypes {
            for causal in [false, true] {
                if causal || !args.causal {
                    cases.push(Case::new(shape, dtype, causal));
                }
            }
        }
    }
    if args.plot.is_some() {
        let point = |s| Case {
            shape: Shape::of_self([1, 8, s, 64]),
            dtype: dtypes[0],
            causal: args.causal,
            on_curve: true,
        };
        cases.extend(CURVE.map(point));
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_read_from_text() {
        let case = Case::new(Shape::of_self([1, 2, 3, 4]), DType::BF16, true);
        assert_eq!("1x2x3x4,bf16,causal".parse::<Case>().expect("a case"), case);
        let case = Case { dtype: DType::F32, causal: false, ..case };
        assert_eq!("1x2x3x4,f32".parse::<Case>().expect("a case"), case);
        let decode: Case = "1x4/2x1/9x8,f16".parse().expect("a case");
        assert_eq!((decode.shape.seq_kv, decode.to_string().as_str()), (9, "1x4/2x1/9x8 f16"));
        for (text, error) in [
            ("1x2x3x4", "expected dtype f32, f16 or bf16, but got ``"),
            ("1x2x3x4,f64", "expected dtype f32, f16 or bf16, but got `f64`"),
            ("1x2x3,f32", "expected BxHxSxD"),
            ("1x2x3x4,f32,casual", "expected nothing or `causal`"),
            ("1x2x3x4,f32,causal,causal", "expected nothing or `causal`"),
        ] {
            let message = text.parse::<Case>().expect_err("no case").to_string();
            assert!(message.contains(error), "{message}");
        }
    }
}
