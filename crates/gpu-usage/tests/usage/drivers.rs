//! Runs `gpu-usage` under `scripts/with-gpu-compiler`.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Whether the drivers are here; else why not.
///
/// # Errors
/// The reason.
pub(crate) fn present() -> Result<(), String> {
    // The program is in target/debug or target/release.
    let program = Path::new(env!("CARGO_BIN_EXE_gpu-usage"));
    let folder = match env::var_os("FLASHTILE_GPU_COMPILERS") {
        Some(folder) => PathBuf::from(folder),
        None => program.ancestors().nth(2).unwrap().join("tools/gpu-compilers"),
    };
    if folder.join("files").is_dir() {
        return Ok(());
    }
    Err("no drivers: scripts/with-gpu-compiler --folder fetches them".to_owned())
}

/// Runs the program for `gpu`.
pub(crate) fn run(gpu: &str, options: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(root().join("scripts/with-gpu-compiler"));
    command.arg(gpu).arg(env!("CARGO_BIN_EXE_gpu-usage")).args(options);
    // The script looks in the target folder of this build, wherever that is.
    let target = Path::new(env!("CARGO_BIN_EXE_gpu-usage")).ancestors().nth(2).unwrap();
    command.env("CARGO_TARGET_DIR", target).envs(environment.iter().copied());
    command.output().unwrap()
}

/// What the program prints.
///
/// # Errors
/// It fails: what it prints on stderr.
pub(crate) fn lines(gpu: &str, options: &[&str]) -> Result<Vec<String>, String> {
    let output = run(gpu, options, &[]);
    if !output.status.success() {
        return Err(format!("{gpu}: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}
