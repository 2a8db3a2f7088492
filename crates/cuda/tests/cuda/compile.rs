//! Every kernel for every generation of cards, compiled without one.
//!
//! What each takes is kept in `usage.txt`, so that a change that costs registers shows in its own diff. UPDATE_USAGE=1 writes it anew. Registers
//! are the compiler's choice: other versions than those that `scripts/fetch-nvrtc` brings are held to the rules alone, not to the file.

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

/// Which architecture a process of its own compiles for: within one process NVRTC does one thing after the other.
pub(crate) const ARCH: &str = "FLASHTILE_COMPILE_FOR";

/// Pascal, Volta, Turing, Ampere, Ada, Hopper, Blackwell.
const ARCHS: [Arch; 9] = [60, 70, 75, 80, 86, 89, 90, 100, 120];

/// The versions that `scripts/fetch-nvrtc` brings.
const PINNED: [(u32, u32); 2] = [(13, 0), (12, 9)];

pub(crate) fn trials() -> Vec<Trial> {
    let required = env::var_os("FLASHTILE_REQUIRE_NVRTC").is_some_and(|value| value == "1");
    let trial = |arch| {
        let name = format!("every_kernel_compiles_for_sm_{arch}");
        match compiler_version(arch) {
            Err(e) if !required => ignored(&name, &e.to_string()),
            _ => Trial::test(name, move || every_kernel(arch)),
        }
    };
    ARCHS.into_iter().map(trial).collect()
}

/// Compiles in another process, which prints a line for each kernel, and holds these to the file.
fn every_kernel(arch: Arch) -> Result<(), Failed> {
    let version = compiler_version(arch).map_err(|e| e.to_string())?;
    let program = env::current_exe().map_err(|e| e.to_string())?;
    let output =
        Command::new(program).env(ARCH, arch.to_string()).output().map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut told: Vec<String> = text.lines().map(str::to_owned).collect();
    told.sort();
    println!("{}", told.join("\n"));
    let mut wrong: Vec<String> =
        String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned).collect();
    if !output.status.success() && wrong.is_empty() {
        wrong.push(format!("compiling for sm_{arch} ended with {}", output.status));
    }
    if PINNED.contains(&version) {
        wrong.extend(tracked(arch, told)?);
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

/// Compiles every kernel that fits cards of `arch`: what each takes on stdout, what is wrong on stderr.
pub(crate) fn compile_all(arch: &str) -> ExitCode {
    let arch: Arch = arch.parse().unwrap();
    let mut failed = false;
    let mut wrong = |what: String| {
        eprintln!("{what}");
        failed = true;
    };
    for variant in CudaVariant::all().filter(|variant| variant.fits(arch, shared_limit(arch))) {
        let usage = match compile(&variant, arch) {
            Ok(compiled) => compiled.usage().unwrap_or_default(),
            Err(e) => {
                wrong(e.to_string());
                continue;
            }
        };
        if usage.registers == 0 {
            wrong(format!("{variant} on sm_{arch}: the log does not tell what it takes"));
        }
        // Registers that go to memory and back, and arrays that never were in registers.
        if usage.spill_store_bytes > 0 || usage.stack_bytes > 0 {
            let Usage { spill_store_bytes: spilled, stack_bytes: stack, .. } = usage;
            wrong(format!(
                "{variant} on sm_{arch} spills {spilled} bytes, and has {stack} of stack"
            ));
        }
        // A block that never fits would be found on the card only.
        if usage.registers * variant.tiles.threads() * variant.tiles.blocks > 65_536 {
            wrong(format!(
                "{variant} on sm_{arch}: {} registers leave no room for its blocks",
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

/// Where the file says otherwise. Trials run side by side and share the file.
fn tracked(arch: Arch, told: Vec<String>) -> Result<Vec<String>, String> {
    static FILE: Mutex<()> = Mutex::new(());
    let _alone = FILE.lock().unwrap_or_else(PoisonError::into_inner);
    let path = usage_file();
    let kept = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let of_arch = |line: &&str| line.split(' ').next() == Some(&format!("sm_{arch}"));
    if env::var_os("UPDATE_USAGE").is_some() {
        let others = kept.lines().filter(|line| !of_arch(line)).map(str::to_owned);
        let mut all: Vec<String> = others.chain(told).collect();
        all.sort_by_key(|line| {
            (line.split(' ').next().and_then(|arch| arch[3..].parse::<u32>().ok()), line.clone())
        });
        fs::write(&path, all.join("\n") + "\n").map_err(|e| e.to_string())?;
        return Ok(Vec::new());
    }
    let kept: Vec<&str> = kept.lines().filter(of_arch).collect();
    let new = told
        .iter()
        .filter(|line| !kept.contains(&line.as_str()))
        .map(|line| format!("not in usage.txt: {line}"));
    let old = kept
        .iter()
        .filter(|line| !told.iter().any(|t| t == *line))
        .map(|line| format!("in usage.txt alone: {line}"));
    Ok(new.chain(old).collect())
}

fn usage_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda/usage.txt")
}
