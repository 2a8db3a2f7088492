use crate::MatrixTiles;
use std::fmt;

/// The tile shape of a kernel. Each kind of shape belongs to a kernel source of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tiles {
    /// `flash_forward.wgsl`, the portable kernel, and the unfused kernels.
    Block(BlockTiles),
    /// `flash_forward_rows.wgsl`, for software adapters.
    Rows(RowTiles),
    /// `flash_forward_broadcast.wgsl`, for software adapters and many queries.
    Broadcast(BroadcastTiles),
    /// `flash_forward_uniform.wgsl`, for GPUs with scalar loads.
    Uniform(UniformTiles),
    /// `flash_forward_lanes.wgsl`, for GPUs with subgroups.
    Lanes(LaneTiles),
    /// `flash_forward_matrix.wgsl`, on matrix units.
    Matrix(MatrixTiles),
}

/// A tile shape of the portable kernels: `tx` x `ty` threads with 4 queries and 4 keys each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockTiles {
    /// Threads along keys and along columns of V.
    pub tx: u32,
    /// Threads along queries.
    pub ty: u32,
    /// KC: the depth of both products that is in workgroup memory at once, a multiple of 4.
    pub kc: u32,
    /// Words of four numbers of each query's row in workgroup memory. All of Q stays there up to a
    /// head_dim of `4 * qw4`.
    pub qw4: u32,
    /// Blocks of four columns of O that a thread holds for each of its queries. The largest
    /// head_dim_v is `4 * tx * ot`.
    pub ot: u32,
}

/// A tile shape for software adapters: 64 x 32, with one query per thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowTiles {
    /// The largest head_dim_v, a multiple of 4.
    pub width: u32,
    /// The number of subgroup lanes that share keys by broadcast (1: no broadcast).
    pub lanes: u32,
}

impl RowTiles {
    /// Threads per workgroup, and queries.
    pub const THREADS: u32 = 64;
    /// Keys per tile.
    pub const KEYS: u32 = 32;
    /// KC: the columns of K or V that are in workgroup memory at once.
    pub const KC: u32 = 64;
}

/// A tile shape for software adapters: `rows * lanes` queries. It has no masks, softcap or dropout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BroadcastTiles {
    /// The largest head_dim and head_dim_v.
    pub width: u32,
    /// The number of subgroup lanes that share keys by broadcast, and threads per workgroup.
    pub lanes: u32,
    /// Queries per thread: 1 or 4.
    pub rows: u32,
}

impl BroadcastTiles {
    /// Keys per tile. The product with `rows` determines how long the kernel takes to compile.
    pub const fn keys(&self) -> u32 {
        if self.rows == 1 { 32 } else { 16 }
    }
}

/// A tile shape of the kernel with one query per thread and uniform loads of K and V: 32 x 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UniformTiles {
    /// head_dim and head_dim_v, a multiple of 16.
    pub width: u32,
    /// Whether the row of Q is read again for every tile of keys, because O takes the registers.
    pub q_in_memory: bool,
}

impl UniformTiles {
    /// Threads per workgroup, and queries. AMD's compiler runs a workgroup of this size as one wave
    /// of 32, which can issue two FMAs at once and leaves more registers to each thread.
    pub const THREADS: u32 = 32;
    /// Keys per tile.
    pub const KEYS: u32 = 16;
    /// Keys that are multiplied at a time.
    pub(crate) const GROUP: usize = 2;
}

/// A tile shape of the kernel that keeps rows in registers, split over neighbouring lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LaneTiles {
    /// head_dim and head_dim_v, a multiple of `4 * lanes`.
    pub width: u32,
    /// Lanes that hold a row together: 4, 8 or 16.
    pub lanes: u32,
    /// Rows that they hold: 2 or 4.
    pub rows: u32,
    /// Whether a thread loads its part of the next tile while it computes.
    pub prefetch: bool,
}

impl LaneTiles {
    /// Threads per workgroup.
    pub const THREADS: u32 = 128;
    /// Keys per tile.
    pub const KEYS: u32 = 16;
}

