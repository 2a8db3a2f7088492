//! Chooses the tile shape of the flash kernel.

use crate::{machine::Machine, matrix};
use flashtile_core::{
    Band, DType, KeyChunks, MatrixUnits, NoMatrixUnits, PlanOptions, Problem, Reason,
    planning::{folded_heads, key_splits},
};
use flashtile_shaders::{
    BROADCAST_LANES, BroadcastTiles, FLASH_TILES, LANE_TILES, LaneTiles, LoopShape, MAX_HEAD_DIM,
    MERGE_TILES, Operation, ROW_LANES, RowTiles, Tiles, UNIFORM_TILES, Variant, broadcast_tiles,
    flash_tiles, row_tiles,
};

/// Bytes that the kernels made for one width read at once. Their tensors start at multiples of it.
pub(crate) const WORD_BYTES: u64 = 16;

/// Scores of the heads of a group from which on a software adapter takes the kernel that broadcasts
/// K and V, for one query per thread and for several. It is 2 to 20 times as fast as the row
/// kernel, and takes a quarter longer to compile with one query per thread and twice as long with
/// several. The second number lets the 197 tokens of a vision transformer take it.
const BROADCAST_SCORES: [usize; 2] = [1 << 8, 1 << 15];

/// The variant of `operation` that computes `problem` with `tiles`.
pub(crate) fn variant(problem: &Problem, operation: Operation, tiles: Tiles) -> Variant {
    let mask = problem.mask().map(|mask| mask.kind);
    Variant::new(operation, problem.dtype(), mask, problem.kv_lens(), problem.lse(), tiles)
}

/// A tile shape of the flash kernel.
pub(crate) struct Choice {
    pub(crate) tiles: Tiles,
    /// The ways to split the keys that stay within the device's loop budget, preferred ones first.
    pub(crate) splits: Vec<Option<KeyChunks>>,
    pub(crate) why: String,
    /// Why its kernel does not use matrix units; `None` if it does, or if the tiles were requested.
    pub(crate) no_matrix_units: Option<NoMatrixUnits>,
}

/// The preferred tile shape that fits the heads, the device's limits and its loop budget.
///
/// # Errors
/// Every limit that stands in the way, with what the least demanding shape needs.
pub(crate) fn choose_tiles(
    problem: &Problem,
    machine: &Machine,
    options: &PlanOptions<Tiles>,
) -> Result<Choice, Vec<Reason>> {
    if problem.head_dim_v() > MAX_HEAD_DIM {
        let (given, max) = (problem.head_dim_v(), MAX_HEAD_DIM);
        return Err(vec![Reason::Axis { axis: "head_dim_v", given, max }]);
    }
    let splits = key_splits(problem, options).map_err(|reason| vec![reason])?;
    let suits = |tiles: &Tiles| suitable_splits(problem, machine, tiles, &splits);
    if let Some(tiles) = options.tiles {
        forced(problem, machine, options, tiles)?;
        let (splits, why) = (suits(&tiles)?, format!("{tiles}: requested"));
        return Ok(Choice { tiles, splits, why, no_matrix_units: None });
    }
    let no_matrix_units = match matrix::choose(problem, machine, options, suits) {
        Ok((tiles, splits)) => {
            let why = why(problem, machine, &tiles);
            return Ok(Choice { tiles, splits, why, no_matrix_units: None });
        }
        Err(reason) if options.matrix_units == MatrixUnits::Require => {
            return Err(vec![Reason::MatrixUnits(reason)]);
        }
        Err(reason) => reason,
    };
    let candidates = candidates(problem, machine);
    let mut refusals = Vec::new();
    for tiles in candidates {
        match suits(&tiles) {
            Ok(splits) => {
                let why = why(problem, machine, &tiles);
                let no_matrix_units = Some(no_matrix_units);
                return Ok(Choice { tiles, splits, why, no_matrix_units });
            }
            Err(reasons) => refusals.push(reasons),
        }
    }
    // The candidate with the fewest obstacles is the one that came closest.
    let closest = refusals.into_iter().min_by_key(|reasons| (reasons.len(), demand(reasons)));
    Err(closest.unwrap_or_default())
}

