//! NVRTC's C interface, from a library that is opened at run time.

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

/// What the system's loader said, which libloading keeps as the cause.
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
    /// The compute capabilities that it compiles for.
    pub(crate) archs: Vec<Arch>,
    functions: Functions,
    /// The functions live in it. Never closed: NVRTC keeps threads and state of its own.
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

/// What a program is compiled to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// For one architecture.
    Machine,
    /// The text before it.
    Ptx,
}

/// What came of a compilation: the code, or nothing, and what the compiler said.
pub(crate) struct Output {
    pub(crate) code: Option<Vec<u8>>,
    pub(crate) log: String,
}

impl Nvrtc {
    /// The library at `path`, opened once in the life of the process; the error says what is wrong with it.
    pub(crate) fn open(path: &Path) -> Result<Arc<Nvrtc>, String> {
        type Opened = HashMap<PathBuf, Result<Arc<Nvrtc>, String>>;
        static OPENED: Mutex<Option<Opened>> = Mutex::new(None);
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        let opened = opened.get_or_insert_default();
        opened.entry(path.to_owned()).or_insert_with(|| Self::load(path).map(Arc::new)).clone()
    }

    fn load(path: &Path) -> Result<Nvrtc, String> {
        for builtins in library::builtins_beside(path) {
            // NVRTC opens it by its bare name when it compiles, and 13's does not look in its own directory: what is open already is found.
            // SAFETY: it only holds data for NVRTC. Where it does not open, NVRTC will say so.
            std::mem::forget(unsafe { Library::new(builtins) });
        }
        // SAFETY: what NVRTC does when it is loaded is no more than to set up its own state.
        let library = unsafe { Library::new(path) }.map_err(failed)?;
        // SAFETY: the types are those of nvrtc.h, and the functions are called only while the library is open, which is for ever.
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
        // SAFETY: all three write one int each.
        functions.check(unsafe { version(&mut major, &mut minor) })?;
        // SAFETY: as above.
        functions.check(unsafe { count(&mut archs) })?;
        let mut supported = vec![0; archs.max(0) as usize];
        // SAFETY: there is room for as many as were announced.
        functions.check(unsafe { list(supported.as_mut_ptr()) })?;
        Ok(Nvrtc {
            path: path.to_owned(),
            version: (major as u32, minor as u32),
            archs: supported.into_iter().map(|arch| arch as Arch).collect(),
            functions,
            _library: library,
        })
    }

    /// What to compile for so that it runs on `arch`: itself, or else the newest before it in its family, whose machine code it can run too.
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
        // SAFETY: both texts end in NUL and are copied; there are no headers.
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
        // SAFETY: the program was made above; `options` are that many texts that end in NUL.
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
        // SAFETY: NVRTC has a text that ends in NUL and is never freed for every number.
        let text = unsafe { CStr::from_ptr((self.error_string)(status)) };
        Err(text.to_string_lossy().into_owned())
    }
}

/// A program that is destroyed at the end.
struct Open<'a> {
    functions: &'a Functions,
    program: Program,
}

impl Open<'_> {
    /// Something of the program that is asked for its size first.
    fn read(
        &self,
        size: unsafe extern "C" fn(Program, *mut usize) -> Status,
        get: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    ) -> Result<Vec<u8>, String> {
        let mut bytes = 0;
        // SAFETY: the program is there until this is dropped, and one size is written.
        self.functions.check(unsafe { size(self.program, &mut bytes) })?;
        let mut read = vec![0u8; bytes];
        // SAFETY: there is room for as many bytes as were announced.
        self.functions.check(unsafe { get(self.program, read.as_mut_ptr().cast()) })?;
        Ok(read)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: it was made by `create`, and nobody uses it after this. There is nothing to do about a failure.
            unsafe { (self.functions.destroy)(&mut self.program) };
        }
    }
}
