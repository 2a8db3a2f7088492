//! Compiles every kernel for every generation of GPUs. This needs no GPU.
//!
//! `usage.txt` lists the resources of each kernel, so that the diff of a change shows the registers
//! that it costs. UPDATE_USAGE=1 rewrites the file. Registers depend on the compiler's version, so
//! the file binds only the versions that `scripts/fetch-nvrtc` installs. The rules bind every
//! version.

use crate::ignored;
use flashtile_cuda::{Arch, CudaVariant, Usage, compile, compiler_version};
use flashtile_shaders::cuda::shared_limit;
use libtest_mimic::{Failed, Trial};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::{Mutex, PoisonError},
};

/// The variable that makes a process compile for one architecture. Each architecture has a process
/// of its own, because NVRTC serialises the compilations of one process.
pub(crate) const ARCH: &str = "FLASHTILE_COMPILE_FOR";

/// Pascal, Volta, Turing, Ampere, Ada, Hopper, Blackwell.
const ARCHS: [Arch; 9] = [60, 70, 75, 80, 86, 89, 90, 100, 120];

/// The versions that `scripts/fetch-nvrtc` installs.
const PINNED: [(u32, u32); 2] = [(13, 0), (12, 9)];

pub(crate) fn trials() -> Vec<Trial> {
    let required = env::var_os("FLASHTILE_REQUIRE_NVRTC").is_some_and(|value| value == "1");
    let trial = |arch| {
        let name = format!("every_kernel_compiles_for_sm_{arch}");
        match compiler_version(arch) {
            Err(e) if !required => ignored(&name, &e.to_string()),
            Ok(_) | Err(_) => Trial::test(name, move || every_kernel(arch)),
        }
    };
    ARCHS.into_iter().map(trial).collect()
}

/// Compiles in another process, which prints one line per kernel, and compares these with the file.
fn every_kernel(arch: Arch) -> Result<(), Failed> {
    let version = compiler_version(arch).map_err(|e| e.to_string())?;
    let program = env::current_exe().map_err(|e| e.to_string())?;
    let output =
        Command::new(program).env(ARCH, arch.to_string()).output().map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut usages: Vec<String> = text.lines().map(str::to_owned).collect();
    usages.sort();
    println!("{}", usages.join("\n"));
    let mut failures: Vec<String> =
        String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned).collect();
    if !output.status.success() && failures.is_empty() {
        failures.push(format!("compiling for sm_{arch} ended with {}", output.status));
    }
    if PINNED.contains(&version) {
        failures.extend(compare_with_file(arch, usages)?);
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n").into()) }
}

/// Compiles every kernel that fits GPUs of `arch`. Prints usages on stdout and failures on stderr.
pub(crate) fn compile_all(arch: &str) -> ExitCode {
    let arch: Arch = arch.parse().unwrap();
    let mut failed = false;
    let mut fail = |message: String| {
        eprintln!("{message}");
        failed = true;
    };
    for variant in CudaVariant::all().filter(|variant| variant.fits(arch, shared_limit(arch))) {
        let usage = match compile(&variant, arch) {
            Ok(compiled) => compiled.usage().unwrap_or_default(),
            Err(e) => {
                fail(e.to_string());
                continue;
            }
        };
        if usage.registers == 0 {
            fail(format!("{variant} on sm_{arch}: the log lacks its usage"));
        }
        // Registers that are spilled to memory, and arrays that are kept there.
        if usage.spill_store_bytes > 0 || usage.stack_bytes > 0 {
            let Usage { spill_store_bytes: spilled, stack_bytes: stack, .. } = usage;
            fail(format!(
                "{variant} on sm_{arch} spills {spilled} bytes and has a stack of {stack} bytes"
            ));
        }
        // Otherwise only a launch on a GPU would show that a block does not fit.
        if usage.registers * variant.tiles.threads() * variant.tiles.blocks > 65_536 {
            fail(format!(
                "{variant} on sm_{arch}: {} registers are too many for its blocks",
                usage.registers
            ));
        }
        println!("{}", line(&variant, arch, &usage));
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn line(variant: &CudaVariant, arch: Arch, usage: &Usage) -> String {
    let (registers, shared) = (usage.registers, variant.shared_bytes());
    format!("sm_{arch} {variant}: {registers} registers, {shared} bytes shared")
}

/// The differences from the file. Trials run in parallel and share the file.
fn compare_with_file(arch: Arch, usages: Vec<String>) -> Result<Vec<String>, String> {
    static FILE: Mutex<()> = Mutex::new(());
    let _guard = FILE.lock().unwrap_or_else(PoisonError::into_inner);
    let path = usage_file();
    let kept = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let of_arch = |line: &&str| line.split(' ').next() == Some(&format!("sm_{arch}"));
    if env::var_os("UPDATE_USAGE").is_some() {
        let others = kept.lines().filter(|line| !of_arch(line)).map(str::to_owned);
        let mut all: Vec<String> = others.chain(usages).collect();
        all.sort_by_key(|line| {
            (line.split(' ').next().and_then(|arch| arch[3..].parse::<u32>().ok()), line.clone())
        });
        fs::write(&path, all.join("\n") + "\n").map_err(|e| e.to_string())?;
        return Ok(Vec::new());
    }
    let kept: Vec<&str> = kept.lines().filter(of_arch).collect();
    let new = usages
        .iter()
        .filter(|line| !kept.contains(&line.as_str()))
        .map(|line| format!("not in usage.txt: {line}"));
    let old = kept
        .iter()
        .filter(|line| !usages.iter().any(|usage| usage == *line))
        .map(|line| format!("only in usage.txt: {line}"));
    Ok(new.chain(old).collect())
}

fn usage_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda/usage.txt")
}