fn demand(obstacles: &[Reason]) -> u64 {
    obstacles.first().map_or(0, |reason| match reason {
        Reason::DeviceLimit { needed, .. } | Reason::LoopBudget { needed, .. } => *needed,
        _ => 0,
    })
}

fn forced(
    problem: &Problem,
    machine: &Machine,
    options: &PlanOptions<Tiles>,
    tiles: Tiles,
) -> Result<(), Vec<Reason>> {
    let units = options.matrix_units;
    let refuse = |because: String| Err(vec![Reason::Tiles { tiles: tiles.to_string(), because }]);
    if units == MatrixUnits::Require && !tiles.uses_matrix_units() {
        return Err(vec![Reason::MatrixUnits(NoMatrixUnits::Tiles)]);
    }
    if units == MatrixUnits::Off && tiles.uses_matrix_units() {
        return refuse(NoMatrixUnits::Off.to_string());
    }
    if let Tiles::Matrix(shape) = &tiles
        && let Err(reason) = matrix::serves(problem, machine, shape, options.reduced_precision)
    {
        return refuse(reason.to_string());
    }
    if !flash_tiles().any(|listed| listed == tiles) {
        return refuse("the flash kernel does not have this shape".to_owned());
    }
    let reach = tiles.max_head_dim_v() as usize;
    if reach < problem.head_dim_v() {
        return refuse(format!(
            "head_dim_v is {}; the shape holds at most {reach}",
            problem.head_dim_v()
        ));
    }
    if let Tiles::Rows(RowTiles { lanes, .. }) | Tiles::Broadcast(BroadcastTiles { lanes, .. }) =
        tiles
        && lanes > 1
        && lanes != machine.lanes
    {
        return refuse(format!(
            "it needs subgroups of {lanes} lanes; the device has {}",
            machine.lanes
        ));
    }
    if let Tiles::Lanes(LaneTiles { lanes, .. }) = tiles
        && lanes > machine.subgroup
    {
        return refuse(format!(
            "it needs subgroups of at least {lanes} lanes; the device may have {}",
            machine.subgroup
        ));
    }
    if let Some(because) = not_in_words(problem, &tiles) {
        return refuse(because);
    }
    Ok(())
}

/// Why the kernel of `tiles` cannot compute `problem`, where it reads tensors in words of 16 bytes
/// or lacks features.
fn not_in_words(problem: &Problem, tiles: &Tiles) -> Option<String> {
    if !tiles.uses_words() {
        return None;
    }
    let general =
        problem.mask().is_some() || problem.softcap().is_some() || problem.dropout().is_some();
    if general && !tiles.has_general() {
        return Some("it has no masks, softcap or dropout".into());
    }
    let step = WORD_BYTES as usize / problem.dtype().size();
    let (head_dim, head_dim_v) = (problem.head_dim(), problem.head_dim_v());
    if let Some(width) = tiles.exact_width()
        && (head_dim, head_dim_v) != (width as usize, width as usize)
    {
        return Some(format!(
            "it is made for heads {width} wide; head_dim is {head_dim}, head_dim_v {head_dim_v}"
        ));
    }
    let widest = tiles.max_head_dim_v() as usize;
    let whole = |d: usize| d > 0 && d <= widest && d.is_multiple_of(step);
    if !whole(head_dim) || !whole(head_dim_v) {
        return Some(format!(
            "head_dim and head_dim_v must be multiples of {step} up to {widest}; they are \
             {head_dim} and {head_dim_v}"
        ));
    }
    for (name, view) in
        [("q", problem.q()), ("k", problem.k()), ("v", problem.v()), ("out", problem.out())]
    {
        let in_words = |axis: usize| match (axis, view.shape[axis]) {
            (_, 0 | 1) => true,
            (3, _) => view.strides[3] == 1,
            _ => view.strides[axis].is_multiple_of(step),
        };
        if !(0..4).all(in_words) {
            return Some(format!(
                "rows of {name} must be dense and start at multiples of {WORD_BYTES} bytes"
            ));
        }
    }
    None
}

