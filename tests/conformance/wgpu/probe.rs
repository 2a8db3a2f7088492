//! Kernels that only tests run. They are made of a product kernel's own source, and compiled as it
//! is: without runtime checks, with which software adapters take twice as long.

use flashtile_wgpu::{Context, wgpu};

/// A kernel source, and how it is dispatched.
pub(super) struct Probe<'a> {
    pub(super) name: &'a str,
    pub(super) wgsl: String,
    pub(super) entry_point: &'a str,
    /// Pipeline-overridable constants.
    pub(super) constants: &'a [(&'a str, f64)],
    pub(super) workgroups: [u32; 2],
}

impl Probe<'_> {
    /// Dispatches it once, with these buffers at these binding numbers of group 0: those that the
    /// kernel uses, and no others.
    pub(super) fn run(&self, context: &Context, buffers: &[(u32, &wgpu::Buffer)]) {
        let device = context.device();
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(self.name),
            source: wgpu::ShaderSource::Wgsl(self.wgsl.as_str().into()),
        };
        let checks = wgpu::ShaderRuntimeChecks::unchecked();
        // SAFETY: the product's kernels run unchecked, because every index is in range and every
        // loop ends for all parameters of a plan (docs/ARCHITECTURE.md, "Indices are in range").
        // What a test adds is in range for its own buffers.
        let module = unsafe { device.create_shader_module_trusted(descriptor, checks) };
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(self.name),
            layout: None,
            module: &module,
            entry_point: Some(self.entry_point),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: self.constants,
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        let entries: Vec<_> = buffers
            .iter()
            .map(|&(binding, buffer)| wgpu::BindGroupEntry {
                binding,
                resource: buffer.as_entire_binding(),
            })
            .collect();
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(self.name),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            pass.set_pipeline(&pipeline);
            pass.set_bind_group(0, &group, &[]);
            let [x, y] = self.workgroups;
            pass.dispatch_workgroups(x, y, 1);
        }
        context.queue().submit([encoder.finish()]);
    }
}

/// The words of a buffer that was read.
pub(super) fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}
