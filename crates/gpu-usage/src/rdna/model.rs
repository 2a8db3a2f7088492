use super::{
    count::Counts,
    flow::{Flow, Loop},
    listing,
};
use std::fmt;

/// A generation of AMD's GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// Without matrix instructions.
    Rdna2,
    /// Pairs of vector instructions; matrix instructions.
    Rdna3,
    /// Matrix instructions at twice the rate.
    Rdna4,
}

impl Generation {
    /// The rate of matrix instructions with 16-bit inputs, per SIMD: 128 and 256 FMA per clock.
    pub(crate) fn matrix_fma_per_clock(self) -> f64 {
        match self {
            // RDNA 2 has none.
            Generation::Rdna2 | Generation::Rdna3 => 128.0,
            Generation::Rdna4 => 256.0,
        }
    }
}

/// One iteration of a loop that holds FMA or matrix instructions, without the loops inside it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HotLoop {
    /// The common path.
    pub common: Counts,
    /// Regions that are rarely taken.
    pub rare: Counts,
    /// Lanes of a subgroup.
    pub lanes: u32,
    /// What the ceiling is modelled for.
    pub generation: Generation,
    /// Whether it is for edge tiles. Another loop does the same for full tiles.
    pub edge: bool,
}

/// Loops with fewer FMA than this, and no matrix instruction, are not worth a line.
const FEWEST_FMA: u32 = 16;

/// FMA of one matrix instruction: 16 x 16 x 16.
const MATRIX_FMA: u32 = 16 * 16 * 16;

/// Bytes of workgroup memory per clock and SIMD: 32 banks of 4 bytes, for two SIMDs.
const SHARED_BYTES_PER_CLOCK: f64 = 64.0;

/// Lanes of a SIMD.
const SIMD_LANES: f64 = 32.0;

/// The hot loops of a listing, in its order: those with FMA or matrix instructions. Of a loop with
/// hot loops inside it, the code around these counts only if it has at least as many FMA, as an
/// unrolled product has.
///
/// If there is a loop over keys, which is a loop that computes exp, only loops inside it are hot:
/// others run once per workgroup. Of several loops over keys, the one with the highest ceiling is
/// for full tiles, and the others for edge tiles. The same holds for alternatives inside a loop
/// over keys that have equally many FMA.
pub fn hot_loops(listing: &str, lanes: u32, generation: Generation) -> Vec<HotLoop> {
    let flow = Flow::new(&listing::parse(listing));
    let mut hot: Vec<(&Loop, HotLoop)> = Vec::new();
    for one in &flow.loops {
        let (common, rare) = flow.iteration(one);
        if common.fma >= FEWEST_FMA || common.matrix > 0 {
            hot.push((one, HotLoop { common, rare, lanes, generation, edge: false }));
        }
    }
    let all = hot.clone();
    hot.retain(|(outer, own)| {
        let more = |inner: &HotLoop| inner.all_fma() > own.all_fma();
        !all.iter().any(|(one, inner)| flow.contains(outer, one) && more(inner))
    });

    let inside = |keys: &Loop, one: &Loop| keys.is(one) || flow.contains(keys, one);
    let over_keys: Vec<&Loop> = flow
        .loops
        .iter()
        .filter(|keys| hot.iter().any(|(one, _)| inside(keys, one)))
        .filter(|keys| flow.everything(keys).exp > 0)
        .collect();
    let innermost: Vec<&Loop> = over_keys
        .iter()
        .copied()
        .filter(|outer| !over_keys.iter().any(|inner| flow.contains(outer, inner)))
        .collect();
    if !innermost.is_empty() {
        hot.retain(|(one, _)| innermost.iter().any(|keys| inside(keys, one)));
        let ceiling = |keys: &Loop| {
            let loops = hot.iter().filter(|(one, _)| inside(keys, one));
            mean_ceiling(loops.map(|(_, hot)| hot))
        };
        let best = innermost
            .iter()
            .copied()
            .reduce(|best, keys| if ceiling(keys) > ceiling(best) { keys } else { best });
        for (one, hot) in &mut hot {
            hot.edge = !best.is_some_and(|keys| inside(keys, one));
        }
    }
    let all = hot.clone();
    for (one, hot) in &mut hot {
        hot.edge |= all.iter().any(|(other, better)| {
            let around = innermost.iter().find(|keys| inside(keys, one) && inside(keys, other));
            (better.common.fma, better.common.matrix) == (hot.common.fma, hot.common.matrix)
                && better.ceiling() > hot.ceiling()
                && around.is_some_and(|keys| flow.are_alternatives(keys, one, other))
        });
    }
    hot.into_iter().map(|(_, hot)| hot).collect()
}

