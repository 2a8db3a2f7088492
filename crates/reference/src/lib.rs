//! The float64 oracle: attention exactly as the formula says, one score at a time, never optimised.
//!
//! ```
//! use flashtile_core::{DType, HostInputs, Problem, TensorView};
//! use flashtile_reference::attention;
//!
//! # fn main() -> Result<(), flashtile_core::ProblemError> {
//! // One query, two keys with equal scores: the mean of their values.
//! let q = TensorView::bshd(DType::F32, [1, 1, 1, 1])?;
//! let kv = TensorView::bshd(DType::F32, [1, 2, 1, 1])?;
//! let problem = Problem::builder(q, kv, kv).build()?;
//! let [zeros, values] = [[0f32, 0.0], [1f32, 4.0]].map(|x| x.map(f32::to_le_bytes).concat());
//! let inputs = HostInputs::new(&zeros, &zeros, &values);
//! assert_eq!(attention(&problem, &inputs)?.out, [2.5]);
//! # Ok(())
//! # }
//! ```
//!
//! Every kernel is compared with this crate, so it shares no code with them. It reads numbers
//! through core's views, but has its own rule for which keys a query sees, its own broadcasting and
//! its own dropout generator. [`attention`] also returns the terms of each row's error bound
//! ([`RowTerms`]); [`Reference`] is the `reference` backend.

mod backend;
mod dropout;
mod tensors;
mod visible;

pub use backend::{Reference, run};

use dropout::Dropout;
use flashtile_core::bound::RowTerms;
use flashtile_core::{HostInputs, Problem, ProblemError, ResolvedCall, check_host_inputs};
use tensors::{Dense, MaskValues};
use visible::Visible;

/// The results of one call in float64. Sq is the call's number of queries, not the capacity.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Answer {
    /// The output, densely packed (B, H, Sq, Dv).
    pub out: Vec<f64>,
    /// The natural logarithm of the sum of exponentials of the scores, (B, H, Sq); -inf where no
    /// key is allowed.
    pub lse: Vec<f64>,
    /// The terms of each row's error bound, (B, H, Sq).
    pub rows: Vec<RowTerms>,
}

/// Attention in float64.
///
/// s = scale * q.k; with softcap c, s = c * tanh(s / c); then s += additive mask; p = softmax over
/// the allowed keys; dropout on p; o = p v. The scale is the call's f32, and so is the factor
/// 1 / (1 - dropout_p) of kept weights. Scores saturate at the largest finite f32, both after the
/// multiplication by the scale and after the mask: two keys beyond it tie.
///
/// # Errors
/// Those of [`check_host_args`](flashtile_core::check_host_args).
pub fn attention(problem: &Problem, inputs: &HostInputs<'_>) -> Result<Answer, ProblemError> {
    let call = check_host_inputs(problem, inputs)?;
    let oracle = Oracle {
        problem,
        call,
        q: Dense::new(problem.q(), inputs.q),
        k: Dense::new(problem.k(), inputs.k),
        v: Dense::new(problem.v(), inputs.v),
        mask: problem.mask().zip(inputs.mask).map(|(mask, bytes)| MaskValues::new(mask, bytes)),
        kv_lens: inputs.kv_lens,
        dropout: Dropout::new(problem, &call),
    };
    let mut answer = Answer { out: Vec::new(), lse: Vec::new(), rows: Vec::new() };
    for b in 0..problem.batch() {
        for h in 0..problem.heads() {
            for i in 0..call.seq_q {
                let (out, row) = oracle.row(b, h, i);
                answer.out.extend(out);
                answer.lse.push(row.lse);
                answer.rows.push(row);
            }
        }
    }
    Ok(answer)
}

struct Oracle<'a> {
    problem: &'a Problem,
    call: ResolvedCall,
    q: Dense,
    k: Dense,
    v: Dense,
    mask: Option<MaskValues<'a>>,
    kv_lens: Option<&'a [i32]>,
    dropout: Option<Dropout>,
}

/// A key that a query sees.
struct Key<'a> {
    /// The score, with softcap and mask.
    score: f64,
    /// a_j of the bound: the magnitude of the terms that sum to the score.
    size: f64,
    /// c_j: 1, or with dropout 0 or 1 / (1 - p).
    factor: f64,
    /// The row of v.
    value: &'a [f64],
}

