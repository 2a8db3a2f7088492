//! The oracle against values computed by hand, one feature of the problem per test.

mod common;

use approx::assert_abs_diff_eq;
use common::{Case, assert_close, bytes};
use flashtile_core::{
    Align, Call, DType, Layout, Mask, MaskKind, Problem, ProblemError, TensorView,
};

const LN2: f32 = std::f32::consts::LN_2;
const EMPTY: f64 = f64::NEG_INFINITY;

/// The number whose logarithm is ln 2 rounded to f32, the closest that the inputs can hold.
fn two() -> f64 {
    f64::from(LN2).exp()
}

#[test]
fn softmax_weighs_values() {
    // Weights 1 : 2 : 4 (as far as f32 holds ln 2).
    let answer = Case::scores(&[0.0, LN2, 2.0 * LN2], &[7.0, 70.0, 700.0], |b| b).answer();
    let two = two();
    let sum = 1.0 + two + two * two;
    assert_close(&answer.out, &[(7.0 + 70.0 * two + 700.0 * two * two) / sum]);
    assert_close(&answer.lse, &[sum.ln()]);
    assert_abs_diff_eq!(answer.out[0], 421.0, epsilon = 5e-5);
}

#[test]
fn scale_multiplies_and_may_be_negative() {
    let mut case = Case::scores(&[3.0, 5.0], &[0.0, 1.0], |b| b);
    for scale in [0.25, -0.25, 0.0] {
        case.call.scale = Some(scale);
        let weight = 1.0 / (1.0 + (-2.0 * f64::from(scale)).exp());
        assert_close(&case.answer().out, &[weight]);
    }
    // By default 1 / sqrt(D), rounded to f32.
    let mut case = Case::new(
        [[1, 1, 1, 3], [1, 1, 2, 3], [1, 1, 2, 1]],
        [&[1.0; 3], &[0., 0., 0., 1., 1., 1.], &[0., 1.]],
        |b| b,
    );
    case.call.scale = None;
    assert_close(
        &case.answer().out,
        &[1.0 / (1.0 + (-3.0 * f64::from((1.0 / 3f64.sqrt()) as f32)).exp())],
    );
}

#[test]
fn large_scores_do_not_overflow() {
    let answer = Case::scores(&[3e38, -3e38, 3e38], &[2.0, 1e30, 4.0], |b| b).answer();
    assert_close(&answer.out, &[3.0]);
    assert_close(&[answer.lse[0] / f64::from(3e38f32)], &[1.0]);
}

#[test]
fn softcap_bends_scores_before_the_mask() {
    let mut case = Case::scores(&[4.0, -1.0], &[1.0, 0.0], |b| {
        b.softcap(2.0).mask(Mask::contiguous(MaskKind::Additive(DType::F32), &[2]).expect("rank 1"))
    });
    case.mask = Some(bytes(&[10.0, 13.0]));
    let (a, b) = (2.0 * 2f64.tanh() + 10.0, 2.0 * (-0.5f64).tanh() + 13.0);
    let answer = case.answer();
    assert_close(&answer.out, &[1.0 / (1.0 + (b - a).exp())]);
    assert_close(&answer.lse, &[(a.exp() + b.exp()).ln()]);
}

/// q and k are zero and the values are powers of ten. Each row is the mean of the values of the
/// keys that it sees, so the digits of out * count name these keys.
fn averages(
    seq_q: usize,
    seq_kv: usize,
    describe: impl FnOnce(flashtile_core::ProblemBuilder) -> flashtile_core::ProblemBuilder,
) -> Case {
    let values: Vec<f32> = (0..seq_kv).map(|j| 10f32.powi(j as i32)).collect();
    Case::new(
        [[1, 1, seq_q, 1], [1, 1, seq_kv, 1], [1, 1, seq_kv, 1]],
        [&vec![0.0; seq_q], &vec![0.0; seq_kv], &values],
        describe,
    )
}

fn seen_keys(case: &Case) -> Vec<u64> {
    let answer = case.answer();
    answer
        .out
        .iter()
        .zip(&answer.rows)
        .map(|(o, row)| (o * row.keys as f64).round() as u64)
        .collect()
}

