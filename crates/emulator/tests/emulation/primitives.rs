//! The emulation itself, by small kernels: what each primitive computes, and which mistakes are reported.

use super::Test;
use flashtile_emulator::{BlockRun, DeviceMemory, Emulator, ThreadOrder};
use flashtile_testkit::Rng;
use half::{bf16, f16};
use std::sync::Arc;

/// A kernel of this file: its body reads `params.in` and writes `params.out`, both of u32.
struct Kernel<'a> {
    body: &'a str,
    threads: [u32; 2],
    shared_bytes: u32,
    grid: u32,
    bf16: bool,
}

/// `Params` of the kernels here.
#[repr(C)]
struct Params {
    input: u64,
    out: u64,
}

const WARP: Kernel<'static> =
    Kernel { body: "", threads: [32, 1], shared_bytes: 1024, grid: 1, bf16: false };

impl Kernel<'_> {
    /// What the kernel makes of `input`, or the error.
    fn run(
        &self,
        emulator: &Emulator,
        order: ThreadOrder,
        input: &[u32],
        words: usize,
    ) -> Result<Vec<u32>, String> {
        let text = format!(
            "struct Params {{ const u32* in; u32* out; }};
             KERNEL(kernel) {{
                 const u32 thread = thread_y() * {} + thread_x();
                 u32* shared = (u32*)shared_memory();
                 {}
             }}",
            self.threads[0], self.body
        );
        let kernel = emulator.kernel("kernel", "kernel", &text).map_err(|e| e.to_string())?;
        let bytes: Vec<u8> = input.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut input = DeviceMemory::new("in", &bytes);
        let mut out = DeviceMemory::poisoned("out", 4 * words);
        let params = Params { input: input.address(), out: out.address() };
        let Self { threads, shared_bytes, grid, bf16, .. } = *self;
        let run = BlockRun { grid, threads, shared_bytes, bf16, order, mutant: 0 };
        // SAFETY: the parameters are those of the text, and each kernel here stays within the margins of what they point to.
        unsafe { kernel.run(&run, &params, &mut [&mut input, &mut out]) }
            .map_err(|e| e.to_string())?;
        Ok(out
            .content()
            .chunks_exact(4)
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect())
    }

    /// As `run`, in every order of threads, which must make no difference.
    fn run_all(
        &self,
        emulator: &Emulator,
        input: &[u32],
        words: usize,
    ) -> Result<Vec<u32>, String> {
        let mut results =
            ThreadOrder::ALL.into_iter().map(|order| self.run(emulator, order, input, words));
        let first = results.next().unwrap()?;
        for other in results {
            equal("another order of threads", &other?, &first)?;
        }
        Ok(first)
    }

    /// That every order of threads ends in an error with these words.
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

pub(super) fn tests() -> Vec<Test> {
    type Check = fn(&Emulator) -> Result<(), String>;
    let checks: [(&str, Check); 12] = [
        ("indices of threads and blocks", indices),
        ("shuffles", shuffles),
        ("f16 and bf16", conversions),
        ("exp2, max and min", arithmetic),
        ("ldmatrix", matrices),
        ("mma", products),
        ("copies arrive when they are waited for", copies),
        ("shared memory begins as NaN in every block", poison),
        ("a missing barrier shows", missing_barrier),
        ("threads that do not meet are reported", divergence),
        ("memory that is not the kernel's is reported", bounds),
        ("portable fibers", portable),
    ];
    checks
        .into_iter()
        .map(|(name, check)| -> Test {
            (format!("primitives: {name}"), Box::new(move |e: Arc<_>| check(&e)))
        })
        .collect()
}

fn indices(emulator: &Emulator) -> Result<(), String> {
    let body = "params.out[block_index() * 96 + thread] = block_index() << 16 | thread_y() << 8 | thread_x();";
    let got = Kernel { body, threads: [8, 12], grid: 5, ..WARP }.run_all(emulator, &[], 5 * 96)?;
    let expected: Vec<u32> =
        (0..5 * 96).map(|n| ((n / 96) << 16) | ((n % 96 / 8) << 8) | (n % 8)).collect();
    equal("indices", &got, &expected)
}

