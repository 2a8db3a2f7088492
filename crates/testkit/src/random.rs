use crate::case::{Case, KvLens, MaskContent, MaskSpec, Placement, Poison, Values};
use crate::rng::Rng;
use flashtile_core::{Align, DType, Layout, MaskKind};

/// The most FLOPs of a random case with short keys.
const MOST_FLOPS: u64 = 8_000_000;

/// The most FLOPs of a random case with long keys: three queries of two heads of width 128 over
/// 16384 keys.
#[cfg(test)]
const MOST_LONG_FLOPS: u64 = 52_000_000;

/// A random problem: always valid, always the same for the same seed, with any mix of options.
pub fn random_case(seed: u64) -> Case {
    let mut rng = Rng::new(seed, 1000);
    let rng = &mut rng;
    let heads = |rng: &mut Rng| [1, 1, 2, 3, 4][rng.below(5)];
    let kv_heads = heads(rng);
    let mut case = Case::new([1 + rng.below(3), kv_heads * heads(rng), length(rng), width(rng)]);
    case.kv_heads = kv_heads;
    if rng.chance(0.6) {
        case.seq_kv = length(rng) * if rng.chance(0.1) { 5 } else { 1 };
    }
    if rng.chance(0.4) {
        case.head_dim_v = width(rng);
    }
    let long = rng.chance(0.06);
    if long {
        lengthen(&mut case, rng);
    }
    while !long && case.flops() > MOST_FLOPS {
        if case.seq_q.max(case.seq_kv) > 16 {
            (case.seq_q, case.seq_kv) = (case.seq_q.div_ceil(2), case.seq_kv.div_ceil(2));
        } else {
            (case.head_dim, case.head_dim_v) =
                (case.head_dim.div_ceil(2), case.head_dim_v.div_ceil(2));
        }
    }
    case.dtype = rng.pick(DType::ALL);
    place(&mut case, rng);
    restrict(&mut case, rng);
    case.softcap = rng.chance(0.2).then(|| rng.pick(&[0.5, 5.0, 30.0, 50.0, 5000.0]));
    case.scale = rng.chance(0.25).then(|| rng.pick(&[1.0, -0.3, 0.05, 0.0, 2.0, -1.0, 3e4, -1e6]));
    if rng.chance(0.25) {
        case.dropout_p = rng.pick(&[0.1, 0.5, 0.9, 1.0]);
        case.dropout_seed = rng.next_u64();
        case.dropout_offset = rng.next_u64() as u32;
    }
    case.lse = rng.chance(0.8);
    case.values = if rng.chance(0.5) { Values::Normal } else { rng.pick(&Values::ALL) };
    case.poison = rng.pick(&[Poison::Gaps, Poison::Unseen]);
    case.seed = rng.next_u64() >> 40;
    case
}

/// Few queries over long keys.
fn lengthen(case: &mut Case, rng: &mut Rng) {
    (case.batch, case.kv_heads) = (1, 1);
    case.heads = 1 + rng.below(2);
    case.seq_q = 1 + rng.below(3);
    let wide = case.head_dim.max(case.head_dim_v) > 128;
    case.seq_kv = if wide { 1000 + rng.below(3097) } else { 1000 + rng.below(15385) };
}

fn length(rng: &mut Rng) -> usize {
    match rng.below(10) {
        0 => 1,
        1..=4 => 1 + rng.below(20),
        5..=8 => 1 + rng.below(70),
        _ => 1 + rng.below(200),
    }
}

fn width(rng: &mut Rng) -> usize {
    match rng.below(10) {
        0..=3 => 1 + rng.below(20),
        4..=6 => rng.pick(&[16, 32, 40, 64, 80, 96, 128]),
        7..=8 => 1 + rng.below(140),
        _ => 1 + rng.below(512),
    }
}

/// Layouts, and strides longer than needed.
fn place(case: &mut Case, rng: &mut Rng) {
    let layout = rng.pick(Layout::ALL);
    let mut placement = |shape: [usize; 4]| {
        let layout = if rng.chance(0.3) { rng.pick(Layout::ALL) } else { layout };
        if rng.chance(0.6) {
            return Placement::Layout(layout);
        }
        let pads = [rng.below(6), rng.below(4), rng.below(4), usize::from(rng.chance(0.1))];
        Placement::padded(layout, shape, pads)
    };
    case.q = placement(case.q_shape());
    case.k = placement(case.k_shape());
    case.v = placement(case.v_shape());
    case.out = placement(case.out_shape());
    if rng.chance(0.05) {
        // One row of keys for all heads.
        case.k = Placement::Strides([case.seq_kv * case.head_dim, 0, case.head_dim, 1]);
    }
}

/// Everything that decides which keys a query sees.
fn restrict(case: &mut Case, rng: &mut Rng) {
    let (seq_q, seq_kv) = (case.seq_q, case.seq_kv);
    case.causal = rng.chance(0.4);
    case.align = match rng.below(5) {
        0 => Align::BottomRight,
        1 => Align::Offset(rng.below(seq_q + seq_kv + 1) as i64 - seq_q as i64),
        _ => Align::TopLeft,
    };
    case.window_left = rng.chance(0.2).then(|| rng.below(seq_kv + 2));
    case.window_right = rng.chance(0.2).then(|| rng.below(seq_kv + 2));
    case.call_q = rng.chance(0.15).then(|| rng.below(seq_q + 1));
    case.call_kv = rng.chance(0.15).then(|| rng.below(seq_kv + 1));
    if rng.chance(0.25) {
        case.kv_lens = KvLens::Random;
    }
    case.mask = rng.chance(0.4).then(|| {
        let rank = 1 + rng.below(4);
        let contents = [
            MaskContent::Random,
            MaskContent::Blocks,
            MaskContent::Blocks,
            MaskContent::Rows,
            MaskContent::Lowest,
            MaskContent::Open,
            MaskContent::Alibi,
        ];
        MaskSpec {
            kind: rng.pick(MaskKind::ALL),
            rank,
            full: [0, 1, 2, 3].map(|axis| axis >= 4 - rank && rng.chance(0.6)),
            pad: if rng.chance(0.3) { 1 + rng.below(5) } else { 0 },
            content: rng.pick(&contents),
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_cases_are_valid_and_varied() {
        let mut features = [0; 9];
        for seed in 0..2000 {
            let case = random_case(seed);
            assert_eq!(case, random_case(seed));
            assert_eq!(case.to_string().parse().as_ref(), Ok(&case));
            let long = case.seq_kv >= 1000;
            assert!(case.flops() <= if long { MOST_LONG_FLOPS } else { MOST_FLOPS }, "{case}");
            if let Err(error) = case.problem().and_then(|problem| case.call().resolve(&problem)) {
                panic!("{case}: {error}");
            }
            if seed < 100 {
                case.build().unwrap_or_else(|error| panic!("{case}: {error}"));
            }
            let has = [
                case.causal,
                case.mask.is_some(),
                case.softcap.is_some(),
                case.dropout_p > 0.0,
                case.kv_lens != KvLens::Off,
                case.call_q.is_some(),
                case.window_left.is_some(),
                case.head_dim > 256,
                case.seq_kv > 8192,
            ];
            features.iter_mut().zip(has).for_each(|(n, has)| *n += usize::from(has));
        }
        assert!(features.iter().all(|&n| n > 40), "{features:?}");
    }
}
