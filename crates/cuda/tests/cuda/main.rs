//! What of this crate can be tested without a card, and what cannot be tested in one process.
//!
//! Why a harness of its own: a test that needs something that is not here must show as ignored, with the reason, and never as passed.
//!
//! - Without a driver nothing panics: every way in gives a typed error.
//! - With NVRTC here, every kernel compiles for every generation of cards.
//! - With a C compiler here, all that goes through the driver is tried on a driver made of software (`driver.c`): each scenario is a process of its
//!   own, for a driver is opened once in the life of a process. It shows that the right functions are called with the right arguments in the right
//!   order; what kernels compute is the emulation's to test, and a card's.
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
        return fake::play(&name.to_string_lossy());
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

/// cudarc panics where the driver is missing. A panic would fail the test.
fn without_a_driver() -> Trial {
    let name = "without_a_driver_there_are_typed_errors";
    if devices().is_ok() {
        return ignored(name, "there is a driver here");
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
