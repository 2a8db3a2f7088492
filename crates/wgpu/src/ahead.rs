//! Compiling before the first call.

use crate::{
    Context, Error, Plan, PlanOptions,
    context::Pipeline,
    readback::finished,
    scope::{catch, check_lost},
};
use flashtile_core::Problem;
use flashtile_shaders::{Access, Params, Slot};

impl Context {
    /// Plans every problem and has the driver compile all of their kernels, so that the first calls
    /// take no longer than later ones. The plans are in the order of `problems`.
    ///
    /// Planning alone compiles kernels on most drivers. Some, software adapters among them, compile
    /// a kernel when it is first dispatched; here that has happened when the future is ready: see
    /// [`Plan::warm_up`].
    ///
    /// # Errors
    /// As [`plan`](Self::plan), for the first problem that fails.
    pub async fn compile_ahead(
        &self,
        problems: &[Problem],
        options: &PlanOptions,
    ) -> Result<Vec<Plan>, Error> {
        let mut plans = Vec::with_capacity(problems.len());
        for problem in problems {
            plans.push(self.plan(problem, options).await?);
        }
        let pipelines = plans.iter().flat_map(|plan| &plan.inner.pipelines);
        self.dispatch_nothing(pipelines).await?;
        Ok(plans)
    }

    /// As [`compile_ahead`](Self::compile_ahead), blocking.
    ///
    /// # Errors
    /// As [`compile_ahead`](Self::compile_ahead).
    #[cfg(not(target_family = "wasm"))]
    pub fn compile_ahead_blocking(
        &self,
        problems: &[Problem],
        options: &PlanOptions,
    ) -> Result<Vec<Plan>, Error> {
        pollster::block_on(self.compile_ahead(problems, options))
    }

    /// Dispatches one workgroup of each pipeline, with parameters that leave it nothing to do, and
    /// waits.
    async fn dispatch_nothing(
        &self,
        pipelines: impl Iterator<Item = &Pipeline>,
    ) -> Result<(), Error> {
        // The steps of a plan, and problems that differ only in sizes, share pipelines.
        let mut distinct: Vec<&Pipeline> = Vec::new();
        for pipeline in pipelines {
            if !distinct.iter().any(|other| other.pipeline == pipeline.pipeline) {
                distinct.push(pipeline);
            }
        }
        let (device, inner) = (self.device(), &*self.inner);
        // Every kernel ends at once where its index is not below `item_count`.
        let nothing = Params { item_count: 0, grid_width: 1, ..Params::default() };
        let params = inner.params.get(&inner.queue, &nothing)?;
        let params_buffer = inner.params.buffer(params.buffer);
        let submitted = catch(device, || {
            let label = Some("flashtile warm-up");
            let mut encoder =
                device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label });
            for pipeline in distinct {
                let group = unused_buffers(self, pipeline, &params_buffer);
                let descriptor = wgpu::ComputePassDescriptor { label, timestamp_writes: None };
                let mut pass = encoder.begin_compute_pass(&descriptor);
                pass.set_pipeline(&pipeline.pipeline);
                pass.set_bind_group(0, &group, &[params.offset]);
                pass.dispatch_workgroups(1, 1, 1);
            }
            inner.queue.submit([encoder.finish()]);
        });
        submitted.await.map_err(|caught| caught.about(device, || "a warm-up".into()))?;
        finished(self).await?;
        drop(params); // The slot may now hold other parameters.
        check_lost(device)
    }
}

/// A bind group for kernels that touch nothing but their parameters.
fn unused_buffers(
    context: &Context,
    pipeline: &Pipeline,
    params_buffer: &wgpu::Buffer,
) -> wgpu::BindGroup {
    let (device, inner) = (context.device(), &*context.inner);
    let written = || {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("flashtile warm-up"),
            size: inner.empty.size(),
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        })
    };
    let buffers: Vec<_> = pipeline
        .bindings
        .iter()
        .map(|binding| match binding.access {
            Access::Uniform => params_buffer.clone(),
            Access::Read => inner.empty.clone(),
            // A buffer that is written cannot be bound twice in one dispatch.
            Access::ReadWrite => written(),
        })
        .collect();
    let entries: Vec<_> = pipeline
        .bindings
        .iter()
        .zip(&buffers)
        .map(|(binding, buffer)| wgpu::BindGroupEntry {
            binding: binding.slot as u32,
            resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer,
                offset: 0,
                // The dynamic offset moves the parameters to their slot.
                size: (binding.slot == Slot::Params)
                    .then_some(size_of::<Params>() as u64)
                    .and_then(wgpu::BufferSize::new),
            }),
        })
        .collect();
    device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some("flashtile warm-up"),
        layout: &pipeline.layout,
        entries: &entries,
    })
}

impl Plan {
    /// Has the driver compile the plan's kernels, and waits until it has.
    ///
    /// Most drivers compile when the plan is made, and then this takes microseconds. Some compile a
    /// kernel when it is first dispatched; without this, the first call waits for that. The kernels
    /// run without any work and touch no memory of the caller's.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::DeviceLost`].
    pub async fn warm_up(&self) -> Result<(), Error> {
        self.inner.context.dispatch_nothing(self.inner.pipelines.iter()).await
    }

    /// As [`warm_up`](Self::warm_up), blocking.
    ///
    /// # Errors
    /// As [`warm_up`](Self::warm_up).
    #[cfg(not(target_family = "wasm"))]
    pub fn warm_up_blocking(&self) -> Result<(), Error> {
        pollster::block_on(self.warm_up())
    }
}