/// The ceiling of loops that share the work equally: the harmonic mean of theirs.
pub(crate) fn mean_ceiling<'a>(loops: impl Iterator<Item = &'a HotLoop> + Clone) -> f64 {
    let sum: f64 = loops.clone().map(|hot| 1.0 / hot.ceiling()).sum();
    loops.count() as f64 / sum
}

impl HotLoop {
    /// FMA per lane, with those of matrix instructions.
    pub fn all_fma(&self) -> f64 {
        let matrix = f64::from(self.common.matrix * MATRIX_FMA) / f64::from(self.lanes);
        f64::from(self.common.fma) + matrix
    }

    /// FMA per instruction of any kind, matrix instructions aside.
    pub fn fma_per_instruction(&self) -> f64 {
        f64::from(self.common.fma) / f64::from(self.common.instructions.max(1))
    }

    /// FMA per vector instruction, matrix instructions aside. Pairs may raise it above 1.
    pub fn fma_per_vector(&self) -> f64 {
        f64::from(self.common.fma) / f64::from(self.common.vector.max(1))
    }

    /// Bytes read from workgroup memory per FMA, with those of matrix instructions.
    pub fn shared_bytes_per_fma(&self) -> f64 {
        f64::from(self.common.shared_bytes) / self.all_fma()
    }

    /// The modelled ceiling: the share of the peak that the loop would reach if nothing but the
    /// busiest unit of a SIMD limited it.
    ///
    /// Clocks of an iteration, per unit:
    ///
    /// - vector: a vector instruction takes lanes / 32 clocks, exp and its like four times that, a
    ///   matrix instruction 32 clocks (RDNA 4: 16);
    /// - workgroup memory: bytes * lanes / 64;
    /// - scalar: one clock per instruction.
    ///
    /// The ceiling is the clocks of the useful work over those of the busiest unit. Useful are the
    /// matrix instructions if there are any, else the FMA, at one per lane and clock: pairs may
    /// raise the ceiling above 1. Latencies, caches, bank conflicts and broadcasts are left out.
    pub fn ceiling(&self) -> f64 {
        let clocks = self.clocks();
        let useful = match self.common.matrix {
            0 => f64::from(self.common.fma) * self.clocks_per_instruction(),
            count => f64::from(count) * self.clocks_per_matrix(),
        };
        useful / clocks.iter().fold(1.0_f64, |most, &(_, clocks)| most.max(clocks))
    }

    /// The unit that limits the ceiling.
    pub fn limit(&self) -> &'static str {
        let mut busiest = self.clocks()[0];
        for unit in self.clocks() {
            if unit.1 > busiest.1 {
                busiest = unit;
            }
        }
        busiest.0
    }

    fn clocks(&self) -> [(&'static str, f64); 3] {
        let Counts { vector, transcendental, matrix, shared_bytes, scalar, .. } = self.common;
        let vector = f64::from(vector + 3 * transcendental) * self.clocks_per_instruction();
        let lanes = f64::from(self.lanes);
        [
            ("vector", vector + f64::from(matrix) * self.clocks_per_matrix()),
            ("workgroup memory", f64::from(shared_bytes) * lanes / SHARED_BYTES_PER_CLOCK),
            ("scalar", scalar.into()),
        ]
    }

    fn clocks_per_instruction(&self) -> f64 {
        f64::from(self.lanes) / SIMD_LANES
    }

    fn clocks_per_matrix(&self) -> f64 {
        f64::from(MATRIX_FMA) / self.generation.matrix_fma_per_clock()
    }
}

