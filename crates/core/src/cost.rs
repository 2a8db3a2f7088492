use crate::{KeyTiles, Problem, ResolvedCall};

/// Floating-point operations and bytes that a problem needs at the least: what speed is measured against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Pairs of query and key, over all heads, that causal, window and kv_lens leave.
    pub pairs: u64,
    /// 2 (D + Dv) a pair: the two matrix products, a multiply and an add counted as two.
    pub flops: u64,
    /// As `flops`, for all the pairs of the tiles that a kernel with these tiles visits.
    pub tile_flops: u64,
    /// q, k, v, mask read once, out and lse written once.
    pub bytes: u64,
}

impl Cost {
    /// The cost of `problem` with tiles of `rows` queries and `keys` keys, every key valid where `kv_lens` is `None`.
    ///
    /// Entries of `kv_lens` outside 0..=seq_kv are clamped.
    pub fn new(problem: &Problem, call: &ResolvedCall, rows: usize, keys: usize, kv_lens: Option<&[i32]>) -> Self {
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
            pairs += p * problem.heads() as u64;
            tile_pairs += t * problem.heads() as u64;
        }
        let width = 2 * (problem.head_dim() + problem.head_dim_v()) as u64;
        let [b, h, hkv] = [problem.batch(), problem.heads(), problem.kv_heads()].map(|n| n as u64);
        let (sq, skv) = (call.seq_q as u64, call.seq_kv as u64);
        let (d, dv) = (problem.head_dim() as u64, problem.head_dim_v() as u64);
        let elements = b * h * sq * (d + dv) + b * hkv * skv * (d + dv);
        let mask = problem.mask().map_or(0, |m| m.shape.iter().product::<usize>() as u64 * m.kind.size() as u64);
        let lse = if problem.lse() { 4 * b * h * sq } else { 0 };
        Self {
            pairs,
            flops: pairs * width,
            tile_flops: tile_pairs * width,
            bytes: elements * problem.dtype().size() as u64 + mask + lse,
        }
    }
}

/// Allowed pairs, and pairs of the visited tiles, of one head.
fn count(problem: &Problem, call: &ResolvedCall, rows: usize, keys: usize, kv_len: usize) -> (u64, u64) {
    let band = problem.band();
    let masked = problem.mask().is_some();
    if band.is_unbounded() {
        let tiles = call.seq_q.div_ceil(rows) * kv_len.div_ceil(keys);
        return ((call.seq_q * kv_len) as u64, (tiles * rows * keys) as u64);
    }
    let diagonal = band.diagonal(call.seq_q, kv_len);
    let (mut pairs, mut tile_pairs) = (0, 0);
    for start in (0..call.seq_q).step_by(rows) {
        let visited = KeyTiles::new(band, masked, start..start + rows, keys, call.seq_q, kv_len).count();
        tile_pairs += (visited * rows * keys) as u64;
        for i in start..(start + rows).min(call.seq_q) {
            let row = i as i64 + diagonal;
            let begin = (row + i64::from(band.lo)).max(0);
            let end = (row + i64::from(band.hi) + 1).min(kv_len as i64);
            pairs += (end - begin).max(0) as u64;
        }
    }
    (pairs, tile_pairs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Call, DType, Layout, TensorView};

    #[test]
    fn causal_halves_the_work() {
        let q = TensorView::contiguous(DType::F16, Layout::Bhsd, [2, 4, 64, 32]).expect("small");
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
}
