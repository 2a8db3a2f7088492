//! Machine code on a GPU.

use crate::{Compiled, Error, Usage, error::describe};
use cudarc::driver::{
    CudaContext, DriverError, result,
    sys::{CUfunction, CUfunction_attribute as Attribute, CUmodule, CUstream},
};
use flashtile_shaders::cuda::CudaVariant;
use std::{
    ffi::{CString, c_void},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Dynamic shared memory that a launch can use without opting in to more.
const SHARED_BYTES: u32 = 48 << 10;

/// From this many bytes of dynamic shared memory on, a kernel keeps its tiles there. Those that use
/// less gain more from the L1 cache, which is the other part of the same memory.
const TILE_BYTES: u32 = 1 << 10;

/// A compiled variant, loaded into a CUDA context.
#[derive(Debug)]
pub(crate) struct Function {
    cuda: Arc<CudaContext>,
    module: CUmodule,
    handle: CUfunction,
    pub(crate) usage: Option<Usage>,
    launched: AtomicBool,
}

// SAFETY: the handles belong to a CUDA context, and the driver lets every thread use them whose
// current context that is.
unsafe impl Send for Function {}
// SAFETY: as above; nothing changes after loading.
unsafe impl Sync for Function {}

impl Function {
    pub(crate) fn load(
        cuda: &Arc<CudaContext>,
        variant: &CudaVariant,
        compiled: &Compiled,
    ) -> Result<Self, Error> {
        let failed = |e: DriverError| match Error::of_driver(e, format!("kernel {variant}")) {
            Error::Driver { .. } => {
                let (major, minor) = compiled.compiler;
                let message = format!(
                    "the driver refused the machine code of NVRTC {major}.{minor}: {}",
                    describe(e)
                );
                Error::Compile { variant: variant.to_string(), arch: compiled.arch, message }
            }
            other => other,
        };
        cuda.bind_to_thread().map_err(failed)?;
        // SAFETY: an ELF file states its own length, and the compiler returned all of this one. The
        // driver copies it.
        let module =
            unsafe { result::module::load_data(compiled.cubin.as_ptr().cast()) }.map_err(failed)?;
        // From here on, dropping the function unloads the module, after an error too.
        let (handle, usage) = (std::ptr::null_mut(), compiled.usage());
        let mut function =
            Self { cuda: cuda.clone(), module, handle, usage, launched: AtomicBool::new(false) };
        let name = CString::new(variant.entry_point()).expect("kernel names contain no NUL");
        // SAFETY: the module was loaded above.
        function.handle = unsafe { result::module::get_function(module, name) }.map_err(failed)?;
        if variant.shared_bytes() > SHARED_BYTES {
            let bytes = variant.shared_bytes() as i32;
            function
                .set(Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes)
                .map_err(failed)?;
        }
        if variant.shared_bytes() >= TILE_BYTES {
            // As many blocks as possible share a multiprocessor if all of its memory is shared
            // memory. This is a hint: without it the kernel computes the same, so an error that
            // concerns the hint alone does not matter, and any other error returns at the launch.
            let _ =
                function.set(Attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100);
        }
        Ok(function)
    }

    fn set(&self, attribute: Attribute, value: i32) -> Result<(), DriverError> {
        // SAFETY: the function belongs to the module, which is loaded until this value is dropped.
        unsafe { result::function::set_function_attribute(self.handle, attribute, value) }
    }

    /// Enqueues one launch on `stream`.
    ///
    /// # Safety
    /// The context is current, the stream belongs to it, and all memory that the parameters refer
    /// to stays allocated until the kernel has run.
    pub(crate) unsafe fn launch(
        &self,
        stream: CUstream,
        launch: &crate::Launch,
    ) -> Result<(), DriverError> {
        self.launched.store(true, Ordering::Relaxed);
        let tiles = launch.variant.tiles;
        let mut parameter = launch.params;
        let mut parameters = [(&raw mut parameter).cast::<c_void>()];
        // SAFETY: the kernel's only parameter is a `Params`, which has the layout of `CudaParams`,
        // and the driver copies it before it returns. The caller guarantees the rest.
        unsafe {
            result::launch_kernel(
                self.handle,
                (launch.grid, 1, 1),
                (tiles.tx, tiles.ty, 1),
                launch.variant.shared_bytes(),
                stream,
                &mut parameters,
            )
        }
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        let bound = self.cuda.bind_to_thread();
        // The code must stay loaded while a kernel runs. If waiting fails, as it does during a
        // capture, the module stays loaded for good.
        let finished = if *self.launched.get_mut() {
            bound.and_then(|()| result::ctx::synchronize())
        } else {
            bound
        };
        // The error is not recorded in cudarc's context, where an unrelated call would report it.
        // If the context is lost, the driver reports that to every later call.
        if finished.is_ok() {
            // SAFETY: only this value refers to the module.
            let _ = unsafe { result::module::unload(self.module) };
        }
    }
}
