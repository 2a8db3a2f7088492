//! Whether NVIDIA's driver is there and complete.
//!
//! cudarc looks the driver's functions up when they are first called, and panics where one is missing, or the library. So nothing of cudarc is
//! called by this crate before [`check`] has seen them all.

use crate::{Error, error::describe};
use cudarc::driver::{DriverError, result, sys};
use libloading::Library;
use std::{ffi::c_int, sync::OnceLock};

/// In the order in which cudarc tries them.
const NAMES: &[&str] =
    if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so", "libcuda.so.1"] };

/// Every function that this crate calls, through cudarc or by itself. All are in every driver of CUDA 12.
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

/// The oldest driver that takes machine code of CUDA 12's compilers.
const OLDEST: u32 = 12_000;

/// The version of the driver (12040 for CUDA 12.4), which is ready for use after this.
///
/// # Errors
/// [`Error::NoDriver`], [`Error::OldDriver`]. `Ok(None)` where there is a driver and no card.
pub(crate) fn check() -> Result<Option<u32>, Error> {
    static LIBRARY: OnceLock<Result<Library, Error>> = OnceLock::new();
    LIBRARY.get_or_init(|| open(NAMES, FUNCTIONS)).as_ref().map_err(Clone::clone)?;
    let failed = |e: DriverError| Error::NoDriver(format!("it does not start: {}", describe(e)));
    match result::init() {
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => return Ok(None),
        started => started.map_err(failed)?,
    }
    let mut version: c_int = 0;
    // SAFETY: the driver writes one int. That it has the function was seen above.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(failed)?;
    let version = version.max(0) as u32;
    if version < OLDEST { Err(Error::OldDriver(version)) } else { Ok(Some(version)) }
}

/// Opens the first of `names` that there is, and looks for `functions` in it.
fn open(names: &[&str], functions: &[&str]) -> Result<Library, Error> {
    // SAFETY: what the driver does when it is loaded is no more than to set up its own state.
    let library = names.iter().find_map(|name| unsafe { Library::new(*name) }.ok());
    let library = library
        .ok_or_else(|| Error::NoDriver(format!("{} is not on this machine", names.join(" or "))))?;
    let is_missing = |name: &&&str| {
        // SAFETY: the address is only looked for, never called.
        unsafe { library.get::<*const ()>(name.as_bytes()) }.is_err()
    };
    let missing: Vec<&str> = functions.iter().filter(is_missing).copied().collect();
    if missing.is_empty() {
        return Ok(library);
    }
    Err(Error::NoDriver(format!(
        "{} is too old or not whole: it lacks {}",
        names.join(" or "),
        missing.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told() {
        let none =
            open(&["libflashtile-is-nowhere.so"], FUNCTIONS).expect_err("there is no such library");
        assert_eq!(
            none,
            Error::NoDriver("libflashtile-is-nowhere.so is not on this machine".into())
        );
    }

    /// The C library stands for a driver that lacks something.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_library_without_the_functions_is_no_driver() {
        let names = ["libc.so.6"];
        assert!(open(&names, &["malloc"]).is_ok());
        let Err(Error::NoDriver(why)) = open(&names, &["malloc", "cuInit", "cuLaunchKernel"])
        else {
            panic!("the C library is no driver");
        };
        assert!(why.ends_with("it lacks cuInit, cuLaunchKernel"), "{why}");
    }
}
