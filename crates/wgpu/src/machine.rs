//! What planning knows of a device.

use crate::matrix;
use flashtile_core::NoMatrixUnits;

/// The numbers of a device that decide how a problem is planned.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Machine {
    pub(crate) binding_size: u64,
    pub(crate) buffer_size: u64,
    pub(crate) offset_alignment: u64,
    pub(crate) workgroup_bytes: u32,
    pub(crate) invocations: u32,
    pub(crate) grid: u32,
    pub(crate) software: bool,
    /// Lanes of every subgroup, where kernels may use subgroups and their size is fixed; else 1.
    pub(crate) lanes: u32,
    /// The fewest lanes of any subgroup, where kernels may use subgroups; else 1.
    pub(crate) subgroup: u32,
    /// Whether a thread may use 256 registers of 32 bits.
    pub(crate) many_registers: bool,
    /// Whether values that are the same for all threads of a subgroup are loaded once, into scalar
    /// registers.
    pub(crate) scalar_loads: bool,
    /// Lanes of the largest subgroup that the device may form.
    pub(crate) max_lanes: u32,
    /// The sizes of matrices that the device multiplies and that have kernels, or why there are
    /// none.
    pub(crate) matrix_sizes: Result<Vec<u32>, NoMatrixUnits>,
    /// Whether a display may time out while a dispatch runs.
    pub(crate) watchdog: bool,
    /// Iterations after which the driver ends an invocation's loops; `None` where it never does.
    pub(crate) loop_budget: Option<u64>,
}

impl Machine {
    pub(crate) fn new(
        limits: &wgpu::Limits,
        features: wgpu::Features,
        info: &wgpu::AdapterInfo,
        matrices: Option<&[wgpu::CooperativeMatrixProperties]>,
    ) -> Self {
        let software = info.device_type == wgpu::DeviceType::Cpu;
        let subgroups = features.contains(wgpu::Features::SUBGROUP);
        let fixed = info.subgroup_min_size == info.subgroup_max_size && subgroups;
        Self {
            binding_size: limits.max_storage_buffer_binding_size,
            buffer_size: limits.max_buffer_size,
            offset_alignment: limits.min_storage_buffer_offset_alignment.into(),
            workgroup_bytes: limits.max_compute_workgroup_storage_size,
            invocations: limits
                .max_compute_invocations_per_workgroup
                .min(limits.max_compute_workgroup_size_x)
                .min(limits.max_compute_workgroup_size_y.saturating_mul(64)),
            grid: limits.max_compute_workgroups_per_dimension,
            software,
            lanes: if fixed { info.subgroup_min_size } else { 1 },
            subgroup: if subgroups { info.subgroup_min_size } else { 1 },
            // No API reports these two.
            many_registers: matches!(info.vendor, AMD | NVIDIA) && !software,
            scalar_loads: info.vendor == AMD && !software,
            max_lanes: info.subgroup_max_size,
            matrix_sizes: matrix::offer(features, matrices),
            watchdog: !software,
            loop_budget: loop_budget(info),
        }
    }

    /// The same device, for plans that leave it at the kernels that take any tensor.
    pub(crate) fn portable(&self) -> Self {
        Self { scalar_loads: false, subgroup: 1, ..self.clone() }
    }

    /// WebGPU's default limits, and no features.
    pub(crate) fn baseline() -> Self {
        let limits = wgpu::Limits::default();
        Self {
            binding_size: limits.max_storage_buffer_binding_size,
            buffer_size: limits.max_buffer_size,
            offset_alignment: limits.min_storage_buffer_offset_alignment.into(),
            workgroup_bytes: limits.max_compute_workgroup_storage_size,
            invocations: limits.max_compute_invocations_per_workgroup,
            grid: limits.max_compute_workgroups_per_dimension,
            software: false,
            lanes: 1,
            subgroup: 1,
            many_registers: false,
            scalar_loads: false,
            max_lanes: 128,
            matrix_sizes: Err(NoMatrixUnits::NotOffered),
            watchdog: true,
            loop_budget: None,
        }
    }
}

/// PCI vendor numbers.
const AMD: u32 = 0x1002;
const NVIDIA: u32 = 0x10de;

/// llvmpipe's limit (`LP_MAX_TGSI_LOOP_ITERATIONS`) before it was removed.
const LLVMPIPE_LOOP_BUDGET: u64 = 65_535;

/// The first major version of Mesa whose llvmpipe is known to run loops to their end: 22.3 is known
/// to end them, 25.0 and 26.2 are known not to.
const MESA_WITHOUT_BUDGET: u32 = 25;

/// llvmpipe before Mesa 25 ends all loops of an invocation after 65,535 iterations together, and
/// continues as if they had finished. A version that cannot be read counts as old.
fn loop_budget(info: &wgpu::AdapterInfo) -> Option<u64> {
    let llvmpipe = [&info.name, &info.driver].iter().any(|text| text.contains("llvmpipe"));
    let major = info.driver_info.split("Mesa ").nth(1).and_then(|version| {
        let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
        version[..digits].parse::<u32>().ok()
    });
    let old = major.is_none_or(|major| major < MESA_WITHOUT_BUDGET);
    (llvmpipe && old).then_some(LLVMPIPE_LOOP_BUDGET)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_old_llvmpipe_has_a_loop_budget() {
        let budget = |name: &str, driver: &str, version: &str| {
            let mut info = wgpu::AdapterInfo::new(wgpu::DeviceType::Cpu, wgpu::Backend::Vulkan);
            info.name = name.to_owned();
            info.driver = driver.to_owned();
            info.driver_info = version.to_owned();
            loop_budget(&info)
        };
        let llvmpipe = |version| budget("llvmpipe (LLVM 15.0.6, 256 bits)", "llvmpipe", version);
        assert_eq!(llvmpipe("Mesa 22.3.6 (LLVM 15.0.6)"), Some(65_535));
        assert_eq!(llvmpipe("Mesa 24.2.8-1ubuntu1"), Some(65_535));
        assert_eq!(llvmpipe("Mesa 25.0.7-2~bpo12+1 (LLVM 15.0.6)"), None);
        assert_eq!(llvmpipe("Mesa 26.2.6"), None);
        assert_eq!(llvmpipe(""), Some(65_535), "an unknown version counts as old");
        assert_eq!(
            budget("llvmpipe (LLVM 15)", "", "4.5 (Core Profile) Mesa 22.3.6"),
            Some(65_535)
        );
        assert_eq!(budget("SwiftShader Device", "SwiftShader driver", "5.0.0"), None);
        assert_eq!(budget("AMD Radeon RX 6800", "radv", "Mesa 22.3.6"), None);
    }
}
