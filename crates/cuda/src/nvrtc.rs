//! NVRTC's C interface, in a library that is opened at run time.

use crate::library;
use flashtile_shaders::cuda::Arch;
use libloading::Library;
use std::{
    collections::HashMap,
    error::Error as _,
    ffi::{CStr, CString, c_char, c_int, c_void},
    path::{Path, PathBuf},
    ptr,
    sync::{Arc, Mutex, PoisonError},
};

/// The message of the system's loader, which libloading keeps as the source of its error.
fn failed(error: libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

type Program = *mut c_void;
type Status = c_int;

const SUCCESS: Status = 0;

/// One version of NVRTC.
pub(crate) struct Nvrtc {
    pub(crate) path: PathBuf,
    /// Major and minor.
    pub(crate) version: (u32, u32),
    /// The compute capabilities that it supports.
    pub(crate) archs: Vec<Arch>,
    functions: Functions,
    /// Contains the functions. Never closed, because NVRTC keeps threads and state of its own.
    _library: Library,
}

/// Names and types as in nvrtc.h; they are the same in every version since 11.2.
struct Functions {
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status,
    destroy: unsafe extern "C" fn(*mut Program) -> Status,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    log: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    ptx_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    ptx: unsafe extern "C" fn(Program, *mut c_char) -> Status,
}

/// What to compile a program to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// Machine code for one architecture.
    Machine,
    /// PTX, from which machine code is made.
    Ptx,
}

/// The result of a compilation: the code, or `None` if the source has errors, and the log.
pub(crate) struct Output {
    pub(crate) code: Option<Vec<u8>>,
    pub(crate) log: String,
}

impl Nvrtc {
    /// The library at `path`, opened once per process. The error is the reason why it cannot be
    /// used.
    pub(crate) fn open(path: &Path) -> Result<Arc<Nvrtc>, String> {
        type Opened = HashMap<PathBuf, Result<Arc<Nvrtc>, String>>;
        static OPENED: Mutex<Option<Opened>> = Mutex::new(None);
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        let opened = opened.get_or_insert_default();
        opened.entry(path.to_owned()).or_insert_with(|| Self::load(path).map(Arc::new)).clone()
    }

    fn load(path: &Path) -> Result<Nvrtc, String> {
        for builtins in library::builtins_beside(path) {
            // NVRTC opens this library by its bare name when it compiles, and version 13 does not
            // search its own directory. The loader finds a library that is open already.
            // SAFETY: the library contains only data for NVRTC. If it does not open, NVRTC reports
            // that.
            std::mem::forget(unsafe { Library::new(builtins) });
        }
        // SAFETY: on loading, NVRTC only sets up its own state.
        let library = unsafe { Library::new(path) }.map_err(failed)?;
        // SAFETY: the types are those of nvrtc.h, and the library is never closed.
        let (version, count, list, functions) = unsafe {
            type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status;
            type Ints = unsafe extern "C" fn(*mut c_int) -> Status;
            let version = *library.get::<Version>(b"nvrtcVersion\0").map_err(failed)?;
            let count = *library.get::<Ints>(b"nvrtcGetNumSupportedArchs\0").map_err(failed)?;
            let list = *library.get::<Ints>(b"nvrtcGetSupportedArchs\0").map_err(failed)?;
            let functions = Functions {
                error_string: *library.get(b"nvrtcGetErrorString\0").map_err(failed)?,
                create: *library.get(b"nvrtcCreateProgram\0").map_err(failed)?,
                destroy: *library.get(b"nvrtcDestroyProgram\0").map_err(failed)?,
                compile: *library.get(b"nvrtcCompileProgram\0").map_err(failed)?,
                log_size: *library.get(b"nvrtcGetProgramLogSize\0").map_err(failed)?,
                log: *library.get(b"nvrtcGetProgramLog\0").map_err(failed)?,
                cubin_size: *library.get(b"nvrtcGetCUBINSize\0").map_err(failed)?,
                cubin: *library.get(b"nvrtcGetCUBIN\0").map_err(failed)?,
                ptx_size: *library.get(b"nvrtcGetPTXSize\0").map_err(failed)?,
                ptx: *library.get(b"nvrtcGetPTX\0").map_err(failed)?,
            };
            (version, count, list, functions)
        };
        let (mut major, mut minor, mut archs) = (0, 0, 0);
        // SAFETY: `version` writes two ints.
        functions.check(unsafe { version(&mut major, &mut minor) })?;
        // SAFETY: `count` writes one int.
        functions.check(unsafe { count(&mut archs) })?;
        let mut supported = vec![0; archs.max(0) as usize];
        // SAFETY: `list` writes as many ints as `count` reported.
        functions.check(unsafe { list(supported.as_mut_ptr()) })?;
        Ok(Nvrtc {
            path: path.to_owned(),
            version: (major as u32, minor as u32),
            archs: supported.into_iter().map(|arch| arch as Arch).collect(),
            functions,
            _library: library,
        })
    }