/// Whether a shape of the kernel that broadcasts K and V suits the queries of `problem`, and
/// whether there is enough work to pay for its compilation.
fn broadcast_pays(problem: &Problem, tiles: &BroadcastTiles) -> bool {
    let lanes = tiles.lanes as usize;
    let rows = problem.seq_q() * folded_heads(problem, lanes);
    let few = rows <= 2 * lanes;
    let least = BROADCAST_SCORES[usize::from(!few)];
    few == (tiles.rows == 1) && rows * problem.seq_kv() >= least
}

/// Every shape whose registers hold the heads, best first.
fn candidates(problem: &Problem, machine: &Machine) -> Vec<Tiles> {
    let reaches = |tiles: &Tiles| tiles.max_head_dim_v() as usize >= problem.head_dim_v();
    let few_queries = problem.seq_q() <= 8;
    let preference = |tiles: &Tiles| {
        // Few queries want few rows, many queries many rows. Registers for columns that V does not
        // have are wasted.
        let rows = if few_queries { tiles.rows() } else { u32::MAX - tiles.rows() };
        let threads = if machine.software { tiles.threads() } else { u32::MAX - tiles.threads() };
        (rows, threads, tiles.max_head_dim_v())
    };
    let mut blocks: Vec<_> = FLASH_TILES.into_iter().filter(reaches).collect();
    blocks.sort_by_key(preference);
    // Indexed loads and long programs cost a software adapter most: one query per thread, with
    // lanes that share keys by broadcast, needs few of them.
    let lanes = if ROW_LANES.contains(&machine.lanes) { machine.lanes } else { 1 };
    let rows = row_tiles(lanes).into_iter().find(reaches).filter(|_| machine.software);
    // What keeps rows in registers is made for many queries. What reads words wants a problem of
    // its form.
    let runs = |tiles: &Tiles| match tiles {
        Tiles::Uniform(_) => !few_queries && machine.scalar_loads,
        Tiles::Lanes(t) => {
            let many_rows = t.rows == 4;
            !machine.software
                && !few_queries
                && t.lanes <= machine.subgroup
                && many_rows == machine.many_registers
        }
        Tiles::Broadcast(t) => {
            machine.software
                && t.lanes == machine.lanes
                && t.lanes <= machine.subgroup
                && broadcast_pays(problem, t)
        }
        Tiles::Block(_) | Tiles::Rows(_) => true,
        // Chosen before these.
        Tiles::Matrix(_) => false,
    };
    let broadcast = BROADCAST_LANES.into_iter().flat_map(broadcast_tiles).filter(reaches);
    let in_words = broadcast
        .chain(UNIFORM_TILES)
        .chain(LANE_TILES)
        .filter(|tiles| runs(tiles) && not_in_words(problem, tiles).is_none());
    in_words.chain(rows).chain(blocks).collect()
}

/// Those of `splits` with which `tiles` stay within the limits of the device.
///
/// # Errors
/// The limits that they exceed in any case.
fn suitable_splits(
    problem: &Problem,
    machine: &Machine,
    tiles: &Tiles,
    splits: &[Option<KeyChunks>],
) -> Result<Vec<Option<KeyChunks>>, Vec<Reason>> {
    let limits = [
        (
            "max_compute_workgroup_storage_size",
            machine.workgroup_bytes,
            tiles.flash_workgroup_bytes(),
        ),
        ("max_compute_invocations_per_workgroup", machine.invocations, tiles.threads()),
    ];
    let exceeded = limits.into_iter().filter(|(_, given, needed)| needed > given);
    let mut reasons: Vec<_> = exceeded
        .map(|(limit, given, needed)| Reason::DeviceLimit {
            limit,
            given: given.into(),
            needed: needed.into(),
        })
        .collect();
    let mut over_budget = None;
    let mut suitable = Vec::new();
    for &chunks in splits {
        match split_over_budget(problem, machine, *tiles, chunks) {
            None => suitable.push(chunks),
            // The last is the least demanding.
            reason => over_budget = reason,
        }
    }
    if suitable.is_empty() {
        reasons.extend(over_budget);
    }
    if reasons.is_empty() { Ok(suitable) } else { Err(reasons) }
}

