//! Bind groups, made once for each set of buffers.

use crate::{Error, context::Pipeline, plan::PlanInner, scope::catch_now};
use flashtile_shaders::Slot;
use std::sync::{Mutex, PoisonError};

/// A range of a buffer, as bound. Equality of buffers is identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) slot: Slot,
    pub(crate) buffer: wgpu::Buffer,
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

/// The bind groups last used. Each keeps its buffers alive, so there are few.
#[derive(Default)]
pub(crate) struct BindCache {
    /// Least recently used first.
    groups: Mutex<Vec<(Key, wgpu::BindGroup)>>,
}

#[derive(Clone, PartialEq, Eq)]
struct Key {
    step: usize,
    bound: Vec<Bound>,
}

impl BindCache {
    const MAX: usize = 64;

    pub(crate) fn get(
        &self,
        plan: &PlanInner,
        step: usize,
        bound: Vec<Bound>,
    ) -> Result<wgpu::BindGroup, Error> {
        let key = Key { step, bound };
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = groups.iter().rposition(|(k, _)| *k == key) {
            let entry = groups.remove(at);
            let group = entry.1.clone();
            groups.push(entry);
            return Ok(group);
        }
        let group = make(plan, &plan.pipelines[step], &key.bound)?;
        // A plan of many dispatches needs them all again at its next call.
        if groups.len() >= Self::MAX.max(2 * plan.pipelines.len()) {
            groups.remove(0);
        }
        groups.push((key, group.clone()));
        Ok(group)
    }
}

fn make(plan: &PlanInner, pipeline: &Pipeline, bound: &[Bound]) -> Result<wgpu::BindGroup, Error> {
    let device = plan.context.device();
    let mut entries =
        vec![wgpu::BindGroupEntry { binding: Slot::Params as u32, resource: plan.ring.binding() }];
    entries.extend(bound.iter().map(|bound| wgpu::BindGroupEntry {
        binding: bound.slot as u32,
        resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: &bound.buffer,
            offset: bound.offset,
            size: wgpu::BufferSize::new(bound.size),
        }),
    }));
    let descriptor = wgpu::BindGroupDescriptor {
        label: Some("flashtile"),
        layout: &pipeline.layout,
        entries: &entries,
    };
    catch_now(device, || device.create_bind_group(&descriptor))
        .map_err(|caught| caught.about(device, || "a bind group".into()))
}