/// The bytes of workgroup memory that every WebGPU device has.
pub const BASELINE_WORKGROUP_BYTES: u32 = 16 * 1024;

/// The largest head dimension that the flash kernel's registers hold.
pub const MAX_HEAD_DIM: usize = 512;

const fn tiles(tx: u32, ty: u32, kc: u32, qw4: u32, ot: u32) -> Tiles {
    Tiles::Block(BlockTiles { tx, ty, kc, qw4, ot })
}

/// Every tile shape of the portable flash kernel. Among those that fit the head dimensions and the
/// device, a plan prefers the fewest unused registers.
///
/// All but the last three fit WebGPU's baseline of 16 KiB. Shapes with more threads share K and V
/// among more queries.
pub const FLASH_TILES: [Tiles; 10] = [
    // Few queries: 8 x 128.
    tiles(32, 2, 8, 32, 1),
    tiles(32, 2, 16, 4, 2),
    // 32 x 32.
    tiles(8, 8, 16, 16, 1),
    tiles(8, 8, 16, 16, 2),
    // 16 x 64.
    tiles(16, 4, 8, 32, 2),
    tiles(16, 4, 32, 8, 4),
    // 8 x 128, up to head_dim_v 512.
    tiles(32, 2, 16, 4, 4),
    // 32 x 64, beyond the baseline's workgroup memory.
    tiles(16, 8, 16, 16, 1),
    tiles(16, 8, 16, 32, 2),
    tiles(16, 8, 16, 4, 4),
];

/// The subgroup sizes that [`row_tiles`] supports: those of current software adapters, and 1 for
/// devices without subgroups.
pub const ROW_LANES: [u32; 4] = [1, 4, 8, 16];

/// Tile shapes for software adapters with subgroups of `lanes`. They differ in the largest
/// head_dim_v: 32, 64, 128, 256 or 512.
pub const fn row_tiles(lanes: u32) -> [Tiles; 5] {
    const fn rows(lanes: u32, width: u32) -> Tiles {
        Tiles::Rows(RowTiles { width, lanes })
    }
    [rows(lanes, 32), rows(lanes, 64), rows(lanes, 128), rows(lanes, 256), rows(lanes, 512)]
}

/// The subgroup sizes that [`broadcast_tiles`] supports.
pub const BROADCAST_LANES: [u32; 3] = [4, 8, 16];

/// Tile shapes for software adapters with subgroups of `lanes`, one of [`BROADCAST_LANES`]: three
/// for few queries and three for many, which differ in the widest heads that they hold.
pub const fn broadcast_tiles(lanes: u32) -> [Tiles; 6] {
    const fn tiles(width: u32, lanes: u32, rows: u32) -> Tiles {
        Tiles::Broadcast(BroadcastTiles { width, lanes, rows })
    }
    [
        tiles(64, lanes, 1),
        tiles(128, lanes, 1),
        tiles(256, lanes, 1),
        tiles(64, lanes, 4),
        tiles(128, lanes, 4),
        tiles(256, lanes, 4),
    ]
}

/// Every tile shape of the kernel with uniform loads, of each width the preferred one first.
pub const UNIFORM_TILES: [Tiles; 5] = {
    const fn uniform(width: u32, q_in_memory: bool) -> Tiles {
        Tiles::Uniform(UniformTiles { width, q_in_memory })
    }
    [
        uniform(16, false),
        uniform(16, true),
        uniform(32, false),
        uniform(64, false),
        uniform(128, true),
    ]
};

/// Every tile shape of the kernel with rows in registers. Those with 4 rows suit GPUs with 256
/// registers per thread, those with 2 rows all others.
pub const LANE_TILES: [Tiles; 7] = {
    const fn lanes(width: u32, lanes: u32, rows: u32, prefetch: bool) -> Tiles {
        Tiles::Lanes(LaneTiles { width, lanes, rows, prefetch })
    }
    [
        lanes(16, 4, 2, false),
        lanes(32, 4, 2, false),
        lanes(64, 8, 2, false),
        lanes(128, 16, 2, false),
        lanes(32, 4, 4, true),
        lanes(64, 4, 4, true),
        lanes(128, 8, 4, false),
    ]
};