/// A refusal where the flash kernel over `chunks` needs more loop iterations than the driver does.
fn split_over_budget(
    problem: &Problem,
    machine: &Machine,
    tiles: Tiles,
    chunks: Option<KeyChunks>,
) -> Option<Reason> {
    let over = |operation, tiles| {
        over_loop_budget(problem, machine, &variant(problem, operation, tiles), chunks)
    };
    match chunks {
        None => over(Operation::FlashForward, tiles),
        Some(_) => {
            let split = over(Operation::FlashSplit, tiles);
            split.or_else(|| over(Operation::FlashMerge, MERGE_TILES))
        }
    }
}

/// A refusal where an invocation of `variant` may run more loop iterations than the driver does.
pub(crate) fn over_loop_budget(
    problem: &Problem,
    machine: &Machine,
    variant: &Variant,
    chunks: Option<KeyChunks>,
) -> Option<Reason> {
    let limit = machine.loop_budget?;
    let needed = variant.loop_iterations(&loop_shape(problem, variant, chunks));
    (needed > limit).then_some(Reason::LoopBudget { needed, limit })
}

/// The worst case of any workgroup and any call.
pub(crate) fn loop_shape(
    problem: &Problem,
    variant: &Variant,
    chunks: Option<KeyChunks>,
) -> LoopShape {
    let [rows, keys] = [variant.tiles.rows(), variant.tiles.keys()].map(|n| n as usize);
    let band = problem.band();
    let flash = matches!(variant.operation, Operation::FlashForward | Operation::FlashSplit);
    let visits_all = !flash || band.lo == -Band::UNBOUNDED || band.hi == Band::UNBOUNDED;
    let visited = if visits_all {
        problem.seq_kv()
    } else {
        // A tile of queries sees the width of the band and one key more per further query. Key
        // tiles start at multiples of their width, so the range may touch one more than it fills.
        let width = (i64::from(band.hi) - i64::from(band.lo) + 1).max(0) as usize;
        (width + rows - 1 + keys - 1).min(problem.seq_kv().next_multiple_of(keys))
    };
    let dropout = problem.dropout().is_some();
    let careful_tiles = if problem.mask().is_some() || dropout {
        u64::MAX
    } else {
        // Only tiles at the two ends of the band, and the last one, are not full.
        2 * (rows.div_ceil(keys) as u64 + 1) + 1
    };
    // A chunk is a whole number of tiles.
    let in_chunk = chunks.filter(|_| flash).map_or(visited, |c| visited.min(c.keys()));
    LoopShape {
        keys: in_chunk,
        chunks: chunks.map_or(0, |chunks| chunks.count()),
        careful_tiles,
        head_dim: problem.head_dim(),
        head_dim_v: problem.head_dim_v(),
        dropout,
    }
}

