use crate::case::{Case, KvLens, MaskContent, MaskSpec, Nan, Poison, Values};
use crate::rng::Rng;
use flashtile_core::{
    Call, DType, HostArgs, HostInputs, Mask, MaskKind, Problem, ProblemError, ResolvedCall,
    TensorView,
};

/// The problem of a case and the bytes of its inputs.
#[derive(Clone, Debug)]
pub struct Tensors {
    /// The problem that the case describes.
    pub problem: Problem,
    /// The values of the call.
    pub call: Call,
    /// Bytes of q.
    pub q: Vec<u8>,
    /// Bytes of k.
    pub k: Vec<u8>,
    /// Bytes of v.
    pub v: Vec<u8>,
    /// Bytes of the mask.
    pub mask: Option<Vec<u8>>,
    /// Valid keys of each batch entry.
    pub kv_lens: Option<Vec<i32>>,
}

impl Tensors {
    /// The inputs alone.
    pub fn inputs(&self) -> HostInputs<'_> {
        let Self { q, k, v, mask, kv_lens, call, .. } = self;
        let mut inputs = HostInputs::new(q, k, v).call(*call);
        inputs.mask = mask.as_deref();
        inputs.kv_lens = kv_lens.as_deref();
        inputs
    }

    /// The same with q, k and v rounded to f16 and stored as before. Finite numbers beyond the
    /// range of f16 become its largest number.
    pub(crate) fn rounded_to_f16(&self) -> Self {
        let dtype = self.problem.dtype();
        let round = |bytes: &[u8]| {
            let (mut rounded, mut half) = (bytes.to_vec(), [0; 2]);
            for n in 0..bytes.len() / dtype.size() {
                let x = dtype.read(bytes, n);
                let max = DType::F16.max();
                DType::F16.write(&mut half, 0, if x.is_finite() { x.clamp(-max, max) } else { x });
                dtype.write(&mut rounded, n, DType::F16.read(&half, 0));
            }
            rounded
        };
        Self { q: round(&self.q), k: round(&self.k), v: round(&self.v), ..self.clone() }
    }

    /// The inputs with buffers for the results.
    pub fn args<'a>(&'a self, out: &'a mut [u8], lse: Option<&'a mut [f32]>) -> HostArgs<'a> {
        let inputs = self.inputs();
        let mut args = HostArgs::new(inputs.q, inputs.k, inputs.v, out).call(inputs.call);
        args.mask = inputs.mask;
        args.kv_lens = inputs.kv_lens;
        args.lse = lse;
        args
    }
}

/// Every buffer is this many elements longer than its tensor, so that code which takes the buffer's
/// length for the tensor's fails.
pub(crate) const SLACK: usize = 3;

impl Case {
    /// The problem and the bytes of its inputs: always the same for the same case.
    ///
    /// # Errors
    /// If the case breaks a rule of [`Problem`] or [`Call`].
    pub fn build(&self) -> Result<Tensors, ProblemError> {
        let problem = self.problem()?;
        let call = self.call().resolve(&problem)?;
        let kv_lens = self.lens(&call);
        let band = |b: usize, i: usize, j: usize| {
            let valid = kv_lens.as_ref().map_or(call.seq_kv, |lens: &Vec<i32>| {
                lens.get(b).map_or(0, |&n| n.max(0) as usize)
            });
            problem.band().allows(i, j, call.seq_q, valid)
        };
        let mask = problem.mask().zip(self.mask).map(|(view, spec)| {
            let used = |b, i, j| self.poison == Poison::Gaps || band(b, i, j);
            fill_mask(self, &spec, view, &call, &used)
        });
        let seen = Seen::new(self, &call, |b, h, i, j| {
            let allowed = || match (problem.mask(), &mask) {
                (Some(view), Some(bytes)) => mask_allows(view, bytes, view.index(b, h, i, j)),
                _ => true,
            };
            band(b, i, j) && allowed()
        });

        let mut rng = [1, 2, 3, 4].map(|stream| Rng::new(self.seed, stream));
        let k = values(self, &mut rng[1], Which::K, self.k_shape());
        let mut q = values(self, &mut rng[0], Which::Q, self.q_shape());
        let v = values(self, &mut rng[2], Which::V, self.v_shape());
        if self.values == Values::OneHot && self.seq_kv > 0 {
            point_at_keys(self, &mut q, &k);
        }
        let write = |view: &TensorView, values: &[f64], seen: &[bool], nan: bool, stream| {
            let mut rng = Rng::new(self.seed, stream);
            let row = if nan { pick_seen(&mut rng, seen) } else { None };
            fill(view, values, seen, row, &mut rng)
        };
        Ok(Tensors {
            call: self.call(),
            q: write(problem.q(), &q, &seen.queries, self.nan == Some(Nan::Q), 5),
            k: write(problem.k(), &k, &seen.keys, self.nan == Some(Nan::K), 6),
            v: write(problem.v(), &v, &seen.keys, self.nan == Some(Nan::V), 7),
            mask,
            kv_lens,
            problem,
        })
    }

