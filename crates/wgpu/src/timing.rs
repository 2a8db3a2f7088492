//! The time that a run took, by the GPU's own clock where the device has one.

use crate::{Context, Error, host};
use std::time::Duration;

/// Two timestamps, of the begin and the end of a compute pass, and the way they come back.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    readback: wgpu::Buffer,
}

const BYTES: u64 = 2 * wgpu::QUERY_SIZE as u64;

impl Stopwatch {
    /// `None` where the caller's device was made without timestamps: a feature cannot be had later. Inside an error scope.
    pub(crate) fn new(device: &wgpu::Device) -> Option<Self> {
        if !device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            return None;
        }
        let buffer = |label, usage| {
            let descriptor = wgpu::BufferDescriptor {
                label: Some(label),
                size: BYTES,
                usage,
                mapped_at_creation: false,
            };
            device.create_buffer(&descriptor)
        };
        use wgpu::BufferUsages as Usage;
        Some(Self {
            queries: device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("flashtile timestamps"),
                ty: wgpu::QueryType::Timestamp,
                count: 2,
            }),
            resolved: buffer("flashtile timestamps", Usage::QUERY_RESOLVE | Usage::COPY_SRC),
            readback: buffer("flashtile timestamps readback", Usage::MAP_READ | Usage::COPY_DST),
        })
    }

    /// What the pass that is measured has to write.
    pub(crate) fn writes(&self) -> wgpu::ComputePassTimestampWrites<'_> {
        wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        }
    }

    /// Brings both timestamps back, behind the pass in the same encoder.
    pub(crate) fn resolve(&self, encoder: &mut wgpu::CommandEncoder) {
        encoder.resolve_query_set(&self.queries, 0..2, &self.resolved, 0);
        encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.readback, 0, BYTES);
    }

    /// The time between them, after completion. Some drivers offer the feature and write nothing: `None`, and no time of 0.
    pub(crate) async fn read(&self, context: &Context) -> Result<Option<Duration>, Error> {
        let mut stamps = [0u64; 2];
        host::read(context, &self.readback, |bytes| {
            bytemuck::bytes_of_mut(&mut stamps).copy_from_slice(bytes);
        })
        .await?;
        let [begin, end] = stamps;
        let period = f64::from(context.queue().get_timestamp_period());
        let ticks = end.checked_sub(begin).filter(|&ticks| begin != 0 && ticks != 0);
        Ok(ticks.map(|ticks| Duration::from_nanos((ticks as f64 * period) as u64)))
    }
}
