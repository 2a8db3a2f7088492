use crate::{Context, Error, matrix_unit_features};
use flashtile_core::DeviceChoice;
use wgpu::{DeviceType, Instance, InstanceDescriptor};

/// An adapter of this machine.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AdapterEntry {
    /// Name, driver, graphics API.
    pub info: wgpu::AdapterInfo,
    /// The largest limits that it grants a device.
    pub limits: wgpu::Limits,
    /// The optional features it has.
    pub features: wgpu::Features,
}

/// The features worth requesting of `adapter`, among those it has.
///
/// - `SUBGROUP`, above all: kernels share keys among the lanes of a subgroup. A decode step over
///   8192 keys took 1.43 s without it and 0.37 s with it on a software adapter.
/// - `TIMESTAMP_QUERY`, for times by the GPU's own clock in [`HostRun`](crate::HostRun).
/// - `PIPELINE_CACHE`, for [`Context::with_pipeline_cache`]. By itself it changes nothing.
///
/// Matrix units need more, which is experimental in wgpu and therefore not among these: see
/// [`matrix_unit_features`].
pub fn recommended_features(adapter: &wgpu::Adapter) -> wgpu::Features {
    let worthwhile =
        wgpu::Features::SUBGROUP | wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::PIPELINE_CACHE;
    adapter.features() & worthwhile
}

/// The limits worth requesting of `adapter`: all that it has.
///
/// wgpu's defaults are WebGPU's minimum: 16 KiB of workgroup memory, 256 invocations and bindings
/// of 128 MiB, which means smaller tiles and more dispatches.
pub fn recommended_limits(adapter: &wgpu::Adapter) -> wgpu::Limits {
    adapter.limits()
}

/// What to request a device with, for kernels as fast as the adapter allows:
/// [`recommended_features`] and [`recommended_limits`]. Add your own features to it.
///
/// ```no_run
/// # async fn f(adapter: wgpu::Adapter) -> Result<(), Box<dyn std::error::Error>> {
/// let descriptor = flashtile_wgpu::device_descriptor(&adapter);
/// let (device, queue) = adapter.request_device(&descriptor).await?;
/// let context = flashtile_wgpu::Context::new(device, queue).await?;
/// # Ok(())
/// # }
/// ```
pub fn device_descriptor(adapter: &wgpu::Adapter) -> wgpu::DeviceDescriptor<'static> {
    wgpu::DeviceDescriptor {
        label: Some("flashtile"),
        required_features: recommended_features(adapter),
        required_limits: recommended_limits(adapter),
        ..Default::default()
    }
}

fn instance() -> Instance {
    // Environment variables such as WGPU_BACKEND apply, as in other wgpu programs.
    Instance::new(InstanceDescriptor::new_without_display_handle_from_env())
}

/// Every adapter that can compute, best first.
async fn compute_adapters() -> Vec<wgpu::Adapter> {
    let mut found = instance().enumerate_adapters(wgpu::Backends::all()).await;
    found.retain(|adapter| {
        adapter.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS)
            && adapter.get_info().backend != wgpu::Backend::Noop
    });
    found.sort_by_key(|adapter| rank(adapter.get_info().device_type));
    found
}

fn rank(kind: DeviceType) -> u32 {
    match kind {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Other => 3,
        DeviceType::Cpu => 4,
    }
}

/// Every adapter of this machine that can compute, best first.
pub async fn adapters() -> Vec<AdapterEntry> {
    let entry = |adapter: wgpu::Adapter| AdapterEntry {
        info: adapter.get_info(),
        limits: adapter.limits(),
        features: adapter.features(),
    };
    compute_adapters().await.into_iter().map(entry).collect()
}

/// As [`adapters`], blocking.
#[cfg(not(target_family = "wasm"))]
pub fn adapters_blocking() -> Vec<AdapterEntry> {
    pollster::block_on(adapters())
}

/// Opens an adapter for a program that has no device of its own, with [`device_descriptor`] and
/// [`matrix_unit_features`].
///
/// # Errors
/// [`Error::NoAdapter`], [`Error::NoDevice`].
pub async fn open(choice: &DeviceChoice) -> Result<Context, Error> {
    open_with(choice, full_descriptor).await
}

/// [`device_descriptor`], with matrix units.
fn full_descriptor(adapter: &wgpu::Adapter) -> wgpu::DeviceDescriptor<'static> {
    let mut descriptor = device_descriptor(adapter);
    let features = matrix_unit_features(adapter);
    if !features.is_empty() {
        descriptor.required_features |= features;
        // SAFETY: the token acknowledges that experimental features may have bugs that lead to
        // undefined behaviour. The only one that is requested are cooperative matrices, and the
        // kernels load them from workgroup memory alone, within its bounds.
        descriptor.experimental_features = unsafe { wgpu::ExperimentalFeatures::enabled() };
    }
    descriptor
}

/// As [`open`], but with WebGPU's default limits and no feature: the device that a browser grants.
///
/// # Errors
/// As [`open`].
pub async fn open_baseline(choice: &DeviceChoice) -> Result<Context, Error> {
    open_with(choice, |_| wgpu::DeviceDescriptor::default()).await
}

async fn open_with(
    choice: &DeviceChoice,
    describe: impl FnOnce(&wgpu::Adapter) -> wgpu::DeviceDescriptor<'static>,
) -> Result<Context, Error> {
    let found = compute_adapters().await;
    let names: Vec<_> = found.iter().map(|adapter| adapter.get_info().name).collect();
    let Some(at) = (0..found.len()).find(|&n| choice.allows(n, &names[n])) else {
        let reason = match names.len() {
            0 => "no Vulkan, Metal or DX12 driver was found".to_owned(),
            _ => choice.not_among(&names),
        };
        return Err(Error::NoAdapter { wanted: choice.clone(), reason });
    };
    let (device, queue) = found[at]
        .request_device(&describe(&found[at]))
        .await
        .map_err(|e| Error::NoDevice { adapter: names[at].clone(), reason: e.to_string() })?;
    Context::for_adapter(&found[at], device, queue).await
}

/// As [`open`], blocking.
///
/// # Errors
/// As [`open`].
#[cfg(not(target_family = "wasm"))]
pub fn open_blocking(choice: &DeviceChoice) -> Result<Context, Error> {
    pollster::block_on(open(choice))
}

/// As [`open_baseline`], blocking.
///
/// # Errors
/// As [`open`].
#[cfg(not(target_family = "wasm"))]
pub fn open_baseline_blocking(choice: &DeviceChoice) -> Result<Context, Error> {
    pollster::block_on(open_baseline(choice))
}