    fn lens(&self, call: &ResolvedCall) -> Option<Vec<i32>> {
        let mut rng = Rng::new(self.seed, 8);
        match &self.kv_lens {
            KvLens::Off => None,
            KvLens::Lens(lens) => Some(lens.clone()),
            KvLens::Random => Some(
                (0..self.batch)
                    .map(|_| match rng.below(8) {
                        0 => 0,
                        1 => call.seq_kv as i32,
                        _ => rng.below(call.seq_kv + 1) as i32,
                    })
                    .collect(),
            ),
        }
    }
}

/// Which rows hold numbers. The others are poisoned.
struct Seen {
    /// (B, H, Sq)
    queries: Vec<bool>,
    /// (B, Hkv, Skv)
    keys: Vec<bool>,
}

impl Seen {
    fn new(
        case: &Case,
        call: &ResolvedCall,
        sees: impl Fn(usize, usize, usize, usize) -> bool,
    ) -> Self {
        let Case { batch, heads, kv_heads, seq_q, seq_kv, .. } = *case;
        let mut seen = Self {
            queries: vec![false; batch * heads * seq_q],
            keys: vec![false; batch * kv_heads * seq_kv],
        };
        if case.poison == Poison::Gaps {
            seen.queries
                .iter_mut()
                .enumerate()
                .for_each(|(row, seen)| *seen = row % seq_q < call.seq_q);
            seen.keys
                .iter_mut()
                .enumerate()
                .for_each(|(row, seen)| *seen = row % seq_kv < call.seq_kv);
            return seen;
        }
        for b in 0..batch {
            for h in 0..heads {
                let kv_head = h / (heads / kv_heads);
                for (i, j) in (0..call.seq_q).flat_map(|i| (0..call.seq_kv).map(move |j| (i, j))) {
                    if sees(b, h, i, j) {
                        seen.queries[(b * heads + h) * seq_q + i] = true;
                        seen.keys[(b * kv_heads + kv_head) * seq_kv + j] = true;
                    }
                }
            }
        }
        seen
    }
}

fn pick_seen(rng: &mut Rng, seen: &[bool]) -> Option<usize> {
    let rows: Vec<usize> = (0..seen.len()).filter(|&row| seen[row]).collect();
    if rows.is_empty() { None } else { Some(rng.pick(&rows)) }
}

#[derive(Clone, Copy, PartialEq)]
enum Which {
    Q,
    K,
    V,
}

