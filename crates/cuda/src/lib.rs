//! Attention kernels for NVIDIA GPUs, on a CUDA context and stream that the caller owns.
//!
//! ```no_run
//! use flashtile_core::{DType, Problem, TensorView};
//! use flashtile_cuda::{Args, Context, PlanOptions, cudarc::driver::CudaContext};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let stream = CudaContext::new(0)?.new_stream()?;
//! let context = Context::new(stream.clone())?; // once: holds the compiled kernels
//! let view = TensorView::bshd(DType::F32, [1, 1024, 8, 64])?;
//! let problem = Problem::builder(view, view, view).causal(true).build()?;
//! let plan = context.plan(&problem, &PlanOptions::new())?; // once per configuration
//!
//! let tensor = || stream.alloc_zeros::<f32>(8 * 1024 * 64);
//! let (q, k, v, mut out) = (tensor()?, tensor()?, tensor()?, tensor()?);
//! plan.launch(&stream, &mut Args::new(&q, &k, &v, &mut out))?; // every call: does not wait
//! # Ok(())
//! # }
//! ```
//!
//! - A [`Problem`](flashtile_core::Problem) describes one attention configuration: shapes, storage
//!   types and options.
//! - A [`Context`] holds what is shared in one CUDA context: the compiled kernels. Clones are
//!   cheap.
//! - A [`Plan`] states how a problem is computed: dispatches, tiles, workspace and reasons. Several
//!   threads can share it.
//! - [`Args`] are the memory and the values of one call, as slices, views or addresses.
//!   [`Plan::launch`] enqueues the call, and it can be captured into a CUDA graph.
//! - A [`HostRun`] runs a plan on tensors in host memory. [`devices`] lists the GPUs and [`open`]
//!   opens one, for programs without a CUDA context of their own.
//! - [`schedule`] plans and [`compile`] compiles without a GPU.
//!
//! # Requirements
//!
//! Building needs nothing of CUDA. Running needs NVIDIA's driver for CUDA 12.0 or newer, a GPU of
//! compute capability 6.0 or newer, and NVRTC, CUDA's run-time compiler. A CUDA toolkit contains
//! NVRTC; without a toolkit use `pip install nvidia-cuda-nvrtc`, or `nvidia-cuda-nvrtc-cu12` for
//! GPUs before Turing and for drivers before CUDA 13. If one of these is missing, calls return a
//! typed error that names it; they never panic.
//!
//! | variable | meaning |
//! | --- | --- |
//! | `FLASHTILE_NVRTC` | path of the NVRTC library to use; no other is tried |
//! | `FLASHTILE_CACHE_DIR` | directory for compiled kernels; if empty, none are kept on disk |
//!
//! The API uses types of `cudarc`, which is re-exported: use the same version of it.

mod args;
mod backend;
mod cache;
mod capture;
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
    Arch, CUDA_MMA_TILES, CUDA_SIMT_TILES, CUDA_TF32_TILES, CudaParams, CudaTiles, CudaVariant,
};
pub use host::HostRun;
pub use machine::Machine;
pub use parts::Part;
pub use plan::{Plan, PlanOptions};
pub use schedule::{Dispatch, Launch, Pointers, Schedule, schedule};

/// Compiles the example in README.md.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
