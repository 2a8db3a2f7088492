use crate::{Context, Error};
use std::fmt;
use wgpu::{DeviceType, Instance, InstanceDescriptor};

/// An adapter of this machine.
#[derive(Clone, Debug)]
pub struct AdapterEntry {
    /// Name, driver, graphics API.
    pub info: wgpu::AdapterInfo,
    /// What it could give a device.
    pub limits: wgpu::Limits,
    /// The optional features it has.
    pub features: wgpu::Features,
}

/// Which adapter to open, and how. The default is the best: discrete before integrated before software.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdapterChoice {
    /// Part of the name, any case.
    pub name: Option<String>,
    /// Its place in [`adapters`]: what tells two identical cards apart. With a name too, the adapter there has to have it.
    pub index: Option<usize>,
    /// Only WebGPU's default limits and no feature: the device that a browser gives.
    pub baseline: bool,
}

fn instance() -> Instance {
    // The environment's WGPU_BACKEND and the like are honoured, as in every wgpu program.
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

impl AdapterChoice {
    fn allows(&self, index: usize, name: &str) -> bool {
        let part = |wanted: &String| name.to_lowercase().contains(&wanted.to_lowercase());
        self.index.is_none_or(|wanted| wanted == index) && self.name.as_ref().is_none_or(part)
    }
}

/// As it follows "adapter": ` with number 1 named like `x``, or nothing.
impl fmt::Display for AdapterChoice {
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

/// Opens an adapter for a program that owns no device: with all its limits, and timestamps where it has them.
///
/// # Errors
/// [`Error::NoAdapter`], [`Error::NoDevice`].
pub async fn open(choice: &AdapterChoice) -> Result<Context, Error> {
    let found = compute_adapters().await;
    let name = |adapter: &wgpu::Adapter| adapter.get_info().name;
    let Some(at) = (0..found.len()).find(|&n| choice.allows(n, &name(&found[n]))) else {
        let names: Vec<_> = found
            .iter()
            .enumerate()
            .map(|(n, adapter)| format!("{n}: {}", name(adapter)))
            .collect();
        let reason = match names.len() {
            0 => "no Vulkan, Metal or DX12 driver was found".to_string(),
            _ => format!("there is {}", names.join(", ")),
        };
        return Err(Error::NoAdapter { wanted: choice.clone(), reason });
    };
    let adapter = &found[at];
    let (required_features, required_limits) = if choice.baseline {
        (wgpu::Features::empty(), wgpu::Limits::default())
    } else {
        (
            adapter.features() & (wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::SUBGROUP),
            adapter.limits(),
        )
    };
    let descriptor = wgpu::DeviceDescriptor {
        label: Some("flashtile"),
        required_features,
        required_limits,
        ..Default::default()
    };
    let (device, queue) = adapter
        .request_device(&descriptor)
        .await
        .map_err(|e| Error::NoDevice { adapter: adapter.get_info().name, reason: e.to_string() })?;
    Context::new(device, queue).await
}

/// As [`open`], blocking.
///
/// # Errors
/// As [`open`].
#[cfg(not(target_family = "wasm"))]
pub fn open_blocking(choice: &AdapterChoice) -> Result<Context, Error> {
    pollster::block_on(open(choice))
}
