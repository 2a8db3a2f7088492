//! Uniform slots for the parameters of dispatches.

use crate::{
    Error,
    scope::{catch_now, check_lost},
};
use flashtile_shaders::Params;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// The uniform buffers that all plans of a context share.
///
/// Slots are shared by content: a call with the parameters of an earlier one (the 80 layers of a
/// model, the same prompt length again) finds them on the device and writes nothing. A slot may be
/// overwritten only when no recorded call refers to it. When all slots are in use, another buffer
/// is added, so there is no limit to the calls that may be recorded and not yet finished.
pub(crate) struct ParamSlots {
    device: wgpu::Device,
    stride: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    buffers: Vec<wgpu::Buffer>,
    free: Vec<Arc<Slot>>,
    by_content: HashMap<Words, Arc<Slot>>,
}

/// The parameters as words, which compare and hash.
type Words = [u32; size_of::<Params>() / 4];

/// Where one dispatch finds its parameters. While a reference to it exists, its contents stay.
///
/// It names its buffer by index, not by a handle: callbacks that hold a slot must be `Send`, and a
/// buffer in a browser is not.
#[derive(Debug)]
pub(crate) struct Slot {
    /// Which of the context's parameter buffers.
    pub(crate) buffer: usize,
    /// The dynamic offset, in bytes.
    pub(crate) offset: u32,
}

impl ParamSlots {
    /// Slots of one buffer: 256 KiB at the strictest alignment.
    const PER_BUFFER: u32 = 1024;

    pub(crate) fn new(device: &wgpu::Device) -> Self {
        let alignment = device.limits().min_uniform_buffer_offset_alignment;
        let stride = (size_of::<Params>() as u32).next_multiple_of(alignment);
        Self { device: device.clone(), stride, state: Mutex::default() }
    }

    /// The slot that holds `params`, written now if no slot holds them yet.
    pub(crate) fn get(&self, queue: &wgpu::Queue, params: &Params) -> Result<Arc<Slot>, Error> {
        let words: Words = bytemuck::cast(*params);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = state.by_content.get(&words) {
            return Ok(slot.clone());
        }
        if state.free.is_empty() {
            state.reclaim();
        }
        if state.free.is_empty() {
            // Finished calls give their slots back when the device is polled, which runs callbacks
            // of the application: not under the lock.
            drop(state);
            let _ = self.device.poll(wgpu::PollType::Poll);
            state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(slot) = state.by_content.get(&words) {
                return Ok(slot.clone());
            }
            state.reclaim();
        }
        if state.free.is_empty() {
            let buffer = self.new_buffer()?;
            state.add(buffer, self.stride);
        }
        let slot = state.free.pop().expect("a buffer was added if there was none");
        let buffer = &state.buffers[slot.buffer];
        let write = || {
            queue.write_buffer(buffer, slot.offset.into(), bytemuck::bytes_of(params));
        };
        catch_now(&self.device, write)
            .map_err(|caught| caught.about(&self.device, || "the parameters".into()))?;
        state.by_content.insert(words, slot.clone());
        Ok(slot)
    }

    /// The buffer of that index.
    pub(crate) fn buffer(&self, index: usize) -> wgpu::Buffer {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.buffers[index].clone()
    }

    fn new_buffer(&self) -> Result<wgpu::Buffer, Error> {
        let descriptor = wgpu::BufferDescriptor {
            label: Some("flashtile params"),
            size: u64::from(self.stride) * u64::from(Self::PER_BUFFER),
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        };
        let buffer = catch_now(&self.device, || self.device.create_buffer(&descriptor))
            .map_err(|caught| caught.about(&self.device, || "parameter slots".into()))?;
        // A lost device creates an invalid buffer without an error.
        check_lost(&self.device)?;
        Ok(buffer)
    }
}

impl State {
    /// Frees the slots that no recorded call refers to.
    fn reclaim(&mut self) {
        let free = &mut self.free;
        self.by_content.retain(|_, slot| {
            let used = Arc::strong_count(slot) > 1;
            if !used {
                free.push(slot.clone());
            }
            used
        });
    }

    fn add(&mut self, buffer: wgpu::Buffer, stride: u32) {
        let index = self.buffers.len();
        let slots = (0..ParamSlots::PER_BUFFER)
            .rev()
            .map(|n| Arc::new(Slot { buffer: index, offset: n * stride }));
        self.free.extend(slots);
        self.buffers.push(buffer);
    }
}
