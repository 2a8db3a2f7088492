//! The CUDA kernels on the CPU: what tests can establish about them without a GPU.
//!
//! - `primitives`: the emulator itself. Each primitive matches plain arithmetic, and the emulator
//!   reports each kind of mistake that a kernel can make.
//! - `conformance`: the catalogue with the launches that flashtile-cuda makes, every tile shape,
//!   and the same bits in every order of threads.
//! - `tf32`: values that tensor cores cannot multiply in f32.
//! - `ptx`: the same for the PTX that NVRTC writes.
//! - `mutants`: kernels with one statement removed or one index changed. Each one has to fail;
//!   otherwise the tests above would prove little.
//!
//! These tests have their own harness so that they show as ignored, with the reason, where there is
//! no C++ compiler, or no NVRTC for `ptx`. They fail instead with CI=true, and `ptx` with
//! FLASHTILE_REQUIRE_NVRTC=1.
//!
//! FLASHTILE_CASE="shape=..." replays one case on every kernel.
#![allow(clippy::unwrap_used)]

mod common;
mod conformance;
mod mutants;
mod primitives;
mod ptx;
mod tf32;

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
    let tests = [primitives::tests(), conformance::tests(), tf32::tests(), mutants::tests()];
    let tests = tests.into_iter().flatten();
    let emulated = tests.map(|(name, test)| match &emulator {
        Err(reason) if !required => ignored(&name, reason),
        emulator => {
            let emulator = emulator.clone();
            Trial::test(name, move || test(emulator?).map_err(Failed::from))
        }
    });
    let compiler = PtxCompiler::default();
    let required = std::env::var_os("FLASHTILE_REQUIRE_NVRTC").is_some_and(|value| value == "1");
    let interpreted =
        ptx::tests().into_iter().map(|(name, arch, test)| match compiler_version(arch) {
            Err(_) if !required => ignored(&name, "no NVRTC for it"),
            _ => {
                let compiler = compiler.clone();
                Trial::test(name, move || test(compiler).map_err(Failed::from))
            }
        });
    libtest_mimic::run(&arguments, emulated.chain(interpreted).collect()).exit();
}

/// A test that cannot run here.
fn ignored(name: &str, reason: &str) -> Trial {
    Trial::test(format!("{name} ({reason})"), || Ok(())).with_ignored_flag(true)
}
