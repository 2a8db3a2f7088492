//! Cross-attention of a decoder over an encoder's padded output: other lengths on either side, grouped heads, and a mask that is
//! added to the scores. Then the same in two parts, merged by their log-sum-exps.
//!
//! Tensors in host memory, on the best backend there is: `cargo run --release --example cross_attention`.

use flashtile::reference::attention;
use flashtile::{
    Attention, BackendKind, Call, Choice, DType, HostArgs, Layout, Mask, MaskKind, Partial,
    Problem, TensorView, bound, bytes_of, merge,
};
use std::error::Error;

/// Two sentences.
const BATCH: usize = 2;
/// Three query heads to each key head.
const HEADS: usize = 6;
const KV_HEADS: usize = 2;
/// New tokens, and the encoded ones that they look at.
const QUERIES: usize = 5;
const KEYS: usize = 23;
/// Queries and keys are narrower than values.
const WIDTH: usize = 16;
const WIDTH_V: usize = 24;
/// Where the keys are cut for the second half of this example.
const CUT: usize = 10;

fn main() -> Result<(), Box<dyn Error>> {
    // Positions outside heads (bshd), as projections write them. Shapes are always told as (B, H, S, D).
    let tensor = |heads, seq, width| {
        TensorView::from_bhsd_sizes(DType::F32, Layout::Bshd, [BATCH, heads, seq, width])
    };
    let q_view = tensor(HEADS, QUERIES, WIDTH)?;
    let k_view = tensor(KV_HEADS, KEYS, WIDTH)?;
    let v_view = tensor(KV_HEADS, KEYS, WIDTH_V)?;
    let out_view =
        TensorView::from_bhsd_sizes(DType::F32, Layout::Bhsd, [BATCH, HEADS, QUERIES, WIDTH_V])?;
    // One row for each sentence, the same for every head and query.
    let mask_kind = MaskKind::Additive(DType::F32);
    let mask_view = Mask::contiguous(mask_kind, &[BATCH, 1, 1, KEYS])?;
    let problem =
        Problem::builder(q_view, k_view, v_view).out(out_view).mask(mask_view).lse(true).build()?;

    let numbers =
        |seed: f32, len: usize| -> Vec<f32> { (0..len).map(|n| (n as f32 * seed).sin()).collect() };
    let q = numbers(0.37, BATCH * QUERIES * HEADS * WIDTH);
    let k = numbers(0.71, BATCH * KEYS * KV_HEADS * WIDTH);
    let mut v = numbers(0.13, BATCH * KEYS * KV_HEADS * WIDTH_V);
    // The second sentence has 14 tokens and padding; what lies there must not matter. Later tokens count a little less.
    let lengths = [KEYS, 14];
    let mut mask = [f32::NEG_INFINITY; BATCH * KEYS];
    for (b, length) in lengths.into_iter().enumerate() {
        (0..length).for_each(|j| mask[b * KEYS + j] = -0.05 * j as f32);
        v[(b * KEYS + length) * KV_HEADS * WIDTH_V..(b + 1) * KEYS * KV_HEADS * WIDTH_V]
            .fill(f32::NAN);
    }

    let session = Attention::new();
    let rows = BATCH * HEADS * QUERIES;
    // `from` is the first key; the views say how many follow it.
    let run = |problem: &Problem, from: usize| -> Result<_, Box<dyn Error>> {
        let (mut out, mut lse) = (vec![0f32; rows * WIDTH_V], vec![0f32; rows]);
        let args = HostArgs::new(
            bytes_of(&q),
            bytes_of(&k[from * KV_HEADS * WIDTH..]),
            bytes_of(&v[from * KV_HEADS * WIDTH_V..]),
            bytemuck::cast_slice_mut(&mut out),
        )
        .mask(bytes_of(&mask[from..]))
        .lse(&mut lse);
        // For the oracle; the same but for the outputs.
        let expected = attention(problem, &args.inputs())?;
        let report = session.run(problem, args, Choice::AUTO)?;
        Ok((out, lse, expected, report))
    };
    let (out, lse, expected, report) = run(&problem, 0)?;
    println!("{problem}\n{} on {}: {}\n{}", report.kernel, report.device, report.why, report.plan);
    if report.backend != BackendKind::Wgpu {
        eprintln!("no GPU here: this ran on the CPU");
        if std::env::var_os("FLASHTILE_REQUIRE_GPU").is_some_and(|value| value == "1") {
            return Err("FLASHTILE_REQUIRE_GPU=1 asks for a GPU".into());
        }
    }

    // Each row keeps the bound that the oracle gives it.
    let mut largest = 0.0;
    for (row, terms) in expected.rows.iter().enumerate() {
        let out_bound = terms.out_bound(DType::F32, WIDTH);
        let numbers = out.iter().zip(&expected.out).skip(row * WIDTH_V).take(WIDTH_V);
        for (&got, &expected) in numbers {
            largest = f64::max(largest, bound::share(got.into(), expected, out_bound, DType::F32));
        }
        let lse_bound = terms.lse_bound(WIDTH);
        largest =
            largest.max(bound::share(lse[row].into(), expected.lse[row], lse_bound, DType::F32));
        // 23 keys for the first sentence, 14 for the second.
        assert_eq!(terms.keys, lengths[row / (HEADS * QUERIES)]);
    }
    println!("largest error is {largest:.2} of the bound");
    assert!(largest <= 1.0);

    // The keys in two parts, as two machines might hold them. A part is the same tensors with another length and begin.
    let part = |from: usize, to: usize| -> Result<_, Box<dyn Error>> {
        let cut = |view: TensorView| {
            TensorView::strided(
                view.dtype,
                [BATCH, KV_HEADS, to - from, view.shape[3]],
                view.strides,
            )
        };
        let mask = Mask::strided(mask_kind, &[BATCH, 1, 1, to - from], &[KEYS, 0, 0, 1])?;
        let problem = Problem::builder(q_view, cut(k_view), cut(v_view))
            .out(out_view)
            .mask(mask)
            .lse(true)
            .build()?;
        let (out, lse, ..) = run(&problem, from)?;
        Ok((out, lse))
    };
    let parts = [part(0, CUT)?, part(CUT, KEYS)?];
    let (merged, merged_lse) =
        merge(&parts.each_ref().map(|(out, lse)| Partial { out, lse }), WIDTH_V)?;
    let apart = |a: &[f32], b: &[f32]| {
        a.iter().zip(b).fold(0.0, |most: f32, (a, b)| most.max((a - b).abs()))
    };
    println!(
        "two parts, merged: {:.1e} from the whole",
        apart(&merged, &out).max(apart(&merged_lse, &lse))
    );
    assert!(apart(&merged, &out) < 1e-5 && apart(&merged_lse, &lse) < 1e-5);
    Ok(())
}
