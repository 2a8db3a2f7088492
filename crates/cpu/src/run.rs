//! One call: tiles of rows on all threads, the longest first.

use crate::error::Error;
use crate::flash::{Flash, Inputs, ResultRow, RowTile};
use crate::output::Output;
use crate::plan::{Plan, TILES_PER_THREAD};
use crate::softmax::Draws;
use crate::tensors::{MaskTensor, Tensor};
use crate::workspace::Workspace;
use flashtile_core::{Dropout, HostArgs, HostStats, KeyChunks, Timing, check_host_args};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

impl Plan {
    /// Runs one call on the caller's memory.
    ///
    /// # Errors
    /// [`Error::Problem`] for arguments that do not fit the problem; [`Error::HostMemory`].
    pub fn run(&self, args: HostArgs<'_>) -> Result<HostStats, Error> {
        let start = Instant::now();
        let problem = self.problem();
        let call = check_host_args(problem, &args)?;
        let tensors = [args.q.len(), args.k.len(), args.v.len(), args.out.len()];
        let optional =
            args.mask.map_or(0, <[u8]>::len) + args.lse.as_ref().map_or(0, |lse| 4 * lse.len());
        let bytes = (tensors.iter().sum::<usize>() + optional) as u64;
        if !problem.is_empty() && call.seq_q > 0 {
            let inputs = Inputs {
                problem,
                call,
                band: problem.band(),
                q: Tensor::new(*problem.q(), args.q),
                k: Tensor::new(*problem.k(), args.k),
                v: Tensor::new(*problem.v(), args.v),
                mask: problem.mask().zip(args.mask).map(|(m, bytes)| MaskTensor::new(m, bytes)),
                kv_lens: args.kv_lens,
                draws: problem.dropout().map(|dropout| Draws::new(dropout, &call)),
            };
            let output = Output::new(problem, args.out, args.lse);
            let results = Results { output: &output, dropout: problem.dropout() };
            match self.chunks {
                None => self.whole(&inputs, &results)?,
                Some(chunks) => self.split(&inputs, &results, chunks)?,
            }
        }
        let run = Timing::new(start.elapsed(), None);
        Ok(HostStats::new(run, bytes + self.workspace_bytes()))
    }

    /// Tiles of rows over all their keys.
    fn whole(&self, inputs: &Inputs<'_>, results: &Results<'_>) -> Result<(), Error> {
        let heads = self.head_tiles();
        let order = self.longest_first(inputs);
        let count = heads * order.len();
        self.with_workspaces(count, |plan, workspaces| {
            let turns = HeadBlocks::new(heads, order.len(), workspaces.len());
            plan.threads.for_each(count, workspaces, |n, workspace| {
                let (heads, nth) = turns.place(n);
                let tile = plan.row_tile(inputs, heads, order[nth]);
                let keys = inputs.keys(&tile);
                plan.compute(inputs, &tile, keys, workspace, |place, result, scratch, encoded| {
                    results.write(&tile, place, result, scratch, encoded);
                });
            });
        })
    }

    /// The tiles of a head, those with the most keys first: work that starts last should be short.
    fn longest_first(&self, inputs: &Inputs<'_>) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.tiles_per_head(inputs.call.seq_q)).collect();
        // `kv_lens` cut off the last keys of an entry, which seldom changes the order.
        let keys = |&tile: &usize| inputs.keys(&self.row_tile(inputs, 0, tile)).len();
        order.sort_by_cached_key(|tile| std::cmp::Reverse(keys(tile)));
        order
    }

