use std::time::Duration;

/// What one run on a device took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timing {
    /// From submission to completion, by the host's clock: submitting, queueing and waking up are
    /// in it.
    pub host: Duration,
    /// From the start of the first kernel to the end of the last, by the device's own clock. `None`
    /// where it has none, and where nothing was launched.
    pub gpu: Option<Duration>,
}

impl Timing {
    /// Times by the host's clock, and by the device's where it has one.
    pub const fn new(host: Duration, gpu: Option<Duration>) -> Self {
        Self { host, gpu }
    }

    /// The device's own time, or the host's where there is none.
    pub fn best(&self) -> Duration {
        self.gpu.unwrap_or(self.host)
    }
}

/// What one run on host tensors took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostStats {
    /// The run alone, without copies.
    pub run: Timing,
    /// Bytes of device memory: tensors and workspace.
    pub device_bytes: u64,
}

impl HostStats {
    /// The time of a run, and the device memory that it used.
    pub const fn new(run: Timing, device_bytes: u64) -> Self {
        Self { run, device_bytes }
    }
}
