//! Tests every kernel on every device of this machine, and on the CPU, against the oracle's bound:
//! guarantees 1 to 4.
//!
//! These tests have their own harness. Where there is no adapter or no NVIDIA GPU, the tests that
//! need one must show as ignored, with the reason, and never as passed. With
//! FLASHTILE_REQUIRE_GPU=1 (as on CI) and FLASHTILE_REQUIRE_CUDA=1 they fail instead. The two kinds
//! of device are independent. The CPU is always present.
//!
//! FLASHTILE_CASE="shape=..." replays one case on every device. FLASHTILE_RANDOM=N runs N random
//! problems per kernel.
#![allow(clippy::unwrap_used)]

mod cpu;
mod cuda;
mod harness;
mod shared;
mod wgpu;

use libtest_mimic::Arguments;

fn main() {
    let mut arguments = Arguments::from_args();
    let mut trials = wgpu::suite().trials(&arguments);
    trials.extend(cuda::suite().trials(&arguments));
    trials.extend(cpu::suite().trials(&arguments));
    // The filters are applied already, to the names without reasons.
    (arguments.filter, arguments.skip) = (None, Vec::new());
    libtest_mimic::run(&arguments, trials).exit();
}