    /// Tiles of rows over chunks of keys, merged in ascending order of the chunks.
    fn split(
        &self,
        inputs: &Inputs<'_>,
        results: &Results<'_>,
        chunks: KeyChunks,
    ) -> Result<(), Error> {
        let heads = self.head_tiles();
        let order = self.longest_first(inputs);
        let tile_count = heads * order.len();
        let floats = self.partial_floats();
        let per_chunk = floats / chunks.count().max(1);
        let at_once = self.tiles_at_once().min(tile_count);
        let mut partials = self.pool.take_partials(at_once * floats)?;
        let done = self.with_workspaces(at_once * chunks.count(), |plan, workspaces| {
            for first in (0..tile_count).step_by(at_once) {
                let tiles: Vec<SplitTile> = (first..(first + at_once).min(tile_count))
                    .map(|n| {
                        let tile = plan.row_tile(inputs, n % heads, order[n / heads]);
                        let keys = inputs.keys(&tile);
                        SplitTile { chunks: chunks.of_keys(keys.clone()), tile, keys }
                    })
                    .collect();
                let work: Vec<(usize, usize)> = tiles
                    .iter()
                    .enumerate()
                    .flat_map(|(n, tile)| tile.chunks.clone().map(move |chunk| (n, chunk)))
                    .collect();
                let slots: Vec<Mutex<&mut [f32]>> =
                    partials.chunks_exact_mut(per_chunk.max(1)).map(Mutex::new).collect();
                let slot = |n: usize, chunk: usize| {
                    let slot = &slots[n * chunks.count() + chunk];
                    slot.lock().unwrap_or_else(PoisonError::into_inner)
                };
                plan.threads.for_each(work.len(), workspaces, |n, workspace| {
                    let (n, chunk) = work[n];
                    let SplitTile { tile, keys, .. } = &tiles[n];
                    let begin = chunk * chunks.keys();
                    let keys = keys.start.max(begin)..keys.end.min(begin + chunks.keys());
                    let mut partial = slot(n, chunk);
                    let width = inputs.problem.head_dim_v();
                    plan.compute(inputs, tile, keys, workspace, |(n, row), result, _, _| {
                        let row = n * tile.rows.len() + row;
                        let to = &mut partial[row * (width + 2)..][..width + 2];
                        to[0] = result.m;
                        to[1] = result.l;
                        result.copy_o(&mut to[2..]);
                    });
                });
                plan.threads.for_each(tiles.len(), workspaces, |n, workspace| {
                    let SplitTile { tile, chunks, .. } = &tiles[n];
                    let parts: Vec<_> = chunks.clone().map(|chunk| slot(n, chunk)).collect();
                    let pieces = workspace.pieces();
                    for (n, r) in tile.places() {
                        let width = inputs.problem.head_dim_v();
                        let row = n * tile.rows.len() + r;
                        let rows = parts.iter().map(|part| &part[row * (width + 2)..][..width + 2]);
                        let (m, l) = merge(rows, &mut pieces.o[..width]);
                        let merged = ResultRow { m, l, o: &pieces.o[..width], stride: 1 };
                        results.write(tile, (n, r), merged, pieces.row, pieces.encoded);
                    }
                });
            }
        });
        self.pool.give_partials_back(partials);
        done
    }

    /// Computes a tile over `keys`, and passes each row's result to `store`, with memory for a row
    /// in f32 and encoded.
    fn compute(
        &self,
        inputs: &Inputs<'_>,
        tile: &RowTile,
        keys: Range<usize>,
        workspace: &mut Workspace,
        mut store: impl FnMut((usize, usize), ResultRow<'_>, &mut [f32], &mut Vec<u8>),
    ) {
        let mut pieces = workspace.pieces();
        let few = self.few;
        pulp::Arch::new().dispatch(Flash { inputs, few, tile, keys, pieces: &mut pieces });
        let group = self.group_of(tile.rows.len());
        let width = inputs.problem.head_dim_v();
        let few = few.then(|| tile.rows.len());
        for place in tile.places() {
            let shape = (width, group);
            let result = ResultRow::new((pieces.o, pieces.sums), shape, few, place);
            store(place, result, pieces.row, pieces.encoded);
        }
    }

    /// Takes a workspace for each thread that `count` pieces of work can use.
    fn with_workspaces(
        &self,
        count: usize,
        work: impl FnOnce(&Self, &mut [Workspace]),
    ) -> Result<(), Error> {
        let mut workspaces = self.pool.take(self.threads.count().min(count))?;
        work(self, &mut workspaces);
        self.pool.give_back(workspaces);
        Ok(())
    }
}

/// The order of the tiles of a call: a few heads at a time, so that their K and V stay in the
/// caches, and the heaviest tiles of these heads first. The last heads have enough tiles for all
/// threads to end at the same time.
struct HeadBlocks {
    heads: usize,
    tiles_per_head: usize,
    blocks: usize,
}

impl HeadBlocks {
    fn new(heads: usize, tiles_per_head: usize, threads: usize) -> Self {
        let enough = (TILES_PER_THREAD * threads).div_ceil(tiles_per_head.max(1)).max(1);
        Self { heads, tiles_per_head, blocks: (heads / enough).max(1) }
    }

