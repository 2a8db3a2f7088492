use flashtile_core::{ProblemError, Reason};
use std::path::PathBuf;

/// What keeps an emulated kernel from giving a result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmulatorError {
    /// There is nothing to compile kernels with.
    #[error("no C++ compiler: {0}")]
    NoCompiler(String),
    /// The compiler does not take the text.
    #[error("{what} does not compile ({text}):\n{output}")]
    Compile {
        /// Name of the kernel.
        what: String,
        /// Where its text lies, the emulation in front.
        text: PathBuf,
        /// What the compiler says.
        output: String,
    },
    /// The folder for compiled kernels cannot be used.
    #[error("{}: {source}", path.display())]
    Cache {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A compiled kernel cannot be loaded.
    #[error("a compiled kernel cannot be loaded")]
    Load(#[from] libloading::Error),
    /// NVRTC is not there, or does not take the text.
    #[error(transparent)]
    Nvrtc(#[from] flashtile_cuda::Error),
    /// A kernel did what a card would not let it do, or not do the same way twice.
    #[error("{kernel}: {message}")]
    Run {
        /// Name of the kernel.
        kernel: String,
        /// What it did, and the lines of its text where.
        message: String,
    },
    /// Memory around a tensor was written.
    #[error("memory {} of {what} was written", if *behind { "behind the end" } else { "in front" })]
    OutOfBounds {
        /// Which tensor.
        what: &'static str,
        /// On which side.
        behind: bool,
    },
    /// A card of this compute capability does not run the problem.
    #[error("refused: {}", .0.iter().map(Reason::to_string).collect::<Vec<_>>().join("; "))]
    Refused(Vec<Reason>),
    /// The arguments are not the problem's.
    #[error(transparent)]
    Problem(#[from] ProblemError),
}

/// A line of a kernel's text, from 1 on, to stand behind an error; nothing where there is no such line.
pub(crate) fn quote(text: &str, line: u32) -> String {
    let found = (line as usize).checked_sub(1).and_then(|before| text.lines().nth(before));
    found.map(|found| format!("\n    {line} | {}", found.trim())).unwrap_or_default()
}
