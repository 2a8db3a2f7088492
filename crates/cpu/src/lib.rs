//! Attention on the CPU: the tiles and the online softmax of the GPU kernels, on all cores, with
//! AVX2, AVX-512 or NEON where the processor has them.
//!
//! ```
//! use flashtile_core::{DType, HostArgs, PlanOptions, Problem, TensorView};
//! use flashtile_cpu::Cpu;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // One query, two keys with equal scores: the mean of their values.
//! let q = TensorView::bshd(DType::F32, [1, 1, 1, 1])?;
//! let kv = TensorView::bshd(DType::F32, [1, 2, 1, 1])?;
//! let problem = Problem::builder(q, kv, kv).build()?;
//! let plan = Cpu::new().plan(&problem, &PlanOptions::new())?; // once per configuration
//!
//! let [zeros, values] = [[0f32, 0.0], [1f32, 4.0]].map(|x| x.map(f32::to_le_bytes).concat());
//! let mut out = [0; 4];
//! plan.run(HostArgs::new(&zeros[..4], &zeros, &values, &mut out))?; // every call
//! assert_eq!(f32::from_le_bytes(out), 2.5);
//! # Ok(())
//! # }
//! ```
//!
//! - [`Cpu`] is the device. It works in the rayon pool of the thread that calls, or in a pool of
//!   its own ([`Cpu::with_threads`]). In a browser there is one thread.
//! - A [`Plan`] states how a problem is computed: tiles, chunks of keys, workspace and reasons. It
//!   keeps its workspace from call to call, and several threads can share it.
//! - Tensors stay where they are. K and V of f32 whose rows are dense are read in place; others are
//!   converted tile by tile.
//! - The number of threads changes no bit of a result. Another set of instructions may.
#![forbid(unsafe_code)]

mod backend;
mod error;
mod few;
mod flash;
mod group;
mod math;
mod output;
mod peak;
mod plan;
mod products;
mod run;
mod softmax;
mod tensors;
mod threads;
mod workspace;

pub use backend::Cpu;
pub use error::Error;
pub use flashtile_core::{HostStats, Timing};
pub use plan::Plan;

/// Compiles the example in README.md.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
