use cudarc::driver::{DriverError, sys::CUdevice_attribute as Attribute};
use flashtile_shaders::cuda::{Arch, shared_limit, tf32_rate};

/// The numbers of a GPU that decide how a problem is planned.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Machine {
    /// Compute capability: 75 for 7.5.
    pub arch: Arch,
    /// Bytes of shared memory that a block can be given.
    pub shared_limit: u32,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// How many products of TF32 its tensor cores compute in the time of one f32 product of its
    /// other units; 0 if they do not multiply TF32.
    pub tf32_rate: u32,
    /// Bytes of device memory.
    pub memory: u64,
    /// Whether the driver ends kernels that run long, as it does on a GPU that drives a display.
    pub watchdog: bool,
}

impl Machine {
    /// A GPU of compute capability `arch` with the limits of the CUDA C++ programming guide, one
    /// multiprocessor and unlimited memory.
    pub fn of_arch(arch: Arch) -> Self {
        Self {
            arch,
            shared_limit: shared_limit(arch),
            multiprocessors: 1,
            tf32_rate: tf32_rate(arch),
            memory: u64::MAX,
            watchdog: false,
        }
    }

    /// The compute capability as NVIDIA writes it: `7.5`.
    pub fn capability(&self) -> String {
        format!("{}.{}", self.arch / 10, self.arch % 10)
    }
}

/// Queries the numbers of a GPU one by one.
pub(crate) fn query(
    attribute: impl Fn(Attribute) -> Result<i32, DriverError>,
    memory: u64,
) -> Result<Machine, DriverError> {
    let number = |asked| attribute(asked).map(|n| n.max(0) as u32);
    let major: Arch = number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor: Arch = number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let always = number(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK)?;
    let at_most = number(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
    let arch = 10 * major + minor;
    Ok(Machine {
        arch,
        shared_limit: always.max(at_most),
        multiprocessors: number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        tf32_rate: tf32_rate(arch),
        memory,
        watchdog: number(Attribute::CU_DEVICE_ATTRIBUTE_KERNEL_EXEC_TIMEOUT)? != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_described_by_its_attributes() {
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
        let machine = query(attribute, 7).expect("described");
        let expected = Machine {
            arch: 121,
            shared_limit: 99 << 10,
            multiprocessors: 48,
            tf32_rate: 1,
            memory: 7,
            watchdog: true,
        };
        assert_eq!(machine, expected);
    }
}
