//! How many loop iterations one invocation runs, for drivers that end loops early.
//!
//! llvmpipe before Mesa 25 counts the iterations of all loops of an invocation together, and ends
//! every loop without an error after 65,535. The planner compares that budget with the counts here.
//! They follow the kernels loop by loop; the conformance test "loop iterations are counted as
//! kernels run them" compares them with kernels that count their own iterations.

use crate::{
    BlockTiles, BroadcastTiles, LaneTiles, MatrixTiles, Operation, RowTiles, Tiles, UniformTiles,
    Variant,
};

/// The values that determine how often the loops of a kernel run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopShape {
    /// The largest number of keys that one workgroup visits.
    pub keys: usize,
    /// The largest number of chunks of keys that one row has; only the merge counts them.
    pub chunks: usize,
    /// The largest number of edge tiles that one workgroup visits: key tiles whose V may need
    /// careful sums, because masked or dropped keys hold NaN.
    pub careful_tiles: u64,
    /// Width of q and k.
    pub head_dim: usize,
    /// Width of v and out.
    pub head_dim_v: usize,
    /// Whether dropout is on.
    pub dropout: bool,
}

/// The iterations of a loop of `times` iterations, with `body` iterations of inner loops in each.
/// The last pass, which only ends the loop, counts too.
fn repeat(times: f64, body: f64) -> f64 {
    times * (body + 1.0) + 1.0
}

impl Variant {
    /// The largest number of loop iterations of one invocation.
    pub fn loop_iterations(&self, shape: &LoopShape) -> u64 {
        let count = match self.operation {
            Operation::FlashForward | Operation::FlashSplit => match &self.tiles {
                Tiles::Block(_) => self.flash(shape),
                Tiles::Rows(tiles) => self.flash_rows(tiles, shape),
                Tiles::Broadcast(tiles) => self.flash_broadcast(tiles, shape),
                Tiles::Uniform(tiles) => self.flash_uniform(tiles, shape),
                Tiles::Lanes(tiles) => self.flash_lanes(tiles, shape),
                Tiles::Matrix(tiles) => self.flash_matrix(tiles, shape),
            },
            Operation::FlashMerge => self.flash_merge(shape),
            Operation::UnfusedScores => self.unfused_scores(shape),
            Operation::UnfusedSoftmax => self.unfused_softmax(shape),
            Operation::UnfusedValues => self.unfused_values(shape),
        };
        // f64 is exact far beyond any budget, and does not overflow.
        count as u64
    }

    /// flash_forward.wgsl.
    fn flash(&self, shape: &LoopShape) -> f64 {
        let t = Shape::new(self, shape);
        let stays = shape.head_dim as f64 <= 4.0 * t.qw4;
        let load_q = repeat(t.q_loads, 0.0);
        let (load_always, load_once) =
            if stays { (0.0, t.d_chunks * load_q) } else { (load_q, 0.0) };
        let scores = repeat(t.d_chunks, load_always + t.load_k + repeat(t.kc / 4.0, 0.0));
        let masks = repeat(4.0, 0.0);
        let weights = repeat(4.0, repeat(t.keys / 4.0, 0.0) + t.philox);
        let values = repeat(t.ot, repeat(t.keys / t.kc, t.load_v + repeat(t.kc / 4.0, 0.0)));
        let store = repeat(4.0, 0.0)
            + repeat(4.0, repeat(t.keys / 4.0, 0.0) + repeat(t.ot, repeat(4.0, 0.0)));
        let tiles = repeat(t.tiles, scores + masks + weights + values);
        repeat(t.ot, 0.0) + load_once + tiles + store
    }

    /// flash_forward_rows.wgsl.
    fn flash_rows(&self, tiles: &RowTiles, shape: &LoopShape) -> f64 {
        let t = Shape::new(self, shape);
        let [d4, d4_v] = [shape.head_dim, shape.head_dim_v].map(|d| (d as f64 / 4.0).ceil());
        // Without subgroups, the inner products are loops over the keys of the tile.
        let over_keys = if tiles.lanes == 1 { repeat(t.keys, 0.0) } else { 0.0 };
        let load = repeat((t.keys * t.kc / 4.0 / t.threads).ceil(), repeat(4.0, 0.0));
        let per_column = repeat(4.0, 0.0) + over_keys;
        let scores = repeat(t.d_chunks, load + 1.0) + d4 * (1.0 + per_column);
        let softmax = repeat(t.keys, 0.0) + repeat(t.keys, 0.0) + t.keys / 4.0 * t.philox;
        let chunks_v = (shape.head_dim_v as f64 / t.kc).ceil();
        let values = repeat(chunks_v, load + 1.0) + d4_v * (1.0 + over_keys);
        let careful = d4_v * (repeat(t.keys, 0.0) - over_keys);
        let tiles = repeat(t.tiles, repeat(t.keys, 0.0) + scores + softmax + values);
        let careful = (shape.careful_tiles as f64).min(t.tiles) * (careful);
        tiles + careful + repeat(d4_v, repeat(4.0, 0.0))
    }

