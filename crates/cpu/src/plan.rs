use crate::error::Error;
use crate::few;
use crate::flash::{BC, Inputs, Machine, RowTile};
use crate::tensors::in_place;
use crate::threads::Threads;
use crate::workspace::{Pool, Sizes};
use flashtile_core::planning::{
    PlanSummary, SizeLimits, flash_options, folded_heads, key_splits, oversized,
};
use flashtile_core::{
    BackendKind, KernelKind, KeyChunks, MatrixUnits, NoMatrixUnits, PlanOptions, Problem, Reason,
    TensorView,
};
use std::fmt;

/// The most rows of a tile. K and V that are not f32 are converted once per tile of rows.
const MAX_ROWS: usize = 128;

/// Bytes of Q and O of a tile, at most, unless one group of queries needs more: half of a level-2
/// cache.
const MAX_TILE_BYTES: usize = 256 << 10;

/// Tiles per thread, at least, where there are enough rows: they take different times.
pub(crate) const TILES_PER_THREAD: usize = 8;

/// Bytes of partial results that are kept at once. More tiles are computed one batch after another.
const MAX_PARTIAL_BYTES: usize = 64 << 20;

/// The most heads that are computed side by side.
const MAX_BESIDE: usize = 32;

/// The widest heads: a tile of more columns would not fit a cache by far.
const MAX_WIDTH: usize = 1 << 20;

/// How a problem is computed: tiles, chunks of keys, threads and workspace.
///
/// A plan keeps its workspace, so calls after the first allocate no tiles. Several threads can
/// share it. Tiles and threads change no bit of a result.
pub struct Plan {
    problem: Problem,
    pub(crate) threads: Threads,
    thread_count: usize,
    machine: Machine,
    /// Rows per tile: queries of all heads that share tiles.
    pub(crate) tile_rows: usize,
    /// Heads that share tiles.
    pub(crate) fold: usize,
    /// How many times `fold` heads are computed side by side.
    beside: usize,
    pub(crate) chunks: Option<KeyChunks>,
    /// Whether all queries of a tile fit one vector.
    pub(crate) few: bool,
    sizes: Sizes,
    pub(crate) pool: Pool,
    rationale: Vec<String>,
}

/// Why `problem` cannot be computed with `options`; empty if it can.
pub(crate) fn refusals(problem: &Problem, options: &PlanOptions) -> Vec<Reason> {
    let backend = BackendKind::Cpu;
    let kernel = options.kernel.unwrap_or(KernelKind::Flash);
    // No tile shape can be forced.
    let mut reasons = flash_options(kernel, &options.for_tiles::<&str>());
    match kernel {
        KernelKind::Flash => {}
        KernelKind::Unfused => reasons.push(Reason::NoSuchKernel { backend, kernel }),
    }
    if options.matrix_units == MatrixUnits::Require && kernel == KernelKind::Flash {
        reasons.push(Reason::MatrixUnits(NoMatrixUnits::Backend { backend }));
    }
    reasons.extend(key_splits(problem, options).err());
    let limits = SizeLimits::new(isize::MAX as u64, u32::MAX as usize);
    reasons.extend(oversized(problem, &limits));
    for (axis, given) in [("head_dim", problem.head_dim()), ("head_dim_v", problem.head_dim_v())] {
        if given > MAX_WIDTH && !problem.is_empty() {
            reasons.push(Reason::Axis { axis, given, max: MAX_WIDTH });
        }
    }
    reasons
}

/// What verdicts say: the instructions that the kernel uses.
pub(crate) fn how(machine: Machine) -> String {
    format!("{} on all threads, {} queries at a time", machine.name(), machine.group)
}