/// The numbers of a tensor, in (B, H, S, D) order.
fn values(case: &Case, rng: &mut Rng, which: Which, shape: [usize; 4]) -> Vec<f64> {
    let f16 = case.dtype == DType::F16;
    let mut draw = || match (case.values, which) {
        (Values::Normal | Values::OneHot, _) | (Values::Large | Values::Huge, Which::V) => {
            rng.normal()
        }
        (Values::Large, _) => 6.0 * rng.normal(),
        (Values::Huge, _) => 60.0 * rng.normal(),
        (Values::Tiny, _) => rng.normal() * 2f64.powi(if f16 { -12 } else { -60 }),
        (Values::Constant, Which::V) => 0.75,
        (Values::Constant, _) => 0.5,
        (Values::Alike, Which::V) => 1.0 + rng.uniform(),
        (Values::Alike, _) => rng.normal(),
        (Values::Spread, Which::V) => {
            let powers = if f16 { 9 } else { 25 };
            rng.normal() * 2f64.powi(rng.below(2 * powers) as i32 - powers as i32)
        }
        (Values::Spread, _) => rng.normal() * 2f64.powi(rng.below(7) as i32 - 4),
        (Values::Ints, _) => rng.below(7) as f64 - 3.0,
        (Values::Vast, Which::V) => {
            let most = if f16 { 60_000.0 } else { 1e30 };
            most * (2.0 * rng.uniform() - 1.0)
        }
        (Values::Positive, Which::V) => rng.uniform(),
        (Values::Vast | Values::Positive, _) => rng.normal(),
    };
    let [batch, heads, seq, head_dim] = shape;
    if case.values == Values::Alike {
        let mut rows = Vec::new();
        for _ in 0..batch * heads {
            let row: Vec<f64> = (0..head_dim).map(|_| draw()).collect();
            rows.extend(row.repeat(seq));
        }
        return rows;
    }
    (0..shape.iter().product()).map(|_| draw()).collect()
}

/// Makes each query six times one of the keys.
fn point_at_keys(case: &Case, q: &mut [f64], k: &[f64]) {
    let Case { heads, kv_heads, seq_q, seq_kv, head_dim, .. } = *case;
    for (row, q) in q.chunks_exact_mut(head_dim).enumerate() {
        let (bh, i) = (row / seq_q, row % seq_q);
        let kv_head = bh / heads * kv_heads + bh % heads / (heads / kv_heads);
        let start = (kv_head * seq_kv + (i * 7 + 3) % seq_kv) * head_dim;
        q.iter_mut().zip(&k[start..]).for_each(|(q, k)| *q = 6.0 * k);
    }
}

/// The bytes of a tensor: the rows that are seen, and poison everywhere else. `nan` is a row that
/// gets one NaN.
fn fill(
    view: &TensorView,
    values: &[f64],
    seen: &[bool],
    nan: Option<usize>,
    rng: &mut Rng,
) -> Vec<u8> {
    let [batch, heads, seq, dim] = view.shape;
    let mut bytes = poisoned(view.dtype, view.span().unwrap_or(0) + SLACK, rng);
    for row in (0..batch * heads * seq).filter(|&row| seen[row]) {
        let (b, h, s) = (row / seq / heads, row / seq % heads, row % seq);
        for d in 0..dim {
            view.dtype.write(&mut bytes, view.index(b, h, s, d), values[row * dim + d]);
        }
    }
    if let Some(row) = nan {
        let at = view.index(row / seq / heads, row / seq % heads, row % seq, rng.below(dim));
        view.dtype.write(&mut bytes, at, f64::NAN);
    }
    bytes
}

fn poisoned(dtype: DType, elements: usize, rng: &mut Rng) -> Vec<u8> {
    let mut bytes = vec![0; elements * dtype.size()];
    for at in 0..elements {
        dtype.write(
            &mut bytes,
            at,
            rng.pick(&[f64::NAN, f64::NAN, f64::INFINITY, f64::NEG_INFINITY]),
        );
    }
    bytes
}

fn mask_allows(mask: &Mask, bytes: &[u8], at: usize) -> bool {
    match mask.kind {
        MaskKind::Bool => bytes[at] != 0,
        MaskKind::Additive(dtype) => dtype.read(bytes, at) != f64::NEG_INFINITY,
    }
}

