use crate::{Context, Error, Machine, compiler, driver, error::describe};
use cudarc::driver::{CudaContext, DriverError, result, sys::CUdevice_attribute as Attribute};
use flashtile_shaders::cuda::Arch;
use std::fmt;

/// A card of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceEntry {
    /// Its number: what tells two identical cards apart. `CUDA_VISIBLE_DEVICES` changes it.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// What planning looks at: compute capability, memory, multiprocessors and so on.
    pub machine: Machine,
}

/// Which card to open. The default is the first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceChoice {
    /// Its number in [`devices`]. With a name too, the card there has to have it.
    pub index: Option<usize>,
    /// Part of the name, any case.
    pub name: Option<String>,
}

/// Every card of this machine, in the driver's order: none where the driver finds none.
///
/// # Errors
/// [`Error::NoDriver`], [`Error::OldDriver`].
pub fn devices() -> Result<Vec<DeviceEntry>, Error> {
    if driver::check()?.is_none() {
        return Ok(Vec::new());
    }
    let failed = |e: DriverError| Error::of_driver(e, "the list of cards");
    let count = result::device::get_count().map_err(failed)?.max(0) as usize;
    (0..count).map(|index| entry(index).map_err(failed)).collect()
}

fn entry(index: usize) -> Result<DeviceEntry, DriverError> {
    let device = result::device::get(index as i32)?;
    // SAFETY: the handle is the driver's own.
    let attribute = |attribute| unsafe { result::device::get_attribute(device, attribute) };
    // SAFETY: as above.
    let memory = unsafe { result::device::total_mem(device)? };
    let machine = machine(attribute, memory as u64)?;
    Ok(DeviceEntry { index, name: result::device::get_name(device)?, machine })
}

/// The numbers of a card, asked for one by one.
pub(crate) fn machine(
    attribute: impl Fn(Attribute) -> Result<i32, DriverError>,
    memory: u64,
) -> Result<Machine, DriverError> {
    let number = |asked| attribute(asked).map(|n| n.max(0) as u32);
    let major: Arch = number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor: Arch = number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let always = number(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK)?;
    let at_most = number(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
    Ok(Machine {
        arch: 10 * major + minor,
        shared_limit: always.max(at_most),
        multiprocessors: number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory,
        watchdog: number(Attribute::CU_DEVICE_ATTRIBUTE_KERNEL_EXEC_TIMEOUT)? != 0,
    })
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

impl DeviceChoice {
    fn allows(&self, device: &DeviceEntry) -> bool {
        let part = |wanted: &String| device.name.to_lowercase().contains(&wanted.to_lowercase());
        self.index.is_none_or(|wanted| wanted == device.index)
            && self.name.as_ref().is_none_or(part)
    }
}

/// As it follows "card": ` with number 1 named like `x``, or nothing.
impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(index) = self.index {
            write!(f, " with number {index}")?;
        }
        if let Some(name) = &self.name {
            write!(f, " named like `{name}`")?;
        }
        Ok(())
    }
}

/// Opens a GPU for a program that owns no context: on its primary context, which other libraries
/// of the process use too, and on the default stream.
///
/// # Errors
/// [`Error::NoDriver`], [`Error::OldDriver`], [`Error::NoDevice`].
pub fn open(choice: &DeviceChoice) -> Result<Context, Error> {
    let no_device = |reason| Error::NoDevice { wanted: choice.clone(), reason };
    let found = devices()?;
    let Some(device) = found.iter().find(|device| choice.allows(device)) else {
        let names: Vec<_> =
            found.iter().map(|device| format!("{}: {}", device.index, device.name)).collect();
        return Err(no_device(match names.len() {
            0 => "the driver finds none".to_owned(),
            _ => format!("there is {}", names.join(", ")),
        }));
    };
    let context = CudaContext::new(device.index)
        .map_err(|e| no_device(format!("{} does not open: {}", device.name, describe(e))))?;
    Context::new(context.default_stream())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_chosen_by_number_and_name() {
        let card = |index, name: &str| DeviceEntry {
            index,
            name: name.into(),
            machine: Machine::of_arch(90),
        };
        let cards = [card(0, "NVIDIA H100"), card(1, "NVIDIA L4"), card(2, "NVIDIA L4")];
        let chosen = |index, name: Option<&str>| {
            let choice = DeviceChoice { index, name: name.map(str::to_owned) };
            cards.iter().position(|card| choice.allows(card))
        };
        assert_eq!(chosen(None, None), Some(0));
        assert_eq!(chosen(None, Some("l4")), Some(1));
        assert_eq!(chosen(Some(2), Some("l4")), Some(2));
        assert_eq!(chosen(Some(0), Some("l4")), None);
        assert_eq!(chosen(Some(3), None), None);
    }

    #[test]
    fn a_card_is_described_by_its_attributes() {
        let attribute = |asked| {
            Ok(match asked {
                Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR => 12,
                Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR => 1,
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK => 48 << 10,
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN => 99 << 10,
                Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT => 48,
                _ => 1,
            })
        };
        let machine = machine(attribute, 7).expect("described");
        let expected = Machine {
            arch: 121,
            shared_limit: 99 << 10,
            multiprocessors: 48,
            memory: 7,
            watchdog: true,
        };
        assert_eq!(machine, expected);
    }
}