    /// The architecture to compile for so that the code runs on `arch`: `arch` itself, or else the
    /// newest one below it in its family, whose machine code it can run too.
    pub(crate) fn target(&self, arch: Arch) -> Option<Arch> {
        self.archs.iter().copied().filter(|&have| have <= arch && have / 10 == arch / 10).max()
    }

    /// Compiles `source`.
    pub(crate) fn compile(
        &self,
        source: &str,
        name: &str,
        options: &[String],
        to: Code,
    ) -> Result<Output, String> {
        let text = |text: &str| CString::new(text).map_err(|e| e.to_string());
        let (source, name) = (text(source)?, text(name)?);
        let options: Vec<CString> =
            options.iter().map(|option| text(option)).collect::<Result<_, _>>()?;
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let functions = &self.functions;
        let mut program = Open { functions, program: ptr::null_mut() };
        // SAFETY: NVRTC copies both strings, which end in NUL. There are no headers.
        let made = unsafe {
            (functions.create)(
                &mut program.program,
                source.as_ptr(),
                name.as_ptr(),
                0,
                ptr::null(),
                ptr::null(),
            )
        };
        functions.check(made)?;
        // SAFETY: the program was created above, and `options` are that many strings that end in
        // NUL.
        let compiled = unsafe {
            (functions.compile)(program.program, options.len() as c_int, options.as_ptr())
        };
        let log = program.read(functions.log_size, functions.log)?;
        let log = String::from_utf8_lossy(&log).trim_end_matches(['\0', '\n']).to_owned();
        if compiled != SUCCESS {
            let why = functions.check(compiled).err().unwrap_or_default();
            let log = if log.is_empty() { why } else { log };
            return Ok(Output { code: None, log });
        }
        let (size, get) = match to {
            Code::Machine => (functions.cubin_size, functions.cubin),
            Code::Ptx => (functions.ptx_size, functions.ptx),
        };
        Ok(Output { code: Some(program.read(size, get)?), log })
    }
}

impl Functions {
    fn check(&self, status: Status) -> Result<(), String> {
        if status == SUCCESS {
            return Ok(());
        }
        // SAFETY: for every number NVRTC returns a static string that ends in NUL.
        let text = unsafe { CStr::from_ptr((self.error_string)(status)) };
        Err(text.to_string_lossy().into_owned())
    }
}

/// A program that is destroyed when this is dropped.
struct Open<'a> {
    functions: &'a Functions,
    program: Program,
}

impl Open<'_> {
    /// Reads a result of the program: first its size, then its bytes.
    fn read(
        &self,
        size: unsafe extern "C" fn(Program, *mut usize) -> Status,
        get: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    ) -> Result<Vec<u8>, String> {
        let mut bytes = 0;
        // SAFETY: the program exists until this value is dropped, and `size` writes one number.
        self.functions.check(unsafe { size(self.program, &mut bytes) })?;
        let mut read = vec![0u8; bytes];
        // SAFETY: `get` writes as many bytes as `size` reported.
        self.functions.check(unsafe { get(self.program, read.as_mut_ptr().cast()) })?;
        Ok(read)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: `create` made it, and nothing uses it after this. A failure only leaks
            // memory.
            unsafe { (self.functions.destroy)(&mut self.program) };
        }
    }
}
