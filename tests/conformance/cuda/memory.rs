//! Tests of where tensors lie in memory, of the memory around them, and of masked memory.

use super::{
    AnyError, Check, numbers,
    packed::{Given, PackedBackend, packed_cases},
};
use crate::shared::{hold, run_all};
use flashtile_core::{
    Call, DType, HostArgs, HostInputs, KernelKind, Layout, Mask, MaskKind, Problem, TensorView,
};
use flashtile_cuda::{
    Args, CUDA_SIMT_TILES, Context, Input, Output, Plan, PlanOptions, cudarc::driver::CudaSlice,
};

pub(super) const CHECKS: [(&str, Check); 5] = [
    ("packed tensors, by offsets", by_offsets),
    ("packed tensors, by views", by_views),
    ("packed tensors, by addresses", by_addresses),
    ("a workspace of the caller's own", own_workspace),
    ("NaN that nobody sees changes no bit", unseen_nan_bits),
];

fn by_offsets(context: &Context) -> Result<(), AnyError> {
    run_packed(context, Given::Offsets, false)
}

fn by_views(context: &Context) -> Result<(), AnyError> {
    run_packed(context, Given::Views, false)
}

fn by_addresses(context: &Context) -> Result<(), AnyError> {
    run_packed(context, Given::Addresses, false)
}

fn own_workspace(context: &Context) -> Result<(), AnyError> {
    run_packed(context, Given::Offsets, true)?;
    run_packed(context, Given::Views, true)?;
    run_packed(context, Given::Addresses, true)
}

/// Runs every storage type on a stream other than the context's. The results are within the
/// oracle's bound and have the same bits as from separate allocations, and nothing else is written.
fn run_packed(context: &Context, given: Given, own_workspace: bool) -> Result<(), AnyError> {
    let stream = context.cuda().new_stream()?;
    let backend = PackedBackend { context, stream, given, own_workspace };
    let kernels: &[KernelKind] =
        if own_workspace { &[KernelKind::Unfused] } else { KernelKind::ALL };
    for &kernel in kernels {
        run_all(&backend, kernel, &packed_cases())?;
    }
    Ok(())
}

const QUERIES: usize = 100;
/// More than queries, so that a causal mask hides the last keys from every query.
const KEYS: usize = 140;
const WIDTH: usize = 40;

/// Whether no query sees this key.
type Hidden = fn(usize) -> bool;

/// Guarantee 3 to the bit: keys and values that no query sees do not change a bit of the result. A
/// bool mask or a causal mask hides them, also in tiles that contain visible keys. Runs on f32
/// units and on tensor cores.
fn unseen_nan_bits(context: &Context) -> Result<(), AnyError> {
    for &dtype in DType::ALL {
        let view = |seq| TensorView::from_bhsd_sizes(dtype, Layout::Bhsd, [1, 2, seq, WIDTH]);
        let (q, kv) = (view(QUERIES)?, view(KEYS)?);
        let masked = Problem::builder(q, kv, kv)
            .lse(true)
            .mask(Mask::contiguous(MaskKind::Bool, &[KEYS])?)
            .build()?;
        let causal = Problem::builder(q, kv, kv).lse(true).causal(true).build()?;
        let problems: [(_, Hidden); 2] = [(masked, |j| j % 3 == 1), (causal, |j| j >= QUERIES)];
        for ((problem, is_hidden), options) in
            problems.iter().flat_map(|p| engines().map(|options| (p, options)))
        {
            let plan = context.plan(problem, &options)?;
            let expected = run_hiding(&plan, *is_hidden, 7.0)?;
            for hidden in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                if run_hiding(&plan, *is_hidden, hidden)? != expected {
                    return Err(format!("{hidden} gave other bits: {plan}").into());
                }
            }
        }
    }
    Ok(())
}

/// The bits of out and lse if every element of K and V at hidden keys is `hidden`.
fn run_hiding(
    plan: &Plan,
    is_hidden: Hidden,
    hidden: f64,
) -> Result<(Vec<u8>, Vec<u32>), AnyError> {
    let dtype = plan.problem().dtype();
    let q = numbers(dtype, 1, 2 * QUERIES * WIDTH);
    let kv = |seed| {
        let mut bytes = numbers(dtype, seed, 2 * KEYS * WIDTH);
        let elements = (0..2 * KEYS * WIDTH).filter(|n| is_hidden(n / WIDTH % KEYS));
        elements.for_each(|n| dtype.write(&mut bytes, n, hidden));
        bytes
    };
    let (k, v) = (kv(2), kv(3));
    let mask: Vec<u8> = (0..KEYS).map(|j| u8::from(!is_hidden(j))).collect();
    let mask = plan.problem().mask().map(|_| &mask[..]);
    let (mut out, mut lse) = (vec![0; q.len()], vec![0.0; 2 * QUERIES]);
    let (to, call) = (Some(&mut lse[..]), Call::default());
    let mut args = HostArgs::new(&q, &k, &v, &mut out).call(call);
    args.mask = mask;
    args.lse = to;
    plan.context().run_host(plan, args)?;
    Ok((out, lse.into_iter().map(f32::to_bits).collect()))
}

