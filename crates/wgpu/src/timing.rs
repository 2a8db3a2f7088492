//! The time that a run took, by the GPU's own clock where the device has one.

use crate::{Context, Error, readback};
use std::time::Duration;

/// Two timestamps, at the start of the first compute pass and at the end of the last.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    readback: wgpu::Buffer,
}

const BYTES: u64 = 2 * wgpu::QUERY_SIZE as u64;

impl Stopwatch {
    /// `None` where the caller's device was created without timestamps: a feature cannot be added
    /// later. Call it inside an error scope.
    pub(crate) fn new(device: &wgpu::Device) -> Option<Self> {
        if !device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            return None;
        }
        let buffer = |label, usage| {
            let (label, mapped_at_creation) = (Some(label), false);
            device.create_buffer(&wgpu::BufferDescriptor {
                label,
                size: BYTES,
                usage,
                mapped_at_creation,
            })
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

    /// What the first and the last pass have to write; `None` for those between.
    pub(crate) fn writes(
        &self,
        first: bool,
        last: bool,
    ) -> Option<wgpu::ComputePassTimestampWrites<'_>> {
        (first || last).then_some(wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: first.then_some(0),
            end_of_pass_write_index: last.then_some(1),
        })
    }

    /// Copies both timestamps for reading, after the last pass in its encoder.
    pub(crate) fn resolve(&self, encoder: &mut wgpu::CommandEncoder) {
        encoder.resolve_query_set(&self.queries, 0..2, &self.resolved, 0);
        encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.readback, 0, BYTES);
    }

    /// The time between them, after completion. Some drivers offer the feature and write nothing:
    /// that is `None`, not a time of 0.
    pub(crate) async fn read(&self, context: &Context) -> Result<Option<Duration>, Error> {
        let mut stamps = [0u64; 2];
        readback::read(context, &self.readback, |bytes| {
            bytemuck::bytes_of_mut(&mut stamps).copy_from_slice(bytes);
        })
        .await?;
        let [start, end] = stamps;
        let period = f64::from(context.queue().get_timestamp_period());
        let ticks = end.checked_sub(start).filter(|&ticks| start != 0 && ticks != 0);
        Ok(ticks.map(|ticks| Duration::from_nanos((ticks as f64 * period) as u64)))
    }
}
