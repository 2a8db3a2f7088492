use crate::{DeviceMemory, EmulatorError, TensorSums, quote};
use flashtile_testkit::Rng;
use libloading::Library;
use std::ffi::{CStr, c_char, c_void};
use std::path::Path;
use std::ptr;
use std::sync::{Mutex, PoisonError};

/// The order in which threads run that are all able to run, and the lanes of a warp between the
/// operations that they do together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ThreadOrder {
    /// Lowest number first. Each warp runs as far as it can before the next one starts.
    Forward,
    /// Highest number first, likewise.
    Reverse,
    /// Warps take turns at random, and lanes run in a new order each time. The number is the seed.
    Shuffled(u64),
}

impl ThreadOrder {
    /// One order of each kind.
    pub const ALL: [Self; 3] = [Self::Forward, Self::Reverse, Self::Shuffled(1)];
}

/// How a kernel is launched, except for its parameters.
#[derive(Clone, Copy, Debug)]
pub struct BlockRun {
    /// Blocks.
    pub grid: u32,
    /// Threads of a block along x, which varies fastest, and along y. Their product is a multiple
    /// of 32 and at most 1024.
    pub threads: [u32; 2],
    /// Bytes of shared memory.
    pub shared_bytes: u32,
    /// Whether tensor cores multiply bf16 rather than f16. PTX names the type itself.
    pub bf16: bool,
    /// How tensor cores add products.
    pub sums: TensorSums,
    /// The order of threads. Blocks always run in a shuffled order.
    pub order: ThreadOrder,
    /// The number n for which `is_mutant(n)` is true in the kernel source; 0 for none.
    pub mutant: u32,
}

/// `Launch` in `cpp/block.hpp`.
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
    sum_products: u32,
    sum_extra_bits: u32,
}

type Entry = unsafe extern "C" fn(*mut Launch, *const c_void) -> i32;

/// `STACK_BYTES` and `CANARY_BYTES` in `cpp/block.hpp`.
const STACK_BYTES: usize = 64 << 10;
const CANARY_BYTES: usize = 4 << 10;

/// A kernel source, compiled and loaded.
pub struct EmulatedKernel {
    name: String,
    source: String,
    entry: Entry,
    /// Shared memory and stacks. The lock also grants the right to run: the library's own state
    /// holds one block.
    memory: Mutex<Vec<u8>>,
    /// Keeps `entry` loaded.
    _library: Library,
}

impl EmulatedKernel {
    /// # Safety
    /// `library` was compiled from the emulation and `source`, and `source` contains
    /// `KERNEL(entry_point)`.
    pub(crate) unsafe fn load(
        library: &Path,
        name: &str,
        entry_point: &str,
        source: &str,
    ) -> Result<Self, EmulatorError> {
        // SAFETY: the emulation has no constructors.
        let library = unsafe { Library::new(library) }?;
        // SAFETY: KERNEL defines a function of this type.
        let entry = *unsafe { library.get::<Entry>(entry_point.as_bytes()) }?;
        Ok(Self {
            name: name.to_owned(),
            source: source.to_owned(),
            entry,
            memory: Mutex::default(),
            _library: library,
        })
    }

    /// Runs all blocks of a launch.
    ///
    /// `global` is the memory that `params` points to. Concurrent launches of one kernel run one
    /// after the other.
    ///
    /// # Errors
    /// [`EmulatorError::Run`]; [`EmulatorError::OutOfBounds`] if memory around `global` was
    /// written.
    ///
    /// # Safety
    /// `params` has the layout of the kernel's `Params`. The kernel reads and writes nothing but
    /// what `params` points to; a kernel with a mistake stays within the margins of `global`.
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
        let (sum_products, sum_extra_bits) = match run.sums {
            TensorSums::Nearest => (0, 0),
            TensorSums::Truncated { products, extra_bits } => (products, extra_bits),
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
            sum_products,
            sum_extra_bits,
        };
        // SAFETY: all pointers lead to memory of this function, whose lengths the fields beside
        // them give. The lock admits one launch at a time. The caller vouches for `params`.
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

    /// The lines of the kernel source that an error is about.
    fn quote(&self, lines: [u32; 2]) -> String {
        lines.map(|line| quote(&self.source, line)).concat()
    }
}