#[test]
fn causal_and_windows_by_alignment() {
    let table: Vec<(Case, Vec<u64>)> = vec![
        (averages(3, 4, |b| b.causal(true)), vec![1, 11, 111]),
        (averages(3, 4, |b| b.causal(true).align(Align::BottomRight)), vec![11, 111, 1111]),
        (averages(4, 3, |b| b.causal(true).align(Align::BottomRight)), vec![0, 1, 11, 111]),
        (averages(3, 4, |b| b.causal(true).align(Align::Offset(-2))), vec![0, 0, 1]),
        (averages(3, 4, |b| b.causal(true).align(Align::Offset(2))), vec![111, 1111, 1111]),
        (averages(4, 4, |b| b.window_left(1)), vec![1111, 1111, 1110, 1100]),
        (averages(4, 4, |b| b.window_right(1)), vec![11, 111, 1111, 1111]),
        (averages(4, 4, |b| b.window_left(0).window_right(0)), vec![1, 10, 100, 1000]),
        (averages(4, 4, |b| b.window_left(1).window_right(1)), vec![11, 111, 1110, 1100]),
        // Both rules hold: causal wins over a window to the right.
        (averages(4, 4, |b| b.causal(true).window_left(1).window_right(2)), vec![1, 11, 110, 1100]),
        (
            averages(2, 4, |b| b.window_left(1).window_right(0).align(Align::BottomRight)),
            vec![110, 1100],
        ),
        (averages(2, 4, |b| b.window_left(usize::MAX).window_right(usize::MAX)), vec![1111, 1111]),
        (averages(2, 2, |b| b.causal(true).align(Align::Offset(i64::MIN))), vec![0, 0]),
        (averages(2, 2, |b| b.causal(true).align(Align::Offset(i64::MAX))), vec![11, 11]),
    ];
    for (case, expected) in table {
        assert_eq!(seen_keys(&case), expected, "{}", case.problem);
    }
}

#[test]
fn bottom_right_uses_the_lengths_of_the_call() {
    let mut case = averages(3, 4, |b| b.causal(true).align(Align::BottomRight).kv_lens(true));
    for (seq_q, seq_kv, valid, expected) in [
        (None, None, 4, vec![11, 111, 1111]),
        (None, None, 3, vec![1, 11, 111]),
        (Some(1), None, 3, vec![111]),
        (Some(2), Some(3), 2, vec![1, 11]),
        (Some(2), Some(3), 0, vec![0, 0]),
    ] {
        case.call = case.call.seq_q(seq_q).seq_kv(seq_kv);
        case.kv_lens = Some(vec![valid]);
        assert_eq!(seen_keys(&case), expected, "{seq_q:?} {seq_kv:?} {valid}");
    }
}

#[test]
fn rows_without_keys_are_zero() {
    let mut case =
        averages(2, 2, |b| b.mask(Mask::contiguous(MaskKind::Bool, &[2, 2]).expect("rank 2")));
    case.mask = Some(vec![0, 0, 0, 7]);
    let answer = case.answer();
    assert_close(&answer.out, &[0.0, 10.0]);
    assert_close(&answer.lse, &[EMPTY, 0.0]);
    assert_eq!(answer.rows[0].keys, 0);
    // No keys at all, no queries, no batch.
    let none = averages(2, 0, |b| b).answer();
    assert_eq!((none.out, none.lse), (vec![0.0; 2], vec![EMPTY; 2]));
    assert_eq!(averages(0, 2, |b| b).answer().out, [0.0; 0]);
}

#[test]
fn masks_broadcast_from_the_right() {
    // (B, H, Sq, Skv) = (2, 2, 1, 2). Most masks allow one key per row, and its value identifies
    // it.
    let case = |dims: &[usize], mask: &[u8]| {
        let mut case = Case::new(
            [[2, 2, 1, 1], [2, 2, 2, 1], [2, 2, 2, 1]],
            [&[0.; 4], &[0.; 8], &[0., 1., 2., 3., 4., 5., 6., 7.]],
            |b| b.mask(Mask::contiguous(MaskKind::Bool, dims).expect("rank")),
        );
        case.mask = Some(mask.to_vec());
        case.answer().out
    };
    assert_eq!(case(&[2], &[0, 1]), [1.0, 3.0, 5.0, 7.0]);
    assert_eq!(case(&[1, 2], &[1, 0]), [0.0, 2.0, 4.0, 6.0]);
    assert_eq!(case(&[2, 1, 2], &[1, 0, 0, 1]), [0.0, 3.0, 4.0, 7.0]);
    assert_eq!(case(&[2, 1, 1, 2], &[1, 0, 0, 1]), [0.0, 2.0, 5.0, 7.0]);
    assert_eq!(case(&[2, 2, 1, 2], &[1, 0, 0, 1, 0, 1, 1, 0]), [0.0, 3.0, 5.0, 6.0]);
    assert_eq!(case(&[2, 2, 1, 1], &[1, 0, 0, 1]), [0.5, 0.0, 0.0, 6.5]);
    assert_eq!(case(&[1], &[1]), [0.5, 2.5, 4.5, 6.5]);
}

