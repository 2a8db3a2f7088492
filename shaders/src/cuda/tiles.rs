use super::Arch;
use flashtile_core::DType;
use std::fmt;

/// The units that multiply matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Engine {
    /// f32 arithmetic on any GPU: `flash_forward.cu`.
    Simt,
    /// Tensor cores through `mma.sync`, with 16-bit operands and f32 sums: `flash_forward_mma.cu`.
    Mma,
    /// Tensor cores for f32, by three products of TF32 for each product: `flash_forward_tf32.cu`.
    Tf32,
}

impl Engine {
    /// Products of TF32 for each product of f32.
    pub const TF32_PRODUCTS: u32 = 3;

    /// A short name.
    pub const fn name(self) -> &'static str {
        match self {
            Engine::Simt => "simt",
            Engine::Mma => "mma",
            Engine::Tf32 => "tf32",
        }
    }

    /// Whether kernels on these units exist for a storage type.
    pub const fn multiplies(self, dtype: DType) -> bool {
        match self {
            Engine::Simt => true,
            Engine::Mma => !matches!(dtype, DType::F32),
            Engine::Tf32 => matches!(dtype, DType::F32),
        }
    }

    /// Whether these are matrix units.
    pub const fn is_matrix(self) -> bool {
        match self {
            Engine::Simt => false,
            Engine::Mma | Engine::Tf32 => true,
        }
    }
}

/// The tile shape of a CUDA kernel. All fields are compile-time constants of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CudaTiles {
    /// The units that multiply.
    pub engine: Engine,
    /// Br: queries per block.
    pub rows: u32,
    /// Bc: keys per tile.
    pub keys: u32,
    /// Threads along keys and along columns of V (SIMT); 32, the lanes of a warp (tensor cores).
    pub tx: u32,
    /// Threads along queries (SIMT); warps (tensor cores).
    pub ty: u32,
    /// Columns of Q that stay in shared memory. SIMT kernels load the Q of wider heads again for
    /// every tile of keys. On tensor cores this is the widest head that the kernel supports.
    pub head_dim: u32,
    /// Columns of V per block. Several blocks share a wider V, and each computes the scores again.
    pub columns: u32,
    /// Blocks that must fit one multiprocessor, so that one multiplies while another waits or
    /// computes weights. This bounds the registers per thread and the shared memory per block.
    pub blocks: u32,
    /// Tiles of K, and of V, in shared memory. With 2, the next tile loads while one is multiplied,
    /// and one barrier per tile is enough. SIMT kernels load blocks of [`Self::KV_WIDTH`] columns
    /// in turn; 2 of these are in shared memory.
    pub stages: u32,
}

const fn simt(
    rows: u32,
    keys: u32,
    tx: u32,
    ty: u32,
    head_dim: u32,
    columns: u32,
    blocks: u32,
) -> CudaTiles {
    let stages = 2;
    CudaTiles { engine: Engine::Simt, rows, keys, tx, ty, head_dim, columns, blocks, stages }
}

const fn mma(
    rows: u32,
    keys: u32,
    warps: u32,
    head_dim: u32,
    columns: u32,
    blocks: u32,
    stages: u32,
) -> CudaTiles {
    let (engine, tx, ty) = (Engine::Mma, 32, warps);
    CudaTiles { engine, rows, keys, tx, ty, head_dim, columns, blocks, stages }
}

const fn tf32(
    rows: u32,
    keys: u32,
    warps: u32,
    head_dim: u32,
    columns: u32,
    blocks: u32,
    stages: u32,
) -> CudaTiles {
    CudaTiles { engine: Engine::Tf32, ..mma(rows, keys, warps, head_dim, columns, blocks, stages) }
}

/// Every tile shape of `flash_forward.cu`: first the shape for few queries, then the preferred
/// shapes among those that hold V, then narrower ones. Every shape supports every head_dim, if
/// necessary in parts.
pub const CUDA_SIMT_TILES: [CudaTiles; 6] = [
    simt(8, 64, 16, 8, 256, 256, 1),
    // For GPUs with much shared memory.
    simt(128, 64, 8, 16, 64, 64, 2),
    simt(128, 32, 8, 16, 64, 64, 1),
    simt(64, 64, 8, 16, 128, 128, 1),
    // For any GPU. Four warps, because a multiprocessor has four schedulers.
    simt(64, 32, 8, 16, 64, 64, 1),
    simt(64, 32, 8, 16, 64, 128, 1),
];

/// Every tile shape of `flash_forward_mma.cu`. Among the shapes that hold a head, the preferred
/// ones come first.
pub const CUDA_MMA_TILES: [CudaTiles; 19] = [
    mma(128, 64, 4, 32, 32, 2, 2),
    mma(128, 64, 4, 64, 64, 2, 2),
    mma(64, 64, 4, 64, 64, 2, 2),
    mma(64, 64, 4, 64, 64, 2, 1),
    mma(128, 32, 4, 96, 96, 2, 2),
    mma(64, 64, 4, 96, 96, 1, 1),
    // For 227, 163, 163, 99 and 64 KiB of shared memory per block.
    mma(128, 64, 4, 128, 128, 2, 2),
    mma(128, 32, 4, 128, 128, 2, 2),
    mma(64, 64, 4, 128, 128, 2, 2),
    mma(64, 64, 4, 128, 128, 2, 1),
    mma(64, 32, 4, 128, 128, 2, 1),
    mma(128, 64, 8, 192, 192, 1, 2),
    mma(64, 32, 4, 192, 192, 1, 1),
    mma(128, 64, 8, 256, 256, 1, 1),
    mma(64, 32, 4, 256, 256, 1, 1),
    mma(64, 32, 4, 256, 128, 1, 1),
    mma(64, 32, 4, 512, 256, 1, 1),
    mma(64, 16, 4, 512, 256, 1, 1),
    mma(32, 16, 2, 512, 256, 1, 1),
];

