//! What the kernels of flashtile-wgpu take on GPUs, read from their machine code.
//!
//! `scripts/with-gpu-compiler` runs a program with the Vulkan driver of a GPU that the machine does
//! not have. Under it, this crate opens the adapter as an application would, plans problems, and
//! reports what the driver says of each pipeline: registers, occupancy, spills, memory,
//! instructions.
#![cfg(target_os = "linux")]

mod bars;
pub mod capture;
mod cases;
mod gpu;
pub mod rdna;
mod report;
mod usage;

pub use cases::{Case, CaseOption, tuned};
pub use gpu::{Gpu, Kernel, Source};
pub use report::{KernelReport, Report};
pub use usage::Usage;
