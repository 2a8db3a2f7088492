//! Attention on an NVIDIA card, on a CUDA context and stream that the caller owns.
//!
//! ```no_run
//! use flashtile_core::{DType, Problem, TensorView};
//! use flashtile_cuda::{Args, Context, PlanOptions, cudarc::driver::CudaContext};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let stream = CudaContext::new(0)?.new_stream()?;
//! let context = Context::new(stream.clone())?; // once: keeps compiled kernels
//! let view = TensorView::bshd(DType::F32, [1, 1024, 8, 64])?;
//! let problem = Problem::builder(view, view, view).causal(true).build()?;
//! let plan = context.plan(&problem, &PlanOptions::new())?; // once per configuration
//!
//! let tensor = || stream.alloc_zeros::<f32>(8 * 1024 * 64);
//! let (q, k, v, mut out) = (tensor()?, tensor()?, tensor()?, tensor()?);
//! plan.launch(&stream, &mut Args::new(&q, &k, &v, &mut out))?; // every call: enqueues, does not wait
//! # Ok(())
//! # }
//! ```
//!
//! - [`Context`] holds what is shared in one CUDA context: compiled kernels. Clone it freely.
//! - [`Plan`] says how a [`Problem`](flashtile_core::Problem) is done here: launches, tiles, workspace, reasons. Reusable from several threads.
//! - [`Args`] are a call's memory and values: slices, views or addresses. [`Plan::launch`] enqueues them, and can be captured into a CUDA graph.
//! - [`HostRun`] does all of it for tensors in host memory; [`devices`] lists cards and [`open`] opens one, for programs that own none.
//! - [`schedule`] decides what will be launched, and [`compile`] compiles it, without a card.
//!
//! Nothing of CUDA is needed to build this crate. To run, it needs NVIDIA's driver and NVRTC, CUDA's run-time compiler: from a toolkit, or by
//! `pip install nvidia-cuda-nvrtc` (`nvidia-cuda-nvrtc-cu12` for cards before Turing and drivers before CUDA 13). What is missing is a typed error
//! that says so, and never a panic.
//!
//! | variable | what it says |
//! | --- | --- |
//! | `FLASHTILE_NVRTC` | the file of NVRTC to use, and no other |
//! | `FLASHTILE_CACHE_DIR` | where compiled kernels are kept; empty: nowhere |
//!
//! `cudarc` is re-exported: use the same version as this crate does.

mod args;
mod backend;
mod cache;
mod compiler;
mod context;
mod devices;
mod driver;
mod error;
mod host;
mod launch;
mod library;
mod machine;
mod module;
mod nvrtc;
mod parts;
mod plan;
mod schedule;
mod tiles;
mod workspace;

pub use args::{Args, Input, Output};
pub use compiler::{Compiled, Usage, compile, compile_to_ptx, compiler_version};
pub use context::Context;
pub use cudarc;
pub use devices::{DeviceEntry, devices, open};
pub use error::Error;
pub use flashtile_core::{DeviceChoice, HostStats, Timing};
pub use flashtile_shaders::cuda::{
    Arch, CUDA_MMA_TILES, CUDA_SIMT_TILES, CudaParams, CudaTiles, CudaVariant,
};
pub use host::HostRun;
pub use machine::Machine;
pub use parts::Part;
pub use plan::{Plan, PlanOptions};
pub use schedule::{Dispatch, Launch, Pointers, Schedule, schedule};