fn shuffles(emulator: &Emulator) -> Result<(), String> {
    let body = "
        params.out[thread] = float_bits(shuffle_xor(bits_float(params.in[thread]), 1));
        params.out[64 + thread] = float_bits(shuffle_xor(bits_float(params.in[thread]), 20));
        params.out[128 + thread] = shuffle(params.in[thread], (thread * 7 + 3) % 32);
        params.out[192 + thread] = warp_any(thread == 37);";
    let input: Vec<u32> = (0..64).map(|n| 100 + n).collect();
    let got = Kernel { body, threads: [32, 2], ..WARP }.run_all(emulator, &input, 256)?;
    let expected = (0..256).map(|n: u32| {
        let (what, warp, lane) = (n / 64, n % 64 / 32 * 32, n % 32);
        match what {
            0 => 100 + warp + (lane ^ 1),
            1 => 100 + warp + (lane ^ 20),
            2 => 100 + warp + (lane * 7 + 3) % 32,
            _ => u32::from(warp == 32),
        }
    });
    equal("shuffles", &got, &expected.collect::<Vec<_>>())
}

/// Every f16; f32s on, between and beside them; and at random.
fn conversions(emulator: &Emulator) -> Result<(), String> {
    let mut floats: Vec<u32> =
        (0..=u16::MAX).map(|bits| f16::from_bits(bits).to_f32().to_bits()).collect();
    let between =
        floats.windows(2).map(|two| two[0] / 2 + two[1] / 2).flat_map(|x| [x - 1, x, x + 1]);
    floats = between.chain(floats.iter().copied()).collect();
    let mut rng = Rng::new(1, 1);
    floats.extend((0..50_000).map(|_| rng.next_u64() as u32));
    floats.truncate(floats.len() / 32 * 32);
    let count = floats.len() as u32;
    let body = format!(
        "for (u32 n = thread; n < {count}; n += 32) {{
            const float x = bits_float(params.in[n]);
            params.out[n] = f16_pair(x, -x);
            params.out[{count} + n] = bf16_pair(x, -x);
            params.out[2 * {count} + n] = float_bits(f16_value(params.in[n] & 0xffff));
            params.out[3 * {count} + n] = multiply_high(params.in[n], 0xD2511F53u);
        }}"
    );
    let got = Kernel { body: &body, ..WARP }.run(
        emulator,
        ThreadOrder::Forward,
        &floats,
        4 * floats.len(),
    )?;
    // The device has one NaN of its own in 16 bits.
    let half_bits = |x: f32, bits: u16| u32::from(if x.is_nan() { 0x7FFF } else { bits });
    for (n, &bits) in floats.iter().enumerate() {
        let x = f32::from_bits(bits);
        let pair = |bits: fn(f32) -> u16| half_bits(x, bits(x)) | half_bits(x, bits(-x)) << 16;
        let value = f16::from_bits(bits as u16).to_f32();
        let [f16_pair, bf16_pair, f16_value, high] =
            [0, 1, 2, 3].map(|m| got[m * floats.len() + n]);
        equal(&format!("f16 of {x:e}"), &[f16_pair], &[pair(|x| f16::from_f32(x).to_bits())])?;
        equal(&format!("bf16 of {x:e}"), &[bf16_pair], &[pair(|x| bf16::from_f32(x).to_bits())])?;
        if !value.is_nan() || !f32::from_bits(f16_value).is_nan() {
            equal(&format!("value of f16 {:#x}", bits as u16), &[f16_value], &[value.to_bits()])?;
        }
        equal("multiply_high", &[high], &[((u64::from(bits) * 0xD251_1F53) >> 32) as u32])?;
    }
    Ok(())
}

fn arithmetic(emulator: &Emulator) -> Result<(), String> {
    let body = "
        const float x = bits_float(params.in[thread]);
        const float y = bits_float(params.in[32 + thread]);
        params.out[thread] = float_bits(exp2_fast(x));
        params.out[32 + thread] = float_bits(fmaxf(x, y));
        params.out[64 + thread] = float_bits(fminf(x, y));
        params.out[96 + thread] = float_bits(fmaf(x, x, y));";
    let xs = [
        0.0,
        1.0,
        -3.0,
        0.5,
        -0.7,
        10.25,
        -126.0,
        -126.5,
        -149.0,
        128.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
    ];
    let mut floats = [f32::NAN; 64];
    floats[..xs.len()].copy_from_slice(&xs);
    floats[32..32 + 16].copy_from_slice(&[0.25; 16]);
    let got = Kernel { body, ..WARP }.run_all(emulator, &floats.map(f32::to_bits), 128)?;
    let near = |got: u32, expected: f32, what: &str| {
        let got = f32::from_bits(got);
        let ok = if expected.is_finite() {
            (got - expected).abs() <= 2e-7 * expected
        } else {
            got == expected
        };
        if ok { Ok(()) } else { Err(format!("{what}: got {got:e}, expected {expected:e}")) }
    };
    for (n, &x) in xs.iter().enumerate() {
        let power = if x < -126.0 { 0.0 } else { f64::from(x).exp2() as f32 };
        near(got[n], power, &format!("exp2_fast({x})"))?;
        equal("fmaxf", &[got[32 + n]], &[x.max(0.25).to_bits()])?;
        equal("fminf", &[got[64 + n]], &[x.min(0.25).to_bits()])?;
        equal("fmaf", &[got[96 + n]], &[x.mul_add(x, 0.25).to_bits()])?;
    }
    // Of a number and NaN, the number; of two NaN, NaN.
    equal("of a number and NaN", &[got[32 + 15], got[64 + 15]], &[0.25f32.to_bits(); 2])?;
    let nan = [got[31], got[63], got[95], got[127]].map(f32::from_bits);
    if nan.iter().all(|x| x.is_nan()) { Ok(()) } else { Err(format!("NaN is lost: {nan:?}")) }
}