impl Oracle<'_> {
    /// The output of one query, and the terms of its bound.
    fn row(&self, b: usize, h: usize, i: usize) -> (Vec<f64>, RowTerms) {
        let width = self.problem.head_dim_v();
        let keys = self.keys(b, h, i);
        if keys.is_empty() {
            return (vec![0.0; width], RowTerms { lse: f64::NEG_INFINITY, ..RowTerms::default() });
        }
        let max = keys.iter().map(|key| key.score).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = keys.iter().map(|key| (key.score - max).exp()).sum();
        let p: Vec<f64> = keys.iter().map(|key| (key.score - max).exp() / sum).collect();

        let mut out = vec![0.0; width];
        for (key, p) in keys.iter().zip(&p) {
            // A dropped key contributes nothing, whatever its value.
            if key.factor != 0.0 {
                for (o, v) in out.iter_mut().zip(key.value) {
                    *o += p * key.factor * v;
                }
            }
        }

        let (mut kappa, mut mu, mut rho) = (vec![0.0; width], vec![0.0; width], vec![0.0; width]);
        let mut alpha = 0.0;
        for (key, p) in keys.iter().zip(&p) {
            alpha += p * key.size;
            for d in 0..width {
                let value = if key.factor == 0.0 { 0.0 } else { key.factor * key.value[d] };
                kappa[d] += p * key.size * (value - out[d]).abs();
                mu[d] += p * value.abs();
                rho[d] += (p * value) * (p * value);
            }
        }
        // NaN columns are compared as NaN. f64::max keeps them out of the bound of the others.
        let largest = |terms: &[f64]| terms.iter().fold(0.0, |a: f64, &x| a.max(x.abs()));
        let row = RowTerms {
            keys: keys.len(),
            max_out: largest(&out),
            kappa: largest(&kappa),
            mu: largest(&mu),
            rho: largest(&rho).sqrt(),
            alpha,
            lse: max + sum.ln(),
        };
        (out, row)
    }

    /// The keys that query `i` sees.
    fn keys(&self, b: usize, h: usize, i: usize) -> Vec<Key<'_>> {
        let Self { problem, call, .. } = self;
        let valid = self.kv_lens.map_or(call.seq_kv, |lens| lens[b] as usize);
        let visible = Visible::new(problem, call, valid, i);
        let kv_head = h / (problem.heads() / problem.kv_heads());
        let scale = f64::from(call.scale);
        let q = self.q.row(b, h, i);
        let mut keys = Vec::new();
        for j in 0..call.seq_kv {
            if !visible.sees(j) || self.mask.as_ref().is_some_and(|mask| !mask.allows(b, h, i, j)) {
                continue;
            }
            let (mut dot, mut size) = (0.0, 0.0);
            for (q, k) in q.iter().zip(self.k.row(b, kv_head, j)) {
                dot += q * k;
                size += (q * k).abs();
            }
            let mut score = saturate(scale * dot);
            size *= scale.abs();
            if let Some(cap) = problem.softcap().map(f64::from) {
                score = cap * (score / cap).tanh();
            }
            if let Some(added) = self.mask.as_ref().and_then(|mask| mask.added(b, h, i, j)) {
                // A mask near the lowest finite number absorbs the whole score, here and in
                // float32. Its magnitude then says nothing about errors: counted, it would make the
                // bound of a row of only such numbers useless.
                let absorbs = added.abs() >= ABSORBING && score + added == added;
                size += if absorbs { 0.0 } else { added.abs() };
                score = saturate(score + added);
            }
            let factor =
                self.dropout.as_ref().map_or(1.0, |d| d.factor(b * problem.heads() + h, i, j));
            keys.push(Key { score, size, factor, value: self.v.row(b, kv_head, j) });
        }
        keys
    }
}

/// A score beyond f32's range counts as f32's largest finite number. NaN stays NaN.
fn saturate(score: f64) -> f64 {
    score.clamp(f32::MIN.into(), f32::MAX.into())
}

/// 2^100: above any mask that is meant as a number, and below the magnitude of the lowest finite
/// number of f32 and bf16.
const ABSORBING: f64 = 1_267_650_600_228_229_401_496_703_205_376.0;

/// Compiles the example in README.md.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
