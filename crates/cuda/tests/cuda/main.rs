//! What of this crate can be tested without a card, and what cannot be tested in one process.
//!
//! Why a harness of its own: a test that needs something that is not here must show as ignored, with the reason, and never as passed.
//!
//! - Without a driver nothing panics: every way in gives a typed error.
//! - With NVRTC here, kernels compile.
//! - With a C compiler here, all that goes through the driver is tried on a driver made of software (`driver.c`): each scenario is a process of its
//!   own, for a driver is opened once in the life of a process. It shows that the right functions are called with the right arguments in the right
//!   order; what kernels compute is the emulation's to test, and a card's.
#![allow(clippy::unwrap_used)]

#[cfg(target_os = "linux")]
mod fake;
#[cfg(target_os = "linux")]
mod scenarios;

use flashtile_core::DType;
use flashtile_cuda::{
    CUDA_MMA_TILES, CUDA_SIMT_TILES, CudaVariant, DeviceChoice, Error, compile, compiler_version, devices, open,
};
use flashtile_shaders::Operation;
use libtest_mimic::{Arguments, Failed, Trial};
use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    if let Some(name) = std::env::var_os(fake::SCENARIO) {
        return fake::play(&name.to_string_lossy());
    }
    let arguments = Arguments::from_args();
    let mut trials = vec![without_a_driver()];
    trials.extend(with_a_compiler());
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
        let (listed, opened) = (devices().unwrap_err(), open(&DeviceChoice::default()).unwrap_err());
        for error in [&listed, &opened] {
            if !expected(error) || !error.to_string().contains("driver") {
                return Err(Failed::from(format!("{error}")));
            }
        }
        Ok(())
    })
}

/// One kernel of each engine, for the cards that it begins with; all of them for all cards are compiled elsewhere.
fn with_a_compiler() -> Vec<Trial> {
    let kernels = [
        ("f32_units", DType::F32, CUDA_SIMT_TILES[0], 60),
        ("tensor_cores_of_f16", DType::F16, CUDA_MMA_TILES[0], 75),
        ("tensor_cores_of_bf16", DType::BF16, CUDA_MMA_TILES[0], 80),
    ];
    let trial = |(name, dtype, tiles, arch)| {
        let variant = CudaVariant::new(Operation::FlashForward, dtype, false, tiles);
        let name = format!("compiles_for_{name}");
        // Asked before anything runs: a test is ignored or not when it is listed.
        if let Err(e) = compiler_version(arch) {
            return ignored(&name, &e.to_string());
        }
        Trial::test(name, move || {
            let compiled = compile(&variant, arch).map_err(|e| e.to_string())?;
            let usage = compiled.usage().ok_or("the log does not tell what the kernel takes")?;
            let elf = compiled.cubin.starts_with(b"\x7fELF");
            match elf && compiled.arch == arch && usage.registers > 0 {
                true => Ok(()),
                false => {
                    Err(Failed::from(format!("{usage:?} of {} bytes for {}", compiled.cubin.len(), compiled.arch)))
                }
            }
        })
    };
    kernels.into_iter().map(trial).collect()
}
