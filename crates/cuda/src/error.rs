use cudarc::driver::{DriverError, sys::CUresult};
use flashtile_core::DeviceChoice;
use flashtile_core::{Argument, KernelKind, ProblemError, Reason};
use flashtile_shaders::cuda::Arch;

/// What can go wrong on a CUDA card.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// NVIDIA's driver is not installed, or not complete.
    #[error("no CUDA driver: {0}")]
    NoDriver(String),
    /// NVIDIA's driver is too old for machine code of CUDA 12.
    #[error("the CUDA driver is of version {}.{}, and CUDA 12.0 is the oldest that works: a newer NVIDIA driver is needed", .0 / 1000, .0 % 1000 / 10)]
    OldDriver(u32),
    /// There is no card, or not the one that was asked for.
    #[error("no CUDA card{wanted}: {reason}")]
    NoDevice {
        /// What was asked for.
        wanted: DeviceChoice,
        /// What was found.
        reason: String,
    },
    /// No NVRTC, the compiler for kernels, was found that can compile for the card.
    #[error(
        "no compiler for sm_{arch}: {reason}; `{command}` brings one, and FLASHTILE_NVRTC=PATH names one"
    )]
    NoCompiler {
        /// The card's compute capability.
        arch: Arch,
        /// What was found instead.
        reason: String,
        /// The command that installs the right one.
        command: &'static str,
    },
    /// The problem cannot run with this kernel, for all of these reasons.
    #[error("the {kernel} kernel cannot run this: {}", reasons.iter().map(Reason::to_string).collect::<Vec<_>>().join("; "))]
    Refused {
        /// Which kernel.
        kernel: KernelKind,
        /// Why.
        reasons: Vec<Reason>,
    },
    /// The arguments break a rule of the problem.
    #[error(transparent)]
    Problem(#[from] ProblemError),
    /// A kernel did not compile, or the driver did not take what was compiled.
    #[error("kernel {variant} did not compile for sm_{arch}: {message}")]
    Compile {
        /// The variant's name.
        variant: String,
        /// The compute capability that it was compiled for.
        arch: Arch,
        /// What the compiler or the driver said.
        message: String,
    },
    /// The card is out of memory.
    #[error("the card is out of memory for {what}")]
    OutOfMemory {
        /// What did not fit.
        what: String,
    },
    /// An output shares memory with another argument.
    #[error(
        "{written} and {other} overlap in memory: what is written must not be read in the same call"
    )]
    Aliased {
        /// The output.
        written: Argument,
        /// The other argument.
        other: Argument,
    },
    /// A tensor does not begin at a multiple of its element size, or the workspace at one of 16.
    #[error("{argument} begins at address {address:#x}, which is not a multiple of {size} bytes")]
    Misaligned {
        /// Which tensor.
        argument: Argument,
        /// The device address of its first element.
        address: u64,
        /// What it has to be a multiple of.
        size: u64,
    },
    /// A stream or a tensor belongs to another CUDA context than the plan.
    #[error("{what} belongs to another CUDA context than the plan")]
    OtherContext {
        /// `the stream`, or the name of the argument.
        what: String,
    },
    /// A kernel failed, or the card did: the CUDA context is of no use any more.
    #[error("the CUDA context is lost: {0}")]
    DeviceLost(String),
    /// The driver refused something.
    #[error("the CUDA driver refused {what}: {message}")]
    Driver {
        /// What was asked of it.
        what: String,
        /// What it said.
        message: String,
    },
}

impl Error {
    /// What the driver's error means where it came of `what`.
    pub(crate) fn of_driver(error: DriverError, what: impl Into<String>) -> Self {
        use CUresult as Code;
        let what = what.into();
        match error.0 {
            Code::CUDA_ERROR_OUT_OF_MEMORY => Error::OutOfMemory { what },
            Code::CUDA_ERROR_ILLEGAL_ADDRESS
            | Code::CUDA_ERROR_LAUNCH_TIMEOUT
            | Code::CUDA_ERROR_LAUNCH_FAILED
            | Code::CUDA_ERROR_ECC_UNCORRECTABLE
            | Code::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | Code::CUDA_ERROR_HARDWARE_STACK_ERROR
            | Code::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | Code::CUDA_ERROR_MISALIGNED_ADDRESS
            | Code::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | Code::CUDA_ERROR_INVALID_PC
            | Code::CUDA_ERROR_ASSERT
            | Code::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | Code::CUDA_ERROR_DEVICE_UNAVAILABLE
            | Code::CUDA_ERROR_DEINITIALIZED => Error::DeviceLost(describe(error)),
            _ => Error::Driver { what, message: describe(error) },
        }
    }
}

/// `CUDA_ERROR_INVALID_VALUE (invalid argument)`.
pub(crate) fn describe(error: DriverError) -> String {
    match error.error_string() {
        Ok(text) => format!("{:?} ({})", error.0, text.to_string_lossy()),
        Err(_) => format!("{:?}", error.0),
    }
}