    /// The heads of the `n`-th tile, and how many tiles of these heads come before it.
    fn place(&self, n: usize) -> (usize, usize) {
        let Self { heads, tiles_per_head, blocks } = *self;
        // Block b starts at head b * heads / blocks, rounded down.
        let block = ((n / tiles_per_head + 1) * blocks - 1) / heads;
        let start = block * heads / blocks;
        let size = (block + 1) * heads / blocks - start;
        let in_block = n - start * tiles_per_head;
        (start + in_block % size, in_block / size)
    }
}

/// A tile of rows, the keys that it sees, and their chunks.
struct SplitTile {
    tile: RowTile,
    keys: Range<usize>,
    chunks: Range<usize>,
}

/// Merges the partial results m, l and O of a row: M = max m, l = sum exp(m - M) l, and O in the
/// same way. Returns M and l.
fn merge<'a>(parts: impl Iterator<Item = &'a [f32]> + Clone, o: &mut [f32]) -> (f32, f32) {
    let top = parts.clone().map(|part| part[0]).fold(f32::MIN, f32::max);
    let mut sum = 0.0;
    o.fill(0.0);
    for part in parts {
        let factor = (part[0] - top).exp();
        sum += factor * part[1];
        for (o, &x) in o.iter_mut().zip(&part[2..]) {
            *o += factor * x;
        }
    }
    (top, sum)
}

/// Where results go.
struct Results<'a> {
    output: &'a Output<'a>,
    dropout: Option<Dropout>,
}

impl Results<'_> {
    /// Writes O / l and lse = m + ln l of row `r` of a tile's `n`-th heads. A row that sees a key
    /// has l >= 1.
    fn write(
        &self,
        tile: &RowTile,
        (n, r): (usize, usize),
        result: ResultRow<'_>,
        scratch: &mut [f32],
        encoded: &mut Vec<u8>,
    ) {
        let ResultRow { m, l, o, stride } = result;
        let width = o.len().div_ceil(stride);
        let keep = self.dropout.map_or(1.0, |dropout| dropout.keep_scale);
        let factor = if l == 0.0 { 0.0 } else { keep / l };
        let row = &mut scratch[..width];
        for (to, column) in row.iter_mut().zip(o.chunks(stride)) {
            // Adding 0 removes the sign of a zero, which could depend on keys that the row does not
            // see.
            *to = column[0] * factor + 0.0;
        }
        let lse =
            if l == 0.0 { f32::NEG_INFINITY } else { (f64::from(m) + f64::from(l).ln()) as f32 };
        let (h, i) = tile.place(n, r);
        self.output.write([tile.b, h, i], row, lse, encoded);
    }
}

#[cfg(test)]
mod tests {
    use super::{HeadBlocks, merge};
    use crate::flash::Inputs;
    use crate::tensors::Tensor;
    use flashtile_core::{Call, DType, HostArgs, PlanOptions, Problem, TensorView};

    #[test]
    fn the_tiles_with_the_most_keys_come_first() {
        let view = TensorView::bhsd(DType::F32, [1, 1, 1000, 8]).expect("valid");
        let order = |causal: bool, window: Option<usize>| {
            let problem = Problem::builder(view, view, view).causal(causal).window_left(window);
            let problem = problem.build().expect("valid");
            let plan = crate::Cpu::new().plan(&problem, &PlanOptions::new()).expect("planned");
            let tensor = Tensor::new(view, &[]);
            let inputs = Inputs {
                problem: &problem,
                call: Call::new().resolve(&problem).expect("at capacity"),
                band: problem.band(),
                q: tensor,
                k: tensor,
                v: tensor,
                mask: None,
                kv_lens: None,
                draws: None,
            };
            plan.longest_first(&inputs)
        };
        let ascending = order(false, None);
        let count = ascending.len();
        assert!(count > 4 && ascending.iter().copied().eq(0..count), "{ascending:?}");
        assert!(order(true, None).into_iter().eq((0..count).rev()));
        // Only the first tiles see fewer keys than the window.
        assert_eq!(order(true, Some(100)).last(), Some(&0));
    }

