use std::time::Duration;

/// What one run on a device took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// From submission to completion, by the host's clock: submitting, queueing and waking up are
    /// in it.
    pub host: Duration,
    /// From the start of the first kernel to the end of the last, by the device's own clock. `None`
    /// where it has none, and where nothing was launched.
    pub gpu: Option<Duration>,
}

impl Timing {
    /// The device's own time, or the host's where there is none.
    pub fn best(&self) -> Duration {
        self.gpu.unwrap_or(self.host)
    }
}

/// What one run on host tensors took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostStats {
    /// The run alone, without copies.
    pub run: Timing,
    /// Bytes of device memory: tensors and workspace.
    pub device_bytes: u64,
}
