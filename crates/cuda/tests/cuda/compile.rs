//! Compiles every kernel for every generation of GPUs. This needs no GPU.
//!
//! `usage.txt` lists the resources of each variant, so that the diff of a change shows the registers
//! that it costs. Registers depend on the compiler's version, so the file binds only the versions
//! that `scripts/fetch-nvrtc` installs. The rules bind every version.
//!
//! All variants take an hour of CPU time to compile. The file therefore holds, for each kernel, a
//! hash of the sources of its variants without comments. The variants of a kernel that has changed
//! are all compiled, and one variant in [`SAMPLE`] of the others. UPDATE_USAGE=1 does the same and
//! rewrites the file; UPDATE_USAGE=all compiles everything.

use crate::ignored;
use flashtile_cuda::{Arch, CudaVariant, Usage, compile, compiler_version};
use flashtile_shaders::cuda::shared_limit;
use libtest_mimic::{Failed, Trial};
use std::{
    collections::{BTreeMap, HashMap},
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::{Mutex, PoisonError},
};

/// The variable that makes a process compile for one architecture. Each architecture has a process
/// of its own, because NVRTC serialises the compilations of one process.
pub(crate) const ARCH: &str = "FLASHTILE_COMPILE_FOR";

/// The variable that lists, separated by commas, the kernels of which such a process compiles every
/// variant.
const CHANGED: &str = "FLASHTILE_COMPILE_CHANGED";

/// Of the variants of unchanged kernels, one in so many is compiled.
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

/// Compiles in another process, which prints one line per variant, and compares these with the file.
fn every_kernel(arch: Arch) -> Result<(), Failed> {
    let version = compiler_version(arch).map_err(|e| e.to_string())?;
    let program = env::current_exe().map_err(|e| e.to_string())?;
    let record = Record::read(arch, version)?;
    let output = Command::new(program)
        .env(ARCH, arch.to_string())
        .env(CHANGED, record.changed().join(","))
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
        failures.extend(record.compare(&usages, failures.is_empty())?);
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n").into()) }
}

/// Compiles variants that fit GPUs of `arch`. Prints usages on stdout and failures on stderr.
pub(crate) fn compile_all(arch: &str) -> ExitCode {
    let arch: Arch = arch.parse().unwrap();
    let mut failed = false;
    let mut fail = |message: String| {
        eprintln!("{message}");
        failed = true;
    };
    let changed = env::var(CHANGED).unwrap_or_default();
    let is_changed =
        |variant: &CudaVariant| changed.split(',').any(|kernel| kernel == kernel_of(variant));
    let numbered = variants(arch).enumerate();
    for (_, variant) in numbered.filter(|(n, variant)| n % SAMPLE == 0 || is_changed(variant)) {
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

/// Every variant for GPUs of `arch`.
fn variants(arch: Arch) -> impl Iterator<Item = CudaVariant> {
    CudaVariant::all().filter(move |variant| variant.fits(arch, shared_limit(arch)))
}

/// The kernel of a variant: its operation, and the units that it is written for.
fn kernel_of(variant: &CudaVariant) -> String {
    format!("{} {}", variant.operation, variant.tiles.engine.name())
}

/// A hash of the variant's source without comments, continued from `hash`. It is FNV-1a, because
/// the standard library may change its own.
fn hash_source(hash: u64, variant: &CudaVariant) -> u64 {
    let source = variant.source();
    let code = source.lines().map(|line| line.split("//").next().unwrap_or_default().trim());
    let text = variant.to_string() + &code.collect::<String>();
    text.bytes().fold(hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3))
}

/// What the file says about one architecture.
struct Record {
    arch: Arch,
    /// For each kernel, the line about the sources that its variants have now.
    sources: BTreeMap<String, String>,
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
        let mut hashes: BTreeMap<String, u64> = BTreeMap::new();
        for variant in variants(arch) {
            let hash = hashes.entry(kernel_of(&variant)).or_insert(0xCBF2_9CE4_8422_2325);
            *hash = hash_source(*hash, &variant);
        }
        let line = |(kernel, hash): (String, u64)| {
            let of = format!("sm_{arch} sources of {kernel}");
            (kernel, format!("{of}: {hash:016x}, compiled by NVRTC {major}.{minor}"))
        };
        let file = read_file()?;
        let lines = file.lines().filter(|line| is_about(line, arch)).map(str::to_owned).collect();
        Ok(Self { arch, sources: hashes.into_iter().map(line).collect(), lines })
    }

    /// Whether the file was written for the sources and the compiler that a kernel has now.
    fn describes(&self, kernel: &str) -> bool {
        let all = env::var_os("UPDATE_USAGE").is_some_and(|value| value == "all");
        !all && self.sources.get(kernel).is_some_and(|line| self.lines.contains(line))
    }

    /// The kernels that the file does not describe.
    fn changed(&self) -> Vec<String> {
        self.sources.keys().filter(|kernel| !self.describes(kernel)).cloned().collect()
    }

    /// The lines that the file should have: the usages of changed kernels, what it says about the
    /// others, and the sources. Sources that break a rule stay undescribed, so that all of them are
    /// compiled every time.
    fn expected(&self, usages: &[String], keeps_rules: bool) -> Vec<String> {
        let kernels: HashMap<String, String> =
            variants(self.arch).map(|v| (format!("sm_{} {v}", self.arch), kernel_of(&v))).collect();
        let kernel = |line: &str| kernels.get(line.split(':').next().unwrap_or_default());
        let is_new = |line: &&String| kernel(line).is_some_and(|of| !self.describes(of));
        let is_kept = |line: &&String| kernel(line).is_some_and(|of| self.describes(of));
        let kept = self.lines.iter().filter(is_kept);
        let sources = self.sources.iter();
        let sources = sources.filter(|(kernel, _)| keeps_rules || self.describes(kernel));
        let sources = sources.map(|(_, line)| line);
        usages.iter().filter(is_new).chain(kept).chain(sources).cloned().collect()
    }

    /// The differences of the usages from the file, which this rewrites if UPDATE_USAGE is set.
    fn compare(&self, usages: &[String], keeps_rules: bool) -> Result<Vec<String>, String> {
        let expected = self.expected(usages, keeps_rules);
        if env::var_os("UPDATE_USAGE").is_some() {
            self.write(&expected)?;
            return Ok(Vec::new());
        }
        let new = usages.iter().chain(&expected).filter(|line| !self.lines.contains(line));
        let old = self.lines.iter().filter(|line| !expected.contains(line));
        let mut differences: Vec<_> = new
            .map(|line| format!("not in usage.txt: {line}"))
            .chain(old.map(|line| format!("only in usage.txt: {line}")))
            .collect();
        differences.sort();
        differences.dedup();
        let (listed, all) = (self.lines.len(), variants(self.arch).count() + self.sources.len());
        if differences.is_empty() && listed != all {
            differences.push(format!("usage.txt has {listed} of {all} lines"));
        }
        Ok(differences)
    }

    fn write(&self, lines: &[String]) -> Result<(), String> {
        let _guard = FILE.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = read_file()?;
        let others = kept.lines().filter(|line| !is_about(line, self.arch)).map(str::to_owned);
        let mut all: Vec<String> = others.chain(lines.iter().cloned()).collect();
        all.sort_by_key(|line| {
            (line.split(' ').next().and_then(|arch| arch[3..].parse::<u32>().ok()), line.clone())
        });
        fs::write(usage_file(), all.join("\n") + "\n").map_err(|e| e.to_string())
    }
}

fn usage_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda/usage.txt")
}
