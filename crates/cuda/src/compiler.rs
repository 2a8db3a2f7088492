//! Compiles variants to machine code with NVRTC. This needs no GPU.

use crate::{
    Error,
    cache::{Cache, Entry},
    library,
    nvrtc::{Code, Nvrtc, Output},
};
use flashtile_shaders::cuda::{Arch, CudaVariant};
use std::sync::Arc;

/// The machine code of a variant.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Compiled {
    /// The compute capability that it is for: the requested one, or else the newest one below it
    /// that the compiler supports in the same family.
    pub arch: Arch,
    /// The machine code, an ELF file.
    pub cubin: Vec<u8>,
    /// The compiler's log.
    pub log: String,
    /// Major and minor version of NVRTC.
    pub compiler: (u32, u32),
}

/// The resources that a kernel uses, as reported by the assembler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Registers per thread.
    pub registers: u32,
    /// Bytes of stack per thread.
    pub stack_bytes: u32,
    /// Bytes per thread that are written to memory because registers ran out.
    pub spill_store_bytes: u32,
    /// Bytes per thread that are read back from there.
    pub spill_load_bytes: u32,
    /// Bytes of shared memory per block that the kernel source declares. Dynamic shared memory
    /// ([`CudaVariant::shared_bytes`]) is not included.
    pub static_shared_bytes: u32,
}

impl Compiled {
    /// The resources that the kernel uses, read from the log; `None` if the log lacks them.
    pub fn usage(&self) -> Option<Usage> {
        Usage::from_log(&self.log)
    }
}

impl Usage {
    /// Reads lines like `0 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads` and
    /// `Used 40 registers, used 1 barriers, 16 bytes smem`.
    fn from_log(log: &str) -> Option<Self> {
        let number = |what: &str, before: bool| {
            let mut words = log.lines().flat_map(|line| line.split([',', ':'])).map(str::trim);
            words.find_map(|text| match before {
                true => text.strip_suffix(what)?.split_whitespace().last()?.parse::<u32>().ok(),
                false => text.strip_prefix(what)?.split_whitespace().next()?.parse().ok(),
            })
        };
        Some(Self {
            registers: number("Used", false)?,
            stack_bytes: number("bytes stack frame", true).unwrap_or(0),
            spill_store_bytes: number("bytes spill stores", true).unwrap_or(0),
            spill_load_bytes: number("bytes spill loads", true).unwrap_or(0),
            static_shared_bytes: number("bytes smem", true).unwrap_or(0),
        })
    }
}

/// Compiles `variant` for GPUs of compute capability `arch` (75 for 7.5), with the newest NVRTC on
/// this machine that supports them. Needs neither a GPU nor a driver.
///
/// If `FLASHTILE_NVRTC` is set, it is the path of the only library that is tried. Otherwise NVRTC
/// is searched for in CUDA toolkits, on the library path and in Python's packages.
///
/// # Errors
/// [`Error::NoCompiler`], [`Error::Compile`].
pub fn compile(variant: &CudaVariant, arch: Arch) -> Result<Compiled, Error> {
    let nvrtc = find(arch, None)?;
    compile_with(&nvrtc, variant, arch, &Cache::none())
}

/// Major and minor version of the NVRTC that [`compile`] uses for `arch`.
///
/// # Errors
/// [`Error::NoCompiler`].
pub fn compiler_version(arch: Arch) -> Result<(u32, u32), Error> {
    Ok(find(arch, None)?.version)
}

/// The kernels' lambdas carry no `__device__`; this makes the device the default.
const DEVICE_LAMBDAS: &str = "--device-as-default-execution-space";

/// Compiles `variant` to PTX, the assembly language from which machine code is made, for GPUs of
/// compute capability `arch`. Otherwise as [`compile`].
///
/// # Errors
/// [`Error::NoCompiler`], [`Error::Compile`].
pub fn compile_to_ptx(variant: &CudaVariant, arch: Arch) -> Result<String, Error> {
    let nvrtc = find(arch, None)?;
    let (code, _) =
        run(&nvrtc, variant, arch, &variant.source(), &options("compute", arch), Code::Ptx)?;
    Ok(String::from_utf8_lossy(&code).trim_end_matches('\0').to_owned())
}

fn options(kind: &str, arch: Arch) -> Vec<String> {
    vec![
        format!("--gpu-architecture={kind}_{arch}"),
        "--std=c++17".to_owned(),
        DEVICE_LAMBDAS.to_owned(),
    ]
}

/// Compiles `variant`, unless `cache` contains it.
pub(crate) fn compile_with(
    nvrtc: &Nvrtc,
    variant: &CudaVariant,
    arch: Arch,
    cache: &Cache,
) -> Result<Compiled, Error> {
    let unknown = || failed(variant, arch, format!("{} does not support it", nvrtc.path.display()));
    let target = nvrtc.target(arch).ok_or_else(unknown)?;
    let mut options = options("sm", target);
    options.push("--ptxas-options=-v".to_owned());
    let source = variant.source();
    let (major, minor) = nvrtc.version;
    let key = format!("NVRTC {major}.{minor}\n{}\n{source}", options.join(" "));
    let name = format!("{}-sm_{target}", variant.entry_point());
    let entry = cache.get_or_build(&name, &key, || {
        let compiled = run(nvrtc, variant, arch, &source, &options, Code::Machine);
        compiled.map(|(cubin, log)| Entry { cubin, log })
    })?;
    Ok(Compiled { arch: target, cubin: entry.cubin, log: entry.log, compiler: nvrtc.version })
}

