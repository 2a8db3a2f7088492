use super::{
    CUDA_MMA_TILES, CUDA_SIMT_TILES, CUDA_SOFTMAX_TILES, CUDA_UNFUSED_TILES, CudaTiles, Engine,
    assemble,
};
use crate::Operation;
use flashtile_core::DType;
use std::fmt;

/// One CUDA kernel text: an operation, its storage type and tile shape, and whether it can change scores and weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CudaVariant {
    /// What it computes.
    pub operation: Operation,
    /// Storage type of q, k, v and out. The softmax sees only scores: f32 there.
    pub dtype: DType,
    /// Whether it knows masks, softcap and dropout. Which of them are on is told at run time; a kernel that knows none of them is shorter and
    /// keeps more in registers. Causal masks, windows, kv_lens and lse are known to every variant.
    pub general: bool,
    /// The tile shape.
    pub tiles: CudaTiles,
}

/// The major and minor compute capability of a card as one number: 75 for 7.5, 120 for 12.0.
pub type Arch = u32;

impl CudaVariant {
    /// Drops what `operation` does not look at, so that equal texts are equal variants.
    pub fn new(operation: Operation, dtype: DType, general: bool, tiles: CudaTiles) -> Self {
        match operation {
            Operation::FlashForward | Operation::UnfusedScores => {
                Self { operation, dtype, general, tiles }
            }
            Operation::UnfusedSoftmax => Self { operation, dtype: DType::F32, general, tiles },
            Operation::UnfusedValues => Self { operation, dtype, general: false, tiles },
        }
    }

    /// Every variant that any plan can choose.
    pub fn all() -> impl Iterator<Item = CudaVariant> {
        let tiles = |operation| match operation {
            Operation::FlashForward => CUDA_SIMT_TILES.into_iter().chain(CUDA_MMA_TILES).collect(),
            Operation::UnfusedSoftmax => vec![CUDA_SOFTMAX_TILES],
            Operation::UnfusedScores | Operation::UnfusedValues => vec![CUDA_UNFUSED_TILES],
        };
        let mut all = Vec::new();
        for &operation in Operation::ALL {
            for tiles in tiles(operation) {
                for &dtype in DType::ALL {
                    for general in [false, true] {
                        let variant = CudaVariant::new(operation, dtype, general, tiles);
                        let flash = operation == Operation::FlashForward;
                        let exists = (tiles.engine != Engine::Mma || dtype != DType::F32)
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

    /// The name of the kernel in the compiled module.
    pub fn entry_point(&self) -> &'static str {
        self.operation.name()
    }

    /// The whole CUDA C++ text. It includes nothing.
    pub fn source(&self) -> String {
        assemble::assemble(self)
    }

    /// Bytes of dynamic shared memory that a launch asks for.
    pub fn shared_bytes(&self) -> u32 {
        match self.operation {
            Operation::FlashForward => self.tiles.flash_shared_bytes(),
            // Q and K, or P and V, KV_WIDTH deep.
            Operation::UnfusedScores | Operation::UnfusedValues => {
                4 * (self.tiles.rows * (CudaTiles::KV_WIDTH + 4) + self.tiles.kv_floats())
            }
            Operation::UnfusedSoftmax => 4 * 32,
        }
    }

    /// The least compute capability that the kernel's instructions need.
    pub fn min_arch(&self) -> Arch {
        match (self.tiles.engine, self.dtype) {
            (Engine::Mma, DType::BF16) => 80,
            (Engine::Mma, _) => 75,
            (Engine::Simt, _) => 60,
        }
    }

    /// Bytes of shared memory that a card of compute capability `arch` must be able to give a block: as many as one takes, or as
    /// [`CudaTiles::blocks`] take together, since a multiprocessor that gives all of its memory to one block can share it out among several.
    pub fn shared_needed(&self, arch: Arch) -> u32 {
        // The driver takes these for itself, of every block.
        let reserved = if arch >= 80 { 1024 } else { 0 };
        self.tiles.blocks * (self.shared_bytes() + reserved) - reserved
    }

    /// Whether the kernel fits a card of compute capability `arch` that gives a block `shared_limit` bytes of shared memory.
    pub fn fits(&self, arch: Arch, shared_limit: u32) -> bool {
        arch >= self.min_arch() && self.shared_needed(arch) <= shared_limit
    }
}

/// Bytes of shared memory that a block can be given on cards of `arch`, by the CUDA C++ programming guide. Plans ask the card itself; this is for
/// compiling without one.
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

impl fmt::Display for CudaVariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CudaTiles { engine, rows, keys, tx, ty, head_dim, columns, blocks: _ } = self.tiles;
        write!(f, "{} {}", self.operation, self.dtype)?;
        if engine == Engine::Mma {
            f.write_str(" mma")?;
        }
        if self.general {
            f.write_str(" general")?;
        }
        write!(f, " {rows}x{keys} {tx}x{ty} d{head_dim} c{columns}")
    }
}