impl fmt::Display for HotLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { instructions, fma, matrix, vector, scalar, .. } = self.common;
        if matrix > 0 {
            write!(f, "{matrix} matrix, ")?;
        }
        write!(f, "{fma} FMA in {instructions} instructions")?;
        if matrix == 0 {
            write!(f, " ({:.2})", self.fma_per_instruction())?;
        }
        write!(f, ", {vector} vector")?;
        if matrix == 0 {
            write!(f, " ({:.2})", self.fma_per_vector())?;
        }
        write!(f, ", {scalar} scalar, {:.2} bytes shared per FMA", self.shared_bytes_per_fma())?;
        for (count, what) in [
            (self.common.scalar_loads, "scalar loads"),
            (self.common.vector_memory, "vector memory"),
            (self.common.shared_stores, "shared stores"),
            (self.common.exchanges, "exchanges"),
            (self.common.scratch, "scratch"),
            (self.common.barriers, "barriers"),
            (self.common.unknown, "unknown"),
            (self.rare.vector, "vector rarely"),
        ] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        if self.edge {
            f.write_str(", for edge tiles")?;
        }
        write!(f, ": ceiling {:.0}% ({})", 100.0 * self.ceiling(), self.limit())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(common: Counts, lanes: u32, generation: Generation) -> HotLoop {
        HotLoop { common, rare: Counts::default(), lanes, generation, edge: false }
    }

    fn repeat(code: &str, count: usize) -> String {
        format!("{code}\n").repeat(count)
    }

    #[test]
    fn vector_instructions_limit() {
        // 80 of 100 vector instructions are FMA.
        let counts = Counts { fma: 80, vector: 100, scalar: 50, ..Counts::default() };
        let hot = of(counts, 64, Generation::Rdna3);
        assert_eq!((hot.ceiling(), hot.limit()), (0.8, "vector"));
        // Ten of them take four times as long.
        let counts = Counts { transcendental: 10, ..counts };
        let hot = of(counts, 64, Generation::Rdna3);
        assert!((hot.ceiling() - 80.0 / 130.0).abs() < 1e-12, "{}", hot.ceiling());
    }

    #[test]
    fn workgroup_memory_limits() {
        // Two bytes per FMA take exactly as long as the FMA.
        let counts = Counts { fma: 64, vector: 64, shared_bytes: 128, ..Counts::default() };
        let hot = of(counts, 64, Generation::Rdna2);
        assert_eq!((hot.ceiling(), hot.shared_bytes_per_fma()), (1.0, 2.0));
        let counts = Counts { shared_bytes: 256, ..counts };
        let hot = of(counts, 32, Generation::Rdna2);
        assert_eq!((hot.ceiling(), hot.limit()), (0.5, "workgroup memory"));
    }

    #[test]
    fn scalar_instructions_limit_small_subgroups() {
        let counts = Counts { fma: 50, vector: 50, scalar: 100, ..Counts::default() };
        let wide = of(counts, 64, Generation::Rdna3);
        assert_eq!((wide.ceiling(), wide.limit()), (1.0, "vector"));
        let narrow = of(counts, 32, Generation::Rdna3);
        assert_eq!((narrow.ceiling(), narrow.limit()), (0.5, "scalar"));
    }

    #[test]
    fn pairs_raise_the_ceiling_above_one() {
        let counts = Counts { fma: 150, vector: 100, ..Counts::default() };
        assert_eq!(of(counts, 32, Generation::Rdna3).ceiling(), 1.5);
    }

    #[test]
    fn matrix_instructions_are_the_useful_work() {
        // 16 * 32 clocks of 512 + 128 * 2.
        let counts = Counts { matrix: 16, vector: 128, ..Counts::default() };
        let rdna3 = of(counts, 64, Generation::Rdna3);
        assert!((rdna3.ceiling() - 512.0 / 768.0).abs() < 1e-12, "{}", rdna3.ceiling());
        let rdna4 = of(counts, 64, Generation::Rdna4);
        assert_eq!(rdna4.ceiling(), 0.5);
        assert_eq!(rdna3.all_fma(), 1024.0);
    }

    #[test]
    fn hot_loops_are_innermost_and_have_fma() {
        let fma = repeat("v_fmac_f32_e32 v1, v2, v3", 32);
        let few = repeat("v_fmac_f32_e32 v1, v2, v3", 4);
        let listing = format!(
            "BB0:
             {few}
             BB1:
             {fma}
             BB2:
             {fma}
             v_mul_f32_e32 v1, v2, v3
             s_cbranch_scc1 BB2
             BB3:
             v_wmma_f32_16x16x16_f16 v[0:7], v[8:15], v[16:23], v[0:7]
             s_cbranch_scc1 BB3
             BB4:
             {few}
             s_cbranch_scc1 BB4
             BB5:
             s_cbranch_scc0 BB1
             BB6:
             s_endpgm"
        );
        let found = hot_loops(&listing, 64, Generation::Rdna3);
        let counts: Vec<_> = found
            .iter()
            .map(|hot| [hot.common.fma, hot.common.vector, hot.common.matrix])
            .collect();
        // The outer loop's own FMA, and the loop with few of them, are left out.
        assert_eq!(counts, [[32, 33, 0], [0, 0, 1]]);
    }

    #[test]
    fn an_unrolled_product_around_a_loop_is_hot() {
        let fma = |count| repeat("v_fmac_f32_e32 v1, v2, v3", count);
        let listing = |around| {
            format!(
                "BB1:
                 v_exp_f32_e32 v1, v2
                 {}
                 BB2:
                 {}
                 s_cbranch_scc1 BB2
                 BB3:
                 s_cbranch_scc0 BB1
                 BB4:
                 s_endpgm",
                fma(around),
                fma(32)
            )
        };
        assert_eq!(found(&listing(32)), [(32, 33, false), (32, 32, false)]);
        assert_eq!(found(&listing(31)), [(32, 32, false)]);
    }

    /// FMA, vector instructions and whether it is for edge tiles, of each hot loop.
    fn found(listing: &str) -> Vec<(u32, u32, bool)> {
        hot_loops(listing, 64, Generation::Rdna3)
            .iter()
            .map(|hot| (hot.common.fma, hot.common.vector, hot.edge))
            .collect()
    }

    #[test]
    fn the_better_loop_over_keys_is_for_full_tiles() {
        let fma = repeat("v_fmac_f32_e32 v1, v2, v3", 32);
        let selects = repeat("v_cndmask_b32_e32 v1, v2, v3, vcc", 8);
        let listing = format!(
            "BB0:
             {fma}
             s_cbranch_scc1 BB0
             BB1:
             {fma}
             {selects}
             v_exp_f32_e32 v1, v2
             s_cbranch_scc1 BB1
             BB2:
             {fma}
             v_exp_f32_e32 v1, v2
             s_cbranch_scc1 BB2
             BB3:
             s_endpgm"
        );
        // The first loop computes no exp: it runs once.
        assert_eq!(found(&listing), [(32, 41, true), (32, 33, false)]);
    }

    #[test]
    fn of_alternatives_in_a_loop_over_keys_the_better_is_for_full_tiles() {
        let fma = repeat("v_fmac_f32_e32 v1, v2, v3", 32);
        let selects = repeat("v_cndmask_b32_e32 v1, v2, v3, vcc", 8);
        // Scores in BB2; then P V in BB4 or, with masks, in BB6.
        let listing = format!(
            "BB1:
             v_exp_f32_e32 v1, v2
             BB2:
             {fma}
             v_mov_b32_e32 v1, v2
             s_cbranch_scc1 BB2
             BB3:
             s_cbranch_scc0 BB6
             BB4:
             {fma}
             s_cbranch_scc1 BB4
             BB5:
             s_branch BB7
             BB6:
             {fma}
             {selects}
             s_cbranch_scc1 BB6
             BB7:
             s_cbranch_scc0 BB1
             BB8:
             s_endpgm"
        );
        assert_eq!(found(&listing), [(32, 33, false), (32, 32, false), (32, 40, true)]);
    }

    #[test]
    fn the_line_shows_what_matters() {
        let counts = Counts {
            instructions: 640,
            fma: 512,
            vector: 540,
            scalar: 60,
            shared_bytes: 512,
            shared_loads: 32,
            scalar_loads: 3,
            ..Counts::default()
        };
        let rare = Counts { vector: 64, ..Counts::default() };
        let hot = HotLoop { rare, ..of(counts, 64, Generation::Rdna3) };
        assert_eq!(
            hot.to_string(),
            "512 FMA in 640 instructions (0.80), 540 vector (0.95), 60 scalar, 1.00 bytes shared \
             per FMA, 3 scalar loads, 64 vector rarely: ceiling 95% (vector)"
        );
    }
}
