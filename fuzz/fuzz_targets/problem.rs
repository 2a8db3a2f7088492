//! Any description of attention is either refused with an error, or a problem that can be costed,
//! planned and, if it is small, computed. Nothing panics or overflows; core, the planner and the
//! oracle agree about it, and the CPU backend stays within the error bound.

#![no_main]

use arbitrary::{Arbitrary, Result, Unstructured};
use flashtile_core::{
    Align, Call, Cost, DType, HostArgs, HostInputs, KernelKind, KeyTiles, Layout, Mask, MaskKind,
    PlanOptions, Problem, ResolvedCall, TensorView, TileKind, bound,
};
use flashtile_cpu::Cpu;
use flashtile_reference::{Answer, attention};
use flashtile_wgpu::export_baseline;
use libfuzzer_sys::fuzz_target;

#[derive(Debug)]
struct Given {
    q: TensorView,
    k: TensorView,
    v: TensorView,
    out: Option<TensorView>,
    mask: Option<(MaskKind, Vec<usize>, Option<Vec<usize>>)>,
    causal: bool,
    align: Align,
    window_left: Option<usize>,
    window_right: Option<usize>,
    softcap: Option<f32>,
    dropout_p: f64,
    lse: bool,
    kv_lens: bool,
    call: Call,
    tiles: [usize; 2],
    data: Vec<u8>,
}

impl<'a> Arbitrary<'a> for Given {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let dtype = *u.choose(DType::ALL)?;
        let (batch, kv_heads, seq_q, seq_kv, dim, dim_v) =
            (size(u)?, size(u)?, size(u)?, size(u)?, size(u)?, size(u)?);
        let heads = kv_heads.saturating_mul(u.int_in_range(1..=3)?);
        let q = view(u, dtype, [batch, heads, seq_q, dim])?;
        let k = view(u, dtype, [batch, kv_heads, seq_kv, dim])?;
        let v = view(u, dtype, [batch, kv_heads, seq_kv, dim_v])?;
        let out = maybe(u, |u| view(u, dtype, [batch, heads, seq_q, dim_v]))?;
        let mask = maybe(u, |u| {
            let rank = u.int_in_range(0..=4)?;
            let mut shape = [batch, heads, seq_q, seq_kv][4 - rank..].to_vec();
            for n in &mut shape {
                let broadcast = u.ratio(1, 3)?;
                *n = spoil(u, if broadcast { 1 } else { *n })?;
            }
            let strides = maybe(u, |u| (0..rank).map(|_| size(u)).collect())?;
            Ok((*u.choose(MaskKind::ALL)?, shape, strides))
        })?;
        let window =
            |u: &mut Unstructured<'a>| if u.arbitrary()? { size(u) } else { u.arbitrary() };
        Ok(Self {
            q,
            k,
            v,
            out,
            mask,
            causal: u.arbitrary()?,
            align: match u.int_in_range(0..=4)? {
                0 => Align::BottomRight,
                1 => Align::Offset(u.arbitrary()?),
                2 => Align::Offset(u.int_in_range(-9..=9)?),
                _ => Align::TopLeft,
            },
            window_left: maybe(u, window)?,
            window_right: maybe(u, window)?,
            softcap: maybe(u, f32::arbitrary)?,
            dropout_p: match u.int_in_range(0..=7)? {
                0 => u.arbitrary()?,
                1 => 1.0,
                2 => 0.5,
                _ => 0.0,
            },
            lse: u.arbitrary()?,
            kv_lens: u.arbitrary()?,
            call: Call::new()
                .scale(maybe(u, f32::arbitrary)?)
                .seed(u.arbitrary()?)
                .offset(u.arbitrary()?)
                .seq_q(maybe(u, size)?)
                .seq_kv(maybe(u, size)?),
            tiles: [u.int_in_range(1..=70)?, u.int_in_range(1..=70)?],
            data: u.bytes(u.len().min(256))?.to_vec(),
        })
    }
}

