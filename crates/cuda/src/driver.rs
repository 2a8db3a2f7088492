//! Checks that NVIDIA's driver is installed and complete.
//!
//! cudarc looks up each driver function when it is first called, and panics if the function or the
//! library is missing. So this crate calls nothing of cudarc before [`check`] has found all of
//! them.

use crate::{Error, error::describe};
use cudarc::driver::{DriverError, result, sys};
use libloading::Library;
use std::{ffi::c_int, sync::OnceLock};

/// File names of the driver, in the order in which cudarc tries them.
const NAMES: &[&str] =
    if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so", "libcuda.so.1"] };

/// Every function that this crate calls, directly or through cudarc. Every driver for CUDA 12 has
/// all of them.
const FUNCTIONS: &[&str] = &[
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAllocAsync",
    "cuMemAlloc_v2",
    "cuMemFreeAsync",
    "cuMemFree_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamIsCapturing",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

/// The oldest driver that accepts machine code from CUDA 12's compilers.
const OLDEST: u32 = 12_000;

/// The version of the driver (12040 for CUDA 12.4), or `None` if it finds no GPU. Initialises the
/// driver.
///
/// # Errors
/// [`Error::NoDriver`], [`Error::OldDriver`].
pub(crate) fn check() -> Result<Option<u32>, Error> {
    static LIBRARY: OnceLock<Result<Library, Error>> = OnceLock::new();
    LIBRARY.get_or_init(|| open(NAMES, FUNCTIONS)).as_ref().map_err(Clone::clone)?;
    let failed =
        |e: DriverError| Error::NoDriver(format!("it does not initialise: {}", describe(e)));
    match result::init() {
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => return Ok(None),
        started => started.map_err(failed)?,
    }
    let mut version: c_int = 0;
    // SAFETY: the driver writes one int. `open` found the function.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(failed)?;
    let version = version.max(0) as u32;
    if version < OLDEST { Err(Error::OldDriver(version)) } else { Ok(Some(version)) }
}

/// Opens the first of `names` that exists, and looks up `functions` in it.
fn open(names: &[&str], functions: &[&str]) -> Result<Library, Error> {
    // SAFETY: on loading, the driver only sets up its own state.
    let library = names.iter().find_map(|name| unsafe { Library::new(*name) }.ok());
    let library =
        library.ok_or_else(|| Error::NoDriver(format!("cannot open {}", names.join(" or "))))?;
    let is_missing = |name: &&&str| {
        // SAFETY: the address is only looked up, never called.
        unsafe { library.get::<*const ()>(name.as_bytes()) }.is_err()
    };
    let missing: Vec<&str> = functions.iter().filter(is_missing).copied().collect();
    if missing.is_empty() {
        return Ok(library);
    }
    Err(Error::NoDriver(format!(
        "{} is too old or incomplete: it lacks {}",
        names.join(" or "),
        missing.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_reported() {
        let none =
            open(&["libflashtile-is-nowhere.so"], FUNCTIONS).expect_err("no library has this name");
        assert_eq!(none, Error::NoDriver("cannot open libflashtile-is-nowhere.so".into()));
    }

    /// The C library takes the place of an incomplete driver.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_library_without_the_functions_is_no_driver() {
        let names = ["libc.so.6"];
        assert!(open(&names, &["malloc"]).is_ok());
        let Err(Error::NoDriver(why)) = open(&names, &["malloc", "cuInit", "cuLaunchKernel"])
        else {
            panic!("the C library was accepted as a driver");
        };
        assert!(why.ends_with("it lacks cuInit, cuLaunchKernel"), "{why}");
    }
}
