//! Assembles the kernel source of a variant: constants, the parts that all kernels share, then the
//! parts of its operation.

use super::{CudaTiles, CudaVariant, Engine};
use crate::Operation;
use flashtile_core::DType;
use std::borrow::Cow;

const DEVICE: &str = include_str!("../../cuda/device.cuh");
const NUMERICS: &str = include_str!("../../cuda/numerics.cuh");
const PARAMS: &str = include_str!("../../cuda/params.cuh");
const PHILOX: &str = include_str!("../../cuda/philox.cuh");
const MASK: &str = include_str!("../../cuda/mask.cuh");
const STORE: &str = include_str!("../../cuda/store.cuh");
const TILE: &str = include_str!("../../cuda/tile.cuh");
const ROW_RESULT: &str = include_str!("../../cuda/row_result.cuh");
const ROW_PARTIAL: &str = include_str!("../../cuda/row_partial.cuh");
const PARTIAL: &str = include_str!("../../cuda/partial.cuh");
const FLASH_MERGE: &str = include_str!("../../cuda/flash_merge.cu");
const FLASH_FORWARD: &str = include_str!("../../cuda/flash_forward.cu");
const MMA_TILE: &str = include_str!("../../cuda/mma_tile.cuh");
const MMA_SOFTMAX: &str = include_str!("../../cuda/mma_softmax.cuh");
const FLASH_FORWARD_MMA: &str = include_str!("../../cuda/flash_forward_mma.cu");
const TF32_DEVICE: &str = include_str!("../../cuda/tf32_device.cuh");
const TF32_TILE: &str = include_str!("../../cuda/tf32_tile.cuh");
const FLASH_FORWARD_TF32: &str = include_str!("../../cuda/flash_forward_tf32.cu");
const UNFUSED_SCORES: &str = include_str!("../../cuda/unfused_scores.cu");
const UNFUSED_SOFTMAX: &str = include_str!("../../cuda/unfused_softmax.cu");
const UNFUSED_VALUES: &str = include_str!("../../cuda/unfused_values.cu");

pub(super) fn assemble(variant: &CudaVariant) -> String {
    let kernel: &[&str] = match (variant.operation, variant.tiles.engine) {
        (Operation::FlashForward, Engine::Simt) => &[STORE, ROW_RESULT, TILE, FLASH_FORWARD],
        (Operation::FlashForward, Engine::Mma) => {
            &[STORE, MMA_TILE, MMA_SOFTMAX, FLASH_FORWARD_MMA]
        }
        (Operation::FlashForward, Engine::Tf32) => {
            &[STORE, ROW_RESULT, TF32_DEVICE, TF32_TILE, MMA_SOFTMAX, FLASH_FORWARD_TF32]
        }
        (Operation::FlashSplit, Engine::Simt) => &[PARTIAL, ROW_PARTIAL, TILE, FLASH_FORWARD],
        (Operation::FlashSplit, Engine::Mma) => {
            &[PARTIAL, ROW_PARTIAL, STORE, MMA_TILE, MMA_SOFTMAX, FLASH_FORWARD_MMA]
        }
        (Operation::FlashSplit, Engine::Tf32) => {
            &[PARTIAL, ROW_PARTIAL, TF32_DEVICE, TF32_TILE, MMA_SOFTMAX, FLASH_FORWARD_TF32]
        }
        (Operation::FlashMerge, _) => &[STORE, ROW_RESULT, PARTIAL, FLASH_MERGE],
        (Operation::UnfusedScores, _) => &[TILE, UNFUSED_SCORES],
        (Operation::UnfusedSoftmax, _) => &[UNFUSED_SOFTMAX],
        (Operation::UnfusedValues, _) => &[STORE, TILE, UNFUSED_VALUES],
    };
    let mut source = constants(variant);
    for part in [DEVICE, NUMERICS, PARAMS, PHILOX, MASK].iter().chain(kernel) {
        source.push('\n');
        source.push_str(&kernel_named(variant, part));
    }
    source
}

/// A split has the kernel of `flash_forward` under a name of its own.
fn kernel_named<'a>(variant: &CudaVariant, part: &'a str) -> Cow<'a, str> {
    if variant.operation == Operation::FlashSplit {
        part.replace("KERNEL(flash_forward)", "KERNEL(flash_split)").into()
    } else {
        part.into()
    }
}

/// The variant's compile-time constants. They are macros because device.cuh uses them before it
/// defines any type.
fn constants(variant: &CudaVariant) -> String {
    let CudaTiles { engine: _, rows, keys, tx, ty, head_dim, columns, blocks, stages } =
        variant.tiles;
    let mut source = format!("// {variant}\n");
    for (name, value) in [
        ("BR", rows),
        ("BC", keys),
        ("TX", tx),
        ("TY", ty),
        ("THREADS", variant.tiles.threads()),
        ("MIN_BLOCKS", blocks),
        ("Q_WIDTH", head_dim),
        ("COLUMNS", columns),
        ("STAGES", stages),
        ("DIRECT_KEYS", variant.tiles.direct_keys()),
        ("KV_WIDTH", CudaTiles::KV_WIDTH),
        ("GENERAL", variant.general.into()),
        ("SPLIT", (variant.operation == Operation::FlashSplit).into()),
    ] {
        source += &format!("#define {name} {value}\n");
    }
    let elem = match variant.dtype {
        DType::F32 => "ELEM_F32",
        DType::F16 => "ELEM_F16",
        DType::BF16 => "ELEM_BF16",
    };
    source + &format!("#define {elem} 1\n")
}
