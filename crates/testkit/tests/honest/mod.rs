//! A correct ("honest") float32 kernel in plain Rust: online softmax over tiles, with sums in f32.
//! The same kernel can have one fault.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use flashtile_core::{
    Backend, BackendError, BackendKind, BackendPlan, DType, Dropout, HostArgs, HostStats, KeyTiles,
    MaskKind, PlanOptions, Problem, ResolvedCall, TensorView, TileKind, Timing, Verdict,
    check_host_args,
};
use flashtile_testkit::cannot_plan;
use half::{bf16, f16};
use std::{sync::Arc, time::Instant};

/// The fault of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// The last key that a row sees is left out.
    SkippedKey,
    /// A tile that raises the maximum does not rescale the output (it does rescale the sum).
    MissedRescale,
    /// The sum is not rescaled.
    MissedSumRescale,
    /// Scores are rounded to f16.
    F16Scores,
    /// Scores are rounded to bf16.
    Bf16Scores,
    /// The output's sum is kept in f16.
    F16Sums,
    /// The output's sum is kept in bf16.
    Bf16Sums,
    /// The output is one long sum over all keys instead of a sum of the tiles' sums. It is in f32,
    /// but its error grows faster than sqrt(n).
    OneLongSum,
    /// The scale is off by one part in a thousand.
    WrongScale,
    /// Causal allows one key too many.
    CausalOffByOne,
    /// Heads read the neighbouring key head.
    WrongKeyHead,
    /// Softcap after the mask instead of before.
    SoftcapAfterMask,
    /// The mask is multiplied by log2(e), as for exp2, and overflows where it is the lowest finite
    /// number.
    MaskInLog2,
    /// Dropped weights are missing from the softmax's sum too.
    DropoutInSum,
    /// Kept weights are not multiplied by 1 / (1 - p).
    DropoutUnscaled,
    /// Keys are masked by arithmetic with 0 and 1, so NaN gets through.
    MaskByArithmetic,
}

/// The accuracy of the functions that are applied to scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Functions {
    /// The platform's.
    Exact,
    /// As inaccurate as WGSL allows: exp2 within 3 + 2|x| ulp and division within 2.5 ulp, with
    /// errors of random sign. Only exp2(0) is exactly 1, as on every GPU tested so far. WGSL would
    /// allow an error of 3 ulp, which would accumulate with the rescaling of every tile.
    Wgsl,
}

/// A float32 kernel.
#[derive(Clone, Copy, Debug)]
pub struct Honest {
    /// Keys per tile.
    pub tile: usize,
    /// Whether weights are rounded to the storage type before they are multiplied by the values, as
    /// matrix units require.
    pub stored_weights: bool,
    /// The accuracy of exp2 and division.
    pub functions: Functions,
    /// The fault, if there is one.
    pub sabotage: Option<Sabotage>,
}

impl Honest {
    pub const PLAIN: Honest =
        Honest { tile: 32, stored_weights: false, functions: Functions::Exact, sabotage: None };
}

impl Backend for Honest {
    fn kind(&self) -> BackendKind {
        BackendKind::Reference
    }

    fn device_name(&self) -> String {
        format!("{self:?}")
    }

    fn verdict(&self, _: &Problem, _: &PlanOptions) -> Verdict {
        Verdict::Runs("float32, tile by tile".to_owned())
    }

    fn plan(&self, _: &Problem, _: &PlanOptions) -> Result<Arc<dyn BackendPlan>, BackendError> {
        Err(cannot_plan(BackendKind::Reference))
    }

    fn run(
        &self,
        problem: &Problem,
        _: &PlanOptions,
        args: HostArgs<'_>,
    ) -> Result<HostStats, BackendError> {
        let start = Instant::now();
        let call = check_host_args(problem, &args)
            .map_err(|e| BackendError::of_problem(BackendKind::Reference, e))?;
        let HostArgs { q, k, v, mask, kv_lens, out, mut lse, .. } = args;
        let inputs = Inputs {
            problem,
            call,
            q: Dense::new(problem.q(), q),
            k: Dense::new(problem.k(), k),
            v: Dense::new(problem.v(), v),
            mask,
        };
        for b in 0..problem.batch() {
            let kv_len = kv_lens.map_or(call.seq_kv, |lens| lens[b] as usize);
            for h in 0..problem.heads() {
                for i in 0..call.seq_q {
                    let (row, row_lse) = self.row(&inputs, [b, h, i], kv_len);
                    for (d, o) in row.into_iter().enumerate() {
                        problem.dtype().write(out, problem.out().index(b, h, i, d), o.into());
                    }
                    if let Some(lse) = &mut lse {
                        lse[(b * problem.heads() + h) * problem.seq_q() + i] = row_lse;
                    }
                }
            }
        }
        let run = Timing::new(start.elapsed(), None);
        Ok(HostStats::new(run, 0))
    }
}

