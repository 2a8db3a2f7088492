//! Cross-attention of a decoder over an encoder's padded output: different lengths, grouped heads,
//! and an additive mask. Then the same keys in two parts, merged by their log-sum-exps.
//!
//! The tensors are in host memory and run on the best backend of this machine:
//! `cargo run --release --example cross_attention`.

use approx::assert_abs_diff_eq;
use flashtile::reference::attention;
use flashtile::{
    Attention, BackendKind, Choice, DType, HostArgs, Mask, MaskKind, Partial, Problem, TensorView,
    bound, bytes_of, bytes_of_mut, merge,
};
use std::error::Error;

/// Two sentences.
const BATCH: usize = 2;
/// Three query heads to each key head.
const HEADS: usize = 6;
const KV_HEADS: usize = 2;
/// New tokens, and the encoded tokens that they attend to.
const QUERIES: usize = 5;
const KEYS: usize = 23;
/// Queries and keys are narrower than values.
const WIDTH: usize = 16;
const WIDTH_V: usize = 24;
/// Where the second half of this example splits the keys.
const CUT: usize = 10;

fn main() -> Result<(), Box<dyn Error>> {
    // Projections write (batch, sequence, heads, width).
    let q_view = TensorView::bshd(DType::F32, [BATCH, QUERIES, HEADS, WIDTH])?;
    let k_view = TensorView::bshd(DType::F32, [BATCH, KEYS, KV_HEADS, WIDTH])?;
    let v_view = TensorView::bshd(DType::F32, [BATCH, KEYS, KV_HEADS, WIDTH_V])?;
    let out_view = TensorView::bhsd(DType::F32, [BATCH, HEADS, QUERIES, WIDTH_V])?;
    // One row per sentence, the same for every head and query.
    let mask_kind = MaskKind::Additive(DType::F32);
    let mask_view = Mask::contiguous(mask_kind, &[BATCH, 1, 1, KEYS])?;
    let problem =
        Problem::builder(q_view, k_view, v_view).out(out_view).mask(mask_view).lse(true).build()?;

    let numbers =
        |seed: f32, len: usize| -> Vec<f32> { (0..len).map(|n| (n as f32 * seed).sin()).collect() };
    let q = numbers(0.37, BATCH * QUERIES * HEADS * WIDTH);
    let k = numbers(0.71, BATCH * KEYS * KV_HEADS * WIDTH);
    let mut v = numbers(0.13, BATCH * KEYS * KV_HEADS * WIDTH_V);
    // The second sentence has 14 tokens and padding, whose contents must not matter. Later tokens
    // count a little less.
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
            bytes_of_mut(&mut out),
        )
        .mask(bytes_of(&mask[from..]))
        .lse(&mut lse);
        let expected = attention(problem, &args.inputs())?;
        let report = session.run(problem, args, Choice::AUTO)?;
        Ok((out, lse, expected, report))
    };
    let (out, lse, expected, report) = run(&problem, 0)?;
    println!("{problem}\n{} on {}: {}\n{}", report.kernel, report.device, report.why, report.plan);
    if report.backend == BackendKind::Reference {
        eprintln!("no GPU was found: this ran on the CPU");
        if std::env::var_os("FLASHTILE_REQUIRE_GPU").is_some_and(|value| value == "1") {
            return Err("FLASHTILE_REQUIRE_GPU=1 asks for a GPU".into());
        }
    }

    // Each row is within the bound that the oracle computes for it.
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

    // The keys in two parts, as two machines might hold them. A part is the same tensors with
    // another length and start.
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
        merge(&parts.each_ref().map(|(out, lse)| Partial::new(out, lse)), WIDTH_V)?;
    assert_abs_diff_eq!(merged[..], out[..], epsilon = 1e-5);
    assert_abs_diff_eq!(merged_lse[..], lse[..], epsilon = 1e-5);
    println!("two parts, merged, agree with the whole");
    Ok(())
}
