//! The CUDA kernels: the same algorithm as the WGSL ones, function by function, in `cuda/*.cu`.
//!
//! The kernel sources include no headers. NVRTC compiles them without a CUDA toolkit, and a C++
//! compiler compiles them behind the emulator's replacement for `device.cuh`.

mod assemble;
mod params;
mod tiles;
mod variant;

pub use params::CudaParams;
pub use tiles::{
    CUDA_MERGE_TILES, CUDA_MMA_TILES, CUDA_SIMT_TILES, CUDA_SOFTMAX_TILES, CUDA_TF32_TILES,
    CUDA_UNFUSED_TILES, CudaTiles, Engine,
};
pub use variant::{Arch, CudaVariant, shared_limit, tf32_rate};
