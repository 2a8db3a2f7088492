use crate::{
    capture::{self, Compiled},
    rdna::Generation,
};
use anyhow::{Context as _, Result, bail, ensure};
use flashtile_core::Problem;
use flashtile_wgpu::{
    Context, Plan, PlanOptions,
    wgpu::{self, naga},
};
use std::env;

/// The adapter whose driver the process runs with, opened as an application opens it.
pub struct Gpu {
    context: Context,
}

/// One kernel of a plan, as the driver compiled it.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The name of its variant.
    pub variant: String,
    /// What the driver says.
    pub compiled: Compiled,
}

/// A kernel in WGSL that no plan chooses.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The source. Its bindings are those of the product: binding 0 of group 0 is the uniform, at a
    /// dynamic offset.
    pub wgsl: &'a str,
    /// The entry point.
    pub entry_point: &'a str,
    /// Pipeline-overridable constants.
    pub constants: &'a [(&'a str, f64)],
    /// Whether it keeps wgpu's runtime checks.
    pub checked: bool,
}

impl Gpu {
    /// Opens the first adapter with the features and limits that flashtile recommends, and with
    /// `extra` features among those that it has.
    ///
    /// # Errors
    /// There is no adapter, or it refuses.
    pub fn open(extra: wgpu::Features) -> Result<Self> {
        let instance = capture::instance()?;
        let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::VULKAN));
        let adapter = adapters.first().context("there is no Vulkan driver")?;
        let mut descriptor = flashtile_wgpu::device_descriptor(adapter);
        descriptor.required_features |= extra & adapter.features();
        descriptor.required_features |= flashtile_wgpu::matrix_unit_features(adapter);
        // SAFETY: nothing that this program compiles is ever run.
        descriptor.experimental_features = unsafe { wgpu::ExperimentalFeatures::enabled() };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))?;
        let context = Context::for_adapter_blocking(adapter, device, queue)?;
        Ok(Self { context })
    }

    /// The adapter.
    pub fn info(&self) -> &wgpu::AdapterInfo {
        self.context.adapter_info()
    }

    /// The name that scripts/with-gpu-compiler was given, else the driver's own.
    pub fn name(&self) -> String {
        env::var("FLASHTILE_GPU_COMPILER").unwrap_or_else(|_| self.info().name.clone())
    }

    /// The generation of an AMD GPU, whose hot loops can be counted.
    pub fn generation(&self) -> Option<Generation> {
        let name = &self.info().name;
        [("NAVI2", Generation::Rdna2), ("NAVI3", Generation::Rdna3), ("GFX12", Generation::Rdna4)]
            .into_iter()
            .find(|(chip, _)| name.contains(chip))
            .map(|(_, generation)| generation)
    }

    /// Plans a problem, and reads what each of its kernels takes.
    ///
    /// # Errors
    /// The plan is refused, or a kernel does not compile.
    pub fn plan(&self, problem: &Problem, options: &PlanOptions) -> Result<(Plan, Vec<Kernel>)> {
        // A context compiles each variant once, and wgpu has some pipelines of its own.
        self.context.release_pipelines();
        capture::take();
        let plan = self.context.plan_blocking(problem, options)?;
        let mut kernels: Vec<(String, &str)> = Vec::new();
        for dispatch in plan.dispatches() {
            if kernels.iter().all(|(variant, _)| *variant != dispatch.variant) {
                kernels.push((dispatch.variant, dispatch.operation.name()));
            }
        }
        let compiled = capture::take();
        // Pipelines carry no name, so they are matched by their order.
        let found: Vec<_> = compiled.iter().map(|one| one.entry_point.as_str()).collect();
        let expected: Vec<_> = kernels.iter().map(|&(_, entry_point)| entry_point).collect();
        ensure!(found == expected, "the plan has {expected:?}, and wgpu compiled {found:?}");
        let kernels = kernels.into_iter().zip(compiled);
        Ok((plan, kernels.map(|((variant, _), compiled)| Kernel { variant, compiled }).collect()))
    }

    /// Compiles a kernel source of the caller's.
    ///
    /// # Errors
    /// It does not compile, or has bindings that the product's kernels cannot have.
    pub fn compile(&self, source: &Source<'_>) -> Result<Compiled> {
        let device = self.context.device();
        let entries = layout_entries(source.wgsl)?;
        let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: None,
            entries: &entries,
        });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: None,
            source: wgpu::ShaderSource::Wgsl(source.wgsl.into()),
        };
        let module = if source.checked {
            device.create_shader_module(descriptor)
        } else {
            let checks = wgpu::ShaderRuntimeChecks::unchecked();
            // SAFETY: nothing that this program compiles is ever run.
            unsafe { device.create_shader_module_trusted(descriptor, checks) }
        };
        capture::take();
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(source.entry_point),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: source.constants,
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        drop(pipeline);
        let errors = [internal.pop(), scope.pop()].map(pollster::block_on);
        if let Some(error) = errors.into_iter().flatten().next() {
            bail!("{error}");
        }
        capture::take().pop().context("wgpu compiled nothing")
    }
}

/// The layout of the bindings that a source declares in group 0, as the product describes it.
fn layout_entries(wgsl: &str) -> Result<Vec<wgpu::BindGroupLayoutEntry>> {
    let mut options = naga::front::wgsl::Options::new();
    options.capabilities = naga::valid::Capabilities::all();
    let module = naga::front::wgsl::Frontend::new_with_options(options)
        .parse(wgsl)
        .map_err(|e| anyhow::anyhow!("{}", e.emit_to_string(wgsl)))?;
    let mut entries = Vec::new();
    for (_, variable) in module.global_variables.iter() {
        let Some(binding) = variable.binding else { continue };
        ensure!(binding.group == 0, "binding {} is in group {}", binding.binding, binding.group);
        let (ty, has_dynamic_offset) = match variable.space {
            naga::AddressSpace::Uniform => (wgpu::BufferBindingType::Uniform, true),
            naga::AddressSpace::Storage { access } => {
                let read_only = !access.contains(naga::StorageAccess::STORE);
                (wgpu::BufferBindingType::Storage { read_only }, false)
            }
            _ => bail!("binding {} is neither a uniform nor a storage buffer", binding.binding),
        };
        entries.push(wgpu::BindGroupLayoutEntry {
            binding: binding.binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset, min_binding_size: None },
            count: None,
        });
    }
    entries.sort_by_key(|entry| entry.binding);
    Ok(entries)
}
