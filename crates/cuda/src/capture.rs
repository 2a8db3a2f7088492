//! Slices of cudarc while a stream is captured into a CUDA graph.
//!
//! cudarc gives the address of a slice for work on a stream. It first makes the stream wait for the
//! slice's events, and afterwards it records an event on the stream. Both are wrong during a
//! capture: a captured stream must not wait for an event from outside the capture, and no other
//! stream can wait for an event that was recorded inside it. Therefore a side stream, which runs no
//! work, waits instead of the captured stream, and the caller records nothing.

use crate::Error;
use cudarc::driver::{
    CudaContext, CudaStream, DriverError,
    result::{self, stream::StreamKind},
    sys::CUstreamCaptureStatus,
};
use std::sync::{Arc, Mutex, PoisonError};

/// Whether work on `stream` becomes part of a graph.
pub(crate) fn is_captured(stream: &CudaStream) -> Result<bool, Error> {
    let status = stream
        .capture_status()
        .map_err(|e| Error::of_driver(e, "the capture status of the stream"))?;
    Ok(status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
}

/// The side streams of one context, created on demand and used again.
#[derive(Debug, Default)]
pub(crate) struct SideStreams {
    idle: Mutex<Vec<SideStream>>,
}

impl SideStreams {
    /// Calls `use_stream` with a side stream, which may wait for any event that `captured` depends
    /// on.
    pub(crate) fn with<T>(
        &self,
        captured: &CudaStream,
        use_stream: impl FnOnce(&CudaStream) -> T,
    ) -> Result<T, Error> {
        let side = self.take(captured.context())?;
        let result = use_stream(&side.stream);
        let joined = join_if_captured(captured, &side.stream);
        // After an error too: destroying a stream that is part of a capture would invalidate it.
        self.lock().push(side);
        joined.map(|()| result)
    }

    /// A stream that is not part of a capture. One that joined a capture stays in it until the
    /// capture ends.
    fn take(&self, cuda: &Arc<CudaContext>) -> Result<SideStream, Error> {
        let mut idle = self.lock();
        for n in 0..idle.len() {
            if !is_captured(&idle[n].stream)? {
                return Ok(idle.swap_remove(n));
            }
        }
        SideStream::new(cuda).map_err(|e| Error::of_driver(e, "a side stream for the capture"))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<SideStream>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A slice that was written within the capture adds every stream that waits for it to the capture,
/// and a capture can only end when all its streams have joined the first one again.
fn join_if_captured(captured: &CudaStream, side: &CudaStream) -> Result<(), Error> {
    if !is_captured(side)? {
        return Ok(());
    }
    captured.join(side).map_err(|e| Error::of_driver(e, "the join of the side stream"))
}

/// A stream that runs no work.
///
/// cudarc's `new_stream` waits for the GPU when it creates the first stream of a context. During a
/// capture that is an error, and it invalidates the capture. So this calls the driver itself.
#[derive(Debug)]
struct SideStream {
    /// cudarc's wrapper, which does not own the stream.
    stream: Arc<CudaStream>,
}

impl SideStream {
    fn new(cuda: &Arc<CudaContext>) -> Result<Self, DriverError> {
        cuda.bind_to_thread()?;
        let stream = result::stream::create(StreamKind::NonBlocking)?;
        // SAFETY: the stream was created in this context, which is current, and it is destroyed
        // only when this value is dropped. It runs no work that would have to be ordered.
        Ok(Self { stream: unsafe { cuda.wrap_borrowed_stream(stream) } })
    }
}

impl Drop for SideStream {
    fn drop(&mut self) {
        let cuda = self.stream.context();
        cuda.record_err(cuda.bind_to_thread());
        // SAFETY: `new` created it, and no reference to it outlives this value.
        cuda.record_err(unsafe { result::stream::destroy(self.stream.cu_stream()) });
    }
}
