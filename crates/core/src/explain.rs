use crate::{Argument, NoMatrixUnits};
use std::fmt;

/// A backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BackendKind {
    /// Any GPU through wgpu: Vulkan, Metal, DX12, WebGPU.
    Wgpu,
    /// NVIDIA GPUs through CUDA.
    Cuda,
    /// Fast kernels on the CPU.
    Cpu,
    /// The float64 oracle on the CPU: exact and slow.
    Reference,
}

impl BackendKind {
    /// Every backend, in the order in which `auto` tries them.
    pub const ALL: &[BackendKind] =
        &[BackendKind::Cuda, BackendKind::Wgpu, BackendKind::Cpu, BackendKind::Reference];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            BackendKind::Wgpu => "wgpu",
            BackendKind::Cuda => "cuda",
            BackendKind::Cpu => "cpu",
            BackendKind::Reference => "reference",
        }
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a backend runs a problem. Every backend either runs a kernel or refuses it with reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KernelKind {
    /// Fused and tiled: the scores are never stored.
    Flash,
    /// Scores, softmax and values in separate steps: the baseline known as "math". It stores
    /// B * H * Sq * Skv scores, or as many of them as fit at once.
    Unfused,
}

impl KernelKind {
    /// Every kernel, in the order in which `auto` tries them.
    pub const ALL: &[KernelKind] = &[KernelKind::Flash, KernelKind::Unfused];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            KernelKind::Flash => "flash",
            KernelKind::Unfused => "unfused",
        }
    }
}

impl fmt::Display for KernelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a kernel cannot run a problem.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// The backend is not implemented yet.
    #[error("the {backend} backend is not part of this version")]
    NotBuilt {
        /// Which backend.
        backend: BackendKind,
    },
    /// The backend was left out when this program was compiled.
    #[error("the {backend} backend is not compiled in: enable the cargo feature `{backend}`")]
    FeatureOff {
        /// Which backend.
        backend: BackendKind,
    },
    /// The backend has only the other kernel.
    #[error("the {backend} backend has no {kernel} kernel")]
    NoSuchKernel {
        /// Which backend.
        backend: BackendKind,
        /// Which kernel.
        kernel: KernelKind,
    },
    /// The driver that the backend works with is not installed, not complete or too old.
    #[error("{0}")]
    NoDriver(String),
    /// No device was found, or it could not be opened.
    #[error("no device: {0}")]
    NoDevice(String),
    /// No compiler for the kernels was found that can compile for the device.
    #[error("{0}")]
    NoCompiler(String),
    /// An axis is longer than the kernel supports: heads wider than its registers hold, or sizes
    /// that it cannot count.
    #[error("{axis} is {given}; the kernel supports at most {max}")]
    Axis {
        /// Its name: `head_dim_v`, say.
        axis: &'static str,
        /// Its size.
        given: usize,
        /// The largest size that the kernel supports.
        max: usize,
    },
    /// The smallest part that the work can be split into needs more of a tensor than one binding
    /// holds.
    #[error("{argument} needs {needed} bytes in one binding, over the device's {limit}")]
    BindingSize {
        /// Which tensor.
        argument: Argument,
        /// Bytes that must be bound at once.
        needed: u64,
        /// `max_storage_buffer_binding_size` of the device.
        limit: u64,
    },
    /// A tensor or workspace is larger than any buffer of the device.
    #[error("{argument} needs a buffer of {needed} bytes, over the device's {limit}")]
    BufferSize {
        /// Which tensor.
        argument: Argument,
        /// Bytes it takes.
        needed: u64,
        /// `max_buffer_size` of the device.
        limit: u64,
    },
    /// Indices of the tensor do not fit the kernels' 32 bits.
    #[error(
        "{argument} spans {needed} elements in one dispatch, over the 2^32 that kernels can index"
    )]
    IndexRange {
        /// Which tensor.
        argument: Argument,
        /// Elements it spans.
        needed: u64,
    },
    /// Split to fit the device's bindings, grids and budgets, the work takes more dispatches than a
    /// plan lists.
    #[error("the work would take more than {limit} dispatches, the most that a plan lists")]
    TooManyDispatches {
        /// The most that a plan lists.
        limit: u64,
    },
    /// The driver ends the loops of an invocation early, and the kernel needs more iterations. The
    /// results would be wrong, and no error would say so.
    #[error(
        "one invocation needs up to {needed} loop iterations; this driver ends loops silently \
         after {limit} (llvmpipe before Mesa 25)"
    )]
    LoopBudget {
        /// Iterations of all loops of one invocation together, at most.
        needed: u64,
        /// The driver's limit.
        limit: u64,
    },
    /// The device's limits are below the smallest tiles.
    #[error("the device's {limit} is {given}, below the {needed} that the smallest tiles need")]
    DeviceLimit {
        /// Name of the limit.
        limit: &'static str,
        /// The device's value.
        given: u64,
        /// What is needed.
        needed: u64,
    },
    /// The GPU is older than the kernels.
    #[error(
        "compute capability {}.{} is below the {}.{} that the kernels need",
        given / 10,
        given % 10,
        needed / 10,
        needed % 10
    )]
    ComputeCapability {
        /// Ten times the major version, plus the minor one.
        given: u32,
        /// What is needed, in the same form.
        needed: u32,
    },
    /// Matrix units are required, and cannot be used.
    #[error("matrix units are required: {0}")]
    MatrixUnits(NoMatrixUnits),
    /// The tile shape that was requested cannot be used.
    #[error("the requested tiles ({tiles}) cannot be used: {because}")]
    Tiles {
        /// The tile shape.
        tiles: String,
        /// Why not.
        because: String,
    },
    /// The requested split of the keys cannot be used.
    #[error("chunks of {keys} keys were requested: {because}")]
    KeySplit {
        /// Keys per chunk.
        keys: usize,
        /// Why not.
        because: String,
    },
}

