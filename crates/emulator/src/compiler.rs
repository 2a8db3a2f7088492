use crate::EmulatorError;
use std::collections::hash_map::DefaultHasher;
use std::ffi::OsString;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, io, process};

/// The files in front of every kernel source, in this order.
const EMULATION: [&str; 7] = [
    include_str!("../cpp/numbers.hpp"),
    include_str!("../cpp/fiber.hpp"),
    include_str!("../cpp/block.hpp"),
    include_str!("../cpp/sums.hpp"),
    include_str!("../cpp/warp.hpp"),
    include_str!("../cpp/copy.hpp"),
    include_str!("../cpp/kernel.hpp"),
];

/// Compiling and running a kernel take similar times, and -O1 gives the smallest sum of both.
/// Contraction would round differently from a GPU, where the source writes every fma explicitly.
/// Warnings would be about pragmas and unused functions.
const FLAGS: [&str; 8] = [
    "-std=c++17",
    "-O1",
    "-fPIC",
    "-shared",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-pthread",
    "-w",
];

/// A C++ compiler, and a folder for the kernels that it compiled.
#[derive(Clone, Debug)]
pub struct CppCompiler {
    program: OsString,
    flags: Vec<&'static str>,
    version: String,
    cache: PathBuf,
}

impl CppCompiler {
    /// The compiler that the environment variable `CXX` names; otherwise `c++`, `g++` or `clang++`.
    ///
    /// `cache` holds compiled kernels under a hash of their source. It may be deleted at any time,
    /// and several processes may share it.
    ///
    /// # Errors
    /// [`EmulatorError::NoCompiler`] if none of them runs.
    pub fn find(cache: impl Into<PathBuf>) -> Result<Self, EmulatorError> {
        if !cfg!(unix) {
            return Err(EmulatorError::NoCompiler("the emulator supports Unix only".into()));
        }
        let named = env::var_os("CXX").filter(|name| !name.is_empty());
        let programs = named.map_or_else(
            || ["c++", "g++", "clang++"].map(OsString::from).to_vec(),
            |name| vec![name],
        );
        let mut tried = Vec::new();
        for program in programs {
            match Command::new(&program).arg("--version").stdin(Stdio::null()).output() {
                Ok(output) if output.status.success() => {
                    let version = String::from_utf8_lossy(&output.stdout).into_owned();
                    return Ok(Self { program, flags: flags(), version, cache: cache.into() });
                }
                Ok(output) => {
                    tried.push(format!("{} --version: {}", program.display(), output.status))
                }
                Err(error) => tried.push(format!("{}: {error}", program.display())),
            }
        }
        Err(EmulatorError::NoCompiler(tried.join("; ")))
    }

    /// The same compiler, with the fibers that work on every Unix even where this processor has
    /// faster ones.
    pub fn portable(&self) -> Self {
        let mut portable = self.clone();
        portable.flags.push("-DFLASHTILE_EMULATION_UCONTEXT");
        portable
    }

    /// Compiles the emulation followed by `source` to a shared library, unless the cache has it.
    pub(crate) fn compile(&self, kernel: &str, source: &str) -> Result<PathBuf, EmulatorError> {
        let source = format!("{}\n#line 1\n{source}", EMULATION.concat());
        let mut hasher = DefaultHasher::new();
        (&self.program, &self.flags, &self.version, &source).hash(&mut hasher);
        let path = |name: String| self.cache.join(name);
        let key = format!("{:016x}", hasher.finish());
        let library = path(format!("{key}.so"));
        if library.exists() {
            return Ok(library);
        }
        // Files are written under names of their own and renamed, so that other processes see a
        // complete file or none.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let own = format!("{key}.{}.{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let (source_file, own_source) = (path(format!("{key}.cpp")), path(format!("{own}.cpp")));
        let own_library = path(format!("{own}.so"));
        let cached = |path: &Path, result: io::Result<()>| {
            result.map_err(|source| EmulatorError::Cache { path: path.to_owned(), source })
        };
        cached(&self.cache, fs::create_dir_all(&self.cache))?;
        cached(&own_source, fs::write(&own_source, source))?;
        cached(&source_file, fs::rename(&own_source, &source_file))?;
        let output = Command::new(&self.program)
            .args(&self.flags)
            .arg("-o")
            .args([&own_library, &source_file])
            .stdin(Stdio::null())
            .output()
            .map_err(|error| {
                EmulatorError::NoCompiler(format!("{}: {error}", self.program.display()))
            })?;
        if !output.status.success() {
            let output = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(EmulatorError::Compile { kernel: kernel.to_owned(), source_file, output });
        }
        cached(&library, fs::rename(&own_library, &library))?;
        Ok(library)
    }
}

/// [`FLAGS`], and the instructions of this machine that make an fma faster than a library call.
fn flags() -> Vec<&'static str> {
    let mut flags = FLAGS.to_vec();
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2") {
        flags.extend(["-mfma", "-mavx2"]);
    }
    flags
}
