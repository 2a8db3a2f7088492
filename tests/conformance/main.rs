//! Every kernel on every device here, held to the oracle's bound: promises 1 to 4.
//!
//! Why a harness of its own: where there is no adapter, or no NVIDIA card, the tests that need it must show as ignored, with the reason, and never as
//! passed. With FLASHTILE_REQUIRE_GPU=1 (as on CI) and FLASHTILE_REQUIRE_CUDA=1 they fail there instead. One kind of device does not wait for the
//! other.
//!
//! FLASHTILE_CASE="shape=..." replays one case on everything; FLASHTILE_RANDOM=N tries N random problems a kernel.
#![allow(clippy::unwrap_used)]

mod cuda;
mod harness;
mod shared;
mod wgpu;

use libtest_mimic::Arguments;

fn main() {
    let mut arguments = Arguments::from_args();
    let mut trials = wgpu::suite().trials(&arguments);
    trials.extend(cuda::suite().trials(&arguments));
    // Done already, by names that do not end in a reason yet.
    (arguments.filter, arguments.skip) = (None, Vec::new());
    libtest_mimic::run(&arguments, trials).exit();
}
