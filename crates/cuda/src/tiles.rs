//! Chooses the tile shape of the flash kernel.
//!
//! The choice depends on lengths, head dims, storage type and GPU, never on the number of heads or
//! batch entries. So the bits of a row do not depend on the rest of the batch.

use crate::Machine;
use flashtile_core::{DType, MatrixUnits, NoMatrixUnits, PlanOptions, Problem, Reason};
use flashtile_shaders::{
    Operation,
    cuda::{CUDA_MMA_TILES, CUDA_SIMT_TILES, CUDA_TF32_TILES, CudaTiles, CudaVariant, Engine},
};

/// The largest head_dim_v of the flash kernel. Several blocks divide the columns of a wide V, and
/// each computes the scores again; beyond this limit that gains nothing.
pub(crate) const MAX_HEAD_DIM_V: usize = 512;

/// The lowest compute capability that any kernel runs on.
pub(crate) const MIN_ARCH: u32 = 60;

/// Up to this many queries, the shape for few queries is used.
const FEW_QUERIES: usize = 8;

/// Computing the weight of a key takes about as long as multiplying this many of its columns.
const WEIGHT_COLUMNS: u32 = 32;

/// Whether a mask, softcap or dropout changes the scores or weights. Kernels have a variant of
/// their own for that.
pub(crate) fn is_general(problem: &Problem) -> bool {
    problem.mask().is_some() || problem.softcap().is_some() || problem.dropout().is_some()
}

/// The tile shape for `problem`, or the one that `options` force. Adds its reasons to `why`.
pub(crate) fn choose_tiles(
    problem: &Problem,
    machine: &Machine,
    options: &PlanOptions<CudaTiles>,
    split: bool,
    why: &mut Vec<String>,
) -> Result<CudaTiles, Reason> {
    if problem.head_dim_v() > MAX_HEAD_DIM_V {
        return Err(Reason::Axis {
            axis: "head_dim_v",
            given: problem.head_dim_v(),
            max: MAX_HEAD_DIM_V,
        });
    }
    if let Some(tiles) = options.tiles {
        if options.matrix_units == MatrixUnits::Require && !tiles.engine.is_matrix() {
            return Err(Reason::MatrixUnits(NoMatrixUnits::Tiles));
        }
        let off = options.matrix_units == MatrixUnits::Off && tiles.engine.is_matrix();
        let off = off.then(|| "matrix units are switched off".to_owned());
        return match off.or_else(|| refuse(problem, machine, &tiles, split)) {
            None => {
                why.push(format!("{tiles}: requested by name"));
                Ok(tiles)
            }
            Some(because) => Err(Reason::Tiles { tiles: tiles.to_string(), because }),
        };
    }
    let serves = |tiles: &CudaTiles| refuse(problem, machine, tiles, split).is_none();
    let left_out = match options.matrix_units {
        MatrixUnits::Off => Some(NoMatrixUnits::Off),
        MatrixUnits::Auto => why_not_tf32(problem, machine),
        MatrixUnits::Require => None,
    };
    let matrix = matrix_tiles(problem.dtype())
        .iter()
        .copied()
        .filter(|_| left_out.is_none())
        .filter(serves)
        .min_by_key(|tiles| matrix_preference(problem, tiles));
    if matrix.is_none() && options.matrix_units == MatrixUnits::Require {
        return Err(Reason::MatrixUnits(why_no_tensor_cores(problem, machine)));
    }
    let tiles = matrix.or_else(|| {
        CUDA_SIMT_TILES
            .into_iter()
            .filter(serves)
            .min_by_key(|tiles| simt_preference(problem, tiles))
    });
    let tiles = tiles.ok_or_else(|| Reason::DeviceLimit {
        limit: "shared memory of a block",
        given: machine.shared_limit.into(),
        needed: CUDA_SIMT_TILES
            .iter()
            .map(CudaTiles::flash_shared_bytes)
            .min()
            .unwrap_or(u32::MAX)
            .into(),
    })?;
    why.push(format!(
        "{tiles}: seq_q {}, head_dim {}, head_dim_v {}; {} of {} bytes of shared memory",
        problem.seq_q(),
        problem.head_dim(),
        problem.head_dim_v(),
        tiles.flash_shared_bytes(),
        machine.shared_limit
    ));
    if tiles.engine == Engine::Simt {
        let reason = left_out.unwrap_or_else(|| why_no_tensor_cores(problem, machine));
        why.push(format!("f32 units, and not tensor cores: {reason}"));
    }
    Ok(tiles)
}

/// Why a tile shape cannot compute the problem; `None` if it can.
fn refuse(problem: &Problem, machine: &Machine, tiles: &CudaTiles, split: bool) -> Option<String> {
    let general = is_general(problem);
    let operation = if split { Operation::FlashSplit } else { Operation::FlashForward };
    let variant = CudaVariant::new(operation, problem.dtype(), general, *tiles);
    if ![&CUDA_SIMT_TILES[..], &CUDA_MMA_TILES, &CUDA_TF32_TILES].concat().contains(tiles) {
        return Some("no kernel has this shape".into());
    }
    if split && !tiles.has_split() {
        let most = CudaTiles::MAX_SPLIT_ROWS;
        return Some(format!("kernels that split keys have at most {most} rows"));
    }
    if general && !tiles.has_general() {
        return Some("they leave a kernel no registers for masks, softcap and dropout".into());
    }
    if !tiles.engine.multiplies(problem.dtype()) {
        return Some(format!("no kernel with this shape multiplies {}", problem.dtype()));
    }
    if tiles.engine.is_matrix() && problem.head_dim() > tiles.head_dim as usize {
        return Some(format!("they support a head_dim of {} at most", tiles.head_dim));
    }
    // A chunk of a split has fewer keys.
    let max_keys = tiles.max_keys(machine.arch);
    if !split && problem.seq_kv() > max_keys as usize {
        return Some(format!("their sums stay within the error bound up to {max_keys} keys"));
    }
    if machine.arch < variant.min_arch() {
        let needed = variant.min_arch();
        return Some(format!("they need compute capability {}.{}", needed / 10, needed % 10));
    }
    let end = variant.end_arch();
    if machine.arch >= end {
        return Some(format!("they would spill registers from {}.{} on", end / 10, end % 10));
    }
    let (needed, given) = (variant.shared_needed(machine.arch), machine.shared_limit);
    let blocks = if needed > variant.shared_bytes() {
        format!(" for {} blocks", tiles.blocks)
    } else {
        String::new()
    };
    (needed > given).then(|| {
        format!(
            "they need {needed} bytes of shared memory{blocks}; a block of this GPU has {given}"
        )
    })
}

