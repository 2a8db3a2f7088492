//! What several groups of tests share: case lines, names of tile shapes, reports.

use flashtile_core::DType;
use flashtile_shaders::cuda::{
    Arch, CUDA_MMA_TILES, CUDA_SIMT_TILES, CUDA_TF32_TILES, CudaTiles, Engine, tf32_rate,
};
use flashtile_testkit::{Case, Failure, Prepared};

/// Every tile shape of the flash kernels.
pub(super) fn all_tiles() -> impl Iterator<Item = CudaTiles> {
    CUDA_SIMT_TILES.into_iter().chain(CUDA_MMA_TILES).chain(CUDA_TF32_TILES)
}

/// Whether flash plans for GPUs of compute capability `arch` choose tensor cores, unless there are
/// few queries.
pub(super) fn on_tensor_cores(arch: Arch, dtype: DType) -> bool {
    match dtype {
        DType::F32 => tf32_rate(arch) > Engine::TF32_PRODUCTS,
        DType::F16 => arch >= 75,
        DType::BF16 => arch >= 80,
    }
}

/// A tile shape in the name of a test.
pub(super) fn tile_name(tiles: &CudaTiles) -> String {
    let CudaTiles { head_dim, columns, stages, .. } = tiles;
    format!("{tiles}, head_dim {head_dim}, {columns} columns, {stages} stages")
}

/// Every line as a case with the oracle's answer; blank lines are skipped.
pub(super) fn prepare(lines: &str) -> Result<Vec<Prepared>, String> {
    let lines = lines.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.map(|line| Prepared::new(&parse(line)?).map_err(|e| format!("{line}: {e}"))).collect()
}

/// One case line.
pub(super) fn parse(line: &str) -> Result<Case, String> {
    line.parse().map_err(|e| format!("{line}: {e}"))
}

/// All failures as one error.
pub(super) fn report(failures: impl Iterator<Item = Failure>) -> Result<(), String> {
    let failures: Vec<_> = failures.map(|failure| failure.to_string()).collect();
    if failures.is_empty() {
        Ok(())
    } else {
        Err(format!("{} failed\n{}", failures.len(), failures.join("\n")))
    }
}

/// Cases for one tile shape: the widest head that it holds and an odd one, over several tiles of
/// queries and keys with incomplete tiles at the end, in each storage type that the shape supports;
/// and all features at once.
pub(super) fn tile_cases(tiles: &CudaTiles) -> Result<Vec<Case>, String> {
    let (wide, columns) = (tiles.head_dim, tiles.columns);
    let (rows, keys) = (tiles.rows + 5, 2 * tiles.keys + 13);
    let of = |dtype| tiles.engine.multiplies(dtype);
    let (plain, odd, general) = match (of(DType::F32), of(DType::F16)) {
        (true, false) => ("f32", "f32", "f32"),
        (true, true) => ("f32", "bf16", "f16"),
        (false, _) => ("bf16", "f16", "f16"),
    };
    let mut lines = vec![
        format!(
            "shape=1x2x{rows}x{wide} hkv=1 skv={keys} dtype={plain} causal=yes align=bottom-right"
        ),
        format!(
            "shape=2x1x9x{} skv={keys} dv={} dtype={odd} window_left=20 window_right=30 align=11 \
             kv_lens={keys}:5 poison=unseen",
            wide - 1,
            columns + 3
        ),
    ];
    if tiles.has_general() {
        lines.push(format!(
            "shape=1x2x{rows}x24 skv={keys} dv={} dtype={general} causal=yes align=2 window_right=4 \
             softcap=5.0 mask=f32:1hqk:blocks kv_lens=random dropout=0.25 poison=unseen",
            columns.min(57)
        ));
    }
    lines.iter().map(|line| parse(line)).collect()
}
