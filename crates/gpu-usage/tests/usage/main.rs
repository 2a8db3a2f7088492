//! What every tuned kernel takes on GPUs that the machine does not have.
//!
//! `usage.txt` lists it, so that the diff of a change shows what it costs: registers, occupancy,
//! spills, memory, instructions, and on RDNA the hot loops. It depends on the compiler's version,
//! so the file binds only the version of Mesa that it names. The bars bind every version.
//! `exceptions.txt` lists the bars that are not reached yet.
//!
//! UPDATE_USAGE=1 rewrites `usage.txt` and docs/PERFORMANCE.md, and removes exceptions that are not
//! needed any more. It never adds one.
//!
//! The drivers come from `scripts/with-gpu-compiler --folder`. Where they are absent, these tests
//! show as ignored.
#![allow(clippy::unwrap_used)]

#[cfg(target_os = "linux")]
mod document;
#[cfg(target_os = "linux")]
mod drivers;
#[cfg(target_os = "linux")]
mod record;

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("gpu-usage runs on Linux only, because the drivers do");
}

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    let arguments = libtest_mimic::Arguments::from_args();
    let mut trials = record::trials();
    trials.push(document::trial());
    libtest_mimic::run(&arguments, trials).exit_code()
}
