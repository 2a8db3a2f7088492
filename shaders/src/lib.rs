//! All kernel sources of flashtile, WGSL and CUDA C++, and the typed variants that assemble them.
//!
//! WGSL has no generic types, so a [`Variant`] is a short generated prelude (constants, bindings,
//! element access) followed by the hand-written files in `wgsl/`. Scalars that only specialise
//! loops ([`Constants`]) are pipeline-overridable. [`Variant::all`] lists every variant that a plan
//! can choose, so that each can be validated without a GPU.

pub mod cuda;
mod loops;
mod matrix;
mod params;
mod tiles;
mod variant;
mod wgsl;

pub use loops::LoopShape;
pub use matrix::{MatrixTiles, matrix_tiles};
pub use params::Params;
pub use tiles::{
    BASELINE_WORKGROUP_BYTES, BROADCAST_LANES, BlockTiles, BroadcastTiles, FLASH_TILES, LANE_TILES,
    LaneTiles, MAX_HEAD_DIM, MERGE_TILES, ROW_LANES, RowTiles, SOFTMAX_TILES, Tiles, UNFUSED_TILES,
    UNIFORM_TILES, UniformTiles, broadcast_tiles, row_tiles,
};
pub use variant::{Access, Binding, Constants, Operation, Slot, Variant, flash_tiles};

/// Compiles the example in README.md.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