/// Tiles of the unfused products: 32 x 32.
pub const UNFUSED_TILES: Tiles = tiles(8, 8, 32, 8, 1);

/// The unfused softmax: 64 threads per row.
pub const SOFTMAX_TILES: Tiles = tiles(64, 1, 4, 1, 1);

/// The merge of a split: 32 threads per row.
pub const MERGE_TILES: Tiles = tiles(32, 1, 4, 1, 1);

impl Tiles {
    /// Br: queries per workgroup.
    pub const fn rows(&self) -> u32 {
        match self {
            Tiles::Block(t) => 4 * t.ty,
            Tiles::Rows(_) => RowTiles::THREADS,
            Tiles::Broadcast(t) => t.lanes * t.rows,
            Tiles::Uniform(_) => UniformTiles::THREADS,
            Tiles::Lanes(t) => LaneTiles::THREADS / t.lanes * t.rows,
            Tiles::Matrix(t) => t.rows(),
        }
    }

    /// Bc: keys per tile.
    pub const fn keys(&self) -> u32 {
        match self {
            Tiles::Block(t) => 4 * t.tx,
            Tiles::Rows(_) => RowTiles::KEYS,
            Tiles::Broadcast(t) => t.keys(),
            Tiles::Uniform(_) => UniformTiles::KEYS,
            Tiles::Lanes(_) => LaneTiles::KEYS,
            Tiles::Matrix(t) => t.keys(),
        }
    }

    /// Threads per workgroup.
    pub const fn threads(&self) -> u32 {
        match self {
            Tiles::Block(t) => t.tx * t.ty,
            Tiles::Rows(_) => RowTiles::THREADS,
            Tiles::Broadcast(t) => t.lanes,
            Tiles::Uniform(_) => UniformTiles::THREADS,
            Tiles::Lanes(_) => LaneTiles::THREADS,
            Tiles::Matrix(t) => t.threads(),
        }
    }

    /// Whether the kernel reads and writes tensors in words of 16 bytes.
    pub const fn uses_words(&self) -> bool {
        match self {
            Tiles::Block(_) | Tiles::Rows(_) | Tiles::Matrix(_) => false,
            Tiles::Broadcast(_) | Tiles::Uniform(_) | Tiles::Lanes(_) => true,
        }
    }

    /// The one width of head_dim and head_dim_v that the kernel is made for, if it is so.
    pub const fn exact_width(&self) -> Option<u32> {
        match self {
            Tiles::Block(_) | Tiles::Rows(_) | Tiles::Broadcast(_) | Tiles::Matrix(_) => None,
            Tiles::Uniform(t) => Some(t.width),
            Tiles::Lanes(t) => Some(t.width),
        }
    }

    /// The largest head_dim_v whose O stays in registers.
    pub const fn max_head_dim_v(&self) -> u32 {
        match self {
            Tiles::Block(t) => 4 * t.tx * t.ot,
            Tiles::Rows(t) => t.width,
            Tiles::Broadcast(t) => t.width,
            Tiles::Uniform(t) => t.width,
            Tiles::Lanes(t) => t.width,
            Tiles::Matrix(t) => t.width,
        }
    }

    /// Bytes of workgroup memory of the flash kernel.
    pub const fn flash_workgroup_bytes(&self) -> u32 {
        match self {
            Tiles::Block(BlockTiles { tx, kc, qw4, .. }) => {
                // Q tile, K or V chunk, weights, row reductions and a flag.
                let q_tile = 16 * self.rows() * *qw4;
                let kv_tile = 16 * *kc * *tx;
                let p_tile = 16 * self.rows() * *tx;
                let row_part = 4 * self.rows() * *tx;
                q_tile + kv_tile + p_tile + row_part + 4
            }
            Tiles::Rows(_) => 4 * RowTiles::KEYS * RowTiles::KC + 4,
            Tiles::Broadcast(_) => 0,
            Tiles::Uniform(_) => 4 * UniformTiles::KEYS * UniformTiles::THREADS + 4,
            Tiles::Lanes(t) => 2 * 4 * LaneTiles::KEYS * t.width + 4,
            Tiles::Matrix(t) => t.workgroup_bytes(),
        }
    }

