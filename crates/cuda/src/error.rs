use cudarc::driver::{DriverError, sys::CUresult};
use flashtile_core::{Argument, DeviceChoice, KernelKind, ProblemError, Reason};
use flashtile_shaders::cuda::Arch;

/// What can go wrong on an NVIDIA GPU.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// NVIDIA's driver is not installed, or it is incomplete.
    #[error("no CUDA driver: {0}; install an NVIDIA driver for CUDA 12.0 or newer")]
    NoDriver(String),
    /// NVIDIA's driver is too old for machine code of CUDA 12. Its version is 11080 for CUDA 11.8.
    #[error(
        "the CUDA driver supports CUDA {}.{} at most; CUDA 12.0 is the oldest that works: \
         update the NVIDIA driver",
        .0 / 1000, .0 % 1000 / 10
    )]
    OldDriver(u32),
    /// There is no GPU, or none that matches the choice.
    #[error("no CUDA GPU{wanted}: {reason}")]
    NoDevice {
        /// The choice.
        wanted: DeviceChoice,
        /// What was found instead.
        reason: String,
    },
    /// No NVRTC was found that can compile kernels for the GPU and its driver.
    #[error(
        "no compiler for sm_{arch}: {reason}; install one with `{command}`, \
         or set FLASHTILE_NVRTC to the path of one"
    )]
    NoCompiler {
        /// The GPU's compute capability.
        arch: Arch,
        /// What was found instead.
        reason: String,
        /// The command that installs a suitable one.
        command: &'static str,
    },
    /// The kernel cannot run the problem, for all of these reasons.
    #[error(
        "the {kernel} kernel cannot run this problem: {}",
        reasons.iter().map(Reason::to_string).collect::<Vec<_>>().join("; ")
    )]
    Refused {
        /// The kernel.
        kernel: KernelKind,
        /// Every reason.
        reasons: Vec<Reason>,
    },
    /// The arguments break a rule of the problem.
    #[error(transparent)]
    Problem(#[from] ProblemError),
    /// A kernel did not compile, or the driver refused its machine code.
    #[error("kernel {variant} did not compile for sm_{arch}: {message}")]
    Compile {
        /// The variant's name.
        variant: String,
        /// The compute capability that it was compiled for.
        arch: Arch,
        /// The message of the compiler or the driver.
        message: String,
    },
    /// The GPU is out of memory.
    #[error("the GPU is out of memory for {what}; free some memory or split the batch")]
    OutOfMemory {
        /// What did not fit.
        what: String,
    },
    /// An output shares memory with another argument.
    #[error(
        "{written} and {other} overlap in memory; \
         an output needs memory that no other argument of the call uses"
    )]
    Aliased {
        /// The output.
        written: Argument,
        /// The other argument.
        other: Argument,
    },
    /// A tensor does not start at a multiple of its element size, or the workspace not at a
    /// multiple of 16 bytes.
    #[error(
        "{argument} starts at address {address:#x}; it has to start at a multiple of {size} bytes"
    )]
    Misaligned {
        /// Which argument.
        argument: Argument,
        /// The device address of its first element.
        address: u64,
        /// The alignment in bytes.
        size: u64,
    },
    /// A stream or a tensor belongs to another CUDA context than the plan.
    #[error("{what} belongs to another CUDA context than the plan; use the plan's own")]
    OtherContext {
        /// `the stream`, `the plan` or the name of the argument.
        what: String,
    },
    /// A kernel or the GPU failed, and the CUDA context cannot be used any more.
    #[error("the CUDA context is lost: {0}; no further call in it works")]
    DeviceLost(String),
    /// The driver reports another error.
    #[error("the CUDA driver reports an error for {what}: {message}")]
    Driver {
        /// What was requested.
        what: String,
        /// The driver's message.
        message: String,
    },
}

impl Error {
    /// What an error of the driver means for the request `what`.
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
            // cudarc's enum has about a hundred codes, and newer drivers add more. All of the
            // others concern one request and leave the context usable.
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