#[test]
fn additive_masks_are_numbers_except_minus_infinity() {
    let run = |mask: &[f32]| {
        let mut case = Case::scores(&[1.0, 2.0, 3.0], &[3.0, 30.0, 300.0], |b| {
            b.mask(Mask::contiguous(MaskKind::Additive(DType::F32), &[3]).expect("rank 1"))
        });
        case.mask = Some(bytes(mask));
        case.answer()
    };
    assert_close(&run(&[f32::NEG_INFINITY, 1.0, 0.0]).out, &[165.0]);
    assert_close(&run(&[f32::NEG_INFINITY; 3]).out, &[0.0]);
    // Beside other keys, a key with the lowest finite number has no weight. If all keys have it, it
    // absorbs the scores: the row is uniform, not empty.
    assert_close(&run(&[f32::MIN, 0.0, f32::MIN]).out, &[30.0]);
    let uniform = run(&[f32::MIN; 3]);
    assert_close(&uniform.out, &[111.0]);
    assert_eq!(uniform.lse, [f64::from(f32::MIN)]);
    // Its bound stays close to that of an unmasked row, instead of 10^38.
    let (plain, row) = (run(&[0.0; 3]).rows[0], uniform.rows[0]);
    assert!(row.out_bound(DType::F32, 1) < 4.0 * plain.out_bound(DType::F32, 1), "{row:?}");
    assert!(row.lse_bound(1) < 1e32);
}

#[test]
fn sixteen_bit_masks_are_read_in_their_type() {
    for (dtype, lowest) in [(DType::F16, -65_504.0), (DType::BF16, -DType::BF16.max())] {
        let mut case = Case::scores(&[0.0, 0.0], &[1.0, 5.0], |b| {
            b.mask(Mask::contiguous(MaskKind::Additive(dtype), &[2]).expect("rank 1"))
        });
        let mut mask = vec![0; 4];
        dtype.write(&mut mask, 0, 1.5);
        dtype.write(&mut mask, 1, lowest);
        case.mask = Some(mask);
        assert_close(&case.answer().out, &[1.0]);
        assert_close(&case.answer().lse, &[1.5]);
    }
}

#[test]
fn query_heads_share_key_heads_in_order() {
    // Heads 0, 1, 2 read key head 0; heads 3, 4, 5 read key head 1.
    let case = Case::new(
        [[1, 6, 1, 1], [1, 2, 1, 1], [1, 2, 1, 1]],
        [&[0.0; 6], &[0.0; 2], &[3.0, 4.0]],
        |b| b,
    );
    assert_eq!(case.answer().out, [3.0, 3.0, 3.0, 4.0, 4.0, 4.0]);
}

#[test]
fn masked_keys_may_hold_anything() {
    let inf = f32::INFINITY;
    let mut case = Case::scores(&[0.0, f32::NAN, inf, 0.0], &[1.0, f32::NAN, -inf, 3.0], |b| {
        b.mask(Mask::contiguous(MaskKind::Bool, &[4]).expect("rank 1"))
    });
    case.mask = Some(vec![1, 0, 0, 1]);
    assert_close(&case.answer().out, &[2.0]);
    // A NaN in an allowed key reaches exactly the rows that see the key.
    let case = Case::new(
        [[1, 1, 2, 1], [1, 1, 2, 1], [1, 1, 2, 1]],
        [&[0.; 2], &[0., f32::NAN], &[1., 2.]],
        |b| b.causal(true),
    );
    let answer = case.answer();
    assert!(answer.out[0] == 1.0 && answer.out[1].is_nan() && answer.lse[1].is_nan());
}

#[test]
fn dropout_drops_after_the_softmax() {
    // Philox of a zero counter and key: the words of keys 0 to 3 of query 0, head 0.
    let words: [u32; 4] = [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8];
    // Words below p * 2^32 = 0xc0000000 are dropped. Only key 1 remains, times 1 / (1 - 3/4).
    let p = 0.75;
    assert_eq!(words.map(|w| f64::from(w) >= p * 2f64.powi(32)), [false, true, false, false]);
    let mut case = Case::scores(&[0.0, LN2, 0.0, 0.0], &[f32::NAN, 5.0, 7.0, 9.0], |b| {
        b.dropout_p(p).lse(true)
    });
    let two = two();
    let answer = case.answer();
    assert_close(&answer.out, &[4.0 * 5.0 * two / (3.0 + two)]);
    assert_close(&answer.lse, &[(3.0 + two).ln()]);
    // The factor is rounded to f32.
    case = Case::scores(&[0.0; 4], &[0.0, 4.0, 0.0, 0.0], |b| b.dropout_p(0.7));
    assert_close(&case.answer().out, &[f64::from((1.0 / (1.0 - 0.7)) as f32)]);
    // The seed, the offset, the head and the query all matter; p = 1 drops everything.
    case = Case::new(
        [[1, 2, 2, 1], [1, 1, 64, 1], [1, 1, 64, 1]],
        [&[0.; 4], &[0.; 64], &[1.; 64]],
        |b| b.dropout_p(0.5),
    );
    case.call.seed = 1 << 40;
    let first = case.answer().out;
    assert!((0..4).any(|r| first[r] != first[(r + 1) % 4]));
    case.call.offset = 1;
    let second = case.answer().out;
    case.call.seed = 1 << 41;
    assert!(first != second && second != case.answer().out);
    let all = Case::scores(&[1.0], &[5.0], |b| b.dropout_p(1.0)).answer();
    assert_eq!((all.out[0], all.lse[0]), (0.0, 1.0));
}