/// Numbers that say of which matrix, row and column they are.
fn matrices(emulator: &Emulator) -> Result<(), String> {
    // Rows in an order of their own, 16 bytes apart.
    let body = "
        u16* tile = (u16*)shared;
        for (u32 n = 0; n < 8; n++) {
            tile[thread * 5 % 32 * 8 + n] = (u16)(thread / 8 << 8 | thread % 8 << 4 | n);
        }
        barrier();
        u32 x[4];
        load_matrix4(x, tile + thread * 5 % 32 * 8);
        for (u32 n = 0; n < 4; n++) {
            params.out[32 * n + thread] = x[n];
        }
        load_matrix4_transposed(x, tile + thread * 5 % 32 * 8);
        for (u32 n = 0; n < 4; n++) {
            params.out[128 + 32 * n + thread] = x[n];
        }";
    let got = Kernel { body, ..WARP }.run_all(emulator, &[], 256)?;
    let expected = (0..256).map(|n| {
        let (transposed, matrix, g, t) = (n >= 128, n % 128 / 32, n % 32 / 4, n % 4);
        let at = |row: u32, column: u32| matrix << 8 | row << 4 | column;
        if transposed {
            at(2 * t, g) | at(2 * t + 1, g) << 16
        } else {
            at(g, 2 * t) | at(g, 2 * t + 1) << 16
        }
    });
    equal("matrices", &got, &expected.collect::<Vec<_>>())
}

/// Whole numbers, whose products and sums are exact.
fn products(emulator: &Emulator) -> Result<(), String> {
    let body = |multiply: &str| {
        format!(
            "const u32* in = params.in + thread * 10;
             float c[4];
             u32 a[4];
             for (u32 n = 0; n < 4; n++) {{
                 c[n] = bits_float(in[n]);
                 a[n] = in[4 + n];
             }}
             {multiply}
             for (u32 n = 0; n < 4; n++) {{
                 params.out[thread * 4 + n] = float_bits(c[n]);
             }}"
        )
    };
    let mut rng = Rng::new(3, 3);
    let mut random = |_: usize| rng.below(17) as f32 - 8.0;
    let a: Vec<f32> = (0..16 * 16).map(&mut random).collect();
    let b: Vec<f32> = (0..16 * 8).map(&mut random).collect();
    let c: Vec<f32> = (0..16 * 8).map(&mut random).collect();
    let mut inputs = Vec::new();
    for is_bf16 in [false, true] {
        let bits = |x: f32| {
            u32::from(if is_bf16 {
                bf16::from_f32(x).to_bits()
            } else {
                f16::from_f32(x).to_bits()
            })
        };
        let pair = |low, high| bits(low) | bits(high) << 16;
        let mut input = Vec::new();
        let mut expected = Vec::new();
        for (g, t) in (0..32).map(|lane| (lane / 4, lane % 4)) {
            let places = [(g, 2 * t), (g, 2 * t + 1), (g + 8, 2 * t), (g + 8, 2 * t + 1)];
            input.extend(places.map(|(row, column)| c[row * 8 + column].to_bits()));
            let rows = [(g, 2 * t), (g + 8, 2 * t), (g, 2 * t + 8), (g + 8, 2 * t + 8)];
            input.extend(rows.map(|(row, k)| pair(a[row * 16 + k], a[row * 16 + k + 1])));
            input.extend([2 * t, 2 * t + 8].map(|k| pair(b[k * 8 + g], b[(k + 1) * 8 + g])));
            expected.extend(places.map(|(row, column)| {
                let sum: f32 = (0..16).map(|k| a[row * 16 + k] * b[k * 8 + column]).sum();
                (c[row * 8 + column] + sum).to_bits()
            }));
        }
        let body = body("multiply_add_16x8x16(c, a, in[8], in[9]);");
        let got = Kernel { body: &body, bf16: is_bf16, ..WARP }.run_all(emulator, &input, 128)?;
        equal(if is_bf16 { "bf16" } else { "f16" }, &got, &expected)?;
        inputs.push((input, expected));
    }
    // Twice half as deep, as on Turing: the halves of A lie behind each other, and B's words are its halves.
    let body = body(
        "multiply_add_16x8x8(c, a[0], a[1], in[8]); multiply_add_16x8x8(c, a[2], a[3], in[9]);",
    );
    let (input, expected) = &inputs[0];
    equal(
        "f16, twice 8 deep",
        &Kernel { body: &body, ..WARP }.run_all(emulator, input, 128)?,
        expected,
    )
}

