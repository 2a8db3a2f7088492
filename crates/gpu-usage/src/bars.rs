//! What every tuned kernel has to reach.

use crate::{Report, rdna::HotLoop};
use flashtile_core::DType;

/// FMA per vector instruction in each hot loop, at least.
const FMA_PER_VECTOR: f64 = 0.8;

/// Bytes read from workgroup memory per FMA in each hot loop, at most.
const SHARED_BYTES_PER_FMA: f64 = 1.1;

/// Subgroups per SIMD, at least, as RADV reports them.
const OCCUPANCY: u64 = 6;

/// The largest share of FMA in vector instructions, where matrix instructions compute both
/// products. The rest is softmax.
const FMA_BESIDE_MATRIX: f64 = 0.1;

/// FMA per vector instruction of a loop that computes softmax and no product, at most. Loops of
/// products have more even when they are slow.
const FMA_PER_VECTOR_OF_SOFTMAX: f64 = 0.25;

/// The bars that a report misses, and by how much. Loops for edge tiles have none, and neither have
/// cases with head_dim other than 64 and 128.
///
/// - On every GPU: no spills, no scratch or local memory.
///
/// Without options:
/// - On RDNA 3, f32, many queries: FMA per vector instruction, bytes of workgroup memory per FMA,
///   occupancy.
/// - On RDNA 3 and 4, f16, many queries: matrix instructions compute both products.
pub(crate) fn violations(report: &Report) -> Vec<(&'static str, String)> {
    let mut missed = Vec::new();
    if !matches!(report.case.shape[3], 64 | 128) {
        return missed;
    }
    let usages: Vec<_> = report.kernels.iter().filter_map(|kernel| kernel.usage.as_ref()).collect();
    let loops = report.kernels.iter().flat_map(|kernel| &kernel.loops);
    let loops: Vec<&HotLoop> = loops.filter(|hot| !hot.edge).collect();
    let spills: u64 = usages.iter().map(|usage| usage.spills).sum();
    if spills > 0 {
        missed.push(("spills", format!("{spills}")));
    }
    let scratch = usages.iter().map(|usage| usage.scratch).max().unwrap_or_default();
    if scratch > 0 {
        missed.push(("scratch", format!("{scratch} bytes")));
    }
    if report.case.option.is_some() {
        return missed;
    }
    let many_queries = report.case.shape[2] > 1;
    let gpu = report.gpu.as_str();
    if gpu == "rdna3" && report.case.dtype == DType::F32 && many_queries {
        // Without a hot loop, the least and the most are the worst that can be.
        let least = least(&loops, HotLoop::fma_per_vector);
        if least < FMA_PER_VECTOR {
            missed.push(("FMA per vector instruction", format!("{least:.2}, not 0.8")));
        }
        let most = -self::least(&loops, |hot| -hot.shared_bytes_per_fma());
        if most > SHARED_BYTES_PER_FMA || loops.is_empty() {
            missed.push(("workgroup memory per FMA", format!("{most:.2} bytes, not 1.1")));
        }
        let occupancy = usages.iter().map(|usage| usage.subgroups).min().unwrap_or_default();
        if occupancy < OCCUPANCY {
            missed.push(("occupancy", format!("{occupancy}, not 6")));
        }
    }
    if ["rdna3", "rdna4"].contains(&gpu) && report.case.dtype == DType::F16 && many_queries {
        // Of a loop without matrix instructions, the density of FMA says whether it computes a
        // product.
        let by_matrix = |hot: &&HotLoop| match hot.common.matrix {
            0 => hot.fma_per_vector() <= FMA_PER_VECTOR_OF_SOFTMAX,
            _ => f64::from(hot.common.fma) <= FMA_BESIDE_MATRIX * hot.all_fma(),
        };
        let matrix: u32 = loops.iter().map(|hot| hot.common.matrix).sum();
        if matrix == 0 || !loops.iter().all(by_matrix) {
            let fma: u32 = loops.iter().map(|hot| hot.common.fma).sum();
            missed.push((
                "matrix instructions",
                format!("{matrix} beside {fma} FMA in the hot loops"),
            ));
        }
    }
    missed
}