struct Inputs<'a> {
    problem: &'a Problem,
    call: ResolvedCall,
    q: Dense,
    k: Dense,
    v: Dense,
    mask: Option<&'a [u8]>,
}

/// A tensor read into f32, densely packed (B, H, S, D).
struct Dense {
    shape: [usize; 4],
    values: Vec<f32>,
}

impl Dense {
    fn new(view: &TensorView, bytes: &[u8]) -> Self {
        let [batch, heads, seq, dim] = view.shape;
        let mut values = Vec::new();
        for (b, h, s) in
            (0..batch).flat_map(|b| (0..heads).flat_map(move |h| (0..seq).map(move |s| (b, h, s))))
        {
            values.extend((0..dim).map(|d| view.dtype.read(bytes, view.index(b, h, s, d)) as f32));
        }
        Self { shape: view.shape, values }
    }

    fn row(&self, b: usize, h: usize, s: usize) -> &[f32] {
        let [_, heads, seq, dim] = self.shape;
        &self.values[((b * heads + h) * seq + s) * dim..][..dim]
    }
}

impl Inputs<'_> {
    /// Whether the mask allows a key, and the number that it adds.
    fn mask(&self, [b, h, i]: [usize; 3], j: usize) -> (bool, f32) {
        let Some((mask, bytes)) = self.problem.mask().zip(self.mask) else {
            return (true, 0.0);
        };
        let at = mask.index(b, h, i, j);
        match mask.kind {
            MaskKind::Bool => (bytes[at] != 0, 0.0),
            MaskKind::Additive(dtype) => {
                let added = dtype.read(bytes, at) as f32;
                (added != f32::NEG_INFINITY, added)
            }
        }
    }
}

impl Honest {
    fn has(&self, sabotage: Sabotage) -> bool {
        self.sabotage == Some(sabotage)
    }

    /// exp(x) as kernels compute it: exp2(x log2(e)).
    fn exp(&self, x: f32) -> f32 {
        let x = x * std::f32::consts::LOG2_E;
        match self.functions {
            Functions::Exact => x.exp2(),
            Functions::Wgsl if x == 0.0 => 1.0,
            Functions::Wgsl => worsen(x.exp2(), 3.0 + 2.0 * x.abs()),
        }
    }

    /// The output and lse of one row.
    fn row(&self, inputs: &Inputs<'_>, at: [usize; 3], kv_len: usize) -> (Vec<f32>, f32) {
        let Inputs { problem, call, .. } = inputs;
        let [b, h, i] = at;
        let mut band = problem.band();
        if self.has(Sabotage::CausalOffByOne) && problem.causal() {
            band.hi += 1;
        }
        let mut kv_head = h / problem.group_size();
        if self.has(Sabotage::WrongKeyHead) {
            kv_head = (kv_head + 1) % problem.kv_heads();
        }
        let last_key = (0..kv_len)
            .rev()
            .find(|&j| band.allows(i, j, call.seq_q, kv_len) && inputs.mask(at, j).0);
        let dtype = problem.dtype();
        let dropout = problem.dropout();
        let bh = (b * problem.heads() + h) as u32;

        let (mut m, mut l) = (f32::NEG_INFINITY, 0f32);
        let mut o = vec![0f32; problem.head_dim_v()];
        let mut seen = false;
        for tile in
            KeyTiles::new(band, problem.mask().is_some(), i..i + 1, self.tile, call.seq_q, kv_len)
        {
            let mut scores = Vec::new();
            for j in tile.keys.clone() {
                let (mask_allows, added) = inputs.mask(at, j);
                let allowed = tile.kind == TileKind::Full
                    || (band.allows(i, j, call.seq_q, kv_len) && mask_allows);
                let skipped = self.has(Sabotage::SkippedKey) && Some(j) == last_key;
                let score = self.score(inputs, at, kv_head, j, added);
                if self.has(Sabotage::MaskByArithmetic) {
                    let gate = if allowed { 1.0 } else { 0.0 };
                    scores.push(Some(score * gate + (1.0 - gate) * -1e30));
                } else {
                    scores.push((allowed && !skipped).then_some(score));
                }
            }
            let tile_max = scores.iter().flatten().fold(f32::NEG_INFINITY, |a: f32, &s| a.max(s));
            if scores.iter().all(Option::is_none) {
                continue;
            }
            // The maximum cannot tell: that of a row of NaN is -inf too.
            seen = true;
            let new_m = m.max(tile_max);
            let rescale = if m == f32::NEG_INFINITY { 0.0 } else { self.exp(m - new_m) };
            m = new_m;
            if !self.has(Sabotage::MissedSumRescale) || rescale == 0.0 {
                l *= rescale;
            }
            if !self.has(Sabotage::MissedRescale) || rescale == 0.0 {
                o.iter_mut().for_each(|o| *o *= rescale);
            }
            // Each tile has a sum of its own: the error of one long sum grows with its length.
            let mut tile_sum = 0.0;
            let mut tile_o = vec![0f32; o.len()];
            if matches!(
                self.sabotage,
                Some(Sabotage::OneLongSum | Sabotage::F16Sums | Sabotage::Bf16Sums)
            ) {
                std::mem::swap(&mut o, &mut tile_o);
            }
            for (j, score) in tile.keys.zip(scores) {
                let Some(score) = score else { continue };
                let p = self.exp(score - m);
                let kept = dropout.is_none_or(|d: Dropout| {
                    d.keeps(call.seed, call.offset, bh, i as u32, j as u32)
                });
                if kept || !self.has(Sabotage::DropoutInSum) {
                    tile_sum += p;
                }
                let keep_scale = dropout.map_or(1.0, |d| {
                    if self.has(Sabotage::DropoutUnscaled) { 1.0 } else { d.keep_scale }
                });
                let weight = self.stored(p * keep_scale, dtype);
                if !kept {
                    continue;
                }
                for (o, v) in tile_o.iter_mut().zip(inputs.v.row(b, kv_head, j)) {
                    *o = self.summed(*o + weight * v);
                }
            }
            l += tile_sum;
            for (o, tile) in o.iter_mut().zip(&tile_o) {
                *o += tile;
                *o = self.summed(*o);
            }
        }
        if !seen {
            return (vec![0.0; o.len()], f32::NEG_INFINITY);
        }
        o.iter_mut().for_each(|o| {
            *o /= l;
            if self.functions == Functions::Wgsl {
                *o = worsen(*o, 2.5);
            }
        });
        (o, m + l.ln())
    }