const NAN: u32 = 0x7FE5_7FE5;

fn copies(emulator: &Emulator) -> Result<(), String> {
    // Three groups of one copy; the last one is never closed before the first wait.
    let body = "
        if (thread == 0) {
            copy16(shared, params.in);
            copy_commit();
            copy16_padded(shared + 4, params.in + 4, 8);
            copy4_padded(shared + 7, params.in + 7, 2);
            copy_commit();
            copy16_padded(shared + 8, params.in + 8, 0);
            for (u32 n = 0; n < 12; n++) { params.out[n] = shared[n]; }
            copy_wait<1>();
            for (u32 n = 0; n < 12; n++) { params.out[12 + n] = shared[n]; }
            copy_wait<0>();
            for (u32 n = 0; n < 12; n++) { params.out[24 + n] = shared[n]; }
            copy_commit();
            copy_wait<0>();
            for (u32 n = 0; n < 12; n++) { params.out[36 + n] = shared[n]; }
        }";
    let input: Vec<u32> = (1..=12).collect();
    let got = Kernel { body, ..WARP }.run_all(emulator, &input, 48)?;
    let (full, cut, none) = ([1, 2, 3, 4], [5, 6, 0, 8], [NAN; 4]);
    let expected =
        [none, none, none, full, none, none, full, cut, none, full, cut, [0; 4]].concat();
    equal("copies", &got, &expected)?;
    Kernel { body: "copy16(shared + thread * 4, params.in); copy_commit();", ..WARP }
        .fails_with(emulator, &["ends with copies under way"])
}

fn poison(emulator: &Emulator) -> Result<(), String> {
    let body = "params.out[block_index() * 32 + thread] = shared[thread]; shared[thread] = 1;";
    let got = Kernel { body, grid: 3, ..WARP }.run_all(emulator, &[], 96)?;
    equal("shared memory", &got, &[NAN; 96])
}

/// Each thread reads what its neighbour wrote, across the edge of a warp. Without the barrier at least one order reads what is not there yet.
fn missing_barrier(emulator: &Emulator) -> Result<(), String> {
    let kernel = |barrier: &str| {
        format!(
            "shared[thread] = params.in[thread]; {barrier} params.out[thread] = shared[(thread + 31) % 64];"
        )
    };
    let input: Vec<u32> = (0..64).map(|n| 1000 + n).collect();
    let expected: Vec<u32> = (0..64).map(|n| 1000 + (n + 31) % 64).collect();
    let with = kernel("barrier();");
    equal(
        "with it",
        &Kernel { body: &with, threads: [32, 2], ..WARP }.run_all(emulator, &input, 64)?,
        &expected,
    )?;
    let without = kernel("");
    for order in ThreadOrder::ALL {
        let got =
            Kernel { body: &without, threads: [32, 2], ..WARP }.run(emulator, order, &input, 64)?;
        if got == expected || !got.contains(&NAN) {
            return Err(format!("{order:?} does not show it"));
        }
    }
    // One that keeps reads in front of later writes.
    let kernel = |barrier: &str| {
        format!(
            "shared[thread] = thread; barrier(); const u32 x = shared[(thread + 31) % 64]; {barrier}
             shared[thread] = 7; params.out[thread] = x + shared[(thread + 32) % 64] * 0;"
        )
    };
    let (with, without) = (kernel("barrier();"), kernel(""));
    let expected: Vec<u32> = (0..64).map(|n| (n + 31) % 64).collect();
    equal(
        "with it",
        &Kernel { body: &with, threads: [32, 2], ..WARP }.run_all(emulator, &[], 64)?,
        &expected,
    )?;
    match (Kernel { body: &without, threads: [32, 2], ..WARP }).run_all(emulator, &[], 64) {
        Ok(got) if got == expected => Err("no order shows it".into()),
        _ => Ok(()),
    }
}