/// The least value over the loops; 0 where there is none.
fn least(loops: &[&HotLoop], value: impl Fn(&HotLoop) -> f64) -> f64 {
    loops.iter().map(|hot| value(hot)).reduce(f64::min).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Case, CaseOption, KernelReport, Usage,
        rdna::{Counts, Generation},
    };

    fn hot(fma: u32, vector: u32, matrix: u32, shared_bytes: u32) -> HotLoop {
        let mut common = Counts::default();
        (common.fma, common.vector, common.matrix) = (fma, vector, matrix);
        common.shared_bytes = shared_bytes;
        HotLoop {
            common,
            rare: Counts::default(),
            lanes: 64,
            generation: Generation::Rdna3,
            edge: false,
        }
    }

    /// A report of one kernel with [spills, scratch, occupancy].
    fn report(gpu: &str, dtype: DType, usage: [u64; 3], loops: Vec<HotLoop>) -> Report {
        let mut given = Usage::default();
        [given.spills, given.scratch, given.subgroups] = usage;
        let kernel = KernelReport { usage: Some(given), loops, ..KernelReport::default() };
        let case = Case::new([1, 8, 1024, 64], dtype, true);
        Report { gpu: gpu.to_owned(), case, kernels: vec![kernel], roof: None }
    }

    fn missed(report: &Report) -> Vec<&'static str> {
        violations(report).into_iter().map(|(bar, _)| bar).collect()
    }

    #[test]
    fn nothing_spills_anywhere() {
        assert!(missed(&report("m1", DType::F32, [0, 0, 1], vec![])).is_empty());
        assert_eq!(missed(&report("m1", DType::F32, [1, 0, 1], vec![])), ["spills"]);
        assert_eq!(missed(&report("ampere", DType::BF16, [0, 4, 1], vec![])), ["scratch"]);
    }

    #[test]
    fn rdna3_f32_has_bars_of_its_own() {
        let of = |usage, loops| missed(&report("rdna3", DType::F32, usage, loops));
        let good = hot(80, 100, 0, 88);
        assert!(of([0, 0, 6], vec![good]).is_empty());
        assert_eq!(of([0, 0, 5], vec![good]), ["occupancy"]);
        // The worst loop counts.
        let slow = hot(79, 100, 0, 0);
        assert_eq!(of([0, 0, 6], vec![good, slow]), ["FMA per vector instruction"]);
        assert!(of([0, 0, 6], vec![good, HotLoop { edge: true, ..slow }]).is_empty());
        let loads = hot(80, 100, 0, 89);
        assert_eq!(of([0, 0, 6], vec![loads, good]), ["workgroup memory per FMA"]);
        let none = ["FMA per vector instruction", "workgroup memory per FMA"];
        assert_eq!(of([0, 0, 6], vec![]), none);
        // Other GPUs and types do not have them.
        assert!(missed(&report("rdna2", DType::F32, [0, 0, 1], vec![slow])).is_empty());
        assert!(missed(&report("rdna3", DType::BF16, [0, 0, 1], vec![slow])).is_empty());
    }

    #[test]
    fn matrix_instructions_compute_both_products() {
        let of = |gpu, loops| missed(&report(gpu, DType::F16, [0, 0, 1], loops));
        // 16 instructions are 1024 FMA per lane.
        let both = hot(100, 200, 16, 0);
        assert!(of("rdna3", vec![both]).is_empty());
        assert!(of("rdna4", vec![both]).is_empty());
        assert_eq!(of("rdna4", vec![hot(200, 200, 16, 0)]), ["matrix instructions"]);
        assert_eq!(of("rdna3", vec![both, hot(26, 100, 0, 0)]), ["matrix instructions"]);
        // Softmax in a loop of its own.
        assert!(of("rdna3", vec![both, hot(25, 100, 0, 0)]).is_empty());
        assert_eq!(of("rdna3", vec![hot(25, 100, 0, 0)]), ["matrix instructions"]);
        assert_eq!(of("rdna3", vec![]), ["matrix instructions"]);
        assert!(of("rdna2", vec![hot(64, 64, 0, 0)]).is_empty());
    }

    #[test]
    fn cases_with_options_must_only_not_spill() {
        let none = report("rdna3", DType::F16, [0, 0, 1], vec![]);
        assert_eq!(missed(&none), ["matrix instructions"]);
        for option in CaseOption::ALL {
            let case = Case { option: Some(option), ..none.case };
            assert!(missed(&Report { case, ..none.clone() }).is_empty());
            let spills = Report { case, ..report("rdna3", DType::F16, [1, 4, 1], vec![]) };
            assert_eq!(missed(&spills), ["spills", "scratch"]);
        }
    }

    #[test]
    fn other_widths_have_no_bars() {
        let case = Case::new([1, 8, 1024, 256], DType::F16, true);
        let spills = Report { case, ..report("m1", DType::F16, [1, 4, 1], vec![]) };
        assert!(missed(&spills).is_empty());
    }

    #[test]
    fn a_decode_step_must_only_not_spill() {
        let mut step = report("rdna3", DType::F32, [0, 0, 1], vec![hot(10, 100, 0, 400)]);
        step.case.shape[2] = 1;
        assert!(missed(&step).is_empty());
    }
}
