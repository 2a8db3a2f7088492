//! Bind groups, kept for the buffer sets that come back.

use crate::{Error, params::ParamSlots, scope::catch_now};
use flashtile_shaders::{Params, Slot};
use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// A range of a buffer, as bound. Buffers are equal if they are the same buffer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Bound<B> {
    pub(crate) slot: Slot,
    pub(crate) buffer: B,
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

/// The bind groups of one plan.
///
/// A bind group keeps its buffers alive, and making one costs several times as much as the rest of
/// a call. So the cache keeps as many as are in use and no others: a set of buffers that was seen
/// once waits among the few most recent; one that comes back is kept until it has not been used for
/// many calls. Sets that left the recent ones are remembered by their hash alone, so that a model
/// with more layers than that is recognised in its second round.
pub(crate) struct BindCache {
    state: Mutex<State>,
    hasher: RandomState,
    /// Bind groups of one call, which come and go together.
    per_call: usize,
}

#[derive(Default)]
struct State {
    /// Lookups so far.
    clock: u64,
    /// When to look for idle entries again.
    next_expiry: u64,
    groups: HashMap<u64, Vec<Entry>>,
    count: usize,
    /// Hashes of the entries that were used once, oldest first.
    recent: VecDeque<u64>,
    /// Hashes of entries that left `recent`, with the time.
    seen: HashMap<u64, u64>,
}

struct Entry {
    step: usize,
    params_buffer: usize,
    bound: Vec<Bound<wgpu::Buffer>>,
    group: wgpu::BindGroup,
    last_use: u64,
    came_back: bool,
}

/// What a bind group is made of.
pub(crate) struct Wanted<'a> {
    /// Which dispatch of the plan.
    pub(crate) step: usize,
    pub(crate) params: &'a ParamSlots,
    /// Which parameter buffer. All slots of one buffer share a bind group.
    pub(crate) params_buffer: usize,
    pub(crate) bound: &'a [Bound<&'a wgpu::Buffer>],
}

impl BindCache {
    /// Buffer sets that are kept although they were used only once.
    const RECENT: usize = 8;
    /// Calls after which a set that came back, but is not used any more, is dropped. (Sets in
    /// rotation extend it: see `expire`.)
    const IDLE_CALLS: u64 = 1024;

    pub(crate) fn new(per_call: usize) -> Self {
        Self { state: Mutex::default(), hasher: RandomState::new(), per_call: per_call.max(1) }
    }

    pub(crate) fn get(
        &self,
        device: &wgpu::Device,
        layout: &wgpu::BindGroupLayout,
        wanted: &Wanted<'_>,
    ) -> Result<wgpu::BindGroup, Error> {
        let hash = self.hasher.hash_one((wanted.step, wanted.params_buffer, wanted.bound));
        let found = {
            let mut state = self.lock();
            state.expire(Self::IDLE_CALLS * self.per_call as u64);
            state.find(hash, wanted)
        };
        if let Some(group) = found {
            return Ok(group);
        }
        // Outside the lock: two threads may both make it, and one of the two is kept.
        let group = make(device, layout, wanted)?;
        let mut state = self.lock();
        if let Some(first) = state.find(hash, wanted) {
            return Ok(first);
        }
        state.insert(hash, wanted, group.clone(), Self::RECENT * self.per_call);
        Ok(group)
    }

    /// Drops all bind groups, and with them the references to the caller's buffers.
    pub(crate) fn clear(&self) {
        let mut state = self.lock();
        let (clock, next_expiry) = (state.clock, state.next_expiry);
        *state = State { clock, next_expiry, ..State::default() };
    }

