//! The CUDA kernels: the same algorithm as the WGSL ones, function by function, in `cuda/*.cu`.
//!
//! The texts include nothing, so that NVRTC compiles them without a toolkit's headers, and a C++ compiler does with an emulation of the
//! device in front.

mod assemble;
mod params;
mod tiles;
mod variant;

pub use params::CudaParams;
pub use tiles::{
    CUDA_MMA_TILES, CUDA_SIMT_TILES, CUDA_SOFTMAX_TILES, CUDA_UNFUSED_TILES, CudaTiles, Engine,
};
pub use variant::{Arch, CudaVariant, shared_limit};
