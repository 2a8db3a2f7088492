//! The CUDA kernels' own text on the CPU: what can be proven of it without a card.
//!
//! - `primitives`: the emulation itself, each primitive against plain arithmetic, and each mistake of a kernel that it has to report.
//! - `conformance`: the catalogue on what flashtile-cuda would launch, each tile shape, and the same bits whatever the order of threads.
//! - `mutants`: the kernels with one line taken out or one index changed. Each has to fail, or the tests above would prove little.
//!
//! Why a harness of its own: without a C++ compiler these tests show as ignored, with the reason. With CI=true they fail instead.
//!
//! FLASHTILE_CASE="shape=..." replays one case on every kernel.
#![allow(clippy::unwrap_used)]

mod conformance;
mod mutants;
mod primitives;

use flashtile_testkit::{CppCompiler, Emulator};
use libtest_mimic::{Arguments, Failed, Trial};
use std::sync::Arc;

/// A test with its name.
type Test = (String, Box<dyn FnOnce(Arc<Emulator>) -> Result<(), String> + Send>);

fn main() {
    let arguments = Arguments::from_args();
    let compiler = CppCompiler::find(concat!(env!("CARGO_TARGET_TMPDIR"), "/emulated-kernels"));
    let required = std::env::var_os("CI").is_some_and(|value| value == "true");
    let emulator = compiler.map(|compiler| Arc::new(Emulator::new(compiler))).map_err(|e| e.to_string());
    let tests = [primitives::tests(), conformance::tests(), mutants::tests()].into_iter().flatten();
    let trials = tests.map(|(name, test)| match &emulator {
        Err(reason) if !required => Trial::test(format!("{name} ({reason})"), || Ok(())).with_ignored_flag(true),
        emulator => {
            let emulator = emulator.clone();
            Trial::test(name, move || test(emulator?).map_err(Failed::from))
        }
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}
