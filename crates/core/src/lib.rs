//! What attention is, before any device: the words, checks, tiles and bounds that every flashtile backend shares.
//!
//! ```
//! use flashtile_core::{DType, Layout, Problem, TensorView};
//!
//! # fn main() -> Result<(), flashtile_core::ProblemError> {
//! let q = TensorView::contiguous(DType::F16, Layout::Bshd, [2, 8, 128, 64])?; // always (B, H, S, D)
//! let kv = TensorView::contiguous(DType::F16, Layout::Bshd, [2, 2, 300, 64])?;
//! let problem = Problem::builder(q, kv, kv).causal(true).lse(true).build()?;
//! assert_eq!(problem.group_size(), 4); // query heads per key head
//! # Ok(())
//! # }
//! ```
//!
//! - [`Problem`] describes one kind of attention and is checked once; [`Call`] holds what may change from call to call.
//! - [`TensorView`] is a shape with strides; [`Layout`] names the common orders of axes.
//! - [`Band`] and [`KeyTiles`] decide which keys a query sees and which tiles a kernel visits.
//! - [`bound`] is the error rule that every result is held to.
//! - [`Reason`], [`Verdict`] and [`Explanation`] say what will run, and why the rest will not.
//!
//! This crate knows no GPU and does no I/O.

mod band;
pub mod bound;
mod call;
mod cost;
mod dropout;
mod dtype;
mod error;
mod explain;
mod host;
mod mask;
mod merge;
mod problem;
mod tiles;
mod timing;
mod view;

pub use band::{Align, Band};
pub use call::{Call, ResolvedCall};
pub use cost::Cost;
pub use dropout::{Dropout, philox4x32_10};
pub use dtype::DType;
pub use error::{Argument, ProblemError};
pub use explain::{BackendKind, Explanation, KernelKind, Reason, Verdict, choose_kernel};
pub use host::{HostArgs, HostInputs, check_host_args, check_host_inputs, check_presence};
pub use mask::{Mask, MaskKind};
pub use merge::{Partial, merge};
pub use problem::{MAX_SEQ, Problem, ProblemBuilder};
pub use tiles::{KeyTiles, Tile, TileKind, key_range};
pub use timing::{HostStats, Timing};
pub use view::{Layout, TensorView};