/// Every tile shape of `flash_forward_tf32.cu`. Among the shapes that hold a head, the preferred
/// ones come first.
pub const CUDA_TF32_TILES: [CudaTiles; 6] = [
    tf32(128, 32, 4, 64, 64, 2, 2),
    tf32(64, 32, 4, 64, 64, 2, 1),
    // For 163 and for 99 KiB of shared memory per block; for masks, softcap and dropout.
    tf32(128, 32, 8, 128, 128, 1, 2),
    tf32(64, 32, 4, 128, 128, 1, 1),
    tf32(64, 32, 4, 128, 64, 1, 1),
    tf32(64, 16, 4, 256, 128, 1, 1),
];

/// The tile shape of the unfused products: 64 x 64.
pub const CUDA_UNFUSED_TILES: CudaTiles = simt(64, 64, 8, 8, 64, 64, 1);

/// The tile shape of the unfused softmax: 128 threads per row.
pub const CUDA_SOFTMAX_TILES: CudaTiles = simt(1, 128, 128, 1, 0, 0, 1);

/// The tile shape of the merge of a split: 32 threads per row.
pub const CUDA_MERGE_TILES: CudaTiles = simt(1, 128, 32, 1, 0, 0, 1);

impl CudaTiles {
    /// The most rows of a tile of kernels that split keys. There are few queries then.
    pub const MAX_SPLIT_ROWS: u32 = 64;

    /// Whether a kernel that splits keys has this shape.
    pub const fn has_split(&self) -> bool {
        self.rows <= Self::MAX_SPLIT_ROWS
    }

    /// Threads per block.
    pub const fn threads(&self) -> u32 {
        self.tx * self.ty
    }

    /// The scores and the sums in O that a thread holds.
    pub const fn sums_per_thread(&self) -> u32 {
        self.rows * self.keys / self.threads() + self.rows * self.columns / self.threads()
    }

    /// Whether the shape leaves each thread enough registers for masks, softcap and dropout.
    pub const fn has_general(&self) -> bool {
        let scores = self.rows * self.keys / self.threads();
        let all = self.sums_per_thread();
        match self.engine {
            Engine::Mma => scores <= 32 && all < if scores > 16 { 128 } else { 160 },
            Engine::Tf32 => all <= 72,
            Engine::Simt => all <= 96,
        }
    }

    /// The keys that tensor cores with 16-bit operands add to O directly. They truncate every sum,
    /// and the loss adds up.
    /// From there on they sum each tile alone, and f32 units add it to O. Some shapes leave no
    /// registers for that and add all keys directly.
    pub const fn direct_keys(&self) -> u32 {
        let sums = (self.keys + self.columns) * self.rows / self.threads();
        let most = if self.columns <= 64 { 128 } else { 96 };
        if self.columns <= 128 && sums <= most { 8192 } else { u32::MAX }
    }

    /// The most keys with which the sums in O stay within the error bound on a GPU of compute
    /// capability `arch`. Newer tensor cores lose less.
    pub const fn max_keys(&self, arch: Arch) -> u32 {
        match (self.engine, arch) {
            // f32 units add to O.
            (Engine::Simt | Engine::Tf32, _) => u32::MAX,
            (Engine::Mma, _) if self.direct_keys() < u32::MAX => u32::MAX,
            (Engine::Mma, ..80) => 16384,
            (Engine::Mma, 80..90) => 32768,
            (Engine::Mma, 90..) => 65536,
        }
    }

    /// Bytes of shared memory per block of the flash kernels: Q, K and V, and for SIMT the weights.
    /// SIMT tiles have padded rows, so that threads that read down a column access different banks.
    pub const fn flash_shared_bytes(&self) -> u32 {
        match self.engine {
            Engine::Mma | Engine::Tf32 => {
                let stage = self.keys * (self.head_dim + self.columns);
                let bytes = if matches!(self.engine, Engine::Tf32) { 4 } else { 2 };
                bytes * (self.rows * self.head_dim + self.stages * stage)
            }
            Engine::Simt => {
                let q_tile = self.rows * (self.head_dim + 4);
                let p_tile = self.rows * (self.keys + 4);
                4 * (q_tile + p_tile + self.stages * self.kv_floats())
            }
        }
    }

    /// Columns of a block of K or V in shared memory (SIMT).
    pub const KV_WIDTH: u32 = 64;

    /// Floats of a block of K or V in shared memory (SIMT).
    pub const fn kv_floats(&self) -> u32 {
        self.keys * Self::KV_WIDTH + self.keys / 4 * 4
    }
}

impl fmt::Display for CudaTiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let engine = match self.engine {
            Engine::Simt => "f32 units",
            Engine::Mma => "tensor cores",
            Engine::Tf32 => "tensor cores (3 x TF32)",
        };
        write!(f, "Br {} x Bc {}, {} threads, {engine}", self.rows, self.keys, self.threads())
    }
}
