//! The CUDA kernels' own text on the CPU: what can be proven of it without a card.
//!
//! - `primitives`: the emulation itself, each primitive against plain arithmetic, and each mistake of a kernel that it has to report.
//! - `conformance`: the catalogue on what flashtile-cuda would launch, each tile shape, and the same bits whatever the order of threads.
//! - `ptx`: the same on what NVRTC compiles.
//! - `mutants`: the kernels with one line taken out or one index changed. Each has to fail, or the tests above would prove little.
//!
//! Why a harness of its own: without a C++ compiler, or without NVRTC for `ptx`, these tests show as ignored, with the reason. With CI=true, and
//! FLASHTILE_REQUIRE_NVRTC=1 for `ptx`, they fail instead.
//!
//! FLASHTILE_CASE="shape=..." replays one case on every kernel.
#![allow(clippy::unwrap_used)]

mod conformance;
mod mutants;
mod primitives;
mod ptx;

use flashtile_cuda::compiler_version;
use flashtile_emulator::{CppCompiler, Emulator, PtxCompiler};
use libtest_mimic::{Arguments, Failed, Trial};
use std::sync::Arc;

/// A test with its name.
type Test = (String, Box<dyn FnOnce(Arc<Emulator>) -> Result<(), String> + Send>);

fn main() {
    let arguments = Arguments::from_args();
    let compiler = CppCompiler::find(concat!(env!("CARGO_TARGET_TMPDIR"), "/emulated-kernels"));
    let required = std::env::var_os("CI").is_some_and(|value| value == "true");
    let emulator =
        compiler.map(|compiler| Arc::new(Emulator::new(compiler))).map_err(|e| e.to_string());
    let tests = [primitives::tests(), conformance::tests(), mutants::tests()].into_iter().flatten();
    let trials = tests.map(|(name, test)| match &emulator {
        Err(reason) if !required => {
            Trial::test(format!("{name} ({reason})"), || Ok(())).with_ignored_flag(true)
        }
        emulator => {
            let emulator = emulator.clone();
            Trial::test(name, move || test(emulator?).map_err(Failed::from))
        }
    });
    let compiler = PtxCompiler::default();
    let required = std::env::var_os("FLASHTILE_REQUIRE_NVRTC").is_some_and(|value| value == "1");
    let interpreted =
        ptx::tests().into_iter().map(|(name, arch, test)| match compiler_version(arch) {
            Err(_) if !required => {
                Trial::test(format!("{name} (no NVRTC for it)"), || Ok(())).with_ignored_flag(true)
            }
            _ => {
                let compiler = compiler.clone();
                Trial::test(name, move || test(compiler).map_err(Failed::from))
            }
        });
    libtest_mimic::run(&arguments, trials.chain(interpreted).collect()).exit();
}
