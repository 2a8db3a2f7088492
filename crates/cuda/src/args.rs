use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, SyncOnDrop,
};
use std::{fmt, sync::Arc};

/// Device memory that is only read.
trait Readable {
    fn bytes(&self) -> u64;
    fn context(&self) -> &Arc<CudaContext>;
    /// Its address, for work on `stream`. The caller enqueues that work before it drops the second
    /// value, which records that the stream reads the memory.
    fn address<'b>(&'b self, stream: &'b CudaStream) -> (u64, SyncOnDrop<'b>);
}

/// Device memory that is written.
trait Writable {
    fn bytes(&self) -> u64;
    fn context(&self) -> &Arc<CudaContext>;
    /// As [`Readable::address`], for work that writes the memory.
    fn address<'b>(&'b mut self, stream: &'b CudaStream) -> (u64, SyncOnDrop<'b>);
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
            fn address<'b>(&'b self, stream: &'b CudaStream) -> (u64, SyncOnDrop<'b>) {
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
            fn address<'b>(&'b mut self, stream: &'b CudaStream) -> (u64, SyncOnDrop<'b>) {
                self.device_ptr_mut(stream)
            }
        }
    )* };
}
writable!(CudaSlice<T>, CudaViewMut<'_, T>);

/// Memory given by its address.
#[derive(Clone, Copy, Debug)]
struct Raw {
    address: u64,
    bytes: u64,
}

/// Where the memory of an argument lies, as far as it is known without an address.
pub(crate) struct Memory<'a> {
    /// The CUDA context that owns it; `None` for memory given by its address.
    pub(crate) context: Option<&'a Arc<CudaContext>>,
    /// Bytes of the whole memory.
    pub(crate) bytes: u64,
    /// Bytes in front of the tensor's first element.
    pub(crate) offset: u64,
}

/// A tensor that a call reads, in device memory that the caller owns.
///
/// It is made from a reference to a [`CudaSlice`] or a [`CudaView`] of any element type, or from an
/// address. The problem states its shape, its strides and its storage type.
pub struct Input<'a> {
    source: Source<'a>,
    offset: u64,
}

enum Source<'a> {
    Slice(&'a dyn Readable),
    Raw(Raw),
}

/// A tensor that a call writes, in device memory that the caller owns.
///
/// It is made from an exclusive reference to a [`CudaSlice`] or a [`CudaViewMut`] of any element
/// type, or from an address.
pub struct Output<'a> {
    target: Target<'a>,
    offset: u64,
}

enum Target<'a> {
    Slice(&'a mut dyn Writable),
    Raw(Raw),
}

impl Input<'_> {
    /// The `bytes` bytes of device memory at `address`, which another library owns.
    ///
    /// # Safety
    /// The plan's context can read the memory until the work of every call with this argument is
    /// done. Everything that writes the memory is ordered before that work.
    pub unsafe fn from_raw(address: u64, bytes: u64) -> Self {
        Self { source: Source::Raw(Raw { address, bytes }), offset: 0 }
    }

    /// Starts the tensor this many bytes into the memory. Its address has to be a multiple of the
    /// element size; multiples of 16 bytes are fastest.
    #[must_use]
    pub fn offset(mut self, bytes: u64) -> Self {
        self.offset = bytes;
        self
    }

    pub(crate) fn memory(&self) -> Memory<'_> {
        let (context, bytes) = match &self.source {
            Source::Slice(slice) => (Some(slice.context()), slice.bytes()),
            Source::Raw(raw) => (None, raw.bytes),
        };
        Memory { context, bytes, offset: self.offset }
    }

    /// The address of the first element, for work on `stream`, and cudarc's record of the use: the
    /// caller drops it after the work is enqueued.
    pub(crate) fn address<'b>(&'b self, stream: &'b CudaStream) -> (u64, Option<SyncOnDrop<'b>>) {
        let (address, sync) = match &self.source {
            Source::Slice(slice) => {
                let (address, sync) = slice.address(stream);
                (address, Some(sync))
            }
            Source::Raw(raw) => (raw.address, None),
        };
        (address.wrapping_add(self.offset), sync)
    }
}

impl Output<'_> {
    /// The `bytes` bytes of device memory at `address`, which another library owns.
    ///
    /// # Safety
    /// The plan's context can write the memory until the work of every call with this argument is
    /// done. Everything else that reads or writes the memory is ordered before or after that work.
    pub unsafe fn from_raw(address: u64, bytes: u64) -> Self {
        Self { target: Target::Raw(Raw { address, bytes }), offset: 0 }
    }

    /// As [`Input::offset`].
    #[must_use]
    pub fn offset(mut self, bytes: u64) -> Self {
        self.offset = bytes;
        self
    }

    pub(crate) fn memory(&self) -> Memory<'_> {
        let (context, bytes) = match &self.target {
            Target::Slice(slice) => (Some(slice.context()), slice.bytes()),
            Target::Raw(raw) => (None, raw.bytes),
        };
        Memory { context, bytes, offset: self.offset }
    }

    /// As [`Input::address`].
    pub(crate) fn address<'b>(
        &'b mut self,
        stream: &'b CudaStream,
    ) -> (u64, Option<SyncOnDrop<'b>>) {
        let (address, sync) = match &mut self.target {
            Target::Slice(slice) => {
                let (address, sync) = slice.address(stream);
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
        let Memory { bytes, offset, .. } = self.memory();
        f.debug_struct("Input")
            .field("bytes", &bytes)
            .field("offset", &offset)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Output<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Memory { bytes, offset, .. } = self.memory();
        f.debug_struct("Output")
            .field("bytes", &bytes)
            .field("offset", &offset)
            .finish_non_exhaustive()
    }
}

/// The memory and values of one call: see [`flashtile_core::Args`]. A workspace has to start at a
/// multiple of 16 bytes; with one per stream, calls on several streams do not wait for each other.
pub type Args<'a> = flashtile_core::Args<Input<'a>, Output<'a>>;
