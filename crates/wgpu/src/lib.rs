//! Attention on a wgpu device that the caller owns: Vulkan, Metal, DX12, WebGPU.
//!
//! ```no_run
//! use flashtile_core::{DType, Layout, Problem, TensorView};
//! use flashtile_wgpu::{Args, BufferView, Context, PlanOptions, wgpu};
//!
//! # async fn f(device: wgpu::Device, queue: wgpu::Queue, q: wgpu::Buffer, k: wgpu::Buffer, v: wgpu::Buffer, out: wgpu::Buffer)
//! # -> Result<(), Box<dyn std::error::Error>> {
//! let context = Context::new(device.clone(), queue.clone()).await?; // once: caches pipelines
//! let view = TensorView::from_bhsd_sizes(DType::F16, Layout::Bshd, [1, 8, 1024, 64])?;
//! let problem = Problem::builder(view, view, view).causal(true).build()?;
//! let plan = context.plan(&problem, &PlanOptions::default()).await?; // once a kind of attention
//! let mut encoder = device.create_command_encoder(&Default::default());
//! plan.encode(&mut encoder, &Args::new(&q, &k, &v, &out))?; // every call: records, does not wait
//! queue.submit([encoder.finish()]);
//! # Ok(())
//! # }
//! ```
//!
//! - [`Context`] holds what is shared on one device: compiled pipelines and a ring of uniform slots. Clone it freely.
//! - [`Plan`] says how a [`Problem`](flashtile_core::Problem) is done here: dispatches, tiles, workspace, reasons. Reusable from several threads.
//! - [`Args`] are a call's buffers and values; [`Plan::encode`] and [`Plan::encode_in_pass`] record them.
//! - [`HostRun`] does all of it for tensors in host memory; [`open`] finds an adapter for programs that own none.
//!
//! `wgpu` is re-exported: use the same version as this crate does.
//!
//! # In a browser
//!
//! Compile for wasm32 with the feature `web`. A browser's main thread must not wait, so there are no functions that end in `_blocking`; it tells
//! errors late, so a buffer that is not this device's is reported to the device's own handler and not by [`Plan::encode`]; and it loses devices
//! late, which [`Error::DeviceLost`] cannot foresee. Compiled in this version, and its kernels run on Dawn; not yet run in a browser.

mod adapters;
mod args;
mod bind;
mod context;
mod encode;
mod error;
mod export;
mod host;
mod parts;
mod plan;
mod ring;
mod schedule;
mod scope;
mod timing;

pub use adapters::{AdapterChoice, AdapterEntry, adapters, open};
#[cfg(not(target_family = "wasm"))]
pub use adapters::{adapters_blocking, open_blocking};
pub use args::{Args, BufferView};
pub use context::Context;
pub use error::Error;
pub use export::{ExportedBinding, ExportedCall, ExportedDispatch, export_baseline};
pub use flashtile_core::{HostStats, Timing};
pub use flashtile_shaders::{FLASH_TILES, Tiles};
pub use host::HostRun;
pub use plan::{Dispatch, Plan, PlanOptions};
pub use wgpu;
