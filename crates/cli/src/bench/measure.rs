use super::{
    cases::Case,
    target::{Clock, Data, Target},
};
use anyhow::Result;
use std::time::Instant;

/// Seconds that a single run may be expected to take before it is left out.
const LIMIT_S: f64 = 8.0;

/// The part of a case's time that warms the device up.
const WARM_UP: f64 = 0.2;

/// What one case took on one target.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) case: Case,
    pub(crate) backend: String,
    pub(crate) kernel: String,
    pub(crate) device: String,
    /// Median.
    pub(crate) ms: f64,
    /// Whose clock that is by.
    pub(crate) clock: Clock,
    pub(crate) gflops: f64,
    pub(crate) gbps: f64,
    pub(crate) peak_bytes: u64,
    pub(crate) first_ms: f64,
}

/// How fast a target proved to be, to know what not to begin.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Speed {
    gflops: f64,
}

impl Speed {
    /// Begins with a case of 8 million operations, which takes even the oracle less than a second.
    pub(crate) fn probe(target: &Target, like: &Case) -> Result<Self> {
        let case = Case { shape: [1, 2, 128, 64], ..*like };
        let mut speed = Self::default();
        measure(target, &case, &Data::new(&case), 0.25, &mut speed)?;
        Ok(speed)
    }

    /// Seconds that one run of `case` would take, where that is too long.
    pub(crate) fn too_long(&self, case: &Case) -> Result<Option<f64>> {
        let seconds = case.cost()?.flops as f64 / (self.gflops * 1e9);
        Ok((seconds > LIMIT_S).then_some(seconds))
    }
}

/// The median of as many repetitions as `budget` seconds allow: three or more, or two where a run is long. A part of that time goes before, in vain:
/// a device that idled is slow at first.
pub(crate) fn measure(
    target: &Target,
    case: &Case,
    data: &Data,
    budget: f64,
    speed: &mut Speed,
) -> Result<Row> {
    let cost = case.cost()?;
    let mut prepared = target.prepare(case, data)?;
    let begin = Instant::now();
    while prepared.first_run_ms < budget * WARM_UP * 1e3
        && begin.elapsed().as_secs_f64() < budget * WARM_UP
    {
        prepared.run()?;
    }
    let begin = Instant::now();
    let mut times = Vec::new();
    if prepared.first_run_ms > budget.max(1.0) * 1e3 {
        // So long that nothing of its first time shows.
        times.push(prepared.first_run_ms);
    }
    while times.len() < 3 || begin.elapsed().as_secs_f64() < budget {
        times.extend(prepared.run()?);
        if times.len() >= 200 || begin.elapsed().as_secs_f64() > 2.0 * budget.max(1.0) {
            break;
        }
    }
    let ms = median(&mut times).max(1e-6);
    let gflops = cost.flops as f64 / ms / 1e6;
    speed.gflops = speed.gflops.max(gflops);
    Ok(Row {
        case: *case,
        backend: target.backend.name().to_owned(),
        kernel: target.kernel.name().to_owned(),
        device: target.device.clone(),
        ms,
        clock: prepared.clock,
        gflops,
        gbps: cost.bytes as f64 / ms / 1e6,
        peak_bytes: prepared.peak_bytes,
        first_ms: prepared.first_ms,
    })
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    let middle = times.len() / 2;
    if times.len().is_multiple_of(2) {
        (times[middle - 1] + times[middle]) / 2.0
    } else {
        times[middle]
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn medians() {
        assert_eq!(median(&mut [3.0]), 3.0);
        assert_eq!(median(&mut [9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 9.0]), 3.0);
    }
}
