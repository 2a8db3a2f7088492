//! Small problems in f32 and bhsd.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use approx::assert_relative_eq;
use flashtile_core::{
    Call, DType, HostArgs, HostInputs, Layout, Problem, ProblemBuilder, TensorView,
};
use flashtile_reference::{Answer, attention, run};

pub fn view(shape: [usize; 4]) -> TensorView {
    TensorView::from_bhsd_sizes(DType::F32, Layout::Bhsd, shape).expect("small")
}

pub fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// A problem with its inputs. Tests change single fields.
pub struct Case {
    pub problem: Problem,
    pub q: Vec<u8>,
    pub k: Vec<u8>,
    pub v: Vec<u8>,
    pub mask: Option<Vec<u8>>,
    pub kv_lens: Option<Vec<i32>>,
    pub call: Call,
}

impl Case {
    /// `shapes` are those of q, k and v.
    pub fn new(
        shapes: [[usize; 4]; 3],
        [q, k, v]: [&[f32]; 3],
        describe: impl FnOnce(ProblemBuilder) -> ProblemBuilder,
    ) -> Self {
        let [qs, ks, vs] = shapes.map(view);
        let problem = describe(Problem::builder(qs, ks, vs)).build().expect("valid");
        let call = Call::new().scale(1.0);
        Self { problem, q: bytes(q), k: bytes(k), v: bytes(v), mask: None, kv_lens: None, call }
    }

    /// One query [1] over keys whose scores are `scores`, with one value per key.
    pub fn scores(
        scores: &[f32],
        values: &[f32],
        describe: impl FnOnce(ProblemBuilder) -> ProblemBuilder,
    ) -> Self {
        let n = scores.len();
        Self::new([[1, 1, 1, 1], [1, 1, n, 1], [1, 1, n, 1]], [&[1.0], scores, values], describe)
    }

    pub fn inputs(&self) -> HostInputs<'_> {
        let Self { q, k, v, mask, kv_lens, call, .. } = self;
        let mut inputs = HostInputs::new(q, k, v).call(*call);
        inputs.mask = mask.as_deref();
        inputs.kv_lens = kv_lens.as_deref();
        inputs
    }

    pub fn answer(&self) -> Answer {
        attention(&self.problem, &self.inputs()).expect("valid inputs")
    }

    /// Runs the backend on `out` and `lse` that are filled with `before`.
    pub fn run(&self, before: f32) -> (Vec<f32>, Vec<f32>) {
        let mut out = bytes(&vec![before; self.problem.out().span().expect("small")]);
        let mut lse = vec![before; self.problem.lse_shape().iter().product()];
        let Self { q, k, v, mask, kv_lens, call, .. } = self;
        let mut args = HostArgs::new(q, k, v, &mut out).call(*call);
        args.mask = mask.as_deref();
        args.kv_lens = kv_lens.as_deref();
        args.lse = self.problem.lse().then_some(&mut lse[..]);
        run(&self.problem, args).expect("valid arguments");
        (
            out.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().expect("four"))).collect(),
            lse,
        )
    }
}

/// Asserts equality up to a few hundred units in the last place of f64.
#[track_caller]
pub fn assert_close(got: &[f64], expected: &[f64]) {
    assert_relative_eq!(got, expected, epsilon = 1e-13, max_relative = 1e-13);
}
