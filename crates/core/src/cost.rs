use crate::{KeyTiles, Problem, ResolvedCall};

/// The floating-point operations and bytes that a problem needs at least. Throughput is computed
/// from them.
///
/// Strides of 0 can describe an enormous problem in little memory, so the counts saturate at
/// `u64::MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cost {
    /// Pairs of query and key, over all heads, that causal, window and kv_lens allow.
    pub pairs: u64,
    /// 2 (D + Dv) per pair: two matrix products, where a multiply and an add count as two.
    pub flops: u64,
    /// As `flops`, for all pairs of the tiles that a kernel with these tile sizes visits.
    pub tile_flops: u64,
    /// q, k, v and the mask read once; out and lse written once.
    pub bytes: u64,
}

impl Cost {
    /// The cost of `problem` with tiles of `rows` queries and `keys` keys. If `kv_lens` is `None`,
    /// every key is valid.
    ///
    /// Entries of `kv_lens` outside 0..=seq_kv are clamped.
    pub fn new(
        problem: &Problem,
        call: &ResolvedCall,
        rows: usize,
        keys: usize,
        kv_lens: Option<&[i32]>,
    ) -> Self {
        let (mut pairs, mut tile_pairs) = (0u64, 0u64);
        let lens: &[i32] = kv_lens.unwrap_or(&[]);
        let mut last: Option<(usize, u64, u64)> = None;
        for b in 0..problem.batch() {
            let kv_len = lens.get(b).map_or(call.seq_kv, |&n| (n.max(0) as usize).min(call.seq_kv));
            let (p, t) = match last {
                Some((same, p, t)) if same == kv_len => (p, t),
                _ => count(problem, call, rows, keys, kv_len),
            };
            last = Some((kv_len, p, t));
            let heads = problem.heads() as u64;
            pairs = pairs.saturating_add(p.saturating_mul(heads));
            tile_pairs = tile_pairs.saturating_add(t.saturating_mul(heads));
        }
        let (batch, size, width) = (
            problem.batch(),
            problem.dtype().size(),
            problem.head_dim().saturating_add(problem.head_dim_v()),
        );
        let mask = problem.mask().map_or(0, |mask| {
            let [b, h, i, j] = mask.shape;
            product([b, h, i, j, mask.kind.size()])
        });
        let parts = [
            product([batch, problem.heads(), call.seq_q, width, size]),
            product([batch, problem.kv_heads(), call.seq_kv, width, size]),
            mask,
            if problem.lse() { product([batch, problem.heads(), call.seq_q, 4]) } else { 0 },
        ];
        let flops = |pairs: u64| pairs.saturating_mul(product([2, width]));
        Self {
            pairs,
            flops: flops(pairs),
            tile_flops: flops(tile_pairs),
            bytes: parts.into_iter().fold(0, u64::saturating_add),
        }
    }
}

fn product<const N: usize>(factors: [usize; N]) -> u64 {
    // A size of 0 makes the product 0, even one that has saturated.
    if factors.contains(&0) {
        0
    } else {
        factors.into_iter().fold(1, |n: u64, m| n.saturating_mul(m as u64))
    }
}

/// Allowed pairs, and pairs in the visited tiles, of one head.
fn count(
    problem: &Problem,
    call: &ResolvedCall,
    rows: usize,
    keys: usize,
    kv_len: usize,
) -> (u64, u64) {
    let band = problem.band();
    let masked = problem.mask().is_some();
    if band.is_unbounded() {
        let tiles = call.seq_q.div_ceil(rows) * kv_len.div_ceil(keys);
        return ((call.seq_q * kv_len) as u64, (tiles * rows * keys) as u64);
    }
    let mut tile_pairs = 0;
    for start in (0..call.seq_q).step_by(rows) {
        let tiles = KeyTiles::new(band, masked, start..start + rows, keys, call.seq_q, kv_len);
        tile_pairs += (tiles.len() * rows * keys) as u64;
    }
    (band.pairs(0..call.seq_q, call.seq_q, kv_len), tile_pairs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Call, DType, TensorView};

    #[test]
    fn causal_halves_the_work() {
        let q = TensorView::bhsd(DType::F16, [2, 4, 64, 32]).expect("small");
        let problem = Problem::builder(q, q, q).causal(true).build().expect("valid");
        let call = Call::default().resolve(&problem).expect("valid");
        let cost = Cost::new(&problem, &call, 16, 16, None);
        assert_eq!(cost.pairs, 8 * 64 * 65 / 2);
        assert_eq!(cost.flops, cost.pairs * 128);
        assert_eq!(cost.tile_flops, 8 * (1 + 2 + 3 + 4) * 256 * 128);
        assert_eq!(cost.bytes, 4 * 8 * 64 * 32 * 2);
        let half = Cost::new(&problem, &call, 16, 16, Some(&[64, 0]));
        assert_eq!(2 * half.pairs, cost.pairs);
    }

    #[test]
    fn enormous_problems_saturate() {
        let row = |shape| TensorView::strided(DType::F32, shape, [0, 0, 0, 1]);
        let (q, kv) = (row([1, 1 << 36, 1, 8]), row([1, 1 << 36, (1 << 29) - 1, 8]));
        let problem = Problem::builder(q, kv, kv).lse(true).build().expect("valid");
        let call = Call::default().resolve(&problem).expect("valid");
        let cost = Cost::new(&problem, &call, 16, 16, None);
        assert_eq!([cost.pairs, cost.flops, cost.tile_flops, cost.bytes], [u64::MAX; 4]);
        let none = Call::new().seq_kv(0).resolve(&problem).expect("valid");
        assert_eq!(Cost::new(&problem, &none, 16, 16, None).flops, 0);
    }
}
