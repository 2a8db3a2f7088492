use crate::{Context, Error, Machine, compiler, driver, error::describe, machine};
use cudarc::driver::{CudaContext, DriverError, result};
use flashtile_core::DeviceChoice;

/// A GPU of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceEntry {
    /// Its number, which distinguishes identical GPUs. `CUDA_VISIBLE_DEVICES` changes it.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// What planning needs to know: compute capability, memory, multiprocessors and so on.
    pub machine: Machine,
}

/// Every GPU of this machine, in the driver's order; none if the driver finds none.
///
/// # Errors
/// [`Error::NoDriver`], [`Error::OldDriver`].
pub fn devices() -> Result<Vec<DeviceEntry>, Error> {
    if driver::check()?.is_none() {
        return Ok(Vec::new());
    }
    let failed = |e: DriverError| Error::of_driver(e, "the list of GPUs");
    let count = result::device::get_count().map_err(failed)?.max(0) as usize;
    (0..count).map(|index| entry(index).map_err(failed)).collect()
}

fn entry(index: usize) -> Result<DeviceEntry, DriverError> {
    let device = result::device::get(index as i32)?;
    // SAFETY: the handle is the driver's own.
    let attribute = |attribute| unsafe { result::device::get_attribute(device, attribute) };
    // SAFETY: as above.
    let memory = unsafe { result::device::total_mem(device)? };
    let machine = machine::query(attribute, memory as u64)?;
    Ok(DeviceEntry { index, name: result::device::get_name(device)?, machine })
}

impl DeviceEntry {
    /// Major and minor version of the NVRTC that compiles for this GPU and its driver.
    ///
    /// # Errors
    /// [`Error::NoCompiler`].
    pub fn compiler_version(&self) -> Result<(u32, u32), Error> {
        let driver = driver::check()?.map(|version| version / 1000);
        Ok(compiler::find(self.machine.arch, driver)?.version)
    }
}

/// Opens a GPU for a program without a CUDA context: in its primary context, which other libraries
/// of the process use too, and with the default stream.
///
/// # Errors
/// [`Error::NoDriver`], [`Error::OldDriver`], [`Error::NoDevice`].
pub fn open(choice: &DeviceChoice) -> Result<Context, Error> {
    let no_device = |reason| Error::NoDevice { wanted: choice.clone(), reason };
    let found = devices()?;
    let Some(device) = found.iter().find(|device| choice.allows(device.index, &device.name)) else {
        let names: Vec<_> = found.iter().map(|device| device.name.clone()).collect();
        return Err(no_device(if names.is_empty() {
            "the driver finds none".to_owned()
        } else {
            choice.not_among(&names)
        }));
    };
    let context = CudaContext::new(device.index)
        .map_err(|e| no_device(format!("{} does not open: {}", device.name, describe(e))))?;
    Context::new(context.default_stream())
}
