use flashtile_shaders::cuda::{Arch, shared_limit};

/// The numbers of a GPU that decide how a problem is planned.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Machine {
    /// Compute capability: 75 for 7.5.
    pub arch: Arch,
    /// Bytes of shared memory that a block can be given.
    pub shared_limit: u32,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of device memory.
    pub memory: u64,
    /// Whether the driver ends kernels that run long, as it does on a GPU that drives a display.
    pub watchdog: bool,
}

impl Machine {
    /// A GPU of compute capability `arch` with the limits of the CUDA C++ programming guide, one
    /// multiprocessor and unlimited memory.
    pub fn of_arch(arch: Arch) -> Self {
        Self {
            arch,
            shared_limit: shared_limit(arch),
            multiprocessors: 1,
            memory: u64::MAX,
            watchdog: false,
        }
    }

    /// The compute capability as NVIDIA writes it: `7.5`.
    pub fn capability(&self) -> String {
        format!("{}.{}", self.arch / 10, self.arch % 10)
    }
}
