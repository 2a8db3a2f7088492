//! Machine code on a card.

use crate::{Compiled, Error, Usage, error::describe};
use cudarc::driver::{
    CudaContext, DriverError, result,
    sys::{CUfunction, CUfunction_attribute, CUmodule},
};
use flashtile_shaders::cuda::CudaVariant;
use std::{
    ffi::{CString, c_void},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Dynamic shared memory that a launch may ask for without more ado.
const SHARED_BYTES: u32 = 48 << 10;

/// A compiled variant, loaded into a CUDA context.
#[derive(Debug)]
pub(crate) struct Function {
    cuda: Arc<CudaContext>,
    module: CUmodule,
    handle: CUfunction,
    pub(crate) usage: Option<Usage>,
    launched: AtomicBool,
}

// SAFETY: the handles belong to a CUDA context, and the driver lets any thread use them that has made the context its current one.
unsafe impl Send for Function {}
// SAFETY: as above; nothing is changed after loading.
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
        // SAFETY: an ELF file tells its own length, and this one came whole from the compiler; the driver copies it.
        let module =
            unsafe { result::module::load_data(compiled.cubin.as_ptr().cast()) }.map_err(failed)?;
        // From here on the module is unloaded in any case.
        let (handle, usage) = (std::ptr::null_mut(), compiled.usage());
        let mut function =
            Self { cuda: cuda.clone(), module, handle, usage, launched: AtomicBool::new(false) };
        let name = CString::new(variant.entry_point()).expect("names of kernels hold no NUL");
        // SAFETY: the module was loaded above.
        function.handle = unsafe { result::module::get_function(module, name) }.map_err(failed)?;
        if variant.shared_bytes() > SHARED_BYTES {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = variant.shared_bytes() as i32;
            // SAFETY: the function is of the module that was loaded above.
            unsafe { result::function::set_function_attribute(function.handle, attribute, bytes) }
                .map_err(failed)?;
        }
        Ok(function)
    }

    /// Enqueues one launch on `stream`.
    ///
    /// # Safety
    /// The context is current, the stream is one of its own, and all that the parameters lead to is there until the kernel has run.
    pub(crate) unsafe fn launch(
        &self,
        stream: cudarc::driver::sys::CUstream,
        launch: &crate::Launch,
    ) -> Result<(), DriverError> {
        self.launched.store(true, Ordering::Relaxed);
        let tiles = launch.variant.tiles;
        let mut parameter = launch.params;
        let mut parameters = [(&raw mut parameter).cast::<c_void>()];
        // SAFETY: the kernel's only parameter is a `Params`, which has the layout of `CudaParams`, and the driver copies it before it returns.
        // The rest is the caller's promise.
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
        // A kernel may still run, and its code must not go from under it: where that cannot be told, as while a stream is captured, it stays.
        let ended = if *self.launched.get_mut() {
            bound.and_then(|()| result::ctx::synchronize())
        } else {
            bound
        };
        // What failed is not kept as cudarc's error, which the next to come would get: what it means for the context, the driver tells everybody.
        if ended.is_ok() {
            // SAFETY: nobody has the module but this.
            let _ = unsafe { result::module::unload(self.module) };
        }
    }
}
