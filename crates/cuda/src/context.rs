use crate::{
    Error, Machine, cache::Cache, compiler, devices, driver, launch::is_captured, module::Function,
    nvrtc::Nvrtc,
};
use cudarc::driver::{CudaContext, CudaStream};
use flashtile_shaders::cuda::CudaVariant;
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

/// What all plans in one CUDA context share: its compiled kernels. A clone is another handle to the same.
#[derive(Clone)]
pub struct Context {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) cuda: Arc<CudaContext>,
    pub(crate) stream: Arc<CudaStream>,
    pub(crate) name: String,
    pub(crate) machine: Machine,
    driver: u32,
    cache: Cache,
    compiler: Mutex<Option<Arc<Nvrtc>>>,
    functions: Mutex<HashMap<CudaVariant, Arc<Function>>>,
    apart: Mutex<Vec<Arc<CudaStream>>>,
}

impl Context {
    /// Works in the caller's CUDA context. `stream` is where host runs go; plans launch on whichever stream of the context they are given.
    ///
    /// Compiled kernels are kept on disk, in `FLASHTILE_CACHE_DIR` or the user's cache directory (an empty value: nowhere).
    ///
    /// # Errors
    /// [`Error::OldDriver`], and [`Error::NoDriver`] where the driver lacks a function; [`Error::DeviceLost`].
    pub fn new(stream: Arc<CudaStream>) -> Result<Self, Error> {
        let cuda = stream.context().clone();
        let driver = driver::check()?
            .ok_or_else(|| Error::NoDriver("it finds no card any more".to_owned()))?;
        let failed = |e| Error::of_driver(e, "the description of the card");
        let memory = cuda.total_mem().map_err(failed)? as u64;
        let machine =
            devices::machine(|attribute| cuda.attribute(attribute), memory).map_err(failed)?;
        let inner = Inner {
            name: cuda.name().map_err(failed)?,
            cuda,
            stream,
            machine,
            driver,
            cache: Cache::of_user(),
            compiler: Mutex::default(),
            functions: Mutex::default(),
            apart: Mutex::default(),
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

    /// The card's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// What planning knows of the card.
    pub fn machine(&self) -> &Machine {
        &self.inner.machine
    }

    /// The driver's version: 12040 for CUDA 12.4.
    pub fn driver_version(&self) -> u32 {
        self.inner.driver
    }

    /// Kernels compiled or loaded so far.
    pub fn kernel_count(&self) -> usize {
        self.inner.functions.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Drops the kernels compiled or loaded so far. Plans keep theirs; the next plan loads them again,
    /// from the cache on disk where there is one.
    pub fn release_kernels(&self) {
        self.inner.functions.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The compiler for this card and driver, looked for until it is found.
    pub(crate) fn compiler(&self) -> Result<Arc<Nvrtc>, Error> {
        let mut compiler = self.inner.compiler.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = &*compiler {
            return Ok(found.clone());
        }
        let found = compiler::find(self.inner.machine.arch, Some(self.inner.driver / 1000))?;
        Ok(compiler.insert(found).clone())
    }

    /// A stream on which nothing is ever done, and that is part of no capture: to be given back.
    pub(crate) fn take_apart(&self) -> Result<Arc<CudaStream>, Error> {
        let mut streams = self.inner.apart.lock().unwrap_or_else(PoisonError::into_inner);
        for n in 0..streams.len() {
            if !is_captured(&streams[n])? {
                return Ok(streams.swap_remove(n));
            }
        }
        self.inner.cuda.new_stream().map_err(|e| Error::of_driver(e, "a stream beside a capture"))
    }

    /// Takes a stream back. One that became part of a capture is destroyed no sooner than that is over.
    pub(crate) fn give_apart(&self, stream: Arc<CudaStream>) {
        self.inner.apart.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
    }

    /// The kernel of a variant, compiled and loaded at the first call.
    pub(crate) fn function(&self, variant: &CudaVariant) -> Result<Arc<Function>, Error> {
        let Inner { cuda, machine, cache, functions, .. } = &*self.inner;
        if let Some(found) = functions.lock().unwrap_or_else(PoisonError::into_inner).get(variant) {
            return Ok(found.clone());
        }
        // Compiling takes long, and other threads go on meanwhile. Two may come here for one variant: the second's is dropped for the first's.
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
        f.debug_struct("Context").field("card", &self.inner.name).finish_non_exhaustive()
    }
}
