use crate::{
    Error, Tuning, TuningError,
    machine::Machine,
    params::ParamSlots,
    scope::{Caught, catch, check_lost},
    tuning,
};
use flashtile_shaders::{Access, Binding, Constants, Slot, Variant};
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

/// What all plans on one device share: compiled pipelines and uniform slots. A clone is another
/// handle to the same.
///
/// # Memory
/// A context keeps every pipeline that it compiled (a few per attention configuration;
/// configurations that differ only in sizes share them) and uniform slots in buffers of 256 KiB, as
/// many as recorded calls needed at once. Plans keep their workspace and bind groups: see
/// [`Plan::workspace_bytes`](crate::Plan::workspace_bytes) and
/// [`Plan::release_bindings`](crate::Plan::release_bindings). All of it goes with the last handle.
#[derive(Clone)]
pub struct Context {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) info: wgpu::AdapterInfo,
    pub(crate) machine: Machine,
    pub(crate) params: ParamSlots,
    /// Stands in for an input without elements, because no binding may be empty.
    pub(crate) empty: wgpu::Buffer,
    /// Whether kernels are compiled with wgpu's runtime checks.
    checked: bool,
    /// Measured tile shapes, which plans prefer.
    pub(crate) tuning: Option<Arc<Tuning>>,
    /// What the driver keeps of compiled kernels.
    cache: Option<wgpu::PipelineCache>,
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
    /// Works on the caller's device and queue. It needs no feature and no limit beyond WebGPU's
    /// defaults, but is faster with what [`device_descriptor`](crate::device_descriptor) requests,
    /// subgroups above all.
    ///
    /// # Errors
    /// [`Error::ForeignQueue`] for a queue of another device, [`Error::OutOfMemory`],
    /// [`Error::DeviceLost`].
    pub async fn new(device: wgpu::Device, queue: wgpu::Queue) -> Result<Self, Error> {
        Self::with_matrices(device, queue, None).await
    }

    /// As [`new`](Self::new), for a device of `adapter`. Kernels may then use matrix units, if the
    /// device was opened with [`matrix_unit_features`](crate::matrix_unit_features): a device does
    /// not report the sizes of its matrices, and its adapter does.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub async fn for_adapter(
        adapter: &wgpu::Adapter,
        device: wgpu::Device,
        queue: wgpu::Queue,
    ) -> Result<Self, Error> {
        let matrices = adapter.cooperative_matrix_properties();
        Self::with_matrices(device, queue, Some(&matrices)).await
    }

    async fn with_matrices(
        device: wgpu::Device,
        queue: wgpu::Queue,
        matrices: Option<&[wgpu::CooperativeMatrixProperties]>,
    ) -> Result<Self, Error> {
        let empty = catch(&device, || {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("flashtile empty"),
                size: 256,
                usage: wgpu::BufferUsages::STORAGE,
                mapped_at_creation: false,
            })
        });
        let empty = empty.await.map_err(|caught| caught.about(&device, || "a buffer".into()))?;
        check_lost(&device)?;
        check_queue(&device, &queue)?;
        let info = device.adapter_info();
        let inner = Inner {
            machine: Machine::new(&device.limits(), device.features(), &info, matrices),
            params: ParamSlots::new(&device),
            device,
            queue,
            info,
            empty,
            checked: false,
            tuning: None,
            cache: None,
            pipelines: Mutex::default(),
            modules: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Another context on the same device, without pipelines, changed by `change`.
    fn changed(&self, change: impl FnOnce(&mut Inner)) -> Self {
        let Inner { device, queue, info, machine, empty, checked, tuning, cache, .. } =
            &*self.inner;
        let mut inner = Inner {
            machine: machine.clone(),
            params: ParamSlots::new(device),
            device: device.clone(),
            queue: queue.clone(),
            info: info.clone(),
            empty: empty.clone(),
            checked: *checked,
            tuning: tuning.clone(),
            cache: cache.clone(),
            pipelines: Mutex::default(),
            modules: Mutex::default(),
        };
        change(&mut inner);
        Self { inner: Arc::new(inner) }
    }

    /// A context on the same device whose kernels test every index and bound every loop, as wgpu
    /// does by default. They are slower and give the same bits: for debugging.
    ///
    /// Without it, kernels run unchecked, because every index is in range and every loop ends for
    /// all parameters that a plan computes (docs/ARCHITECTURE.md, "Indices are in range").
    pub fn with_runtime_checks(&self) -> Self {
        self.changed(|inner| inner.checked = true)
    }

    /// A context on the same device whose plans take the tile shapes that were measured to be the
    /// fastest, where `tuning` has any for the kind of the problem.
    ///
    /// The table is part of what a plan is made from, as the adapter is: for one table, the bits of
    /// a row do not depend on the batch. Without a table, the choice is the planner's and the same
    /// on every run. Make the context at the start, because plans and pipelines belong to one.
    ///
    /// # Errors
    /// [`TuningError::Stale`] for a table of another adapter, driver or version: keep the context
    /// as it is.
    pub fn with_tuning(&self, tuning: Tuning) -> Result<Self, TuningError> {
        tuning.check(&self.tuning_key())?;
        Ok(self.changed(|inner| inner.tuning = Some(Arc::new(tuning))))
    }

    /// The adapter, driver and version of flashtile that a [`Tuning`] of this context is valid for.
    pub fn tuning_key(&self) -> String {
        tuning::key(&self.inner.info)
    }

    /// A context on the same device that compiles its kernels with `cache`, which belongs to the
    /// device. The driver then reuses what it compiled before, in this process or in an earlier
    /// one.
    ///
    /// The device needs the feature `PIPELINE_CACHE`, which
    /// [`device_descriptor`](crate::device_descriptor) requests where the adapter has it (on
    /// Vulkan). Desktop drivers keep a cache of their own; others leave it to the application.
    ///
    /// ```no_run
    /// # use flashtile_wgpu::{Context, wgpu};
    /// # fn f(context: Context, kept: Option<Vec<u8>>) {
    /// let descriptor = wgpu::PipelineCacheDescriptor {
    ///     label: Some("flashtile"),
    ///     data: kept.as_deref(),
    ///     fallback: true, // starts empty where the driver does not accept the data
    /// };
    /// // SAFETY: `kept` is what `pipeline_cache_data` returned for this adapter and driver, and
    /// // nobody else writes the file that it was kept in.
    /// let cache = unsafe { context.device().create_pipeline_cache(&descriptor) };
    /// let context = context.with_pipeline_cache(cache);
    /// // ... plan and run; then keep this for the next time:
    /// let kept = context.pipeline_cache_data();
    /// # let _ = kept;
    /// # }
    /// ```
    pub fn with_pipeline_cache(&self, cache: wgpu::PipelineCache) -> Self {
        self.changed(|inner| inner.cache = Some(cache))
    }

    /// What the pipeline cache holds, to be kept for the next process. `None` without a cache.
    pub fn pipeline_cache_data(&self) -> Option<Vec<u8>> {
        self.inner.cache.as_ref().and_then(wgpu::PipelineCache::get_data)
    }

    /// As [`new`](Self::new), blocking.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    #[cfg(not(target_family = "wasm"))]
    pub fn new_blocking(device: wgpu::Device, queue: wgpu::Queue) -> Result<Self, Error> {
        pollster::block_on(Self::new(device, queue))
    }

    /// As [`for_adapter`](Self::for_adapter), blocking.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    #[cfg(not(target_family = "wasm"))]
    pub fn for_adapter_blocking(
        adapter: &wgpu::Adapter,
        device: wgpu::Device,
        queue: wgpu::Queue,
    ) -> Result<Self, Error> {
        pollster::block_on(Self::for_adapter(adapter, device, queue))
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

    /// Whether the adapter is software. Compiling is then part of the cost, and no display waits.
    pub fn is_software(&self) -> bool {
        self.inner.info.device_type == wgpu::DeviceType::Cpu
    }

    /// Pipelines compiled so far.
    pub fn pipeline_count(&self) -> usize {
        self.inner.pipelines.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Drops the pipelines compiled so far. Plans keep theirs; the next plan compiles again.
    pub fn release_pipelines(&self) {
        self.inner.pipelines.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.inner.modules.lock().unwrap_or_else(PoisonError::into_inner).clear();
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
        // Two threads may both compile: the first pipeline is kept.
        let compiled = catch(self.device(), || self.compile(variant, constants)).await;
        // A lost device compiles to an invalid pipeline without an error: it must not be kept.
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
            cache: self.inner.cache.as_ref(),
        });
        Pipeline { pipeline, layout, bindings }
    }

    fn module(&self, variant: &Variant, name: &str) -> wgpu::ShaderModule {
        let mut modules = self.inner.modules.lock().unwrap_or_else(PoisonError::into_inner);
        modules
            .entry(*variant)
            .or_insert_with(|| {
                let device = &self.inner.device;
                let descriptor = wgpu::ShaderModuleDescriptor {
                    label: Some(name),
                    source: wgpu::ShaderSource::Wgsl(variant.wgsl().into()),
                };
                if self.inner.checked {
                    return device.create_shader_module(descriptor);
                }
                // SAFETY: the kernels have no undefined behaviour that these checks would prevent.
                // Every index is in range and every loop ends, for all parameters that a schedule
                // computes: docs/ARCHITECTURE.md, "Indices are in range".
                unsafe {
                    device.create_shader_module_trusted(
                        descriptor,
                        wgpu::ShaderRuntimeChecks::unchecked(),
                    )
                }
            })
            .clone()
    }
}

/// Whether `queue` is the queue of `device`. wgpu reports a mismatch only at the first use, to the
/// handler of the queue's device, where it cannot be caught. But work-done callbacks of a
/// queue run when its own device is polled, and not when another one is.
#[cfg(not(target_family = "wasm"))]
fn check_queue(device: &wgpu::Device, queue: &wgpu::Queue) -> Result<(), Error> {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        time::{Duration, Instant},
    };
    let called = Arc::new(AtomicBool::new(false));
    let answer = called.clone();
    queue.on_submitted_work_done(move || answer.store(true, Ordering::Release));
    // Work that the application submitted before comes first. Another thread may poll at the same
    // time and run the callback a little later.
    let patience = Instant::now() + Duration::from_secs(2);
    loop {
        device
            .poll(wgpu::PollType::wait_indefinitely())
            .map_err(|e| Error::DeviceLost(e.to_string()))?;
        if called.load(Ordering::Acquire) {
            return Ok(());
        }
        if Instant::now() > patience {
            return Err(Error::ForeignQueue);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A browser's device has one queue, and waiting is not allowed there.
#[cfg(target_family = "wasm")]
fn check_queue(_: &wgpu::Device, _: &wgpu::Queue) -> Result<(), Error> {
    Ok(())
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