    /// The loops that store `blocks` blocks of four columns of a partial result; a whole result is
    /// stored in words, without loops.
    fn store_partial(&self, blocks: f64) -> f64 {
        if self.operation == Operation::FlashSplit { blocks * repeat(4.0, 0.0) } else { 0.0 }
    }

    /// flash_forward_broadcast.wgsl.
    fn flash_broadcast(&self, tiles: &BroadcastTiles, shape: &LoopShape) -> f64 {
        let t = Shape::new(self, shape);
        let per_word = (16 / self.dtype.size()) as f64;
        let [words, words_v] = [shape.head_dim, shape.head_dim_v].map(|d| d as f64 / per_word);
        let load_q = repeat(words, 0.0);
        // Loops over words end after their last pass. Full tiles and edge tiles have a loop each,
        // in both of two parts, and each ends with a pass over no tile.
        let key_tiles = repeat(2.0, 0.0) + t.tiles * (1.0 + words + words_v) + 4.0;
        let store = repeat(words_v, self.store_partial(per_word / 4.0));
        load_q + key_tiles + f64::from(tiles.rows) * store
    }

    /// flash_forward_matrix.wgsl.
    fn flash_matrix(&self, tiles: &MatrixTiles, shape: &LoopShape) -> f64 {
        let t = Shape::new(self, shape);
        let [size, lanes, width] = [tiles.size, tiles.lanes, tiles.width].map(f64::from);
        let q_columns = f64::from(tiles.q_columns());
        // `//roll`: unrolled, except for software adapters.
        let roll = |times: f64, body: f64| {
            if tiles.is_for_software() { repeat(times, body) } else { times * body }
        };
        // Loads of eight columns of so many rows.
        let loads =
            |rows: f64, columns: f64| repeat((rows * columns / 8.0 / t.threads).ceil(), 0.0);
        // Blocks of four scores per thread, and chunks of columns that a thread reads of O.
        let per_thread = t.keys / (lanes / size) / 4.0;
        let chunks = width / t.keys;
        let load_q =
            roll(width / q_columns, loads(t.rows, q_columns) + roll(q_columns / size, 0.0));
        let tile = loads(t.keys, width)
            + roll(width / size / 2.0, 0.0)
            + loads(t.keys / 2.0, width)
            + per_thread * t.philox
            + roll(chunks, repeat(per_thread, 0.0)) // where a row of O is rescaled
            + roll(width / size, 0.0);
        let careful = chunks * per_thread * repeat(t.keys, 0.0)
            + repeat((width * (t.keys + 8.0) / t.threads).ceil(), 0.0);
        let careful = (shape.careful_tiles as f64).min(t.tiles) * careful;
        let store = roll(chunks, repeat(per_thread, repeat(4.0, 0.0)));
        load_q + roll(width / size, 0.0) + repeat(t.tiles, tile) + careful + store
    }

    /// flash_merge.wgsl.
    fn flash_merge(&self, shape: &LoopShape) -> f64 {
        let over_chunks = repeat(shape.chunks as f64, 0.0);
        let columns = (shape.head_dim_v as f64 / 4.0 / f64::from(self.tiles.threads())).ceil();
        2.0 * over_chunks + repeat(columns, over_chunks + repeat(4.0, 0.0))
    }

    /// flash_forward_uniform.wgsl.
    fn flash_uniform(&self, tiles: &UniformTiles, shape: &LoopShape) -> f64 {
        let t = Shape::new(self, shape);
        let words = shape.head_dim_v as f64 / (16 / self.dtype.size()) as f64;
        let scores =
            if tiles.q_in_memory { repeat(shape.head_dim as f64 / 16.0, 0.0) } else { 0.0 };
        let edges = (shape.careful_tiles as f64).min(t.tiles);
        let dirty = repeat((t.keys * words / t.threads).ceil(), 0.0);
        let careful = shape.head_dim_v as f64 / 16.0 * repeat(t.keys, 0.0);
        repeat(t.tiles, scores + t.keys / 4.0 * t.philox)
            + edges * (dirty + careful)
            + self.store_partial(shape.head_dim_v as f64 / 4.0)
    }

    /// flash_forward_lanes.wgsl.
    fn flash_lanes(&self, tiles: &LaneTiles, shape: &LoopShape) -> f64 {
        let t = Shape::new(self, shape);
        let [rows, lanes] = [tiles.rows, tiles.lanes].map(f64::from);
        // Blocks of 8 keys, with one call of `kept` per row.
        repeat(t.tiles, repeat(t.keys / 8.0, rows * t.philox))
            + self.store_partial(rows * shape.head_dim_v as f64 / 4.0 / lanes)
    }

    /// unfused_scores.wgsl.
    fn unfused_scores(&self, shape: &LoopShape) -> f64 {
        let t = Shape::new(self, shape);
        repeat(t.d_chunks, repeat(t.q_loads, 0.0) + t.load_k + repeat(t.kc / 4.0, 0.0))
            + repeat(4.0, 0.0)
    }