/// The bytes of a mask: the entries that the call uses, and poison everywhere else.
fn fill_mask(
    case: &Case,
    spec: &MaskSpec,
    view: &Mask,
    call: &ResolvedCall,
    used: &dyn Fn(usize, usize, usize) -> bool,
) -> Vec<u8> {
    let mut rng = Rng::new(case.seed, 4);
    let entries = view.byte_span().unwrap_or(0) / view.kind.size() + SLACK;
    let mut bytes = match view.kind {
        MaskKind::Bool => (0..entries).map(|_| rng.below(256) as u8).collect(),
        MaskKind::Additive(dtype) => poisoned(dtype, entries, &mut rng),
    };
    let [batch, heads, seq_q, seq_kv] = view.shape;
    let mut is_used = vec![false; batch * heads * seq_q * seq_kv];
    // Without a batch axis, an entry is used if any batch entry uses it. Bands do not depend on
    // heads.
    for (b, i, j) in (0..case.batch)
        .flat_map(|b| (0..call.seq_q).map(move |i| (b, i)))
        .flat_map(|(b, i)| (0..call.seq_kv).map(move |j| (b, i, j)))
    {
        if used(b, i, j) {
            let [mb, mi, mj] =
                [(b, batch), (i, seq_q), (j, seq_kv)].map(|(at, n)| if n == 1 { 0 } else { at });
            for h in 0..heads {
                is_used[((mb * heads + h) * seq_q + mi) * seq_kv + mj] = true;
            }
        }
    }
    let content = Content::new(spec.content, view.shape, &mut rng);
    for (entry, used) in is_used.into_iter().enumerate() {
        let [b, h, i, j] = [
            entry / seq_kv / seq_q / heads,
            entry / seq_kv / seq_q % heads,
            entry / seq_kv % seq_q,
            entry % seq_kv,
        ];
        let value = content.value(view, &mut rng, [b, h, i, j]);
        if used {
            match view.kind {
                // Every byte except 0 is true.
                MaskKind::Bool => {
                    bytes[view.index(b, h, i, j)] =
                        if value.is_none() { 0 } else { rng.pick(&[1, 1, 2, 255]) }
                }
                MaskKind::Additive(dtype) => {
                    dtype.write(
                        &mut bytes,
                        view.index(b, h, i, j),
                        value.unwrap_or(f64::NEG_INFINITY),
                    );
                }
            }
        }
    }
    bytes
}

/// The rule that fills a mask.
struct Content {
    kind: MaskContent,
    /// Rows (B, H, Sq of the mask) that are fully masked.
    shut_rows: Vec<bool>,
    /// Sizes of the rectangles, and whether each is masked.
    block: [usize; 2],
    shut_blocks: Vec<bool>,
    blocks_across: usize,
}

impl Content {
    fn new(kind: MaskContent, [batch, heads, seq_q, seq_kv]: [usize; 4], rng: &mut Rng) -> Self {
        let shuts_rows = matches!(kind, MaskContent::Rows | MaskContent::Lowest);
        let shut_rows =
            (0..batch * heads * seq_q).map(|_| shuts_rows && rng.chance(1.0 / 3.0)).collect();
        let block = [1 + rng.below(24), 1 + rng.below(40)];
        let blocks_across = seq_kv.div_ceil(block[1]);
        let blocks = batch * heads * seq_q.div_ceil(block[0]) * blocks_across;
        let shut_blocks = (0..blocks).map(|_| rng.chance(0.4)).collect();
        Self { kind, shut_rows, block, shut_blocks, blocks_across }
    }

    /// `None` if the key is masked.
    fn value(&self, view: &Mask, rng: &mut Rng, [b, h, i, j]: [usize; 4]) -> Option<f64> {
        let [_, heads, seq_q, _] = view.shape;
        let plane = b * heads + h;
        let number = rng.normal();
        let chosen = rng.chance(if view.kind == MaskKind::Bool { 0.5 } else { 0.2 });
        let shut_row = self.shut_rows[plane * seq_q + i];
        let block_row = plane * seq_q.div_ceil(self.block[0]) + i / self.block[0];
        let shut_block = || self.shut_blocks[block_row * self.blocks_across + j / self.block[1]];
        let unless = |shut: bool, number: f64| (!shut).then_some(number);
        match self.kind {
            MaskContent::Random => unless(chosen, number),
            MaskContent::Blocks => unless(shut_block(), number),
            MaskContent::Rows => unless(shut_row || chosen, number),
            MaskContent::Open => Some(0.0),
            MaskContent::Shut => None,
            MaskContent::Alibi => Some(-(i.abs_diff(j) as f64) * 2f64.powi(-(h as i32 % 8) - 1)),
            MaskContent::Lowest => match view.kind {
                MaskKind::Bool => unless(shut_row || shut_block(), number),
                MaskKind::Additive(dtype) if shut_row || shut_block() => Some(-dtype.max()),
                MaskKind::Additive(_) => Some(number),
            },
        }
    }
}