fn why(problem: &Problem, machine: &Machine, tiles: &Tiles) -> String {
    let Machine { workgroup_bytes, lanes, .. } = machine;
    if let Tiles::Rows(rows) = tiles {
        return match rows.lanes {
            1 => format!("{tiles}, one query per thread: a software adapter without subgroups"),
            _ => format!(
                "{tiles}, one query per thread: a software adapter; K and V broadcast across \
                 {lanes} lanes"
            ),
        };
    }
    if let Tiles::Broadcast(BroadcastTiles { lanes, rows, .. }) = tiles {
        return format!(
            "{tiles}, {rows} {} per thread: a software adapter; K and V broadcast across {lanes} \
             lanes",
            if *rows == 1 { "query" } else { "queries" },
        );
    }
    if let Tiles::Uniform(_) = tiles {
        return format!(
            "{tiles}, one query per thread: the GPU loads K and V into scalar registers"
        );
    }
    if let Tiles::Lanes(LaneTiles { lanes, rows, .. }) = tiles {
        return format!("{tiles}: {lanes} lanes of a subgroup hold {rows} rows in registers");
    }
    if let Tiles::Matrix(matrix) = tiles {
        let rounded = match problem.dtype() {
            DType::F16 => "",
            DType::F32 | DType::BF16 => ", to which q, k and v are rounded",
        };
        return format!(
            "{tiles}: the device multiplies such matrices of f16{rounded}; head_dim {}, \
             head_dim_v {}, subgroups of up to {} lanes; {} of {workgroup_bytes} bytes of workgroup memory",
            problem.head_dim(),
            problem.head_dim_v(),
            machine.max_lanes.min(matrix.lanes),
            tiles.flash_workgroup_bytes(),
        );
    }
    let budget =
        machine.loop_budget.map_or(String::new(), |n| format!(", at most {n} loop iterations"));
    format!(
        "{tiles}: seq_q {}, head_dim_v {}; {} of {workgroup_bytes} bytes of workgroup memory\
         {budget}",
        problem.seq_q(),
        problem.head_dim_v(),
        tiles.flash_workgroup_bytes(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashtile_core::{Align, DType, KeyTiles, TensorView, TileKind};

    /// No workgroup of any call visits more key tiles, or more edge tiles, than the planner counts
    /// with.
    #[test]
    fn loops_are_counted_for_the_longest_workgroup() {
        let aligns = [Align::TopLeft, Align::BottomRight, Align::Offset(-37), Align::Offset(90)];
        let windows = [None, Some(0), Some(5), Some(64), Some(200)];
        let shapes = [FLASH_TILES[0], FLASH_TILES[4], row_tiles(8)[1], UNIFORM_TILES[0]];
        let bands = aligns.into_iter().flat_map(|align| {
            windows.into_iter().flat_map(move |left| windows.map(|right| (align, left, right)))
        });
        let mut least_slack = usize::MAX;
        for ((align, left, right), causal) in bands.flat_map(|b| [(b, false), (b, true)]) {
            for (seq_q, seq_kv) in [(1, 300), (150, 700), (300, 90)] {
                let view = |seq| TensorView::bhsd(DType::F32, [1, 1, seq, 16]).expect("small");
                let problem = Problem::builder(view(seq_q), view(seq_kv), view(seq_kv))
                    .causal(causal)
                    .align(align)
                    .window_left(left)
                    .window_right(right)
                    .build()
                    .expect("valid");
                for tiles in shapes {
                    let variant = variant(&problem, Operation::FlashForward, tiles);
                    let shape = loop_shape(&problem, &variant, None);
                    let [rows, width] = [tiles.rows(), tiles.keys()].map(|n| n as usize);
                    for (seq_q, kv_len) in [(seq_q, seq_kv), (seq_q, seq_kv - 7), (1, seq_kv / 2)] {
                        for first in (0..seq_q).step_by(rows) {
                            let rows = first..first + rows;
                            let visitor =
                                KeyTiles::new(problem.band(), false, rows, width, seq_q, kv_len);
                            let kinds: Vec<_> = visitor.map(|tile| tile.kind).collect();
                            let edges = kinds.iter().filter(|&&kind| kind == TileKind::Edge);
                            let counted = shape.keys.div_ceil(width);
                            assert!(kinds.len() <= counted, "{problem}, {tiles}: {shape:?}");
                            let edges = edges.count() as u64;
                            assert!(edges <= shape.careful_tiles, "{problem}, {tiles}: {edges}");
                            least_slack = least_slack.min(counted - kinds.len());
                        }
                    }
                }
            }
        }
        assert_eq!(least_slack, 0, "the count is not larger than necessary");
    }
}
