//! The emulator itself, with small kernels: what each primitive computes, and which mistakes of a
//! kernel it reports.

mod matrices;
mod memory;
mod numbers;
mod tf32;
mod threads;

use super::Test;
use flashtile_emulator::{BlockRun, DeviceMemory, Emulator, TensorSums, ThreadOrder};
use std::sync::Arc;

pub(super) fn tests() -> Vec<Test> {
    type Check = fn(&Emulator) -> Result<(), String>;
    let checks: [(&str, Check); 15] = [
        ("indices of threads and blocks", threads::indices),
        ("shuffles", threads::shuffles),
        ("f16 and bf16", numbers::conversions),
        ("exp2, max and min", numbers::arithmetic),
        ("ldmatrix", matrices::loads),
        ("mma", matrices::products),
        ("mma adds as the interpreter does", matrices::sums),
        ("mma of TF32 adds as the interpreter does", tf32::sums),
        ("operands that are not TF32 are reported", tf32::digits),
        ("copies arrive when a thread waits for them", memory::copies),
        ("shared memory starts as NaN in every block", memory::poison),
        ("memory outside the kernel's is reported", memory::bounds),
        ("a missing barrier shows", threads::missing_barrier),
        ("threads that do not meet are reported", threads::divergence),
        ("portable fibers", threads::portable),
    ];
    let test = |(name, check): (&str, Check)| -> Test {
        (format!("primitives: {name}"), Box::new(move |emulator: Arc<_>| check(&emulator)))
    };
    checks.into_iter().map(test).collect()
}

/// Memory that no thread has written.
const NAN: u32 = 0x7FE5_7FE5;

/// A kernel whose body reads `params.in` and writes `params.out`, both of u32.
struct Kernel<'a> {
    body: &'a str,
    threads: [u32; 2],
    shared_bytes: u32,
    grid: u32,
    bf16: bool,
    sums: TensorSums,
}

/// `Params` of the kernels here.
#[repr(C)]
struct Params {
    input: u64,
    out: u64,
}

/// A block of one warp, to be completed with a body.
const WARP: Kernel<'static> = Kernel {
    body: "",
    threads: [32, 1],
    shared_bytes: 1024,
    grid: 1,
    bf16: false,
    sums: TensorSums::Nearest,
};

impl Kernel<'_> {
    /// The `words` that the kernel writes for `input`, or the error.
    fn run(
        &self,
        emulator: &Emulator,
        order: ThreadOrder,
        input: &[u32],
        words: usize,
    ) -> Result<Vec<u32>, String> {
        let Self { body, threads, shared_bytes, grid, bf16, sums } = *self;
        let source = format!(
            "struct Params {{ const u32* in; u32* out; }};
             KERNEL(kernel) {{
                 const u32 thread = thread_y() * {} + thread_x();
                 u32* shared = (u32*)shared_memory();
                 {body}
             }}",
            threads[0]
        );
        let kernel = emulator.kernel("kernel", "kernel", &source).map_err(|e| e.to_string())?;
        let bytes: Vec<u8> = input.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut input = DeviceMemory::new("in", &bytes);
        let mut out = DeviceMemory::poisoned("out", 4 * words);
        let params = Params { input: input.address(), out: out.address() };
        let run = BlockRun { grid, threads, shared_bytes, bf16, sums, order, mutant: 0 };
        // SAFETY: `Params` matches the source, and each kernel here stays within the margins of
        // the memory that the parameters point to.
        unsafe { kernel.run(&run, &params, &mut [&mut input, &mut out]) }
            .map_err(|e| e.to_string())?;
        let words = out.content().chunks_exact(4);
        Ok(words.map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    /// Like `run`, in every order of threads; the order must make no difference.
    fn run_all(
        &self,
        emulator: &Emulator,
        input: &[u32],
        words: usize,
    ) -> Result<Vec<u32>, String> {
        let [first, others @ ..] = ThreadOrder::ALL;
        let first = self.run(emulator, first, input, words)?;
        for order in others {
            equal(&format!("{order:?}"), &self.run(emulator, order, input, words)?, &first)?;
        }
        Ok(first)
    }

    /// Checks that every order of threads ends in an error with these words.
    fn fails_with(&self, emulator: &Emulator, words: &[&str]) -> Result<(), String> {
        for order in ThreadOrder::ALL {
            match self.run(emulator, order, &[0; 64], 64) {
                Ok(_) => return Err(format!("{:?} is not reported: {words:?}", self.body)),
                Err(error) if words.iter().all(|word| error.contains(word)) => {}
                Err(error) => return Err(format!("expected {words:?}, got: {error}")),
            }
        }
        Ok(())
    }
}

fn equal(what: &str, got: &[u32], expected: &[u32]) -> Result<(), String> {
    match got.iter().zip(expected).position(|(a, b)| a != b) {
        Some(n) => Err(format!("{what}: word {n} is {:#x}, expected {:#x}", got[n], expected[n])),
        None if got.len() != expected.len() => Err(format!("{what}: {} words", got.len())),
        None => Ok(()),
    }
}