#[test]
fn the_terms_of_the_bound_follow_their_definitions() {
    // Scores -2 and 0 (q = [1, -1], scale 2): p and the terms by the definitions in core.
    let mut case = Case::new(
        [[1, 1, 1, 2], [1, 1, 2, 2], [1, 1, 2, 2]],
        [&[1., -1.], &[0., 1., 3., 3.], &[1., -8., 2., 4.]],
        |b| b,
    );
    case.call.scale = Some(2.0);
    let row = case.answer().rows[0];
    let e = (-2f64).exp();
    let p = [e / (1.0 + e), 1.0 / (1.0 + e)];
    let o = [p[0] + 2.0 * p[1], -8.0 * p[0] + 4.0 * p[1]];
    let a = [2.0, 12.0];
    let kappa =
        |v: [f64; 2], o: f64| p[0] * a[0] * (v[0] - o).abs() + p[1] * a[1] * (v[1] - o).abs();
    assert_close(&[row.max_out], &[o[1].abs()]);
    assert_close(&[row.kappa], &[kappa([-8.0, 4.0], o[1]).max(kappa([1.0, 2.0], o[0]))]);
    assert_close(&[row.mu], &[8.0 * p[0] + 4.0 * p[1]]);
    assert_close(&[row.rho], &[((8.0 * p[0]).powi(2) + (4.0 * p[1]).powi(2)).sqrt()]);
    assert_close(&[row.alpha], &[p[0] * a[0] + p[1] * a[1]]);
    assert_eq!(row.keys, 2);
}

#[test]
fn the_backend_writes_only_its_rows() {
    // Capacity of two queries, one of them in this call; out has gaps of one element.
    let out = TensorView::strided(DType::F32, [1, 2, 2, 1], [8, 4, 2, 1]);
    let mut case =
        Case::new([[1, 2, 2, 1], [1, 1, 1, 1], [1, 1, 1, 1]], [&[0.; 4], &[0.25], &[6.0]], |b| {
            b.out(out).lse(true)
        });
    case.call.seq_q = Some(1);
    let (out, lse) = case.run(-1.0);
    assert_eq!(out, [6.0, -1.0, -1.0, -1.0, 6.0, -1.0, -1.0]);
    assert_eq!(lse, [0.0, -1.0, 0.0, -1.0]);
}

#[test]
fn bad_arguments_are_refused_as_core_refuses_them() {
    let case = averages(2, 2, |b| b.kv_lens(true));
    let error =
        |inputs| flashtile_reference::attention(&case.problem, &inputs).expect_err("refused");
    assert!(matches!(error(case.inputs()), ProblemError::Missing { .. }));
    let long = [3];
    let inputs = case.inputs().kv_lens(&long);
    assert_eq!(error(inputs).to_string(), "kv_lens[0] must lie in 0..=2, but is 3");
    let mut inputs = case.inputs().kv_lens(&[1]);
    inputs.q = &case.q[..4];
    assert_eq!(error(inputs).to_string(), "q needs 8 bytes, but 4 were given");
}

#[test]
fn strides_and_dtypes_are_followed() {
    // k repeats one row for both keys (stride 0). v stores the sequence outside the heads.
    let q = TensorView::from_bhsd_sizes(DType::BF16, Layout::Bhsd, [1, 2, 1, 1]).expect("small");
    let k = TensorView::strided(q.dtype, [1, 2, 2, 1], [0; 4]);
    let v = TensorView::strided(q.dtype, [1, 2, 2, 1], [0, 1, 2, 1]);
    let problem = Problem::builder(q, k, v).build().expect("valid");
    let write = |values: &[f64]| {
        let mut bytes = vec![0; 2 * values.len()];
        values.iter().enumerate().for_each(|(at, &x)| DType::BF16.write(&mut bytes, at, x));
        bytes
    };
    let case = Case {
        problem,
        q: write(&[1.0, 2.0]),
        k: write(&[3.0]),
        v: write(&[1.0, 2.0, 3.0, 6.0]),
        mask: None,
        kv_lens: None,
        call: Call::default(),
    };
    assert_close(&case.answer().out, &[2.0, 4.0]);
}
