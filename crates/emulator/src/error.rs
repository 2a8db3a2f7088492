use flashtile_core::{ProblemError, Reason};
use std::path::PathBuf;

/// Why an emulated kernel gave no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmulatorError {
    /// There is no C++ compiler that works.
    #[error("no C++ compiler: {0}")]
    NoCompiler(String),
    /// The C++ compiler rejects the kernel source.
    #[error("{kernel} does not compile ({source_file}):\n{output}")]
    Compile {
        /// Name of the kernel.
        kernel: String,
        /// The file that was compiled: the emulation, then the kernel source.
        source_file: PathBuf,
        /// The compiler's messages.
        output: String,
    },
    /// The folder for compiled kernels cannot be used.
    #[error("{}: {source}", path.display())]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A compiled kernel cannot be loaded.
    #[error("a compiled kernel cannot be loaded")]
    Load(#[from] libloading::Error),
    /// NVRTC is missing, or rejects the kernel source.
    #[error(transparent)]
    Nvrtc(#[from] flashtile_cuda::Error),
    /// A kernel did something that a GPU would not allow, or would not do the same way twice.
    #[error("{kernel}: {message}")]
    Run {
        /// Name of the kernel.
        kernel: String,
        /// What it did, and the lines of its source where it did so.
        message: String,
    },
    /// A kernel wrote to memory around a tensor.
    #[error("memory {} {tensor} was written", if *after { "after the end of" } else { "before" })]
    OutOfBounds {
        /// Name of the tensor.
        tensor: &'static str,
        /// Whether the memory lies after the tensor, or before it.
        after: bool,
    },
    /// A GPU of this compute capability cannot run the problem.
    #[error("refused: {}", .0.iter().map(Reason::to_string).collect::<Vec<_>>().join("; "))]
    Refused(Vec<Reason>),
    /// The arguments do not match the problem.
    #[error(transparent)]
    Problem(#[from] ProblemError),
}

/// Line number `line` of a kernel source, counted from 1, to append to an error. Empty if there is
/// no such line.
pub(crate) fn quote(source: &str, line: u32) -> String {
    let found = (line as usize).checked_sub(1).and_then(|before| source.lines().nth(before));
    found.map(|found| format!("\n    {line} | {}", found.trim())).unwrap_or_default()
}