/// Nothing in three of four cases, and always after the end of the input: its numbers are then the
/// smallest, and every ratio is true.
fn maybe<'a, T>(
    u: &mut Unstructured<'a>,
    f: impl FnOnce(&mut Unstructured<'a>) -> Result<T>,
) -> Result<Option<T>> {
    if u.ratio(3, 4)? { Ok(None) } else { f(u).map(Some) }
}

/// Mostly small sizes, and sometimes sizes whose sums and products overflow.
fn size(u: &mut Unstructured<'_>) -> Result<usize> {
    Ok(match u.int_in_range(0..=31)? {
        0 => (1usize << u.int_in_range(0..=63)?).wrapping_sub(u.int_in_range(0..=1)?),
        1 => u.arbitrary()?,
        2 => u.int_in_range(0..=1024)?,
        3 => 0,
        n => 1 + n % 5,
    })
}

/// `right`, and in 1 of 64 cases a random size.
fn spoil(u: &mut Unstructured<'_>, right: usize) -> Result<usize> {
    if u.ratio(63, 64)? { Ok(right) } else { size(u) }
}

fn view(u: &mut Unstructured<'_>, dtype: DType, mut shape: [usize; 4]) -> Result<TensorView> {
    for n in &mut shape {
        *n = spoil(u, *n)?;
    }
    let dtype = if u.ratio(63, 64)? { dtype } else { *u.choose(DType::ALL)? };
    let mut strides = match TensorView::from_bhsd_sizes(dtype, *u.choose(Layout::ALL)?, shape) {
        Ok(view) => view.strides,
        Err(_) => [0; 4],
    };
    for stride in &mut strides {
        if !u.ratio(7, 8)? {
            *stride = if u.arbitrary()? { stride.saturating_add(size(u)?) } else { size(u)? };
        }
    }
    Ok(TensorView::strided(dtype, shape, strides))
}

impl Given {
    fn problem(&self) -> Option<Problem> {
        let mask = match &self.mask {
            None => None,
            Some((kind, shape, Some(strides))) => Some(Mask::strided(*kind, shape, strides).ok()?),
            Some((kind, shape, None)) => Some(Mask::contiguous(*kind, shape).ok()?),
        };
        let mut builder = Problem::builder(self.q, self.k, self.v)
            .mask(mask)
            .causal(self.causal)
            .align(self.align)
            .window_left(self.window_left)
            .window_right(self.window_right)
            .softcap(self.softcap)
            .dropout_p(self.dropout_p)
            .lse(self.lse)
            .kv_lens(self.kv_lens);
        if let Some(out) = self.out {
            builder = builder.out(out);
        }
        match builder.build() {
            Ok(problem) => Some(problem),
            Err(error) => {
                assert!(!error.to_string().is_empty());
                None
            }
        }
    }
}

fuzz_target!(|given: Given| {
    let Some(problem) = given.problem() else { return };
    let _ = problem.to_string();
    let Ok(call) = given.call.resolve(&problem) else { return };
    assert!(
        call.scale.is_finite() && call.seq_q <= problem.seq_q() && call.seq_kv <= problem.seq_kv()
    );

    // Planning takes time, and here a copy of the kernel source, for every dispatch. There may be
    // one dispatch per row.
    let sizes = [problem.batch(), problem.heads(), problem.seq_q(), problem.seq_kv()];
    let (rows, scores) = (product(&sizes[..3]), product(&sizes));
    let width = problem.head_dim().saturating_add(problem.head_dim_v());
    if rows <= 1 << 12 && scores.saturating_mul(width) <= 1 << 50 {
        plan(&problem, &given.call);
    }
    // Computing the cost takes time for each batch entry and query.
    if problem.batch() <= 1 << 10 && call.seq_q <= 1 << 16 {
        let cost = Cost::new(&problem, &call, given.tiles[0], given.tiles[1], None);
        assert!(cost.flops <= cost.tile_flops, "{cost:?}");
    }
    let elements =
        [problem.q(), problem.k(), problem.v(), problem.out()].map(|view| product(&view.shape));
    // A product of 0 may have huge factors.
    let small = |sizes: &[usize]| sizes.iter().all(|&n| n <= 1 << 12);
    if small(&sizes) && small(&[rows, scores]) && small(&elements) {
        compute(&problem, &call, &given);
    }
});

