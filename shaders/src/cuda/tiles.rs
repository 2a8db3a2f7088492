use std::fmt;

/// The units that multiply matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Engine {
    /// f32 arithmetic on any GPU: `flash_forward.cu`.
    Simt,
    /// Tensor cores through `mma.sync`, with 16-bit operands and f32 sums: `flash_forward_mma.cu`.
    Mma,
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
    CudaTiles { engine: Engine::Simt, rows, keys, tx, ty, head_dim, columns, blocks }
}

const fn mma(
    rows: u32,
    keys: u32,
    warps: u32,
    head_dim: u32,
    columns: u32,
    blocks: u32,
) -> CudaTiles {
    CudaTiles { engine: Engine::Mma, rows, keys, tx: 32, ty: warps, head_dim, columns, blocks }
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
pub const CUDA_MMA_TILES: [CudaTiles; 17] = [
    mma(128, 64, 4, 32, 32, 2),
    mma(128, 96, 4, 64, 64, 2),
    mma(128, 64, 4, 64, 64, 2),
    mma(64, 64, 4, 64, 64, 2),
    mma(128, 64, 4, 96, 96, 2),
    mma(64, 64, 4, 96, 96, 1),
    mma(128, 64, 4, 128, 128, 2),
    mma(64, 64, 4, 128, 128, 2),
    // Two blocks fit GPUs with 100 KiB per multiprocessor, one block fits those with 64 KiB.
    mma(64, 48, 4, 128, 128, 1),
    mma(128, 64, 8, 192, 192, 1),
    mma(64, 32, 4, 192, 192, 1),
    mma(128, 64, 8, 256, 256, 1),
    mma(64, 32, 4, 256, 256, 1),
    mma(64, 32, 4, 256, 128, 1),
    mma(64, 32, 4, 512, 256, 1),
    mma(64, 16, 4, 512, 256, 1),
    mma(32, 16, 2, 512, 256, 1),
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

    /// Whether the shape leaves each thread enough registers for masks, softcap and dropout.
    pub const fn has_general(&self) -> bool {
        let scores = self.rows * self.keys / self.threads();
        let all = scores + self.rows * self.columns / self.threads();
        match self.engine {
            Engine::Mma => scores <= 32 && all < 160,
            Engine::Simt => all <= 96,
        }
    }

    /// Bytes of shared memory per block of the flash kernels: Q, K and V, and for SIMT the weights.
    /// Rows are padded, so that threads that read down a column access different banks.
    pub const fn flash_shared_bytes(&self) -> u32 {
        match self.engine {
            Engine::Mma => {
                let (q_pitch, v_pitch) = (2 * (self.head_dim + 8), 2 * (self.columns + 8));
                (self.rows + self.keys) * q_pitch + self.keys * v_pitch
            }
            Engine::Simt => {
                let q_tile = self.rows * (self.head_dim + 4);
                let p_tile = self.rows * (self.keys + 4);
                4 * (q_tile + p_tile + Self::STAGES * self.kv_floats())
            }
        }
    }

    /// Blocks of K or V in shared memory at the same time (SIMT): one is read while the next loads.
    pub const STAGES: u32 = 2;

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
        };
        write!(f, "Br {} x Bc {}, {} threads, {engine}", self.rows, self.keys, self.threads())
    }
}