    /// unfused_softmax.wgsl.
    fn unfused_softmax(&self, shape: &LoopShape) -> f64 {
        let t = Shape::new(self, shape);
        let per_thread = (shape.keys as f64 / t.threads).ceil();
        2.0 * repeat(per_thread, 0.0) + repeat(per_thread, t.philox) + 2.0 * repeat(t.threads, 0.0)
    }

    /// unfused_values.wgsl.
    fn unfused_values(&self, shape: &LoopShape) -> f64 {
        let t = Shape::new(self, shape);
        let chunks = (shape.keys as f64 / t.kc).ceil();
        let store = repeat(4.0, repeat(4.0, 0.0));
        repeat(chunks, repeat(t.q_loads, 0.0) + t.load_v + repeat(t.kc / 4.0, 0.0)) + store
    }
}

/// Iteration counts that several kernels share.
struct Shape {
    keys: f64,
    rows: f64,
    kc: f64,
    qw4: f64,
    ot: f64,
    threads: f64,
    /// Key tiles that a workgroup visits.
    tiles: f64,
    /// Chunks of KC columns of q and k.
    d_chunks: f64,
    /// Blocks of four columns that a thread loads into a tile of BR rows by KC columns.
    q_loads: f64,
    load_k: f64,
    load_v: f64,
    /// One call of `kept`: ten rounds.
    philox: f64,
}

impl Shape {
    fn new(variant: &Variant, shape: &LoopShape) -> Self {
        let tiles = &variant.tiles;
        let block = match *tiles {
            Tiles::Block(block) => block,
            // Only the widths of chunks are of interest.
            Tiles::Rows(RowTiles { width, .. }) => {
                BlockTiles { tx: 0, ty: 0, kc: RowTiles::KC, qw4: 0, ot: width / 4 }
            }
            Tiles::Uniform(UniformTiles { width, .. }) | Tiles::Lanes(LaneTiles { width, .. }) => {
                BlockTiles { tx: 0, ty: 0, kc: 16, qw4: 0, ot: width / 4 }
            }
            // These have no chunks.
            Tiles::Broadcast(BroadcastTiles { width, .. }) => {
                BlockTiles { tx: 0, ty: 0, kc: width, qw4: 0, ot: width / 4 }
            }
            Tiles::Matrix(tiles) => {
                BlockTiles { tx: 0, ty: 0, kc: tiles.width, qw4: 0, ot: tiles.width / 4 }
            }
        };
        let [tx, kc, qw4, ot] = [block.tx, block.kc, block.qw4, block.ot].map(f64::from);
        let [keys, rows, threads] = [tiles.keys(), tiles.rows(), tiles.threads()].map(f64::from);
        Self {
            keys,
            rows,
            kc,
            qw4,
            ot,
            threads,
            tiles: (shape.keys as f64 / keys).ceil(),
            d_chunks: (shape.head_dim as f64 / kc).ceil(),
            q_loads: (rows * kc / 4.0 / threads).ceil(),
            load_k: repeat((tx * kc / 4.0 / threads).ceil(), repeat(4.0, 0.0)),
            load_v: repeat((kc * tx / threads).ceil(), 0.0),
            philox: if shape.dropout { repeat(10.0, 0.0) } else { 0.0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row_tiles;
    use flashtile_core::DType;

    /// By these counts, the lengths at which Mesa 22.3 gave wrong results exceed its budget, and
    /// the lengths at which it gave right results do not.
    #[test]
    fn counts_agree_with_what_mesa_22_3_does() {
        let budget = 65_535;
        for (dim, right, wrong) in
            [(32, 4096, 16384), (64, 4096, 8192), (128, 2048, 4099), (512, 512, 2048)]
        {
            let tiles =
                row_tiles(8).into_iter().find(|t| t.max_head_dim_v() >= dim).expect("listed");
            let variant =
                Variant::new(Operation::FlashForward, DType::F32, None, false, false, tiles);
            let count = |keys| {
                let (head_dim, head_dim_v) = (dim as usize, dim as usize);
                let shape = LoopShape {
                    keys,
                    chunks: 0,
                    careful_tiles: 3,
                    head_dim,
                    head_dim_v,
                    dropout: false,
                };
                variant.loop_iterations(&shape)
            };
            assert!(count(wrong) > budget, "head_dim {dim}: {}", count(wrong));
            assert!(count(right) <= budget, "head_dim {dim}: {}", count(right));
        }
    }

    #[test]
    fn absurd_sizes_saturate() {
        let shape = LoopShape {
            keys: usize::MAX,
            chunks: usize::MAX,
            careful_tiles: u64::MAX,
            head_dim: usize::MAX,
            head_dim_v: usize::MAX,
            dropout: true,
        };
        for variant in Variant::all().step_by(37) {
            assert!(variant.loop_iterations(&shape) > 1 << 32, "{variant}");
        }
    }
}