    fn score(
        &self,
        inputs: &Inputs<'_>,
        [b, h, i]: [usize; 3],
        kv_head: usize,
        j: usize,
        added: f32,
    ) -> f32 {
        let Inputs { problem, call, q, k, .. } = inputs;
        let mut dot = 0f32;
        for (q, k) in q.row(b, h, i).iter().zip(k.row(b, kv_head, j)) {
            dot += q * k;
        }
        let scale = if self.has(Sabotage::WrongScale) { call.scale * 1.001 } else { call.scale };
        let cap = |s: f32| problem.softcap().map_or(s, |c| c * (s / c).tanh());
        let saturate = |s: f32| s.clamp(f32::MIN, f32::MAX);
        let mut score = saturate(dot * scale);
        if self.has(Sabotage::SoftcapAfterMask) {
            score = cap(score + added);
        } else if self.has(Sabotage::MaskInLog2) {
            let log2_e = std::f32::consts::LOG2_E;
            score = (cap(score) * log2_e + added * log2_e) / log2_e;
        } else {
            score = cap(score) + added;
        }
        match self.sabotage {
            Some(Sabotage::F16Scores) => f16::from_f32(score).to_f32(),
            Some(Sabotage::Bf16Scores) => bf16::from_f32(score).to_f32(),
            Some(Sabotage::MaskInLog2) => score,
            // A score that overflows saturates to a finite number.
            _ => saturate(score),
        }
    }

    /// A running sum, rounded as it is stored.
    fn summed(&self, sum: f32) -> f32 {
        match self.sabotage {
            Some(Sabotage::F16Sums) => f16::from_f32(sum).to_f32(),
            Some(Sabotage::Bf16Sums) => bf16::from_f32(sum).to_f32(),
            _ => sum,
        }
    }

    fn stored(&self, weight: f32, dtype: DType) -> f32 {
        match dtype {
            DType::F16 if self.stored_weights => f16::from_f32(weight).to_f32(),
            DType::BF16 if self.stored_weights => bf16::from_f32(weight).to_f32(),
            _ => weight,
        }
    }
}

/// `x` with an error of up to `ulps`. Its bits decide the size and the sign of the error.
fn worsen(x: f32, ulps: f32) -> f32 {
    if x == 0.0 {
        return x;
    }
    let noise = (x.to_bits().wrapping_mul(0x9E37_79B9) >> 8) as f32 / (1u32 << 23) as f32 - 1.0;
    x + x * noise * ulps * f32::EPSILON / 2.0
}
