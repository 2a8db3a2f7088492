use super::model::{Generation, HotLoop, mean_ceiling};
use flashtile_core::{Call, Cost, Problem};
use std::fmt;

/// The modelled ceiling of a whole case on one product, in TFLOP/s: what the hot loops allow, or
/// what memory allows, whichever is less.
///
/// - The loops: the mean of their ceilings, harmonic because they share the work, times the
///   product's rate of FMA (of matrix instructions where the loops have them). Both products of
///   attention are equally long, so loops count alike.
/// - Memory: the least FLOP per byte of [`Cost`] times the product's bandwidth.
///
/// It assumes enough workgroups for the whole GPU, and no time outside of the hot loops.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roof {
    /// TFLOP/s.
    pub ceiling: f64,
    /// The product's rate, in TFLOP/s: that of FMA without pairs, or that of matrix instructions.
    pub peak: f64,
    /// The unit that limits it.
    pub limit: &'static str,
}

/// The data of a product, as its maker gives them.
struct Product {
    simds: f64,
    /// Boost clock.
    ghz: f64,
    gbps: f64,
}

impl Generation {
    /// Radeon RX 6800, RX 7900 XTX, RX 9070 XT: products with the chips that the drivers compile
    /// for.
    fn product(self) -> Product {
        match self {
            Generation::Rdna2 => Product { simds: 120.0, ghz: 2.105, gbps: 512.0 },
            Generation::Rdna3 => Product { simds: 192.0, ghz: 2.5, gbps: 960.0 },
            Generation::Rdna4 => Product { simds: 128.0, ghz: 2.97, gbps: 640.0 },
        }
    }
}

impl Roof {
    /// `None` without hot loops.
    pub(crate) fn new(
        generation: Generation,
        loops: &[HotLoop],
        problem: &Problem,
    ) -> Option<Self> {
        let call = Call::default().resolve(problem).ok()?;
        let cost = Cost::new(problem, &call, 1, 1, None);
        Self::of(generation, loops, cost.flops as f64 / cost.bytes as f64)
    }

    fn of(generation: Generation, loops: &[HotLoop], flops_per_byte: f64) -> Option<Self> {
        let loops = loops.iter().filter(|hot| !hot.edge);
        let slowest = loops.clone().min_by(|a, b| a.ceiling().total_cmp(&b.ceiling()))?;
        let share = mean_ceiling(loops.clone());
        let product = generation.product();
        let matrix = loops.clone().all(|hot| hot.common.matrix > 0);
        let fma_per_clock = if matrix { generation.matrix_fma_per_clock() } else { 32.0 };
        let peak = 2.0 * fma_per_clock * product.simds * product.ghz / 1000.0;
        let memory = flops_per_byte * product.gbps / 1000.0;
        let arithmetic = share * peak;
        Some(if memory < arithmetic {
            Self { ceiling: memory, peak, limit: "memory" }
        } else {
            Self { ceiling: arithmetic, peak, limit: slowest.limit() }
        })
    }
}

impl fmt::Display for Roof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ceiling, peak, limit } = self;
        write!(f, "modelled ceiling {ceiling:.1} TFLOP/s of {peak:.1} ({limit})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rdna::Counts;

    fn hot(fma: u32, vector: u32, matrix: u32) -> HotLoop {
        let common = Counts { fma, vector, matrix, ..Counts::default() };
        HotLoop {
            common,
            rare: Counts::default(),
            lanes: 32,
            generation: Generation::Rdna3,
            edge: false,
        }
    }

    #[test]
    fn the_least_roof_counts() {
        // 192 * 32 lanes * 2 FLOP * 2.5 GHz = 30.72 TFLOP/s.
        let roof = Roof::of(Generation::Rdna3, &[hot(50, 100, 0)], 1000.0).expect("a loop");
        assert_eq!(roof.to_string(), "modelled ceiling 15.4 TFLOP/s of 30.7 (vector)");
        // 1 FLOP per byte of 960 GB/s.
        let roof = Roof::of(Generation::Rdna3, &[hot(50, 100, 0)], 1.0).expect("a loop");
        assert_eq!(roof.to_string(), "modelled ceiling 1.0 TFLOP/s of 30.7 (memory)");
        assert_eq!(Roof::of(Generation::Rdna3, &[], 1.0), None);
    }

    #[test]
    fn two_loops_share_the_work() {
        // Half of the work at the full rate and half at a third of it: 2 / (1 + 3).
        let loops = [hot(90, 90, 0), hot(30, 90, 0)];
        let roof = Roof::of(Generation::Rdna3, &loops, 1e6).expect("loops");
        assert!((roof.ceiling / roof.peak - 0.5).abs() < 1e-12, "{roof}");
        // A loop for edge tiles does not count.
        let loops = [loops[0], HotLoop { edge: true, ..loops[1] }];
        let roof = Roof::of(Generation::Rdna3, &loops, 1e6).expect("loops");
        assert_eq!(roof.ceiling, roof.peak);
    }

    #[test]
    fn matrix_instructions_have_a_rate_of_their_own() {
        // 4096 FMA in 32 clocks: four times the rate of FMA.
        let roof = Roof::of(Generation::Rdna3, &[hot(0, 0, 8)], 1e6).expect("a loop");
        assert_eq!(roof.to_string(), "modelled ceiling 122.9 TFLOP/s of 122.9 (vector)");
    }
}