    #[test]
    fn a_few_heads_at_a_time_and_the_heaviest_of_their_tiles_first() {
        for (heads, tiles, threads, blocks) in [
            (48, 8, 2, 24),
            (5, 8, 2, 2),
            (3, 40, 2, 3),
            (7, 1, 64, 1),
            (1, 9, 1, 1),
            (9, 100, 1, 9),
        ] {
            let order = HeadBlocks::new(heads, tiles, threads);
            assert_eq!(order.blocks, blocks);
            let places: Vec<_> = (0..heads * tiles).map(|n| order.place(n)).collect();
            let mut sorted = places.clone();
            sorted.sort_unstable();
            assert!(sorted.iter().copied().eq((0..heads * tiles).map(|n| (n / tiles, n % tiles))));
            // The next block starts with the heaviest tiles of its heads.
            let falls = places.windows(2).filter(|pair| pair[1].1 < pair[0].1).count();
            assert_eq!(falls, if tiles > 1 { blocks - 1 } else { 0 });
        }
    }

    #[test]
    fn a_plan_states_its_workspace_and_keeps_it() {
        // Tiles of many rows, and a split of keys.
        for (seq_q, seq_kv, split) in [(300, 300, false), (1, 3000, true)] {
            let view = |seq| TensorView::bhsd(DType::F32, [1, 2, seq, 40]).expect("valid");
            let (q, kv) = (view(seq_q), view(seq_kv));
            let problem = Problem::builder(q, kv, kv).build().expect("valid");
            let cpu = crate::Cpu::with_threads(2).expect("two threads");
            let plan = cpu.plan(&problem, &PlanOptions::new()).expect("planned");
            assert_eq!(plan.chunks.is_some(), split);
            let [q, k, v] = [q, kv, kv].map(|view| vec![0; view.byte_span().expect("small")]);
            let mut out = vec![0; q.len()];
            let mut run = || {
                plan.run(HostArgs::new(&q, &k, &v, &mut out)).expect("it runs");
                plan.pool.kept()
            };
            let first = run();
            assert_eq!(first.bytes, plan.workspace_bytes());
            assert_eq!(run(), first);
        }
    }

    /// An axis of length 1 may have any stride.
    #[test]
    fn the_stride_of_a_single_row_does_not_matter() {
        for (queries, stride) in [(1, usize::MAX), (40, usize::MAX), (40, usize::MAX / 2 + 1)] {
            let q = TensorView::bhsd(DType::F32, [1, 1, queries, 9]).expect("valid");
            let kv = TensorView::strided(DType::F32, [1, 1, 1, 9], [stride, stride, stride, 1]);
            let problem = Problem::builder(q, kv, kv).build().expect("valid");
            let plan = crate::Cpu::new().plan(&problem, &PlanOptions::new()).expect("planned");
            let [q, k, v] = [vec![1.5; 9 * queries], vec![0.5; 9], vec![2.25f32; 9]];
            let [q, k, v] = [&q, &k, &v].map(|numbers| bytemuck::cast_slice::<f32, u8>(numbers));
            let mut out = vec![0f32; 9 * queries];
            let bytes = bytemuck::cast_slice_mut(&mut out);
            plan.run(HostArgs::new(q, k, v, bytes)).expect("it runs");
            assert_eq!(out, vec![2.25; 9 * queries]);
        }
    }

    #[test]
    fn chunks_without_keys_change_nothing() {
        let full: &[f32] = &[2.0, 3.0, 1.5, -2.0];
        let none: &[f32] = &[f32::MIN, 0.0, 0.0, 0.0];
        let merged = |parts: &[&[f32]]| {
            let mut o = [f32::NAN; 2];
            let sums = merge(parts.iter().copied(), &mut o);
            (sums, o)
        };
        assert_eq!(merged(&[full]), ((2.0, 3.0), [1.5, -2.0]));
        assert_eq!(merged(&[none, full, none]), merged(&[full]));
        assert_eq!(merged(&[none]), ((f32::MIN, 0.0), [0.0, 0.0]));
        let lower: &[f32] = &[2.0 - 2f32.ln(), 4.0, 1.0, 1.0];
        let ((m, l), o) = merged(&[lower, full]);
        assert_eq!(m, 2.0);
        assert!((l - 5.0).abs() < 1e-6 && (o[0] - 2.0).abs() < 1e-6);
    }
}