fn divergence(emulator: &Emulator) -> Result<(), String> {
    let two_warps = |body| Kernel { body, threads: [32, 2], ..WARP };
    let cases: [(&str, &[&str]); 7] = [
        (
            "if (thread < 32) { barrier(); }",
            &["threads of one block part", "waits for barrier", "thread 32 has ended"],
        ),
        (
            "if (thread != 40) { barrier(); }",
            &["threads of one warp part", "thread 40 has ended", "barrier();"],
        ),
        ("if (thread < 32) {\nbarrier();\n} else {\nbarrier();\n}", &["threads of one block part"]),
        ("if (thread < 32) { barrier(); } else { barrier_any(true); }", &["barrier_any"]),
        ("if (thread % 2 == 0) { shuffle(1, 0); }", &["waits for shuffle", "has ended"]),
        (
            "if (thread % 2 == 0) { warp_any(true); } else { barrier(); }",
            &["waits for warp_any", "waits for barrier"],
        ),
        (
            "if (thread > 3) {\nshuffle(1, 0);\n} else {\nshuffle(1, 1);\n}",
            &["shuffle(1, 0);", "shuffle(1, 1);"],
        ),
    ];
    for (body, words) in cases {
        two_warps(body).fails_with(emulator, words)?;
    }
    // Warps may differ in what they do by themselves.
    let body = "u32 x = thread; if (thread < 32) { x = shuffle(x, 0); } params.out[thread] = barrier_any(x == 63);";
    equal("warps apart", &two_warps(body).run_all(emulator, &[], 64)?, &[1; 64])?;
    Kernel { body: "", threads: [8, 2], ..WARP }
        .fails_with(emulator, &["16 threads are no number of whole warps"])
}

fn bounds(emulator: &Emulator) -> Result<(), String> {
    let cases: [(&str, &[&str]); 13] = [
        (
            "shared[256 + thread] = 1;",
            &["memory behind the 1024 bytes of shared memory was written"],
        ),
        ("shared[-1] = 1;", &["memory in front of shared memory was written"]),
        (
            "copy16(shared + 1, params.in);",
            &["a copy at byte 4 of shared memory, which is no multiple of 16"],
        ),
        (
            "copy16(shared + 256, params.in);",
            &["a copy outside of shared memory, at byte 1024 of 1024"],
        ),
        ("copy16(shared, params.in + 1);", &["a copy from an address that is no multiple of 16"]),
        (
            "copy16_padded(shared, params.in + 64, 4);",
            &["a copy from memory that belongs to no tensor", "params.in + 64"],
        ),
        ("copy16_padded(shared, params.in, 20);", &["a copy of 20 bytes"]),
        (
            "copy4_padded((u8*)shared + 2, params.in, 4);",
            &["a copy at byte 2 of shared memory, which is no multiple of 4"],
        ),
        (
            "copy4_padded(shared, (const u8*)params.in + 2, 4);",
            &["a copy from an address that is no multiple of 4"],
        ),
        (
            "copy4_padded(shared + 256, params.in, 4);",
            &["a copy outside of shared memory, at byte 1024 of 1024"],
        ),
        ("copy4_padded(shared, params.in, 8);", &["a copy of 8 bytes"]),
        ("u32 x[4]; load_matrix4(x, shared + thread);", &["a row of a matrix at byte"]),
        (
            "u32 x[4]; load_matrix4_transposed(x, shared + 8 * thread + 32);",
            &["a row of a matrix outside"],
        ),
    ];
    for (body, words) in cases {
        Kernel { body, ..WARP }.fails_with(emulator, words)?;
    }
    Kernel { body: "params.out[64 + thread] = 1;", ..WARP }
        .fails_with(emulator, &["memory behind the end of out"])?;
    Kernel { body: "params.out[-1] = 1;", ..WARP }
        .fails_with(emulator, &["memory in front of out was written"])
}

/// The fibers of machines that have no switch of their own.
fn portable(emulator: &Emulator) -> Result<(), String> {
    let portable = Emulator::new(emulator.compiler().portable());
    shuffles(&portable)?;
    divergence(&portable)
}
