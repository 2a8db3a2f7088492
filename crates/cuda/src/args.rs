use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, SyncOnDrop,
};
use std::{fmt, sync::Arc};

/// Device memory that is only read.
trait Readable {
    fn bytes(&self) -> u64;
    fn context(&self) -> &Arc<CudaContext>;
    /// Its address, for work on `stream` that is enqueued before the second value is dropped.
    fn begin<'b>(&'b self, stream: &'b CudaStream) -> (u64, SyncOnDrop<'b>);
}

/// Device memory that is written.
trait Writable {
    fn bytes(&self) -> u64;
    fn context(&self) -> &Arc<CudaContext>;
    fn begin<'b>(&'b mut self, stream: &'b CudaStream) -> (u64, SyncOnDrop<'b>);
}

macro_rules! readable {
    ($($of:ty),*) => { $(
        impl<T> Readable for $of {
            fn bytes(&self) -> u64 {
                (self.len() * size_of::<T>()) as u64
            }
            fn context(&self) -> &Arc<CudaContext> {
                cudarc::driver::DeviceSlice::stream(self).context()
            }
            fn begin<'b>(&'b self, stream: &'b CudaStream) -> (u64, SyncOnDrop<'b>) {
                self.device_ptr(stream)
            }
        }
    )* };
}
readable!(CudaSlice<T>, CudaView<'_, T>);

macro_rules! writable {
    ($($of:ty),*) => { $(
        impl<T> Writable for $of {
            fn bytes(&self) -> u64 {
                (self.len() * size_of::<T>()) as u64
            }
            fn context(&self) -> &Arc<CudaContext> {
                cudarc::driver::DeviceSlice::stream(self).context()
            }
            fn begin<'b>(&'b mut self, stream: &'b CudaStream) -> (u64, SyncOnDrop<'b>) {
                self.device_ptr_mut(stream)
            }
        }
    )* };
}
writable!(CudaSlice<T>, CudaViewMut<'_, T>);

/// Memory by its address.
#[derive(Clone, Copy, Debug)]
struct Raw {
    address: u64,
    bytes: u64,
}

/// A tensor that a call reads: where it begins in device memory that the caller owns. Made from a reference to a [`CudaSlice`] or a [`CudaView`] of
/// any element type, or from an address. Shape, strides and storage type are the problem's.
pub struct Input<'a> {
    source: Source<'a>,
    offset: u64,
}

enum Source<'a> {
    Slice(&'a dyn Readable),
    Raw(Raw),
}

/// A tensor that a call writes: as [`Input`], from an exclusive reference to a [`CudaSlice`] or a [`CudaViewMut`], or from an address.
pub struct Output<'a> {
    target: Target<'a>,
    offset: u64,
}

enum Target<'a> {
    Slice(&'a mut dyn Writable),
    Raw(Raw),
}

impl Input<'_> {
    /// Memory that another library owns: `bytes` bytes from `address` on.
    ///
    /// # Safety
    /// They are device memory that the plan's context can read, until the work of every call that this is given to is done; whatever writes them
    /// is ordered before that work.
    pub unsafe fn from_raw(address: u64, bytes: u64) -> Self {
        Self { source: Source::Raw(Raw { address, bytes }), offset: 0 }
    }

    /// The tensor begins this many bytes further on: a multiple of the element size. No other alignment is asked for, and multiples of 16 are fastest.
    #[must_use]
    pub fn offset(mut self, bytes: u64) -> Self {
        self.offset = bytes;
        self
    }

    pub(crate) fn place(&self) -> (Option<&Arc<CudaContext>>, u64, u64) {
        match &self.source {
            Source::Slice(slice) => (Some(slice.context()), slice.bytes(), self.offset),
            Source::Raw(raw) => (None, raw.bytes, self.offset),
        }
    }

    pub(crate) fn begin<'b>(&'b self, stream: &'b CudaStream) -> (u64, Option<SyncOnDrop<'b>>) {
        let (address, sync) = match &self.source {
            Source::Slice(slice) => {
                let (address, sync) = slice.begin(stream);
                (address, Some(sync))
            }
            Source::Raw(raw) => (raw.address, None),
        };
        (address.wrapping_add(self.offset), sync)
    }
}

impl Output<'_> {
    /// Memory that another library owns: `bytes` bytes from `address` on.
    ///
    /// # Safety
    /// They are device memory that the plan's context can write, until the work of every call that this is given to is done; whatever else reads or
    /// writes them is ordered before or after that work.
    pub unsafe fn from_raw(address: u64, bytes: u64) -> Self {
        Self { target: Target::Raw(Raw { address, bytes }), offset: 0 }
    }

    /// As [`Input::offset`].
    #[must_use]
    pub fn offset(mut self, bytes: u64) -> Self {
        self.offset = bytes;
        self
    }

    pub(crate) fn place(&self) -> (Option<&Arc<CudaContext>>, u64, u64) {
        match &self.target {
            Target::Slice(slice) => (Some(slice.context()), slice.bytes(), self.offset),
            Target::Raw(raw) => (None, raw.bytes, self.offset),
        }
    }

    pub(crate) fn begin<'b>(&'b mut self, stream: &'b CudaStream) -> (u64, Option<SyncOnDrop<'b>>) {
        let (address, sync) = match &mut self.target {
            Target::Slice(slice) => {
                let (address, sync) = slice.begin(stream);
                (address, Some(sync))
            }
            Target::Raw(raw) => (raw.address, None),
        };
        (address.wrapping_add(self.offset), sync)
    }
}

impl<'a, T> From<&'a CudaSlice<T>> for Input<'a> {
    fn from(slice: &'a CudaSlice<T>) -> Self {
        Self { source: Source::Slice(slice), offset: 0 }
    }
}

impl<'a, T> From<&'a CudaView<'_, T>> for Input<'a> {
    fn from(view: &'a CudaView<'_, T>) -> Self {
        Self { source: Source::Slice(view), offset: 0 }
    }
}

impl<'a, T> From<&'a mut CudaSlice<T>> for Output<'a> {
    fn from(slice: &'a mut CudaSlice<T>) -> Self {
        Self { target: Target::Slice(slice), offset: 0 }
    }
}

impl<'a, T> From<&'a mut CudaViewMut<'_, T>> for Output<'a> {
    fn from(view: &'a mut CudaViewMut<'_, T>) -> Self {
        Self { target: Target::Slice(view), offset: 0 }
    }
}

impl fmt::Debug for Input<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, bytes, offset) = self.place();
        f.debug_struct("Input")
            .field("bytes", &bytes)
            .field("offset", &offset)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Output<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, bytes, offset) = self.place();
        f.debug_struct("Output")
            .field("bytes", &bytes)
            .field("offset", &offset)
            .finish_non_exhaustive()
    }
}

/// The memory and values of one call: see [`flashtile_core::Args`]. A workspace has to start at a
/// multiple of 16 bytes; with one per stream, calls on several streams do not wait for each other.
pub type Args<'a> = flashtile_core::Args<Input<'a>, Output<'a>>;