/// Whether one kernel of one backend can run a problem.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It runs; the string says how (device, tiles).
    Runs(String),
    /// It cannot, for each of these reasons.
    Refused(Vec<Reason>),
}

impl Verdict {
    /// True for [`Verdict::Runs`].
    pub fn runs(&self) -> bool {
        matches!(self, Verdict::Runs(_))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Runs(how) => write!(f, "runs: {how}"),
            Verdict::Refused(reasons) => {
                let reasons: Vec<_> = reasons.iter().map(Reason::to_string).collect();
                write!(f, "refused: {}", reasons.join("; "))
            }
        }
    }
}

/// The verdict of every backend and kernel on a problem.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Explanation {
    /// One entry for each backend and kernel.
    pub verdicts: Vec<(BackendKind, KernelKind, Verdict)>,
}

impl Explanation {
    /// An explanation of these verdicts, in the order in which the choice tries them.
    pub fn new(verdicts: Vec<(BackendKind, KernelKind, Verdict)>) -> Self {
        Self { verdicts }
    }

    /// The verdict on one kernel.
    pub fn verdict(&self, backend: BackendKind, kernel: KernelKind) -> Option<&Verdict> {
        self.verdicts
            .iter()
            .find(|(b, k, _)| *b == backend && *k == kernel)
            .map(|(_, _, verdict)| verdict)
    }

    /// The first of `verdicts` that runs, among those that match `backend` and `kernel` (`None`
    /// matches all).
    ///
    /// # Errors
    /// All entries that match, each with its reasons.
    pub fn choose(
        &self,
        backend: Option<BackendKind>,
        kernel: Option<KernelKind>,
    ) -> Result<(BackendKind, KernelKind), Explanation> {
        let matching = || {
            self.verdicts.iter().filter(move |(b, k, _)| {
                backend.is_none_or(|x| x == *b) && kernel.is_none_or(|x| x == *k)
            })
        };
        match matching().find(|(_, _, verdict)| verdict.runs()) {
            Some(&(b, k, _)) => Ok((b, k)),
            None => Err(Explanation { verdicts: matching().cloned().collect() }),
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (backend, kernel, verdict)) in self.verdicts.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{backend} {kernel}: {verdict}")?;
        }
        Ok(())
    }
}
