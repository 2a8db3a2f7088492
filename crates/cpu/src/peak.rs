//! The fastest that the vector units of this machine can multiply and add.

use crate::threads::Threads;
use pulp::{Arch, Simd, WithSimd};
use std::hint::black_box;
use std::time::Instant;

/// Sums that do not depend on each other: enough to keep two units busy, each of which takes 4 or 5
/// cycles per operation.
const CHAINS: usize = 12;

/// Links of each chain per piece of work: about a millisecond.
const LINKS: usize = 200_000;

/// Chains of multiplications and additions in registers. Returns the operations in it and a sum, so
/// that nothing is left out.
struct Chains;

impl WithSimd for Chains {
    type Output = (f64, f32);

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> (f64, f32) {
        let mut sums = [simd.splat_f32s(0.0); CHAINS];
        let (factor, added) = (simd.splat_f32s(black_box(0.5)), simd.splat_f32s(black_box(0.25)));
        for _ in 0..LINKS {
            for sum in &mut sums {
                *sum = simd.mul_add_e_f32s(*sum, factor, added);
            }
        }
        let mut total = 0.0;
        for sum in sums {
            total += simd.reduce_sum_f32s(sum);
        }
        ((2 * S::F32_LANES * CHAINS * LINKS) as f64, total)
    }
}

/// f32 operations per second of all threads, where a multiplication and an addition are two. The
/// best of a few short measurements, because other programs may use the machine too.
pub(crate) fn peak_flops(threads: &Threads) -> f64 {
    let mut states = vec![0.0; threads.count()];
    let pieces = 8 * states.len();
    let mut best: f64 = 0.0;
    for _ in 0..4 {
        let start = Instant::now();
        threads.for_each(pieces, &mut states, |_, flops| {
            let (count, sum) = Arch::new().dispatch(Chains);
            black_box(sum);
            *flops += count;
        });
        let flops: f64 = states.iter().sum();
        best = best.max(flops / start.elapsed().as_secs_f64());
        states.fill(0.0);
    }
    best
}