impl Plan {
    /// Plans `problem` for `threads`.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub(crate) fn new(
        problem: &Problem,
        options: &PlanOptions,
        threads: Threads,
    ) -> Result<Self, Error> {
        let kernel = options.kernel.unwrap_or(KernelKind::Flash);
        let reasons = refusals(problem, options);
        if !reasons.is_empty() {
            return Err(Error::Refused { kernel, reasons });
        }
        let splits = key_splits(problem, options)
            .map_err(|reason| Error::Refused { kernel, reasons: vec![reason] })?;
        let chunks = splits.first().copied().flatten();
        let machine = Machine::detect();
        let thread_count = threads.count();
        let fold = folded_heads(problem, MAX_ROWS);
        let rows = problem.seq_q() * fold;
        let few = rows <= machine.lanes;
        let tile_rows = tile_rows(problem, machine, fold, thread_count);
        let beside = match chunks {
            Some(chunks) if few => {
                let items = problem.batch() * chunks.count();
                heads_beside(problem, problem.heads() / fold, items, thread_count)
            }
            Some(_) | None => 1,
        };
        let sizes = sizes(problem, machine, tile_rows.min(rows), beside);
        let mut rationale = vec![
            "flash: the only kernel of this backend".to_owned(),
            if few {
                let (keys, streams) = (few::TILE, few::STREAMS);
                let name = machine.name();
                format!(
                    "{name}: tiles of {tile_rows} rows by {keys} keys, read at {streams} places in \
                     turns"
                )
            } else {
                format!(
                    "{}: tiles of {tile_rows} rows in groups of {}, by {BC} keys",
                    machine.name(),
                    machine.group_of(tile_rows)
                )
            },
        ];
        if fold > 1 {
            rationale.push(format!("{fold} heads share K and V, and so their queries share tiles"));
        }
        if let Some(chunks) = chunks {
            rationale.push(format!("few queries over many keys: {chunks}, on all threads"));
        }
        if beside > 1 {
            rationale.push(format!(
                "rows of k and v hold all heads: {beside} heads of them are read side by side"
            ));
        }
        let converted = [("k", problem.k()), ("v", problem.v())];
        let converted: Vec<_> =
            converted.iter().filter(|(_, view)| !in_place(view)).map(|(name, _)| *name).collect();
        rationale.push(match converted[..] {
            [] => "k and v are read where they are".to_owned(),
            ref names => format!("{} converted to f32, tile by tile", names.join(" and ")),
        });
        rationale.push(format!("{thread_count} threads when planned; they change no bit"));
        Ok(Self {
            problem: problem.clone(),
            threads,
            thread_count,
            machine,
            tile_rows,
            fold,
            beside,
            chunks,
            few,
            sizes,
            pool: Pool::new(sizes),
            rationale,
        })
    }

    /// What it computes.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// Bytes of memory besides the tensors of a call: tiles for each thread, and partial results
    /// where keys are split.
    pub fn workspace_bytes(&self) -> u64 {
        let partials = match self.chunks {
            Some(_) => {
                let tiles = self.tile_count().min(self.tiles_at_once());
                tiles.saturating_mul(4 * self.partial_floats()) as u64
            }
            None => 0,
        };
        (self.thread_count as u64).saturating_mul(self.sizes.bytes()).saturating_add(partials)
    }

    /// Tiles of rows per head, or per `fold` heads, of a call with `seq_q` queries.
    pub(crate) fn tiles_per_head(&self, seq_q: usize) -> usize {
        (seq_q * self.fold).div_ceil(self.tile_rows)
    }

    /// Tiles per tile of queries: for each batch entry, all heads.
    pub(crate) fn head_tiles(&self) -> usize {
        self.problem.batch() * (self.problem.heads() / (self.fold * self.beside))
    }

    /// Tiles of rows of a call at capacity.
    fn tile_count(&self) -> usize {
        self.head_tiles() * self.tiles_per_head(self.problem.seq_q())
    }

    /// Numbers that the chunks of one tile of rows leave: for each row, O, m and l.
    pub(crate) fn partial_floats(&self) -> usize {
        let chunks = self.chunks.map_or(0, KeyChunks::count);
        chunks * self.beside * self.tile_rows * (self.problem.head_dim_v() + 2)
    }

    /// Tiles of rows whose partial results are kept at once.
    pub(crate) fn tiles_at_once(&self) -> usize {
        (MAX_PARTIAL_BYTES / (4 * self.partial_floats()).max(1)).max(1)
    }

    /// Queries per group in a tile of `rows` rows.
    pub(crate) fn group_of(&self, rows: usize) -> usize {
        self.machine.group_of(rows)
    }

    /// Tile `tile` of the `heads`-th of [`head_tiles`](Self::head_tiles).
    pub(crate) fn row_tile(&self, inputs: &Inputs<'_>, heads: usize, tile: usize) -> RowTile {
        let per_entry = self.problem.heads() / (self.fold * self.beside);
        let start = tile * self.tile_rows;
        RowTile {
            b: heads / per_entry,
            h: heads % per_entry * self.fold * self.beside,
            fold: self.fold,
            beside: self.beside,
            rows: start..(start + self.tile_rows).min(inputs.call.seq_q * self.fold),
        }
    }
}