    /// Whether the kernel uses subgroup operations.
    pub const fn uses_subgroups(&self) -> bool {
        match self {
            Tiles::Block(_) | Tiles::Uniform(_) | Tiles::Matrix(_) => false,
            Tiles::Rows(t) => t.lanes > 1,
            Tiles::Broadcast(_) | Tiles::Lanes(_) => true,
        }
    }

    /// Whether the flash kernel has masks, softcap and dropout.
    pub const fn has_general(&self) -> bool {
        match self {
            Tiles::Block(_)
            | Tiles::Rows(_)
            | Tiles::Uniform(_)
            | Tiles::Lanes(_)
            | Tiles::Matrix(_) => true,
            Tiles::Broadcast(_) => false,
        }
    }

    /// Whether the kernel uses matrix units.
    pub const fn uses_matrix_units(&self) -> bool {
        match self {
            Tiles::Block(_)
            | Tiles::Rows(_)
            | Tiles::Broadcast(_)
            | Tiles::Uniform(_)
            | Tiles::Lanes(_) => false,
            Tiles::Matrix(_) => true,
        }
    }

    /// Its name: the distinguishing part of a variant's name. No two shapes share one.
    pub fn name(&self) -> String {
        match self {
            Tiles::Block(BlockTiles { tx, ty, kc, qw4, ot }) => {
                format!("{tx}x{ty} kc{kc} qw{qw4} ot{ot}")
            }
            Tiles::Rows(RowTiles { width, lanes }) => format!("rows w{width} lanes{lanes}"),
            Tiles::Broadcast(BroadcastTiles { width, lanes, rows }) => {
                format!("broadcast w{width} lanes{lanes} rows{rows}")
            }
            Tiles::Uniform(UniformTiles { width, q_in_memory }) => {
                let q = if *q_in_memory { " q in memory" } else { "" };
                format!("uniform w{width}{q}")
            }
            Tiles::Lanes(LaneTiles { width, lanes, rows, prefetch }) => {
                let prefetch = if *prefetch { " prefetch" } else { "" };
                format!("lanes{lanes} w{width} rows{rows}{prefetch}")
            }
            Tiles::Matrix(MatrixTiles { size, lanes, width }) => {
                format!("matrix{size} w{width} lanes{lanes}")
            }
        }
    }
}

impl fmt::Display for Tiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Br {} x Bc {}, {} threads", self.rows(), self.keys(), self.threads())?;
        match self {
            Tiles::Block(_)
            | Tiles::Rows(_)
            | Tiles::Broadcast(_)
            | Tiles::Uniform(_)
            | Tiles::Lanes(_) => Ok(()),
            Tiles::Matrix(MatrixTiles { size, .. }) => {
                write!(f, ", matrix units {size}x{size}x{size}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// WebGPU's default limits suffice for every head_dim_v, with few queries and with many.
    #[test]
    fn baseline_reaches_every_head_dim() {
        let baseline = || {
            FLASH_TILES.iter().filter(|t| {
                t.flash_workgroup_bytes() <= BASELINE_WORKGROUP_BYTES && t.threads() <= 256
            })
        };
        assert!(baseline().any(|t| t.max_head_dim_v() as usize >= MAX_HEAD_DIM));
        assert!(baseline().any(|t| t.max_head_dim_v() >= 64 && t.rows() >= 32));
    }

    #[test]
    fn chunks_divide_tiles() {
        for tiles in FLASH_TILES {
            let Tiles::Block(t) = tiles else { panic!("{tiles:?} is not a block") };
            let keys = tiles.keys();
            assert!(keys.is_multiple_of(t.kc) && t.kc.is_multiple_of(4), "{t:?}: keys in chunks");
            assert!((4 * t.qw4).is_multiple_of(t.kc) && 4 * t.qw4 >= t.kc, "{t:?}: Q in chunks");
        }
    }
}
