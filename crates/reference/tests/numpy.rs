//! The oracle against another implementation: NumPy in float64 (einsum, boolean masks, tanh). It
//! was run once, and these are the numbers that it printed.

mod common;

use common::{Case, assert_close};
use flashtile_core::{Align, DType, Mask, MaskKind, ProblemBuilder};

/// ((n * step + at) mod 61 - 30) / 16: numbers that every storage type represents exactly.
fn fill(n: usize, step: usize, at: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * step + at) % 61) as f32 - 30.0).map(|x| x / 16.0).collect()
}

fn case(
    [batch, heads, kv_heads, seq_q, seq_kv, dim, dim_v]: [usize; 7],
    describe: impl FnOnce(ProblemBuilder) -> ProblemBuilder,
) -> Case {
    let shapes = [
        [batch, heads, seq_q, dim],
        [batch, kv_heads, seq_kv, dim],
        [batch, kv_heads, seq_kv, dim_v],
    ];
    let [q, k, v] = shapes.map(|shape| shape.iter().product::<usize>());
    let mut case =
        Case::new(shapes, [&fill(q, 37, 11), &fill(k, 23, 5), &fill(v, 29, 17)], describe);
    case.call.scale = None;
    case
}

/// The numbers that NumPy printed for an answer.
struct Printed {
    /// The first three outputs and the last.
    out: [f64; 4],
    /// sum |o_n| and sum o_n (n mod 7 - 3).
    sums: [f64; 2],
    /// The first lse, the last, and the sum of the finite ones.
    lse: [f64; 3],
    /// The number of rows without a key.
    empty: usize,
}

#[track_caller]
fn check(case: &Case, printed: &Printed) {
    let answer = case.answer();
    let (out, lse) = (&answer.out, &answer.lse);
    assert_close(&[out[0], out[1], out[2], out[out.len() - 1]], &printed.out);
    let weighted: f64 = out.iter().enumerate().map(|(n, o)| o * ((n % 7) as f64 - 3.0)).sum();
    assert_close(&[out.iter().map(|o| o.abs()).sum(), weighted], &printed.sums);
    let finite: f64 = lse.iter().filter(|l| l.is_finite()).sum();
    assert_close(&[lse[0], lse[lse.len() - 1], finite], &printed.lse);
    assert_eq!(answer.rows.iter().filter(|row| row.keys == 0).count(), printed.empty);
}

#[test]
fn plain() {
    check(
        &case([1, 1, 1, 3, 4, 5, 5], |b| b),
        &Printed {
            out: [
                -0.5896066630194611,
                0.6264550645118389,
                -0.7419099656603373,
                -0.8833569081946075,
            ],
            sums: [9.613197251954041, 6.177195536351314],
            lse: [1.708322708334955, 1.6257611270701948, 5.000390479693565],
            empty: 0,
        },
    );
}

#[test]
fn cross_attention_with_shared_heads_and_wider_values() {
    check(
        &case([2, 4, 2, 3, 7, 4, 6], |b| b),
        &Printed {
            out: [
                0.30908976281693074,
                0.21651757298386917,
                0.12158976281693076,
                0.41336549886809987,
            ],
            sums: [27.635135406955687, 5.880242324352642],
            lse: [3.004349802282297, 3.189171851549318, 59.853874363586385],
            empty: 0,
        },
    );
}

#[test]
fn causal_from_the_bottom_right_with_lengths() {
    let mut case =
        case([3, 2, 1, 5, 8, 3, 2], |b| b.causal(true).align(Align::BottomRight).kv_lens(true));
    case.kv_lens = Some(vec![8, 3, 0]);
    check(
        &case,
        &Printed {
            out: [-1.1401195729133313, 0.6723804270866689, -1.1828925451170338, 0.0],
            sums: [24.37463114933444, 5.433651774481603],
            lse: [2.3579292332005557, f64::NEG_INFINITY, 29.104510560282364],
            empty: 14,
        },
    );
}

#[test]
fn window_softcap_and_boolean_mask() {
    let mask = Mask::contiguous(MaskKind::Bool, &[3, 9, 9]).expect("rank 3");
    let mut case =
        case([1, 3, 3, 9, 9, 2, 3], |b| b.window_left(2).window_right(1).softcap(0.75).mask(mask));
    case.mask = Some((0..243).map(|n| u8::from(n * 7 % 5 < 3)).collect());
    check(
        &case,
        &Printed {
            out: [
                -0.49993505490678386,
                0.5792394969899014,
                -0.6874350549067839,
                1.1567083557564033,
            ],
            sums: [53.201972875203815, 0.0809071681770801],
            lse: [0.9067392820811648, 0.9472027536593005, 21.839140710493055],
            empty: 0,
        },
    );
}

#[test]
fn everything_but_dropout() {
    let mask = Mask::contiguous(MaskKind::Additive(DType::F32), &[2, 1, 1, 11]).expect("rank 4");
    let mut case = case([2, 6, 2, 7, 11, 8, 5], |b| {
        b.softcap(2.5).causal(true).align(Align::Offset(3)).window_left(4).mask(mask).kv_lens(true)
    });
    case.mask = Some(common::bytes(&fill(22, 13, 3)));
    case.kv_lens = Some(vec![11, 6]);
    case.call.scale = Some(-0.625);
    check(
        &case,
        &Printed {
            out: [-0.25454611749549433, 0.1639397562878891, 0.1137029109518328, 0.0625],
            sums: [201.37695243947417, 18.23877960572952],
            lse: [-0.12435528748167002, -2.2457090998937823, 124.21636902010044],
            empty: 0,
        },
    );
}
