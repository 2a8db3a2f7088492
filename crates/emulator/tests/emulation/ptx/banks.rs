//! Whether lanes of a warp wait for each other at the banks of shared memory: padding and the order of threads are there so that they do not.

use flashtile_core::KernelKind;
use flashtile_emulator::{EmulatedCudaBackend, PtxCompiler, ThreadOrder};
use flashtile_shaders::Operation;
use flashtile_shaders::cuda::{Arch, CUDA_UNFUSED_TILES, CudaTiles, CudaVariant, Engine};
use flashtile_testkit::{Case, run_case};

/// Whole tiles of one shape, with nothing beside the main loop and the end. The unfused kernels have one shape: `None`.
pub(super) fn no_conflicts(
    compiler: &PtxCompiler,
    arch: Arch,
    tiles: Option<CudaTiles>,
) -> Result<(), String> {
    let CudaTiles { engine, rows, keys, head_dim, columns, .. } =
        tiles.unwrap_or(CUDA_UNFUSED_TILES);
    let dtype = if engine == Engine::Mma { "f16" } else { "f32" };
    let line = format!("shape=1x1x{rows}x{head_dim} skv={} dv={columns} dtype={dtype}", 2 * keys);
    let case: Case = line.parse().unwrap();
    // By itself, so that only this case is counted.
    let compiler = compiler.with_text(|text| text);
    let backend = EmulatedCudaBackend::with_ptx(compiler.clone(), arch, ThreadOrder::Forward);
    let (backend, kernel, operations) = match tiles {
        Some(tiles) => {
            (backend.with_tiles(tiles), KernelKind::Flash, vec![Operation::FlashForward])
        }
        None => {
            (backend, KernelKind::Unfused, vec![Operation::UnfusedScores, Operation::UnfusedValues])
        }
    };
    run_case(&backend, kernel, &case).map_err(|e| e.to_string())?;
    let mut conflicts = Vec::new();
    for operation in operations {
        let variant =
            CudaVariant::new(operation, case.dtype, false, tiles.unwrap_or(CUDA_UNFUSED_TILES));
        let kernel = compiler.kernel(&variant, arch).map_err(|e| e.to_string())?;
        let mut turns = 0;
        for done in kernel.done() {
            let text = kernel.text().lines().nth(done.line as usize - 1).unwrap_or_default().trim();
            turns += done.shared_turns;
            // Tensor cores load their operands by ldmatrix: ordinary loads of four words bring O to where it is stored, once for all keys.
            let end = engine == Engine::Mma && text.starts_with("ld.shared.v4");
            // Copies of rows that fill no whole 128 bytes meet at their ends. What would help there would hurt ldmatrix, which has more to do.
            let ragged = text.starts_with("cp.async") && 2 * head_dim % 128 != 0;
            if done.bank_conflicts > 0 && !end && !ragged {
                conflicts.push(format!(
                    "{variant}: {} conflicts in {} turns, {text}",
                    done.bank_conflicts, done.shared_turns
                ));
            }
        }
        if turns == 0 {
            return Err(format!("{variant} does not come to shared memory"));
        }
    }
    if conflicts.is_empty() { Ok(()) } else { Err(conflicts.join("\n")) }
}
