use flashtile_core::{BackendKind, KernelKind, Timing};
use std::time::Duration;

/// What ran, where, why, and how long it took.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// The backend that ran.
    pub backend: BackendKind,
    /// The kernel that ran.
    pub kernel: KernelKind,
    /// Name of the device.
    pub device: String,
    /// The plan with its tiles, dispatches and rationale, over several lines.
    pub plan: String,
    /// Why this backend and kernel.
    pub why: String,
    /// Wall time of the whole call. Where this call was the first to need them, it includes opening
    /// the device, planning and compiling.
    pub first: Duration,
    /// The time of the kernels alone, without copies to and from the device. (Some drivers compile
    /// a kernel when it first runs; that time is included.)
    pub timing: Timing,
    /// Bytes that the backend needed besides inputs and outputs.
    pub workspace_bytes: u64,
    /// Bytes of inputs, outputs and workspace together, on the device.
    pub peak_bytes: u64,
}
