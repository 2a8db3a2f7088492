use crate::args::BenchArgs;
use anyhow::Result;
use flashtile::{Call, Cost, DType, Layout, Problem, TensorView};

/// The testkit's named shapes (B, H, S, D), those of plain self-attention, smallest first: `case` tells them apart.
fn named() -> Vec<[usize; 4]> {
    let plain = |case: &flashtile_testkit::Case| {
        case.kv_heads == case.heads
            && case.seq_kv == case.seq_q
            && case.softcap.is_none()
            && case.seq_q > 1
    };
    let named = flashtile_testkit::named_shapes().into_iter().map(|(_, case)| case).filter(plain);
    let mut shapes: Vec<_> =
        named.map(|case| [case.batch, case.heads, case.seq_q, case.head_dim]).collect();
    shapes.sort_by_key(|[b, h, s, d]| b * h * s * s * d);
    shapes
}

/// Lengths of the curves, at 8 heads of 64.
const CURVE: [usize; 7] = [256, 512, 1024, 2048, 4096, 8192, 16384];

/// One kind of attention to measure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Case {
    /// (B, H, S, D).
    pub(crate) shape: [usize; 4],
    pub(crate) dtype: DType,
    pub(crate) causal: bool,
    /// Whether it is a point of the curves.
    pub(crate) on_curve: bool,
}

impl Case {
    /// `BxHxSxD`.
    pub(crate) fn name(&self) -> String {
        self.shape.map(|n| n.to_string()).join("x")
    }

    pub(crate) fn problem(&self) -> Result<Problem> {
        let x = TensorView::from_bhsd_sizes(self.dtype, Layout::Bhsd, self.shape)?;
        Ok(Problem::builder(x, x, x).causal(self.causal).build()?)
    }

    /// Operations and bytes at the least; the tiles do not matter for these.
    pub(crate) fn cost(&self) -> Result<Cost> {
        let problem = self.problem()?;
        Ok(Cost::new(&problem, &Call::default().resolve(&problem)?, 64, 64, None))
    }
}

/// What is to be measured: with --shape one case; without, the named ones, and with --plot the points of the curves.
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
                    cases.push(Case { shape, dtype, causal, on_curve: false });
                }
            }
        }
    }
    if args.plot.is_some() {
        let point = |s| Case {
            shape: [1, 8, s, 64],
            dtype: dtypes[0],
            causal: args.causal,
            on_curve: true,
        };
        cases.extend(CURVE.map(point));
    }
    cases
}