fn product(sizes: &[usize]) -> usize {
    sizes.iter().fold(1, |n, &m| n.saturating_mul(m))
}

/// Plans without a device, for each kernel. A refusal has reasons, and the dispatches of a plan
/// keep to the limits.
fn plan(problem: &Problem, call: &Call) {
    let limits = flashtile_wgpu::wgpu::Limits::default();
    for &kernel in KernelKind::ALL {
        match export_baseline(problem, kernel, call) {
            Err(error) => assert!(!error.to_string().is_empty()),
            Ok(export) => {
                assert!(export.workspace_bytes <= limits.max_storage_buffer_binding_size);
                for dispatch in export.dispatches {
                    assert!(
                        dispatch
                            .workgroups
                            .iter()
                            .all(|n| (1..=limits.max_compute_workgroups_per_dimension).contains(n))
                    );
                    assert!(
                        dispatch.bindings.len()
                            <= limits.max_storage_buffers_per_shader_stage as usize
                    );
                }
            }
        }
    }
}

/// Compares the oracle's answer to a small problem with what core computes for it.
fn compute(problem: &Problem, call: &ResolvedCall, given: &Given) {
    // Views of few elements may span much memory.
    let span = |bytes: Option<usize>| bytes.filter(|&bytes| bytes <= 1 << 20);
    let views = [problem.q(), problem.k(), problem.v()].map(|view| span(view.byte_span()));
    let mask_span = problem.mask().map(|mask| span(mask.byte_span()));
    let ([Some(q), Some(k), Some(v)], None | Some(Some(_))) = (views, mask_span) else { return };
    let dtype = problem.dtype();
    let [q, k, v] =
        [(q, 1), (k, 2), (v, 3)].map(|(bytes, which)| numbers(dtype, bytes, &given.data, which));
    let mask = problem.mask().zip(mask_span.flatten()).map(|(mask, bytes)| match mask.kind {
        MaskKind::Bool => (0..bytes).map(|n| pick(&given.data, n, 4) % 2).collect(),
        MaskKind::Additive(dtype) => {
            let mut numbers = numbers(dtype, bytes, &given.data, 4);
            for n in (0..bytes / dtype.size()).filter(|&n| pick(&given.data, n, 5) % 3 == 0) {
                dtype.write(&mut numbers, n, f64::NEG_INFINITY);
            }
            numbers
        }
    });
    let lens: Vec<i32> = (0..problem.batch())
        .map(|b| (usize::from(pick(&given.data, b, 6)) % (call.seq_kv + 1)) as i32)
        .collect();
    let kv_lens = problem.kv_lens().then_some(&lens[..]);
    let mut inputs = HostInputs::new(&q, &k, &v).call(given.call);
    inputs.mask = mask.as_deref();
    inputs.kv_lens = kv_lens;
    let answer = attention(problem, &inputs).expect("all inputs are there");
    check_rows(problem, call, &inputs, &answer);
    check_tiles(problem, call, given.tiles, kv_lens, &answer);
    check_cpu(problem, call, &inputs, &answer);
}

