//! Runs flashtile's CUDA kernels on the CPU, so that tests can check them without a GPU.
//!
//! ```no_run
//! use flashtile_core::KernelKind;
//! use flashtile_emulator::{CppCompiler, EmulatedCudaBackend, Emulator, TensorSums, ThreadOrder};
//! use flashtile_testkit::{Case, run_case};
//! use std::sync::Arc;
//!
//! let emulator = Arc::new(Emulator::new(CppCompiler::find("target/emulated-kernels")?));
//! let backend = EmulatedCudaBackend::new(emulator, 80, ThreadOrder::Reverse)
//!     .with_sums(TensorSums::measured(80));
//! let case: Case = "shape=1x2x70x64 skv=130 dtype=f16 causal=yes".parse()?;
//! run_case(&backend, KernelKind::Flash, &case)?; // within the oracle's bound
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! There are two ways to run a kernel. [`EmulatedCudaBackend`] offers both through the testkit's
//! `Backend` trait, with the launches that flashtile-cuda would make:
//!
//! - An [`Emulator`] compiles the kernel source with the machine's C++ compiler. `cpp/*.hpp`
//!   replaces `device.cuh`. A block's threads run as fibers; each one runs until it has to wait for
//!   others, in an order that the test chooses ([`ThreadOrder`]).
//! - A [`PtxCompiler`] lets NVRTC compile the source to PTX and interprets that ([`PtxKernel`]).
//!   This covers `device.cuh` and its inline assembly as well, and checks every memory access.
//!
//! Both look for the worst that a GPU might do rather than imitate one GPU. Shared memory starts as
//! NaN. Asynchronous copies arrive as late as they may, and until then their destination holds NaN.
//! Warps run as far apart as barriers allow. Tensor cores add as [`TensorSums`] says. Threads that
//! do not meet where they should, misaligned addresses and writes outside of tensors are errors,
//! never a crash or a hang.
//!
//! The emulator misses races that change no result in any of the orders, and two blocks that write
//! the same memory; the interpreter reports those. Neither sees races between the lanes of one
//! warp.
//!
//! This crate is not published. Only its own tests use it.

mod backend;
mod compiler;
mod error;
mod kernel;
mod memory;
mod ptx;
mod sums;

pub use backend::{EmulatedCudaBackend, Emulator, PtxCompiler};
pub use compiler::CppCompiler;
pub use error::EmulatorError;
pub(crate) use error::quote;
pub use kernel::{BlockRun, EmulatedKernel, ThreadOrder};
pub use memory::DeviceMemory;
pub(crate) use memory::POISON;
pub use ptx::{ExecutedLine, PtxKernel};
pub use sums::TensorSums;
