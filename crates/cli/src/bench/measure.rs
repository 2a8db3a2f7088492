//! Measures one case on one target, and verifies the result.

use super::{
    cases::Case,
    inputs::Inputs,
    sample::Sample,
    target::{Clock, Target},
};
use crate::shape::Shape;
use anyhow::{Context as _, Result, ensure};
use std::time::Instant;

/// Seconds that a single run may take. A case that is expected to take longer is skipped.
const LIMIT_S: f64 = 8.0;

/// The part of a case's time that warms the device up.
const WARM_UP: f64 = 0.2;

/// Runs that are queued together, at most: as many as benches/torch_sdpa.py queues.
const TOGETHER: f64 = 5.0;

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
    /// Largest share of the error bound over the verified rows; `None` in results of other
    /// programs.
    pub(crate) error: Option<f64>,
    /// What a probe measured as the device's f32 peak in GFLOP/s, right after the runs; `None`
    /// where there is no probe.
    pub(crate) peak_gflops: Option<f64>,
}

/// The tensors of a case, and what a right result is.
pub(crate) struct Prepared {
    inputs: Inputs,
    sample: Sample,
}

impl Prepared {
    pub(crate) fn new(case: &Case) -> Result<Self> {
        let inputs = Inputs::new(case);
        Ok(Self { sample: Sample::new(case, &inputs)?, inputs })
    }
}

/// How fast a target proved to be, so that cases of which one run takes too long can be skipped.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Speed {
    gflops: f64,
}

impl Speed {
    /// Measures a case of 8 million operations, which takes even the oracle less than a second.
    pub(crate) fn probe(target: &Target, like: &Case) -> Result<Self> {
        let case = Case { shape: Shape::of_self([1, 2, 128, 64]), ..*like };
        let row = measure(target, &case, &Prepared::new(&case)?, 0.25)?;
        Ok(Self { gflops: row.gflops })
    }

    /// Takes the speed of one more measurement into account.
    pub(crate) fn observe(&mut self, row: &Row) {
        self.gflops = self.gflops.max(row.gflops);
    }

    /// Seconds that one run of `case` would take, where that is too long.
    pub(crate) fn too_long(&self, case: &Case) -> Result<Option<f64>> {
        let seconds = case.cost()?.flops as f64 / (self.gflops * 1e9);
        Ok((seconds > LIMIT_S).then_some(seconds))
    }
}

/// What a measurement is called in messages: `1x8x1024x64 f16 causal, flash on wgpu ...`.
pub(crate) fn title(target: &Target, case: &Case) -> String {
    format!("{case}, {target}")
}

/// The median of as many runs as fit into `budget` seconds: three or more, or two where a run is
/// long. Runs that are not counted come first, because an idle device is slow at first.
///
/// # Errors
/// Failures of the device, and a result outside the error bound. They name case and target.
pub(crate) fn measure(
    target: &Target,
    case: &Case,
    prepared: &Prepared,
    budget: f64,
) -> Result<Row> {
    measure_untitled(target, case, prepared, budget).with_context(|| title(target, case))
}

fn measure_untitled(
    target: &Target,
    case: &Case,
    Prepared { inputs, sample }: &Prepared,
    budget: f64,
) -> Result<Row> {
    let cost = case.cost()?;
    let mut uploaded = target.prepare(case, inputs)?;
    // A tenth of the budget at a time, so that neither warm-up nor measurement gets much longer.
    let fits = budget * 1e3 / 10.0 / uploaded.first_run_ms.max(1e-3);
    let together = fits.clamp(1.0, TOGETHER) as usize;
    let start = Instant::now();
    while uploaded.first_run_ms < budget * WARM_UP * 1e3
        && start.elapsed().as_secs_f64() < budget * WARM_UP
    {
        uploaded.run(together)?;
    }
    let start = Instant::now();
    let mut times = Vec::new();
    if uploaded.first_run_ms > budget.max(1.0) * 1e3 {
        // In so long a run, what only the first one does takes no visible part.
        times.push(uploaded.first_run_ms);
    }
    while times.len() < 3 || start.elapsed().as_secs_f64() < budget {
        times.extend(uploaded.run(together)?);
        if times.len() >= 200 || start.elapsed().as_secs_f64() > 2.0 * budget.max(1.0) {
            break;
        }
    }
    let worst = sample.worst(uploaded.output()?);
    ensure!(worst.share <= 1.0, "wrong result, {worst}");
    let ms = median(&mut times).max(1e-6);
    Ok(Row {
        case: *case,
        backend: target.device.kind().name().to_owned(),
        kernel: target.kernel.name().to_owned(),
        device: target.device.device_name(),
        ms,
        clock: uploaded.clock,
        gflops: cost.flops as f64 / ms / 1e6,
        gbps: cost.bytes as f64 / ms / 1e6,
        peak_bytes: uploaded.peak_bytes,
        first_ms: uploaded.first_ms,
        error: Some(worst.share),
        peak_gflops: target.device.measure_peak_flops().map(|flops| flops / 1e9),
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