/// The CPU backend runs what it does not refuse, within the bound.
fn check_cpu(problem: &Problem, call: &ResolvedCall, inputs: &HostInputs<'_>, answer: &Answer) {
    let Some(bytes) = problem.out().byte_span().filter(|&bytes| bytes <= 1 << 20) else { return };
    let plan = match Cpu::new().plan(problem, &PlanOptions::new()) {
        Ok(plan) => plan,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let mut out = vec![0; bytes];
    let mut lse = vec![0.0; problem.lse_shape().iter().product()];
    let mut args = HostArgs::new(inputs.q, inputs.k, inputs.v, &mut out).call(inputs.call);
    (args.mask, args.kv_lens) = (inputs.mask, inputs.kv_lens);
    args.lse = problem.lse().then_some(&mut lse);
    plan.run(args).expect("all inputs are there");
    let (dtype, width) = (problem.dtype(), problem.head_dim_v());
    for (n, &expected) in answer.out.iter().enumerate() {
        let row = n / width;
        let (head, i) = (row / call.seq_q, row % call.seq_q);
        let (b, h) = (head / problem.heads(), head % problem.heads());
        let got = dtype.read(&out, problem.out().index(b, h, i, n % width));
        let limit = answer.rows[row].out_bound(dtype, problem.head_dim());
        let share = bound::share(got, expected, limit, dtype);
        assert!(share <= 1.0, "({b}, {h}, {i}): {got} instead of {expected}, {problem}");
    }
}

fn pick(data: &[u8], n: usize, which: usize) -> u8 {
    let given = if data.is_empty() { 0 } else { data[(n + 31 * which) % data.len()] };
    given ^ (n.wrapping_mul(which + 1) as u8).reverse_bits()
}

/// Finite numbers in [-4, 4), most of them different.
fn numbers(dtype: DType, bytes: usize, data: &[u8], which: usize) -> Vec<u8> {
    let mut numbers = vec![0; bytes];
    for n in 0..bytes / dtype.size() {
        dtype.write(&mut numbers, n, f64::from(pick(data, n, which)) / 32.0 - 4.0);
    }
    numbers
}

/// A row without keys is 0 with log-sum-exp -inf. Any other row lies within the values it averages.
fn check_rows(problem: &Problem, call: &ResolvedCall, inputs: &HostInputs<'_>, answer: &Answer) {
    let rows = problem.batch() * problem.heads() * call.seq_q;
    let width = problem.head_dim_v();
    assert_eq!((answer.rows.len(), answer.lse.len(), answer.out.len()), (rows, rows, rows * width));
    let keep = problem.dropout().map_or(1.0, |dropout| f64::from(dropout.keep_scale));
    for row in 0..rows {
        let out = &answer.out[row * width..][..width];
        if answer.rows[row].keys == 0 {
            assert!(out.iter().all(|&o| o == 0.0) && answer.lse[row] == f64::NEG_INFINITY);
        } else {
            assert!(answer.lse[row].is_finite(), "{:?}", answer.rows[row]);
            assert!(
                out.iter().all(|o| o.abs() <= 4.0 * keep * (1.0 + 1e-12)),
                "{out:?} {inputs:?}"
            );
            let bound = answer.rows[row].out_bound(problem.dtype(), problem.head_dim());
            assert!(bound > 0.0 && bound.is_finite(), "{:?}", answer.rows[row]);
        }
    }
}

/// Band, tiles and cost agree with the oracle about the keys that are seen.
fn check_tiles(
    problem: &Problem,
    call: &ResolvedCall,
    tiles: [usize; 2],
    kv_lens: Option<&[i32]>,
    answer: &Answer,
) {
    let (band, masked) = (problem.band(), problem.mask().is_some());
    let mut pairs = 0;
    for b in 0..problem.batch() {
        let kv_len = kv_lens.map_or(call.seq_kv, |lens| lens[b] as usize);
        for start in (0..call.seq_q).step_by(tiles[0]) {
            let rows = start..(start + tiles[0]).min(call.seq_q);
            let visited: Vec<_> =
                KeyTiles::new(band, masked, start..start + tiles[0], tiles[1], call.seq_q, kv_len)
                    .collect();
            for i in rows {
                let allowed = |j| band.allows(i, j, call.seq_q, kv_len);
                let in_tiles = |j: usize| visited.iter().find(|tile| tile.keys.contains(&j));
                let count = (0..call.seq_kv).filter(|&j| allowed(j)).count();
                for j in 0..call.seq_kv {
                    match in_tiles(j) {
                        None => assert!(!allowed(j), "key {j} of query {i} is not visited"),
                        Some(tile) => assert!(
                            allowed(j) || tile.kind == TileKind::Edge,
                            "key {j} of query {i}"
                        ),
                    }
                }
                pairs += count * problem.heads();
                for h in 0..problem.heads() {
                    let seen = answer.rows[(b * problem.heads() + h) * call.seq_q + i].keys;
                    assert!(
                        if masked { seen <= count } else { seen == count },
                        "query {i}: {seen} of {count} keys"
                    );
                }
            }
        }
    }
    let cost = Cost::new(problem, call, tiles[0], tiles[1], kv_lens);
    assert_eq!(cost.pairs, pairs as u64);
}
