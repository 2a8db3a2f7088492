use super::{
    CUDA_MERGE_TILES, CUDA_MMA_TILES, CUDA_SIMT_TILES, CUDA_SOFTMAX_TILES, CUDA_TF32_TILES,
    CUDA_UNFUSED_TILES, CudaTiles, Engine, assemble,
};
use crate::Operation;
use flashtile_core::DType;
use std::fmt;

/// One CUDA kernel source: an operation, its storage type and tile shape, and whether it supports
/// masks, softcap and dropout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CudaVariant {
    /// What it computes.
    pub operation: Operation,
    /// Storage type of q, k, v and out. Always f32 for the softmax, which reads only scores.
    pub dtype: DType,
    /// Whether the kernel supports masks, softcap and dropout. Parameters turn each of them on at
    /// run time. A kernel without them is shorter and keeps more in registers. Every variant
    /// supports causal masks, windows, kv_lens and lse.
    pub general: bool,
    /// The tile shape.
    pub tiles: CudaTiles,
}

/// The compute capability of a GPU as one number: 75 for 7.5, 120 for 12.0.
pub type Arch = u32;

impl CudaVariant {
    /// A variant of `operation`. Options that the operation ignores are normalised, so that equal
    /// kernel sources are equal variants.
    pub fn new(operation: Operation, dtype: DType, general: bool, tiles: CudaTiles) -> Self {
        match operation {
            Operation::FlashForward | Operation::FlashSplit | Operation::UnfusedScores => {
                Self { operation, dtype, general, tiles }
            }
            Operation::UnfusedSoftmax => Self { operation, dtype: DType::F32, general, tiles },
            Operation::FlashMerge | Operation::UnfusedValues => {
                Self { operation, dtype, general: false, tiles }
            }
        }
    }

    /// Every variant that a plan can choose.
    pub fn all() -> impl Iterator<Item = CudaVariant> {
        let flash = || CUDA_SIMT_TILES.into_iter().chain(CUDA_MMA_TILES).chain(CUDA_TF32_TILES);
        let tiles = |operation| match operation {
            Operation::FlashForward => flash().collect(),
            Operation::FlashSplit => flash().filter(CudaTiles::has_split).collect(),
            Operation::FlashMerge => vec![CUDA_MERGE_TILES],
            Operation::UnfusedSoftmax => vec![CUDA_SOFTMAX_TILES],
            Operation::UnfusedScores | Operation::UnfusedValues => vec![CUDA_UNFUSED_TILES],
        };
        let mut all = Vec::new();
        for &operation in Operation::ALL {
            for tiles in tiles(operation) {
                for &dtype in DType::ALL {
                    for general in [false, true] {
                        let variant = CudaVariant::new(operation, dtype, general, tiles);
                        let flash =
                            matches!(operation, Operation::FlashForward | Operation::FlashSplit);
                        let exists = tiles.engine.multiplies(dtype)
                            && (!general || !flash || tiles.has_general());
                        if exists && !all.contains(&variant) {
                            all.push(variant);
                        }
                    }
                }
            }
        }
        all.into_iter()
    }

    /// The name of the kernel function in the compiled module.
    pub fn entry_point(&self) -> &'static str {
        self.operation.name()
    }

    /// The whole kernel source in CUDA C++. It includes no headers.
    pub fn source(&self) -> String {
        assemble::assemble(self)
    }

    /// Bytes of dynamic shared memory per block.
    pub fn shared_bytes(&self) -> u32 {
        match self.operation {
            Operation::FlashForward | Operation::FlashSplit => self.tiles.flash_shared_bytes(),
            Operation::FlashMerge => 0,
            // Q and K, or P and V, with KV_WIDTH columns.
            Operation::UnfusedScores | Operation::UnfusedValues => {
                4 * (self.tiles.rows * (CudaTiles::KV_WIDTH + 4) + self.tiles.kv_floats())
            }
            Operation::UnfusedSoftmax => 4 * 32,
        }
    }

    /// The lowest compute capability that has the kernel's instructions.
    pub fn min_arch(&self) -> Arch {
        match (self.tiles.engine, self.dtype) {
            (Engine::Mma, DType::BF16) | (Engine::Tf32, _) => 80,
            (Engine::Mma, _) => 75,
            (Engine::Simt, _) => 60,
        }
    }

    /// The lowest compute capability from which on the kernel would spill registers, because
    /// compilers take more of them; `Arch::MAX` if there is none.
    pub fn end_arch(&self) -> Arch {
        let most = if self.general { 64 } else { 72 };
        match self.tiles.engine {
            Engine::Tf32 if self.tiles.sums_per_thread() > most => 100,
            Engine::Simt | Engine::Mma | Engine::Tf32 => Arch::MAX,
        }
    }

    /// The smallest limit of shared memory per block, in bytes, with which a GPU of compute
    /// capability `arch` has room for [`CudaTiles::blocks`] blocks per multiprocessor. A
    /// multiprocessor can divide among several blocks what it can give to one.
    pub fn shared_needed(&self, arch: Arch) -> u32 {
        // The driver reserves so many bytes per block.
        let reserved = if arch >= 80 { 1024 } else { 0 };
        self.tiles.blocks * (self.shared_bytes() + reserved) - reserved
    }

    /// Whether the kernel runs on a GPU of compute capability `arch` with `shared_limit` bytes of
    /// shared memory per block.
    pub fn fits(&self, arch: Arch, shared_limit: u32) -> bool {
        (self.min_arch()..self.end_arch()).contains(&arch)
            && self.shared_needed(arch) <= shared_limit
    }
}

/// The limit of shared memory per block, in bytes, on GPUs of compute capability `arch`, from the
/// CUDA C++ Programming Guide. Plans query the device instead; this is for compiling without a GPU.
pub const fn shared_limit(arch: Arch) -> u32 {
    let kib = match arch {
        70 | 72 => 96,
        75 => 64,
        80 | 87 => 163,
        86 | 89 | 120 | 121 => 99,
        90 | 100 | 101 | 103 | 110 => 227,
        _ => 48,
    };
    kib * 1024
}

/// How many products of TF32 the tensor cores of a GPU of compute capability `arch` compute in the
/// time in which its f32 units compute one product; 0 if they do not multiply TF32. From NVIDIA's
/// published rates of dense products. GPUs that are not listed count as the slowest ones.
pub const fn tf32_rate(arch: Arch) -> u32 {
    match arch {
        80 | 90 => 8,
        100 | 103 => 16,
        80.. => 1,
        _ => 0,
    }
}

impl fmt::Display for CudaVariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CudaTiles { engine, rows, keys, tx, ty, head_dim, columns, blocks: _, stages } =
            self.tiles;
        write!(f, "{} {}", self.operation, self.dtype)?;
        if engine.is_matrix() {
            write!(f, " {}", engine.name())?;
        }
        if self.general {
            f.write_str(" general")?;
        }
        write!(f, " {rows}x{keys} {tx}x{ty} d{head_dim} c{columns}")?;
        match engine {
            Engine::Simt => Ok(()),
            Engine::Mma | Engine::Tf32 => write!(f, " s{stages}"),
        }
    }
}