/// Blocks per query tile, each with its own columns of V.
fn across(problem: &Problem, tiles: &CudaTiles) -> u32 {
    (problem.head_dim_v() as u32).div_ceil(tiles.columns)
}

/// Rows of the query tiles, with padding. Padding matters only if there are few queries.
fn padded_rows(problem: &Problem, tiles: &CudaTiles) -> u32 {
    (problem.seq_q().min(128) as u32).next_multiple_of(tiles.rows)
}

/// Least is best, in this order: keeps all four schedulers of a multiprocessor busy; has the fewest
/// columns, because tensor cores multiply the padding too; has the least padding of queries; comes
/// first in the list.
fn matrix_preference(problem: &Problem, tiles: &CudaTiles) -> (bool, u32, u32) {
    let columns = tiles.head_dim + tiles.columns + WEIGHT_COLUMNS;
    (tiles.ty < 4, across(problem, tiles) * columns, padded_rows(problem, tiles))
}

/// Least is best, in this order: suits the number of queries (few or many); needs the least work,
/// which grows if several blocks divide the columns of V and if Q is too wide to stay in shared
/// memory; has the least padding of queries; uses no registers for absent columns; comes first in
/// the list.
fn simt_preference(problem: &Problem, tiles: &CudaTiles) -> (bool, u32, u32, u32) {
    let few = tiles.rows as usize <= FEW_QUERIES;
    let (width, width_v) = (problem.head_dim() as u32, problem.head_dim_v() as u32);
    let q_again = if width > tiles.head_dim { width / 2 } else { 0 };
    let work = across(problem, tiles) * (width + q_again + WEIGHT_COLUMNS) + width_v;
    (few != (problem.seq_q() <= FEW_QUERIES), work, padded_rows(problem, tiles), tiles.columns)
}

/// The tile shapes on tensor cores for a storage type.
fn matrix_tiles(dtype: DType) -> &'static [CudaTiles] {
    match dtype {
        DType::F32 => &CUDA_TF32_TILES,
        DType::F16 | DType::BF16 => &CUDA_MMA_TILES,
    }
}

/// Why f32 units are the better choice for a problem in f32 although tensor cores multiply TF32.
fn why_not_tf32(problem: &Problem, machine: &Machine) -> Option<NoMatrixUnits> {
    let (dtype, seq_q) = (problem.dtype(), problem.seq_q());
    if dtype != DType::F32 || machine.tf32_rate == 0 {
        None
    } else if machine.tf32_rate <= Engine::TF32_PRODUCTS {
        Some(NoMatrixUnits::NotFaster { dtype })
    } else {
        (seq_q <= FEW_QUERIES).then_some(NoMatrixUnits::FewQueries { seq_q })
    }
}

fn why_no_tensor_cores(problem: &Problem, machine: &Machine) -> NoMatrixUnits {
    let dtype = problem.dtype();
    let needed = match dtype {
        DType::F16 => 75,
        DType::BF16 | DType::F32 => 80,
    };
    if machine.arch < needed {
        return NoMatrixUnits::ComputeCapability { dtype, given: machine.arch, needed };
    }
    let general = is_general(problem);
    let exists = |tiles: &&CudaTiles| {
        let variant = CudaVariant::new(Operation::FlashForward, dtype, general, **tiles);
        (!general || tiles.has_general()) && machine.arch < variant.end_arch()
    };
    let tiles: Vec<&CudaTiles> = matrix_tiles(dtype).iter().filter(exists).collect();
    let widest = tiles.iter().map(|tiles| tiles.head_dim).max().unwrap_or(0) as usize;
    if problem.head_dim() > widest {
        return NoMatrixUnits::Axis { axis: "head_dim", given: problem.head_dim(), max: widest };
    }
    let most = tiles
        .iter()
        .filter(|tiles| tiles.head_dim as usize >= problem.head_dim())
        .map(|tiles| tiles.max_keys(machine.arch) as usize)
        .max()
        .unwrap_or(usize::MAX);
    if problem.seq_kv() > most {
        return NoMatrixUnits::Axis { axis: "seq_kv", given: problem.seq_kv(), max: most };
    }
    let smallest = tiles
        .iter()
        .filter(|tiles| tiles.head_dim as usize >= problem.head_dim())
        .map(|tiles| tiles.flash_shared_bytes())
        .min();
    NoMatrixUnits::DeviceLimit {
        limit: "shared memory of a block",
        given: machine.shared_limit.into(),
        needed: smallest.unwrap_or(u32::MAX).into(),
    }
}
