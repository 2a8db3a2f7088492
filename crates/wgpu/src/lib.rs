//! Attention on a wgpu device that the caller owns: Vulkan, Metal, DX12, WebGPU.
//!
//! ```no_run
//! use flashtile_core::{DType, Problem, TensorView};
//! use flashtile_wgpu::{Args, Context, PlanOptions, wgpu};
//!
//! # async fn f(
//! #     (device, queue): (wgpu::Device, wgpu::Queue),
//! #     [q, k, v, out]: [wgpu::Buffer; 4],
//! # ) -> Result<(), Box<dyn std::error::Error>> {
//! let context = Context::new(device.clone(), queue.clone()).await?; // once per device
//! let view = TensorView::bshd(DType::F16, [1, 1024, 8, 64])?;
//! let problem = Problem::builder(view, view, view).causal(true).build()?;
//! let plan = context.plan(&problem, &PlanOptions::new()).await?; // once per configuration
//! let mut encoder = device.create_command_encoder(&Default::default());
//! plan.encode(&mut encoder, &Args::new(&q, &k, &v, &out))?; // every call: records, does not wait
//! queue.submit([encoder.finish()]);
//! # Ok(())
//! # }
//! ```
//!
//! # The nouns
//!
//! - [`Context`] is what all plans on one device share: compiled pipelines and parameter slots.
//! - [`Plan`] is how one [`Problem`](flashtile_core::Problem) is computed here: dispatches, tiles,
//!   workspace, and why. Share it between layers, calls and threads.
//! - [`Args`] are the buffers and values of one call. [`Region`] is a piece of a buffer.
//!   [`Plan::encode`], [`Plan::encode_in_pass`] and [`Plan::submit`] record them.
//! - [`Tuning`] is a table of tile shapes that [`Context::tune`] measured on one adapter.
//! - [`device_descriptor`] is what to request a device with. Subgroups matter most.
//! - [`HostRun`] uploads, runs and downloads tensors in host memory; [`open`] finds an adapter for
//!   programs that have no device.
//!
//! `wgpu` is re-exported; use the same version as this crate does.
//!
//! # A decode loop
//!
//! Plan once for the capacity of the key-value cache, with
//! [`Align::BottomRight`](flashtile_core::Align::BottomRight): the last query then stands at the
//! last valid key. With the default, top-left, a single query sees key 0 alone. Every token passes
//! the number of filled keys with [`Call::seq_kv`](flashtile_core::Call::seq_kv), or leaves it to
//! the device with `kv_lens`. All layers share the plan.
//!
//! # DX12
//!
//! Ship `dxcompiler.dll` (DXC) with the application. Without it wgpu falls back to FXC, which is
//! not expected to compile all kernels: it rejects barriers in loops of unknown length. Planning
//! then returns [`Error::Compile`].
//!
//! # In a browser
//!
//! Compile for wasm32 with the feature `web`. A browser's main thread must not wait, so the
//! functions that end in `_blocking` do not exist there. A browser reports errors late: a buffer of
//! another device is reported to the device's own handler, not by [`Plan::encode`], and a lost
//! device is noticed late. The crate compiles for browsers and its kernels run on Dawn, the WebGPU
//! of Chromium; it has not yet run in a browser.

mod adapters;
mod ahead;
#[cfg(not(target_family = "wasm"))]
mod backend;
mod bind;
mod context;
mod encode;
mod error;
mod export;
mod host;
mod machine;
mod matrix;
mod params;
mod parts;
mod plan;
mod readback;
mod region;
mod schedule;
mod scope;
mod tiles;
mod timing;
mod tune;
mod tuning;

pub use adapters::{
    AdapterEntry, adapters, device_descriptor, open, open_baseline, recommended_features,
    recommended_limits,
};
#[cfg(not(target_family = "wasm"))]
pub use adapters::{adapters_blocking, open_baseline_blocking, open_blocking};
pub use context::Context;
pub use error::Error;
pub use export::{ExportedBinding, ExportedCall, ExportedDispatch, export_baseline};
pub use flashtile_core::{DeviceChoice, HostStats, Timing};
pub use flashtile_shaders::{FLASH_TILES, Tiles};
pub use host::HostRun;
pub use matrix::matrix_unit_features;
pub use plan::{Dispatch, Plan, PlanOptions};
pub use region::{Args, Region};
pub use tune::{Outcome, TuneOptions, TuneProgress, TuneResult, Tuned};
pub use tuning::{ProblemKind, TileChoice, Tuning, TuningError};
pub use wgpu;

/// Compiles the example in README.md.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
