use crate::Error;
use flashtile_shaders::Params;
use std::sync::{Arc, Mutex, PoisonError};

/// Uniform slots for the parameters of dispatches. A slot belongs to one encoded dispatch until the GPU has done it, so that encoding
/// creates no buffers.
pub(crate) struct Ring {
    pub(crate) buffer: wgpu::Buffer,
    stride: u32,
    slots: u32,
    free: Arc<Mutex<Vec<u32>>>,
}

/// The slots of one encoded call; free again when dropped.
pub(crate) struct Slots {
    offsets: Vec<u32>,
    free: Arc<Mutex<Vec<u32>>>,
}

impl Ring {
    /// Dispatches of all plans that may be encoded or in flight at once.
    pub(crate) const SHARED_SLOTS: u32 = 4096;

    pub(crate) fn new(device: &wgpu::Device, slots: u32) -> Self {
        let stride = (size_of::<Params>() as u32)
            .next_multiple_of(device.limits().min_uniform_buffer_offset_alignment);
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("flashtile params"),
            size: u64::from(stride) * u64::from(slots),
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let free = (0..slots).rev().map(|slot| slot * stride).collect();
        Self { buffer, stride, slots, free: Arc::new(Mutex::new(free)) }
    }

    /// Takes `count` slots: their offsets in bytes.
    pub(crate) fn take(&self, device: &wgpu::Device, count: usize) -> Result<Slots, Error> {
        // A second try after asking the device which calls have finished.
        for attempt in 0..2 {
            if attempt > 0 {
                // Whether anything finished shows in the list, not in the answer.
                let _ = device.poll(wgpu::PollType::Poll);
            }
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(rest) = free.len().checked_sub(count) {
                return Ok(Slots { offsets: free.split_off(rest), free: self.free.clone() });
            }
        }
        Err(Error::TooManyCalls { slots: self.slots })
    }

    pub(crate) fn write(&self, queue: &wgpu::Queue, offset: u32, params: &Params) {
        queue.write_buffer(&self.buffer, offset.into(), bytemuck::bytes_of(params));
    }

    /// The binding of one slot; its place is the dynamic offset.
    pub(crate) fn binding(&self) -> wgpu::BindingResource<'_> {
        wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: &self.buffer,
            offset: 0,
            size: wgpu::BufferSize::new(self.stride.min(size_of::<Params>() as u32).into()),
        })
    }
}

impl Slots {
    pub(crate) fn offset(&self, n: usize) -> u32 {
        self.offsets[n]
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).append(&mut self.offsets);
    }
}
