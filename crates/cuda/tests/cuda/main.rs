//! Tests that need no GPU, or that need a process of their own.
//!
//! The harness is our own so that a test that cannot run here shows as ignored, with the reason,
//! and never as passed.
//!
//! - Without a driver nothing panics: every entry point returns a typed error.
//! - With NVRTC, every kernel compiles for every generation of GPUs.
//! - With a C compiler, scenarios run on a fake driver (`driver.c`), each in a process of its own,
//!   because a process opens the driver once. They show that the crate calls the right functions
//!   with the right arguments in the right order. The emulator and real GPUs test what kernels
//!   compute.
#![allow(clippy::unwrap_used)]

mod compile;
#[cfg(target_os = "linux")]
mod fake;
#[cfg(target_os = "linux")]
mod scenarios;

use flashtile_cuda::{DeviceChoice, Error, devices, open};
use libtest_mimic::{Arguments, Failed, Trial};
use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(arch) = std::env::var_os(compile::ARCH) {
        return compile::compile_all(&arch.to_string_lossy());
    }
    #[cfg(target_os = "linux")]
    if let Some(name) = std::env::var_os(fake::SCENARIO) {
        return fake::run_scenario(&name.to_string_lossy());
    }
    let arguments = Arguments::from_args();
    let mut trials = vec![without_a_driver()];
    trials.extend(compile::trials());
    #[cfg(target_os = "linux")]
    trials.extend(fake::trials());
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn ignored(name: &str, why: &str) -> Trial {
    Trial::test(format!("{name} ({why})"), || Ok(())).with_ignored_flag(true)
}

/// cudarc panics if the driver is missing. A panic would fail the test.
fn without_a_driver() -> Trial {
    let name = "without_a_driver_there_are_typed_errors";
    if devices().is_ok() {
        return ignored(name, "this machine has a driver");
    }
    Trial::test(name, || {
        let expected = |error: &Error| matches!(error, Error::NoDriver(_) | Error::OldDriver(_));
        let (listed, opened) =
            (devices().unwrap_err(), open(&DeviceChoice::default()).unwrap_err());
        for error in [&listed, &opened] {
            if !expected(error) || !error.to_string().contains("driver") {
                return Err(Failed::from(format!("{error}")));
            }
        }
        Ok(())
    })
}
