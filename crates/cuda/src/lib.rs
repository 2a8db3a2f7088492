//! Attention on an NVIDIA card, on a CUDA context and stream that the caller owns.

mod machine;
mod options;
mod parts;
mod schedule;
mod tiles;

pub use flashtile_shaders::cuda::{CUDA_MMA_TILES, CUDA_SIMT_TILES, CudaTiles, CudaVariant};
pub use machine::Machine;
pub use options::PlanOptions;
pub use parts::Part;
pub use schedule::{Launch, Pointers, Schedule, Step, schedule};