/// Rows per tile: whole groups, as many as a cache holds, and enough tiles for all threads. A row's
/// bits do not depend on it.
fn tile_rows(problem: &Problem, machine: Machine, fold: usize, threads: usize) -> usize {
    let rows = problem.seq_q() * fold;
    if rows <= machine.lanes {
        return rows.max(1);
    }
    let group = machine.group;
    let group_bytes = 4 * group * (problem.head_dim() + problem.head_dim_v());
    let heads = problem.batch() * (problem.heads() / fold);
    let mut groups = (MAX_TILE_BYTES / group_bytes).clamp(1, (MAX_ROWS / group).max(1));
    while groups > 1
        && heads.saturating_mul(rows.div_ceil(groups * group)) < TILES_PER_THREAD * threads
    {
        groups -= 1;
    }
    groups * group
}

/// How many of `heads` heads (of K and V) to compute side by side, where a batch entry and a chunk
/// of keys make one of `items` pieces of work per head.
///
/// Where a row of memory holds all heads, the rows of one head lie in as many pages. Side by side,
/// the heads share the translation of addresses. No bit depends on it.
fn heads_beside(problem: &Problem, heads: usize, items: usize, threads: usize) -> usize {
    let interleaved = |view: &TensorView| view.strides[1] < view.strides[2];
    if !interleaved(problem.k()) || !interleaved(problem.v()) {
        return 1;
    }
    let fits = |beside: usize| {
        heads.is_multiple_of(beside)
            && items.saturating_mul(heads / beside) >= TILES_PER_THREAD * threads
    };
    (1..=heads.min(MAX_BESIDE)).rev().find(|&beside| fits(beside)).unwrap_or(1)
}

/// What a thread needs for tiles of `rows` rows, of `beside` times the heads.
fn sizes(problem: &Problem, machine: Machine, rows: usize, beside: usize) -> Sizes {
    let (d, dv) = (problem.head_dim(), problem.head_dim_v());
    if rows <= machine.lanes {
        let lanes = machine.lanes;
        let [q, o] = [d, dv].map(|width| beside * rows * width.next_multiple_of(lanes));
        return Sizes {
            q,
            o,
            parts: o,
            // m, l and what rescales O.
            sums: 3 * beside * lanes,
            p: beside * few::TILE * lanes,
            bias: if problem.mask().is_some() { few::TILE * lanes } else { 0 },
            k: few::STREAMS * d,
            v: few::STREAMS * dv,
            row: d.max(dv),
        };
    }
    let group = machine.group_of(rows);
    let rows = rows.next_multiple_of(group);
    Sizes {
        q: rows * d,
        o: rows * dv,
        parts: 0,
        sums: 2 * rows,
        p: BC * group,
        bias: if problem.mask().is_some() { BC * group } else { 0 },
        k: BC * d,
        v: BC * dv,
        row: d.max(dv),
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("problem", &self.problem).finish_non_exhaustive()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dispatches = |n| {
            if n == 0 {
                format!("flash forward over {} tiles of rows", self.tile_count())
            } else {
                "merge of the chunks of each row".to_owned()
            }
        };
        let device = format!("the CPU, {}", self.machine.name());
        PlanSummary::new(KernelKind::Flash, &self.problem, device)
            .rationale(&self.rationale)
            .dispatches(self.dispatch_count(), &dispatches)
            .workspace_bytes(self.workspace_bytes())
            .fmt(f)
    }
}

impl Plan {
    /// 1, or 2 where the chunks of keys are merged afterwards; 0 where there is nothing to write.
    pub fn dispatch_count(&self) -> usize {
        match self.chunks {
            _ if self.problem.is_empty() => 0,
            Some(_) => 2,
            None => 1,
        }
    }
}
