//! Chooses the tile shape of the flash kernel.

use crate::machine::Machine;
use flashtile_core::{BackendKind, Band, MatrixUnits, NoMatrixUnits, PlanOptions, Problem, Reason};
use flashtile_shaders::{
    FLASH_TILES, LoopShape, MAX_HEAD_DIM, Operation, ROW_LANES, RowTiles, Tiles, Variant, row_tiles,
};

/// The variant of `operation` that computes `problem` with `tiles`.
pub(crate) fn variant(problem: &Problem, operation: Operation, tiles: Tiles) -> Variant {
    let mask = problem.mask().map(|mask| mask.kind);
    Variant::new(operation, problem.dtype(), mask, problem.kv_lens(), problem.lse(), tiles)
}

/// The preferred tile shape that fits the heads, the device's limits and its loop budget. The
/// reason for it is added to `rationale`.
///
/// # Errors
/// Every limit that stands in the way, with what the least demanding shape needs.
pub(crate) fn choose_tiles(
    problem: &Problem,
    machine: &Machine,
    options: &PlanOptions<Tiles>,
    rationale: &mut Vec<String>,
) -> Result<Tiles, Vec<Reason>> {
    if problem.head_dim_v() > MAX_HEAD_DIM {
        let (given, max) = (problem.head_dim_v(), MAX_HEAD_DIM);
        return Err(vec![Reason::Axis { axis: "head_dim_v", given, max }]);
    }
    if options.matrix_units == MatrixUnits::Require {
        let backend = BackendKind::Wgpu;
        return Err(vec![Reason::MatrixUnits(NoMatrixUnits::Backend { backend })]);
    }
    if let Some(tiles) = options.tiles {
        return forced(problem, machine, tiles).map(|()| {
            rationale.push(format!("{tiles}: requested"));
            tiles
        });
    }
    let candidates = candidates(problem, machine);
    if let Some(&tiles) = candidates.iter().find(|t| obstacles(problem, machine, t).is_empty()) {
        rationale.push(why(problem, machine, &tiles));
        return Ok(tiles);
    }
    // The candidate with the fewest obstacles is the one that came closest.
    let all = candidates.iter().map(|tiles| obstacles(problem, machine, tiles));
    Err(all.min_by_key(|obstacles| (obstacles.len(), demand(obstacles))).unwrap_or_default())
}

fn demand(obstacles: &[Reason]) -> u64 {
    obstacles.first().map_or(0, |reason| match reason {
        Reason::DeviceLimit { needed, .. } | Reason::LoopBudget { needed, .. } => *needed,
        _ => 0,
    })
}

fn forced(problem: &Problem, machine: &Machine, tiles: Tiles) -> Result<(), Vec<Reason>> {
    let refuse = |because: String| Err(vec![Reason::Tiles { tiles: tiles.to_string(), because }]);
    if !FLASH_TILES.contains(&tiles)
        && !ROW_LANES.into_iter().any(|n| row_tiles(n).contains(&tiles))
    {
        return refuse("the flash kernel does not have this shape".to_owned());
    }
    let reach = tiles.max_head_dim_v() as usize;
    if reach < problem.head_dim_v() {
        return refuse(format!(
            "head_dim_v is {}; the shape holds at most {reach}",
            problem.head_dim_v()
        ));
    }
    if let Tiles::Rows(RowTiles { lanes, .. }) = tiles
        && lanes > 1
        && lanes != machine.lanes
    {
        return refuse(format!(
            "it needs subgroups of {lanes} lanes; the device has {}",
            machine.lanes
        ));
    }
    let obstacles = obstacles(problem, machine, &tiles);
    if obstacles.is_empty() { Ok(()) } else { Err(obstacles) }
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
    rows.into_iter().chain(blocks).collect()
}

/// The limits of the device that `tiles` exceed.
fn obstacles(problem: &Problem, machine: &Machine, tiles: &Tiles) -> Vec<Reason> {
    let limits = [
        (
            "max_compute_workgroup_storage_size",
            machine.workgroup_bytes,
            tiles.flash_workgroup_bytes(),
        ),
        ("max_compute_invocations_per_workgroup", machine.invocations, tiles.threads()),
    ];
    let exceeded = limits.into_iter().filter(|(_, given, needed)| needed > given);
    let exceeded = exceeded.map(|(limit, given, needed)| Reason::DeviceLimit {
        limit,
        given: given.into(),
        needed: needed.into(),
    });
    let variant = variant(problem, Operation::FlashForward, *tiles);
    exceeded.chain(over_loop_budget(problem, machine, &variant)).collect()
}

/// A refusal where an invocation of `variant` may run more loop iterations than the driver does.
pub(crate) fn over_loop_budget(
    problem: &Problem,
    machine: &Machine,
    variant: &Variant,
) -> Option<Reason> {
    let limit = machine.loop_budget?;
    let needed = variant.loop_iterations(&loop_shape(problem, variant));
    (needed > limit).then_some(Reason::LoopBudget { needed, limit })
}

/// The worst case of any workgroup and any call.
pub(crate) fn loop_shape(problem: &Problem, variant: &Variant) -> LoopShape {
    let [rows, keys] = [variant.tiles.rows(), variant.tiles.keys()].map(|n| n as usize);
    let band = problem.band();
    let visits_all = variant.operation != Operation::FlashForward
        || band.lo == -Band::UNBOUNDED
        || band.hi == Band::UNBOUNDED;
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
    LoopShape {
        keys: visited,
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
