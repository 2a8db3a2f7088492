use crate::{
    Error,
    ring::Ring,
    scope::{Caught, catch, check_lost},
};
use flashtile_shaders::{Access, Binding, Constants, Slot, Variant};
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

/// What all plans on one device share: its compiled pipelines and a ring of uniform slots. A clone is another handle to the same.
#[derive(Clone)]
pub struct Context {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) info: wgpu::AdapterInfo,
    pub(crate) limits: wgpu::Limits,
    pub(crate) ring: Arc<Ring>,
    /// Stands for an input without elements: no binding may be empty.
    pub(crate) nothing: wgpu::Buffer,
    pipelines: Mutex<HashMap<(Variant, Constants), Pipeline>>,
    modules: Mutex<HashMap<Variant, wgpu::ShaderModule>>,
}

/// A compiled variant.
#[derive(Clone)]
pub(crate) struct Pipeline {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
    pub(crate) bindings: Arc<[Binding]>,
}

impl Context {
    /// Works on the caller's device and queue. No feature is needed and no limit beyond WebGPU's defaults.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] or [`Error::Validation`] if the uniform slots cannot be made; [`Error::DeviceLost`].
    pub async fn new(device: wgpu::Device, queue: wgpu::Queue) -> Result<Self, Error> {
        let made = catch(&device, || {
            let nothing = device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("flashtile nothing"),
                size: 256,
                usage: wgpu::BufferUsages::STORAGE,
                mapped_at_creation: false,
            });
            (Arc::new(Ring::new(&device, Ring::SHARED_SLOTS)), nothing)
        });
        let (ring, nothing) =
            made.await.map_err(|caught| caught.about(&device, || "uniform slots".into()))?;
        check_lost(&device)?;
        let (info, limits) = (device.adapter_info(), device.limits());
        let inner = Inner {
            device,
            queue,
            info,
            limits,
            ring,
            nothing,
            pipelines: Mutex::default(),
            modules: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// As [`new`](Self::new), blocking.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    #[cfg(not(target_family = "wasm"))]
    pub fn new_blocking(device: wgpu::Device, queue: wgpu::Queue) -> Result<Self, Error> {
        pollster::block_on(Self::new(device, queue))
    }

    /// The device.
    pub fn device(&self) -> &wgpu::Device {
        &self.inner.device
    }

    /// The queue.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.inner.queue
    }

    /// The adapter that the device came from.
    pub fn adapter_info(&self) -> &wgpu::AdapterInfo {
        &self.inner.info
    }

    /// Whether the adapter is software: compiling is then a part of the cost, and no display waits.
    pub fn is_software(&self) -> bool {
        self.inner.info.device_type == wgpu::DeviceType::Cpu
    }

    /// Pipelines compiled so far.
    pub fn pipeline_count(&self) -> usize {
        self.inner.pipelines.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The pipeline of a variant, compiled at the first call.
    pub(crate) async fn pipeline(
        &self,
        variant: &Variant,
        constants: &Constants,
    ) -> Result<Pipeline, Error> {
        let key = (*variant, *constants);
        if let Some(found) =
            self.inner.pipelines.lock().unwrap_or_else(PoisonError::into_inner).get(&key)
        {
            return Ok(found.clone());
        }
        // Two threads may both come here: the second's pipeline is dropped for the first's.
        let compiled = catch(self.device(), || self.compile(variant, constants)).await;
        // A lost device compiles to something invalid and says nothing: that must neither be kept nor pass for a plan.
        check_lost(self.device())?;
        let pipeline = compiled.map_err(|caught| match caught {
            Caught::OutOfMemory => Error::OutOfMemory { what: format!("kernel {variant}") },
            Caught::Other(message) => Error::Compile { variant: variant.to_string(), message },
        })?;
        let mut pipelines = self.inner.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(pipelines.entry(key).or_insert(pipeline).clone())
    }

    fn compile(&self, variant: &Variant, constants: &Constants) -> Pipeline {
        let device = &self.inner.device;
        let name = variant.to_string();
        let bindings: Arc<[Binding]> = variant.bindings().into();
        let entries: Vec<_> = bindings.iter().map(layout_entry).collect();
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(&name),
            entries: &entries,
        });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(&name),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let module = self.module(variant, &name);
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(variant.entry_point()),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &constants.entries(),
                // The kernels write all they read.
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        Pipeline { pipeline, layout, bindings }
    }

    fn module(&self, variant: &Variant, name: &str) -> wgpu::ShaderModule {
        let mut modules = self.inner.modules.lock().unwrap_or_else(PoisonError::into_inner);
        modules
            .entry(*variant)
            .or_insert_with(|| {
                self.inner.device.create_shader_module(wgpu::ShaderModuleDescriptor {
                    label: Some(name),
                    source: wgpu::ShaderSource::Wgsl(variant.wgsl().into()),
                })
            })
            .clone()
    }
}

fn layout_entry(binding: &Binding) -> wgpu::BindGroupLayoutEntry {
    let (ty, has_dynamic_offset) = match binding.access {
        Access::Uniform => (wgpu::BufferBindingType::Uniform, true),
        Access::Read => (wgpu::BufferBindingType::Storage { read_only: true }, false),
        Access::ReadWrite => (wgpu::BufferBindingType::Storage { read_only: false }, false),
    };
    debug_assert_eq!(has_dynamic_offset, binding.slot == Slot::Params);
    wgpu::BindGroupLayoutEntry {
        binding: binding.slot as u32,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset, min_binding_size: None },
        count: None,
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("adapter", &self.inner.info.name).finish_non_exhaustive()
    }
}
