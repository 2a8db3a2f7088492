use crate::{DeviceMemory, EmulatorError, quote};
use flashtile_testkit::Rng;
use libloading::Library;
use std::ffi::{CStr, c_char, c_void};
use std::path::Path;
use std::ptr;
use std::sync::{Mutex, PoisonError};

/// In which order threads run that could all run, and lanes of a warp between what they do together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ThreadOrder {
    /// The first ones first; each warp as far as it can go before the next one begins.
    Forward,
    /// The last ones first, likewise.
    Reverse,
    /// Warps take turns at random, lanes in a new order each time, by this seed.
    Shuffled(u64),
}

impl ThreadOrder {
    /// One of each kind.
    pub const ALL: [Self; 3] = [Self::Forward, Self::Reverse, Self::Shuffled(1)];
}

/// How a kernel is launched, its parameters apart.
#[derive(Clone, Copy, Debug)]
pub struct BlockRun {
    /// Blocks.
    pub grid: u32,
    /// Threads of a block along x, which run fastest, and along y. Their product is a multiple of 32 and at most 1024.
    pub threads: [u32; 2],
    /// Bytes of shared memory.
    pub shared_bytes: u32,
    /// Whether tensor cores multiply bf16; f16 otherwise.
    pub bf16: bool,
    /// The order of threads. Blocks always run in a shuffled one.
    pub order: ThreadOrder,
    /// For texts that ask `is_mutant(n)`: which n it is true of. 0: none.
    pub mutant: u32,
}

/// `Launch` of `cpp/block.hpp`.
#[repr(C)]
struct Launch {
    blocks: *const u32,
    block_count: u64,
    memory: *mut u8,
    memory_bytes: u64,
    global: *const [u64; 2],
    global_count: u64,
    seed: u64,
    error: *mut c_char,
    error_bytes: u64,
    error_lines: [u32; 2],
    threads_x: u32,
    threads_y: u32,
    shared_bytes: u32,
    order: u32,
    bf16: u32,
    mutant: u32,
}

type Entry = unsafe extern "C" fn(*mut Launch, *const c_void) -> i32;

/// `STACK_BYTES` and `CANARY_BYTES` of `cpp/block.hpp`.
const STACK_BYTES: usize = 64 << 10;
const CANARY_BYTES: usize = 4 << 10;

/// A kernel's text, compiled and loaded.
pub struct EmulatedKernel {
    name: String,
    text: String,
    entry: Entry,
    /// Shared memory and stacks, and the right to run: the library's own state is of one block.
    memory: Mutex<Vec<u8>>,
    /// Keeps `entry` loaded.
    _library: Library,
}

impl EmulatedKernel {
    /// # Safety
    /// `library` was compiled from the emulation and from `text`, in which `KERNEL(entry_point)` stands.
    pub(super) unsafe fn load(
        library: &Path,
        name: &str,
        entry_point: &str,
        text: &str,
    ) -> Result<Self, EmulatorError> {
        // SAFETY: the emulation has no constructors.
        let library = unsafe { Library::new(library) }?;
        // SAFETY: KERNEL makes a function of this type.
        let entry = *unsafe { library.get::<Entry>(entry_point.as_bytes()) }?;
        Ok(Self {
            name: name.to_owned(),
            text: text.to_owned(),
            entry,
            memory: Mutex::default(),
            _library: library,
        })
    }

    /// Runs all blocks of a launch.
    ///
    /// `global` is the memory that `params` points to. Launches of one kernel follow each other, whatever threads they come from.
    ///
    /// # Errors
    /// [`EmulatorError::Run`], and [`EmulatorError::OutOfBounds`] where memory around `global` was written.
    ///
    /// # Safety
    /// `params` is laid out as the kernel's `Params`, and the kernel reads and writes nothing but what it points to: where it does, as kernels
    /// under test may, not farther off than the margins of `global`.
    pub unsafe fn run<P>(
        &self,
        run: &BlockRun,
        params: &P,
        global: &mut [&mut DeviceMemory],
    ) -> Result<(), EmulatorError> {
        let (order, seed) = match run.order {
            ThreadOrder::Forward => (0, 1),
            ThreadOrder::Reverse => (1, 2),
            ThreadOrder::Shuffled(seed) => (2, seed),
        };
        let mut blocks: Vec<u32> = (0..run.grid).collect();
        let mut rng = Rng::new(seed, 0);
        rng.shuffle(&mut blocks);
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let threads = run.threads[0] as usize * run.threads[1] as usize;
        let shared_bytes = (run.shared_bytes as usize).next_multiple_of(16);
        let needed = 2 * CANARY_BYTES + shared_bytes + threads * STACK_BYTES + CANARY_BYTES;
        if memory.len() < needed {
            *memory = vec![0; needed];
        }
        let aligned = memory.as_ptr().align_offset(CANARY_BYTES);
        let ranges: Vec<[u64; 2]> = global.iter_mut().map(|memory| memory.range()).collect();
        let mut error = [0u8; 400];
        let mut launch = Launch {
            blocks: blocks.as_ptr(),
            block_count: blocks.len() as u64,
            memory: memory[aligned..].as_mut_ptr(),
            memory_bytes: (memory.len() - aligned) as u64,
            global: ranges.as_ptr(),
            global_count: ranges.len() as u64,
            seed,
            error: error.as_mut_ptr().cast(),
            error_bytes: error.len() as u64,
            error_lines: [0; 2],
            threads_x: run.threads[0],
            threads_y: run.threads[1],
            shared_bytes: run.shared_bytes,
            order,
            bf16: run.bf16.into(),
            mutant: run.mutant,
        };
        // SAFETY: all pointers lead to memory of this function that is as long as the fields beside them say, the lock lets one launch in at a
        // time, and the caller answers for `params`.
        let failed = unsafe { (self.entry)(&mut launch, ptr::from_ref(params).cast()) } != 0;
        if failed {
            let lines = launch.error_lines;
            let text =
                CStr::from_bytes_until_nul(&error).map(CStr::to_string_lossy).unwrap_or_default();
            return Err(EmulatorError::Run {
                kernel: self.name.clone(),
                message: format!("{text}{}", self.quote(lines)),
            });
        }
        global.iter().try_for_each(|memory| memory.check())
    }

    /// The lines of the text that an error is about.
    fn quote(&self, lines: [u32; 2]) -> String {
        lines.map(|line| quote(&self.text, line)).concat()
    }
}