    /// How many bind groups it holds.
    pub(crate) fn len(&self) -> usize {
        self.lock().count
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent between any two calls of its methods.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn find(&mut self, hash: u64, wanted: &Wanted<'_>) -> Option<wgpu::BindGroup> {
        self.clock += 1;
        let entries = self.groups.get_mut(&hash)?;
        let entry = entries.iter_mut().find(|entry| entry.is(wanted))?;
        entry.last_use = self.clock;
        if !entry.came_back {
            entry.came_back = true;
            self.recent.retain(|recent| *recent != hash);
        }
        Some(entry.group.clone())
    }

    fn insert(&mut self, hash: u64, wanted: &Wanted<'_>, group: wgpu::BindGroup, recent: usize) {
        let came_back = self.seen.remove(&hash).is_some();
        let bound = wanted.bound.iter().map(|bound| Bound {
            slot: bound.slot,
            buffer: bound.buffer.clone(),
            offset: bound.offset,
            size: bound.size,
        });
        self.groups.entry(hash).or_default().push(Entry {
            step: wanted.step,
            params_buffer: wanted.params_buffer,
            bound: bound.collect(),
            group,
            last_use: self.clock,
            came_back,
        });
        self.count += 1;
        if came_back {
            return;
        }
        self.recent.push_back(hash);
        while self.recent.len() > recent {
            if let Some(oldest) = self.recent.pop_front() {
                self.drop_entries(oldest, |entry| entry.came_back);
                self.seen.insert(oldest, self.clock);
            }
        }
    }

    /// Drops what has not been used for `idle` lookups, and longer than the kept sets take to come
    /// round four times.
    fn expire(&mut self, idle: u64) {
        if self.clock < self.next_expiry {
            return;
        }
        self.next_expiry = self.clock + idle;
        let oldest = self.clock.saturating_sub(idle.max(4 * self.count as u64));
        let hashes: Vec<u64> = self.groups.keys().copied().collect();
        for hash in hashes {
            self.drop_entries(hash, |entry| !entry.came_back || entry.last_use >= oldest);
        }
        let remember = self.clock.saturating_sub(64 * idle);
        self.seen.retain(|_, time| *time >= remember);
    }

    fn drop_entries(&mut self, hash: u64, keep: impl Fn(&Entry) -> bool) {
        if let Some(entries) = self.groups.get_mut(&hash) {
            let before = entries.len();
            entries.retain(keep);
            self.count -= before - entries.len();
            if entries.is_empty() {
                self.groups.remove(&hash);
            }
        }
    }
}

impl Entry {
    fn is(&self, wanted: &Wanted<'_>) -> bool {
        let same = |(ours, theirs): (&Bound<wgpu::Buffer>, &Bound<&wgpu::Buffer>)| {
            ours.slot == theirs.slot
                && ours.offset == theirs.offset
                && ours.size == theirs.size
                && ours.buffer == *theirs.buffer
        };
        self.step == wanted.step
            && self.params_buffer == wanted.params_buffer
            && self.bound.len() == wanted.bound.len()
            && self.bound.iter().zip(wanted.bound).all(same)
    }
}

fn make(
    device: &wgpu::Device,
    layout: &wgpu::BindGroupLayout,
    wanted: &Wanted<'_>,
) -> Result<wgpu::BindGroup, Error> {
    let params_buffer = wanted.params.buffer(wanted.params_buffer);
    let params = wgpu::BindGroupEntry {
        binding: Slot::Params as u32,
        // The dynamic offset of the dispatch moves it to the slot.
        resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: &params_buffer,
            offset: 0,
            size: wgpu::BufferSize::new(size_of::<Params>() as u64),
        }),
    };
    let tensors = wanted.bound.iter().map(|bound| wgpu::BindGroupEntry {
        binding: bound.slot as u32,
        resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: bound.buffer,
            offset: bound.offset,
            size: wgpu::BufferSize::new(bound.size),
        }),
    });
    let entries: Vec<_> = std::iter::once(params).chain(tensors).collect();
    let label = Some("flashtile");
    let descriptor = wgpu::BindGroupDescriptor { label, layout, entries: &entries };
    catch_now(device, || device.create_bind_group(&descriptor))
        .map_err(|caught| caught.about(device, || "a bind group".into()))
}
