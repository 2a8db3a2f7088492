use crate::{
    Error, Machine, cache::Cache, capture::SideStreams, compiler, driver, machine,
    module::Function, nvrtc::Nvrtc,
};
use cudarc::driver::{CudaContext, CudaStream};
use flashtile_shaders::cuda::CudaVariant;
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

/// What all plans in one CUDA context share: its compiled kernels. A clone is another handle to the
/// same context.
#[derive(Clone)]
pub struct Context {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) cuda: Arc<CudaContext>,
    pub(crate) stream: Arc<CudaStream>,
    pub(crate) name: String,
    pub(crate) machine: Machine,
    pub(crate) side_streams: SideStreams,
    driver: u32,
    cache: Cache,
    compiler: Mutex<Option<Arc<Nvrtc>>>,
    functions: Mutex<HashMap<CudaVariant, Arc<Function>>>,
}

impl Context {
    /// Works in the CUDA context of `stream`, which the caller owns. Host runs use `stream`; plans
    /// launch on any stream of the context.
    ///
    /// Compiled kernels are kept on disk, in `FLASHTILE_CACHE_DIR` or in the user's cache
    /// directory. If the variable is empty, they are kept nowhere.
    ///
    /// # Errors
    /// [`Error::NoDriver`] if the driver lacks a function, [`Error::OldDriver`],
    /// [`Error::DeviceLost`].
    pub fn new(stream: Arc<CudaStream>) -> Result<Self, Error> {
        let cuda = stream.context().clone();
        let driver = driver::check()?
            .ok_or_else(|| Error::NoDriver("the driver no longer finds a GPU".to_owned()))?;
        let failed = |e| Error::of_driver(e, "the description of the GPU");
        let memory = cuda.total_mem().map_err(failed)? as u64;
        let machine =
            machine::query(|attribute| cuda.attribute(attribute), memory).map_err(failed)?;
        let inner = Inner {
            name: cuda.name().map_err(failed)?,
            cuda,
            stream,
            machine,
            side_streams: SideStreams::default(),
            driver,
            cache: Cache::of_user(),
            compiler: Mutex::default(),
            functions: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The CUDA context.
    pub fn cuda(&self) -> &Arc<CudaContext> {
        &self.inner.cuda
    }

    /// The stream of host runs.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.inner.stream
    }

    /// The GPU's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The numbers of the GPU that planning uses.
    pub fn machine(&self) -> &Machine {
        &self.inner.machine
    }

    /// The driver's version: 12040 for CUDA 12.4.
    pub fn driver_version(&self) -> u32 {
        self.inner.driver
    }

    /// How many kernels this context has compiled, or loaded from disk, so far.
    pub fn kernel_count(&self) -> usize {
        self.inner.functions.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Drops the kernels compiled or loaded so far. Plans keep theirs; the next plan loads them
    /// again, from the cache on disk where there is one.
    pub fn release_kernels(&self) {
        self.inner.functions.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The compiler for this GPU and driver. Each call searches again until one is found.
    pub(crate) fn compiler(&self) -> Result<Arc<Nvrtc>, Error> {
        let mut compiler = self.inner.compiler.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = &*compiler {
            return Ok(found.clone());
        }
        let found = compiler::find(self.inner.machine.arch, Some(self.inner.driver / 1000))?;
        Ok(compiler.insert(found).clone())
    }

    /// The kernel of a variant, compiled and loaded by the first call.
    pub(crate) fn function(&self, variant: &CudaVariant) -> Result<Arc<Function>, Error> {
        let Inner { cuda, machine, cache, functions, .. } = &*self.inner;
        if let Some(found) = functions.lock().unwrap_or_else(PoisonError::into_inner).get(variant) {
            return Ok(found.clone());
        }
        // The lock is not held here, because compiling takes seconds and other threads go on. Two
        // threads may compile the same variant; then the second result is dropped.
        let compiled = compiler::compile_with(&*self.compiler()?, variant, machine.arch, cache)?;
        let function = Arc::new(Function::load(cuda, variant, &compiled)?);
        Ok(functions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(*variant)
            .or_insert(function)
            .clone())
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("gpu", &self.inner.name).finish_non_exhaustive()
    }
}
