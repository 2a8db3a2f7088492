//! Bank conflicts in shared memory. Padding and the assignment of threads exist to avoid them.

use flashtile_core::KernelKind;
use flashtile_emulator::{EmulatedCudaBackend, PtxCompiler, ThreadOrder};
use flashtile_shaders::Operation;
use flashtile_shaders::cuda::{Arch, CUDA_UNFUSED_TILES, CudaTiles, CudaVariant, Engine};
use flashtile_testkit::{Case, run_case};

/// Runs complete tiles of one shape, so that only the main loop and the end of the kernel execute.
/// `None` stands for the one shape of the unfused kernels.
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
    // Kernels of its own, so that only this case is counted.
    let compiler = compiler.with_edit(|ptx| ptx);
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
        let mut accesses = 0;
        for executed in kernel.executed() {
            let line = executed.line as usize - 1;
            let instruction = kernel.ptx().lines().nth(line).unwrap_or_default().trim();
            accesses += executed.shared_accesses;
            if executed.bank_conflicts > 0 {
                conflicts.push(format!(
                    "{variant}: {} conflicts in {} accesses, {instruction}",
                    executed.bank_conflicts, executed.shared_accesses
                ));
            }
        }
        if accesses == 0 {
            return Err(format!("{variant} does not access shared memory"));
        }
    }
    if conflicts.is_empty() { Ok(()) } else { Err(conflicts.join("\n")) }
}