fn failed(variant: &CudaVariant, arch: Arch, message: String) -> Error {
    Error::Compile { variant: variant.to_string(), arch, message }
}

/// The code and the compiler's log.
fn run(
    nvrtc: &Nvrtc,
    variant: &CudaVariant,
    arch: Arch,
    source: &str,
    options: &[String],
    to: Code,
) -> Result<(Vec<u8>, String), Error> {
    let output = nvrtc.compile(source, &format!("{}.cu", variant.entry_point()), options, to);
    match output.map_err(|message| failed(variant, arch, message))? {
        Output { code: Some(code), log } => Ok((code, log)),
        Output { code: None, log } => Err(failed(variant, arch, log)),
    }
}

/// The best NVRTC for `arch`: the one that compiles for the nearest compute capability, and among
/// those the newest. Drivers accept machine code from compilers of their own major version and of
/// older ones only.
pub(crate) fn find(arch: Arch, driver_major: Option<u32>) -> Result<Arc<Nvrtc>, Error> {
    let opened: Vec<_> =
        library::candidates().into_iter().map(|path| (Nvrtc::open(&path), path)).collect();
    let found: Vec<&Arc<Nvrtc>> =
        opened.iter().filter_map(|(nvrtc, _)| nvrtc.as_ref().ok()).collect();
    let suits = |nvrtc: &Nvrtc| driver_major.is_none_or(|driver| nvrtc.version.0 <= driver);
    let best = found
        .iter()
        .filter(|nvrtc| suits(nvrtc) && nvrtc.target(arch).is_some())
        .max_by_key(|nvrtc| (nvrtc.target(arch), nvrtc.version));
    if let Some(best) = best {
        return Ok(Arc::clone(best));
    }
    let reason = match (&found[..], std::env::var_os(library::OVERRIDE)) {
        ([], Some(path)) if !path.is_empty() => {
            let why = opened.into_iter().find_map(|(nvrtc, _)| nvrtc.err()).unwrap_or_default();
            format!("FLASHTILE_NVRTC names {}, which does not open ({why})", path.display())
        }
        ([], _) => {
            "found no NVRTC in CUDA toolkits, on the library path or in Python packages".to_owned()
        }
        (found, _) => {
            unfit(found, driver_major.filter(|_| !found.iter().all(|nvrtc| suits(nvrtc))))
        }
    };
    Err(Error::NoCompiler { arch, reason, command: install_command(arch, driver_major) })
}

/// Describes what was found instead, each version once. `driver` is the driver's major version of
/// CUDA if some of the compilers are too new for it.
fn unfit(found: &[&Arc<Nvrtc>], driver: Option<u32>) -> String {
    let mut versions: Vec<&Arc<Nvrtc>> = Vec::new();
    for nvrtc in found {
        if versions.iter().all(|other| other.version != nvrtc.version) {
            versions.push(nvrtc);
        }
    }
    let describe = |nvrtc: &&Arc<Nvrtc>| {
        let (major, minor) = nvrtc.version;
        let archs = nvrtc.archs.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        format!("NVRTC {major}.{minor} at {} compiles for {archs}", nvrtc.path.display())
    };
    let described = versions.iter().map(describe).collect::<Vec<_>>().join(", ");
    match driver {
        Some(major) => format!(
            "{described}; the driver supports CUDA {major} and accepts no code of newer compilers"
        ),
        None => described,
    }
}

/// CUDA 13's compilers support compute capability 7.5 and newer, and their machine code needs a
/// driver for CUDA 13.
fn install_command(arch: Arch, driver_major: Option<u32>) -> &'static str {
    if arch < 75 || driver_major.is_some_and(|major| major < 13) {
        "pip install nvidia-cuda-nvrtc-cu12"
    } else {
        "pip install nvidia-cuda-nvrtc"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_read_from_the_log() {
        let log = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'flash_forward' for 'sm_90'\n\
            ptxas info    : Function properties for flash_forward\n\
            \x20   16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads\n\
            ptxas info    : Used 168 registers, used 1 barriers, 16 bytes cumulative stack size, \
            128 bytes smem";
        let expected = Usage {
            registers: 168,
            stack_bytes: 16,
            spill_store_bytes: 12,
            spill_load_bytes: 8,
            static_shared_bytes: 128,
        };
        assert_eq!(Usage::from_log(log), Some(expected));
        assert_eq!(Usage::from_log("no such thing"), None);
    }

    #[test]
    fn the_command_suits_the_gpu_and_the_driver() {
        assert!(install_command(70, Some(13)).ends_with("-cu12"));
        assert!(install_command(90, Some(12)).ends_with("-cu12"));
        assert!(install_command(90, Some(13)).ends_with("nvrtc"));
        assert!(install_command(120, None).ends_with("nvrtc"));
    }
}
