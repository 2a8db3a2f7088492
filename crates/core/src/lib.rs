//! The vocabulary that every flashtile backend shares, before any device: problems, tensor views,
//! masks, the error bound, and the [`Backend`] trait.
//!
//! ```
//! use flashtile_core::{DType, Problem, TensorView};
//!
//! # fn main() -> Result<(), flashtile_core::ProblemError> {
//! let q = TensorView::bshd(DType::F16, [2, 128, 8, 64])?; // batch 2, 128 queries, 8 heads of 64
//! let kv = TensorView::bshd(DType::F16, [2, 300, 2, 64])?; // 300 keys, 2 key heads
//! let problem = Problem::builder(q, kv, kv).causal(true).lse(true).build()?;
//! assert_eq!(problem.group_size(), 4); // query heads per key head
//! # Ok(())
//! # }
//! ```
//!
//! # The nouns
//!
//! - [`Problem`] is one attention configuration, checked once. [`Call`] holds what may change from
//!   call to call; [`Args`] and [`HostArgs`] add the memory, and [`HostCopies`] keeps it.
//! - [`TensorView`] is a shape with strides; [`Layout`] names common orders of axes; [`Mask`] is an
//!   attention mask.
//! - [`Backend`] plans and runs problems on one device. [`PlanOptions`] force a kernel or a tile
//!   shape; [`PlanCache`] keeps plans.
//! - [`Verdict`], [`Reason`] and [`Explanation`] say what will run, and why the rest will not.
//! - [`Band`] and [`KeyTiles`] decide which keys a query sees and which tiles a kernel visits;
//!   [`KeyChunks`] splits keys among workgroups.
//! - [`bound`] is the error rule that every result is held to; [`Cost`] counts FLOPs and bytes.
//! - [`planning`] is what the planners of several backends share.
//!
//! This crate uses no GPU and does no I/O.

mod args;
mod backend;
mod band;
pub mod bound;
mod cache;
mod call;
mod cost;
mod device;
mod dropout;
mod dtype;
mod error;
mod explain;
mod host;
mod host_copies;
mod layout;
mod mask;
mod merge;
mod no_matrix_units;
mod options;
pub mod planning;
mod problem;
mod split;
mod tiles;
mod timing;
mod view;

pub use args::Args;
pub use backend::{Backend, BackendError, BackendPlan, BackendRun};
pub use band::{Align, Band, MAX_SEQ};
pub use cache::{CachedPlan, PlanCache};
pub use call::{Call, ResolvedCall};
pub use cost::Cost;
pub use device::DeviceChoice;
pub use dropout::{Dropout, philox4x32_10};
pub use dtype::DType;
pub use error::{Argument, ProblemError};
pub use explain::{BackendKind, Explanation, KernelKind, Reason, Verdict};
pub use host::{
    HostArgs, HostInputs, check_host_args, check_host_inputs, check_host_outputs, check_presence,
};
pub use host_copies::HostCopies;
pub use layout::Layout;
pub use mask::{Mask, MaskKind};
pub use merge::{Partial, merge};
pub use no_matrix_units::NoMatrixUnits;
pub use options::{AnyTiles, MatrixUnits, PlanOptions};
pub use problem::{Problem, ProblemBuilder};
pub use split::{KeyChunks, KeySplit};
pub use tiles::{KeyTiles, Tile, TileKind, key_range};
pub use timing::{HostStats, Timing};
pub use view::TensorView;

/// Compiles the example in README.md.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
