//! Compiles every kernel for every generation of GPUs. This needs no GPU.
//!
//! `usage.txt` lists the resources of each kernel, so that the diff of a change shows the registers
//! that it costs. UPDATE_USAGE=1 rewrites the file. Registers depend on the compiler's version, so
//! the file binds only the versions that `scripts/fetch-nvrtc` installs. The rules bind every
//! version.
//!
//! All kernels take an hour of CPU time to compile. The file therefore holds a hash of the sources
//! that it describes. Where nothing has changed, one kernel in [`SAMPLE`] is compiled.

use crate::ignored;
use flashtile_cuda::{Arch, CudaVariant, Usage, compile, compiler_version};
use flashtile_shaders::cuda::shared_limit;
use libtest_mimic::{Failed, Trial};
use std::{
    env, fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::{Mutex, PoisonError},
};

/// The variable that makes a process compile for one architecture. Each architecture has a process
/// of its own, because NVRTC serialises the compilations of one process.
pub(crate) const ARCH: &str = "FLASHTILE_COMPILE_FOR";

/// The variable that makes such a process compile one kernel in so many.
const EACH: &str = "FLASHTILE_COMPILE_EACH";

/// Of unchanged kernels, one in so many is compiled.
const SAMPLE: usize = 16;

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
    let record = Record::read(arch, version)?;
    let each = if record.describes_sources() { SAMPLE } else { 1 };
    let output = Command::new(program)
        .env(ARCH, arch.to_string())
        .env(EACH, each.to_string())
        .output()
        .map_err(|e| e.to_string())?;
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
        // Sources that break a rule stay undescribed, so that all of them are compiled every time.
        if failures.is_empty() {
            usages.push(record.sources.clone());
        }
        failures.extend(record.compare(usages, each)?);
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
    let each = env::var(EACH).ok().and_then(|each| each.parse().ok()).unwrap_or(1);
    for variant in variants(arch).step_by(each) {
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

/// Every kernel for GPUs of `arch`.
fn variants(arch: Arch) -> impl Iterator<Item = CudaVariant> {
    CudaVariant::all().filter(move |variant| variant.fits(arch, shared_limit(arch)))
}

/// What the file says about one architecture.
struct Record {
    arch: Arch,
    /// The line about the sources that kernels have now.
    sources: String,
    lines: Vec<String>,
}

/// Trials run in parallel and share the file.
static FILE: Mutex<()> = Mutex::new(());

fn read_file() -> Result<String, String> {
    let path = usage_file();
    fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))
}

fn is_about(line: &str, arch: Arch) -> bool {
    line.split(' ').next() == Some(&format!("sm_{arch}"))
}

impl Record {
    fn read(arch: Arch, (major, minor): (u32, u32)) -> Result<Self, String> {
        let _guard = FILE.lock().unwrap_or_else(PoisonError::into_inner);
        // Should the standard library ever hash in another way, all kernels are compiled again.
        let mut hasher = DefaultHasher::new();
        for variant in variants(arch) {
            (variant.to_string(), variant.source()).hash(&mut hasher);
        }
        let hash = hasher.finish();
        let sources = format!("sm_{arch} sources: {hash:016x}, compiled by NVRTC {major}.{minor}");
        let file = read_file()?;
        let lines = file.lines().filter(|line| is_about(line, arch)).map(str::to_owned).collect();
        Ok(Self { arch, sources, lines })
    }

    /// Whether the file was written for the sources and the compiler that are here now. If it is to
    /// be rewritten, it does not count.
    fn describes_sources(&self) -> bool {
        env::var_os("UPDATE_USAGE").is_none() && self.lines.contains(&self.sources)
    }

    /// The differences of the usages of one kernel in `each` from the file, which this rewrites if
    /// UPDATE_USAGE is set.
    fn compare(&self, usages: Vec<String>, each: usize) -> Result<Vec<String>, String> {
        if env::var_os("UPDATE_USAGE").is_some() {
            self.write(usages)?;
            return Ok(Vec::new());
        }
        let new = usages
            .iter()
            .filter(|line| !self.lines.contains(line))
            .map(|line| format!("not in usage.txt: {line}"));
        let old = self
            .lines
            .iter()
            .filter(|line| each == 1 && !usages.contains(line))
            .map(|line| format!("only in usage.txt: {line}"));
        let mut differences: Vec<_> = new.chain(old).collect();
        let listed = self.lines.iter().filter(|line| **line != self.sources).count();
        let kernels = variants(self.arch).count();
        if each > 1 && listed != kernels {
            differences.push(format!("usage.txt has {listed} of {kernels} kernels"));
        }
        Ok(differences)
    }

    fn write(&self, usages: Vec<String>) -> Result<(), String> {
        let _guard = FILE.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = read_file()?;
        let others = kept.lines().filter(|line| !is_about(line, self.arch)).map(str::to_owned);
        let mut all: Vec<String> = others.chain(usages).collect();
        all.sort_by_key(|line| {
            (line.split(' ').next().and_then(|arch| arch[3..].parse::<u32>().ok()), line.clone())
        });
        fs::write(usage_file(), all.join("\n") + "\n").map_err(|e| e.to_string())
    }
}

fn usage_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda/usage.txt")
}