/// The choice of a plan (tensor cores, if they are faster on this GPU), a tile shape for f32
/// units that runs on every GPU, and the unfused kernels.
fn engines() -> [PlanOptions; 3] {
    let any_gpu = CUDA_SIMT_TILES[CUDA_SIMT_TILES.len() - 1];
    [
        PlanOptions::new().kernel(KernelKind::Flash),
        PlanOptions::new().kernel(KernelKind::Flash).tiles(any_gpu),
        PlanOptions::new().kernel(KernelKind::Unfused),
    ]
}

pub(super) const LARGE_STRIDES: (&str, Check) = ("strides beyond 2^31 elements", large_strides);

/// Sizes of the problem of [`large_strides`]. Every axis has several elements, so that each can
/// have the large stride.
const SMALL: [usize; 4] = [2, 3, 5, 4];

/// Bytes of the one allocation that contains each of its tensors in turn.
const LARGE: usize = (1 << 32) + (1 << 22);

/// Requires twice the allocation, because other tests need memory at the same time.
pub(super) fn too_small(context: &Context) -> Option<String> {
    match context.cuda().mem_get_info() {
        Ok((free, _)) if free >= 2 * LARGE => None,
        Ok((free, _)) => {
            Some(format!("{} MiB of memory are free, and {} are needed", free >> 20, LARGE >> 19))
        }
        Err(e) => Some(e.to_string()),
    }
}

/// Tries each axis of each tensor. Indices of 32 bits would overflow.
fn large_strides(context: &Context) -> Result<(), AnyError> {
    let stream = context.stream();
    let dtype = DType::F16;
    // SAFETY: every element is written before it is read, and the rest is never read.
    let mut memory = unsafe { stream.alloc::<u8>(LARGE) }?;
    let dense = TensorView::from_bhsd_sizes(dtype, Layout::Bhsd, SMALL)?;
    let expected = Problem::builder(dense, dense, dense).build()?;
    let host = [1, 2, 3].map(|seed| numbers(dtype, seed, SMALL.iter().product()));
    let [q, k, v] = &host;
    let inputs = HostInputs::new(q, k, v);
    for options in engines() {
        for (tensor, axis) in (0..4).flat_map(|tensor| (0..4).map(move |axis| (tensor, axis))) {
            let large = large_view(dtype, axis);
            let of = |n| if n == tensor { large } else { dense };
            let problem = Problem::builder(of(0), of(1), of(2)).out(of(3)).build()?;
            let plan = context.plan(&problem, &options)?;
            let got = run_large(&plan, &host, tensor, &large, &mut memory)?;
            hold(&expected, &inputs, &got)
                .map_err(|e| format!("tensor {tensor}, axis {axis}, {plan}: {e}"))?;
        }
    }
    Ok(())
}

/// A view of [`SMALL`] in which the first and the last element along `axis` are more than 2^31
/// elements apart. The other axes lie within that stride.
fn large_view(dtype: DType, axis: usize) -> TensorView {
    let mut strides = [0; 4];
    let mut step = 1;
    for other in (0..4).rev().filter(|&other| other != axis) {
        strides[other] = step;
        step *= SMALL[other];
    }
    strides[axis] = (1_usize << 31).div_ceil(SMALL[axis] - 1) + 8;
    TensorView::strided(dtype, SMALL, strides)
}

/// One call in which one tensor (q, k, v or out) lies in `memory` with the strides of `large`. The
/// others are densely packed.
fn run_large(
    plan: &Plan,
    host: &[Vec<u8>; 3],
    tensor: usize,
    large: &TensorView,
    memory: &mut CudaSlice<u8>,
) -> Result<Vec<u8>, AnyError> {
    let stream = plan.context().stream();
    let [_, heads, seq, dim] = SMALL;
    let size = large.dtype.size();
    // The byte offset of each element, in dense order.
    let places: Vec<usize> = (0..SMALL.iter().product())
        .map(|n| {
            size * large.index(n / dim / seq / heads, n / dim / seq % heads, n / dim % seq, n % dim)
        })
        .collect();
    if let Some(bytes) = host.get(tensor) {
        for (element, &at) in bytes.chunks(size).zip(&places) {
            stream.memcpy_htod(element, &mut memory.slice_mut(at..at + size))?;
        }
    } else {
        for &at in &places {
            stream.memcpy_htod(&[0xFF; 2], &mut memory.slice_mut(at..at + size))?;
        }
    }
    let small = [&host[0], &host[1], &host[2]].map(|bytes| stream.clone_htod(bytes));
    let [q, k, v] = small;
    let (q, k, v) = (q?, k?, v?);
    let mut out = stream.clone_htod(&vec![0xFF_u8; host[0].len()])?;
    if tensor == 3 {
        plan.launch(stream, &mut Args::new(&q, &k, &v, Output::from(&mut *memory)))?;
        let read = |&at: &usize| stream.clone_dtoh(&memory.slice(at..at + size));
        return Ok(places.iter().map(read).collect::<Result<Vec<_>, _>>()?.concat());
    }
    let of = |n, small| if n == tensor { Input::from(&*memory) } else { Input::from(small) };
    plan.launch(stream, &mut Args::new(of(0, &q), of(1, &k), of(2, &v), &mut out))?;
    Ok(stream.clone_dtoh(&out)?)
}
