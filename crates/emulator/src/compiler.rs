use crate::EmulatorError;
use std::collections::hash_map::DefaultHasher;
use std::ffi::OsString;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, io, process};

/// What stands in front of every kernel's text, in this order.
const EMULATION: [&str; 6] = [
    include_str!("../cpp/numbers.hpp"),
    include_str!("../cpp/fiber.hpp"),
    include_str!("../cpp/block.hpp"),
    include_str!("../cpp/warp.hpp"),
    include_str!("../cpp/copy.hpp"),
    include_str!("../cpp/kernel.hpp"),
];

/// Kernels are compiled about as often as they are run, and -O1 is the least sum of both. Contraction would round otherwise than a card, where
/// every fma is written out. Pragmas and unused functions are what the warnings would be about.
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

/// A C++ compiler, and a folder for what it compiled.
#[derive(Clone, Debug)]
pub struct CppCompiler {
    program: OsString,
    flags: Vec<&'static str>,
    version: String,
    cache: PathBuf,
}

impl CppCompiler {
    /// The compiler that the environment variable `CXX` names, else `c++`, `g++` or `clang++`.
    ///
    /// `cache` holds compiled kernels by their content. It may be deleted at any time, and shared by any number of processes.
    ///
    /// # Errors
    /// [`EmulatorError::NoCompiler`] where none of them runs.
    pub fn find(cache: impl Into<PathBuf>) -> Result<Self, EmulatorError> {
        if !cfg!(unix) {
            return Err(EmulatorError::NoCompiler("the emulation is written for Unix".into()));
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

    /// The same compiler, with fibers that any Unix has, where this machine's processor has faster ones.
    pub fn portable(&self) -> Self {
        let mut portable = self.clone();
        portable.flags.push("-DFLASHTILE_EMULATION_UCONTEXT");
        portable
    }

    /// Compiles the emulation and `text` behind it to a shared library, or finds it compiled.
    pub(super) fn compile(&self, what: &str, text: &str) -> Result<PathBuf, EmulatorError> {
        let text = format!("{}\n#line 1\n{text}", EMULATION.concat());
        let mut hasher = DefaultHasher::new();
        (&self.program, &self.flags, &self.version, &text).hash(&mut hasher);
        let path = |name: String| self.cache.join(name);
        let key = format!("{:016x}", hasher.finish());
        let library = path(format!("{key}.so"));
        if library.exists() {
            return Ok(library);
        }
        // Made under names of its own and renamed: others see a whole library or none.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let own = format!("{key}.{}.{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let (source, made) = (path(format!("{key}.cpp")), path(format!("{own}.so")));
        let own_source = path(format!("{own}.cpp"));
        let cached = |path: &Path, result: io::Result<()>| {
            result.map_err(|source| EmulatorError::Cache { path: path.to_owned(), source })
        };
        cached(&self.cache, fs::create_dir_all(&self.cache))?;
        cached(&own_source, fs::write(&own_source, text))?;
        cached(&source, fs::rename(&own_source, &source))?;
        let output = Command::new(&self.program)
            .args(&self.flags)
            .arg("-o")
            .args([&made, &source])
            .stdin(Stdio::null())
            .output()
            .map_err(|error| {
                EmulatorError::NoCompiler(format!("{}: {error}", self.program.display()))
            })?;
        if !output.status.success() {
            let output = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(EmulatorError::Compile { what: what.to_owned(), text: source, output });
        }
        cached(&library, fs::rename(&made, &library))?;
        Ok(library)
    }
}

/// With the instructions of this machine that make an fma more than a call.
fn flags() -> Vec<&'static str> {
    let mut flags = FLAGS.to_vec();
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2") {
        flags.extend(["-mfma", "-mavx2"]);
    }
    flags
}
