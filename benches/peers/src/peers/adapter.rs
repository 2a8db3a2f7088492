//! One adapter for all.

#[cfg(feature = "peers")]
use {
    anyhow::{Context as _, Result},
    cubecl::wgpu::WgpuSetup,
};

/// The adapter that flashtile takes by default: the best one.
#[cfg(feature = "peers")]
fn best() -> Result<wgpu::AdapterInfo> {
    let entry = flashtile_wgpu::adapters_blocking().into_iter().next();
    Ok(entry.context("no Vulkan, Metal or DX12 driver was found")?.info)
}

/// How an adapter is named: its name, graphics API and driver.
pub(super) fn name(info: &wgpu::AdapterInfo) -> String {
    format!("{} ({:?}, {} {})", info.name, info.backend, info.driver, info.driver_info)
}

/// A device on flashtile's default adapter, with what CubeCL requests for a device of its own. Burn
/// is built on CubeCL too.
#[cfg(feature = "peers")]
pub(super) fn open_for_cubecl() -> Result<(String, WgpuSetup)> {
    let info = best()?;
    let descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    let instance = wgpu::Instance::new(descriptor);
    let found = pollster::block_on(instance.enumerate_adapters(info.backend.into()));
    let adapter = found.into_iter().find(|adapter| adapter.get_info() == info);
    let adapter = adapter.with_context(|| format!("{} is gone", info.name))?;
    let requested = adapter.request_device(&wgpu::DeviceDescriptor {
        label: None,
        required_features: adapter.features().difference(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS),
        required_limits: adapter.limits(),
        memory_hints: wgpu::MemoryHints::MemoryUsage,
        trace: wgpu::Trace::Off,
        // SAFETY: it permits features that wgpu may implement with errors. CubeCL requests them
        // for every device, so its kernels are measured as its users run them.
        experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
    });
    let (device, queue) = pollster::block_on(requested)?;
    let setup = WgpuSetup { instance, adapter, device, queue, backend: info.backend };
    Ok((name(&info), setup))
}
