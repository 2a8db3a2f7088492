use crate::Error;
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, result};
use std::sync::{Arc, Mutex, PoisonError};

/// Device memory of a plan that its launches share. Calls use it one after the other, also across
/// threads and streams.
#[derive(Debug)]
pub(crate) struct Workspace {
    cuda: Arc<CudaContext>,
    address: u64,
    pub(crate) bytes: u64,
    /// The end of the last call's launches. Locked while a call enqueues its launches, so that the
    /// launches of two calls do not interleave.
    last_use: Mutex<CudaEvent>,
}

impl Workspace {
    pub(crate) fn new(cuda: &Arc<CudaContext>, bytes: u64) -> Result<Self, Error> {
        let what = || format!("{bytes} bytes of scores");
        let failed = |e| Error::of_driver(e, what());
        // Planning compared the size with the GPU's memory, so only a 32-bit host can fail here.
        let size = usize::try_from(bytes).map_err(|_| Error::OutOfMemory { what: what() })?;
        let event = cuda.new_event(None).map_err(failed)?;
        // Memory from a stream's pool would be ordered on that stream alone.
        // SAFETY: creating the event made the context current. Kernels write every score before
        // they read it.
        let address = unsafe { result::malloc_sync(size) }.map_err(failed)?;
        Ok(Self { cuda: cuda.clone(), address, bytes, last_use: Mutex::new(event) })
    }

    /// Calls `launch`, which enqueues a call's launches on `stream`, ordered after those of the
    /// last call. While the stream is `captured` into a graph, the caller keeps that order instead,
    /// because ordering does not extend across a graph boundary.
    pub(crate) fn with<T>(
        &self,
        stream: &CudaStream,
        captured: bool,
        launch: impl FnOnce(u64) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let failed = |e| Error::of_driver(e, "the order of calls that share a workspace");
        let last_use = self.last_use.lock().unwrap_or_else(PoisonError::into_inner);
        if !captured {
            stream.wait(&last_use).map_err(failed)?;
        }
        let launched = launch(self.address);
        if !captured {
            // After an error too: some launches may be enqueued.
            last_use.record(stream).map_err(failed)?;
        }
        launched
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        self.cuda.record_err(self.cuda.bind_to_thread());
        // SAFETY: `new` allocated it. The driver waits for kernels that use it.
        self.cuda.record_err(unsafe { result::free_sync(self.address) });
    }
}
