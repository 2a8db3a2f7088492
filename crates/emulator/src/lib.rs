//! CUDA kernels on the CPU: their own text, compiled by a C++ compiler with an emulation of the device in front.
//!
//! The emulation (`cpp/*.hpp`) runs a block's threads as fibers, each until it has to wait for others, in an order that the test
//! chooses ([`ThreadOrder`]). It is no simulation of a card but a search for what a card might do at worst: shared memory begins as NaN,
//! asynchronous copies arrive as late as they may and leave NaN where they will arrive, warps run as far apart as barriers let them.
//! Threads that do not meet where they should, addresses that instructions do not take, and writes beyond a buffer are errors, never a
//! crash or a hang. What it cannot see: races that change no result in any of the orders, and two blocks that write the same memory.
//!
//! [`EmulatedCudaBackend`] runs what flashtile-cuda would launch, by the emulation or by what NVRTC makes of the text ([`PtxCompiler`]); [`Emulator::kernel`] compiles any text in the kernels' style.

mod backend;
mod compiler;
mod error;
mod kernel;
mod memory;
mod ptx;

pub use backend::{EmulatedCudaBackend, Emulator, PtxCompiler};
pub use compiler::CppCompiler;
pub use error::EmulatorError;
pub(crate) use error::quote;
pub use kernel::{BlockRun, EmulatedKernel, ThreadOrder};
pub use memory::DeviceMemory;
pub(crate) use memory::POISON;
pub use ptx::{LineDone, PtxKernel};
