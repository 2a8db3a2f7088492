use flashtile_shaders::cuda::{Arch, shared_limit};

/// The numbers of a card that planning looks at.
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
    /// Whether the driver ends kernels that run long, as it does where a display hangs on the card.
    pub watchdog: bool,
}

impl Machine {
    /// A card of compute capability `arch` with what the CUDA C++ programming guide says of it: one multiprocessor, and memory without end.
    pub fn of_arch(arch: Arch) -> Self {
        Self {
            arch,
            shared_limit: shared_limit(arch),
            multiprocessors: 1,
            memory: u64::MAX,
            watchdog: false,
        }
    }
}
