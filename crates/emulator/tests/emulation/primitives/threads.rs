//! Indices, shuffles, barriers, and threads that do not meet.

use super::{Kernel, NAN, WARP, equal};
use flashtile_emulator::{Emulator, ThreadOrder};

pub(super) fn indices(emulator: &Emulator) -> Result<(), String> {
    let body = "params.out[block_index() * 96 + thread] =
        block_index() << 16 | thread_y() << 8 | thread_x();";
    let got = Kernel { body, threads: [8, 12], grid: 5, ..WARP }.run_all(emulator, &[], 5 * 96)?;
    let expected: Vec<u32> =
        (0..5 * 96).map(|n| ((n / 96) << 16) | ((n % 96 / 8) << 8) | (n % 8)).collect();
    equal("indices", &got, &expected)
}

pub(super) fn shuffles(emulator: &Emulator) -> Result<(), String> {
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

/// Each thread reads what its neighbour wrote, also across warps. Without the barrier, at least one
/// order reads a value that is not there yet.
pub(super) fn missing_barrier(emulator: &Emulator) -> Result<(), String> {
    let kernel = |barrier: &str| {
        format!(
            "shared[thread] = params.in[thread];
             {barrier}
             params.out[thread] = shared[(thread + 31) % 64];"
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
    // A barrier that keeps reads before later writes.
    let kernel = |barrier: &str| {
        format!(
            "shared[thread] = thread;
             barrier();
             const u32 x = shared[(thread + 31) % 64];
             {barrier}
             shared[thread] = 7;
             params.out[thread] = x + shared[(thread + 32) % 64] * 0;"
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

pub(super) fn divergence(emulator: &Emulator) -> Result<(), String> {
    let two_warps = |body| Kernel { body, threads: [32, 2], ..WARP };
    let cases: [(&str, &[&str]); 7] = [
        (
            "if (thread < 32) { barrier(); }",
            &["threads of one block diverge", "waits for barrier", "thread 32 has ended"],
        ),
        (
            "if (thread != 40) { barrier(); }",
            &["threads of one warp diverge", "thread 40 has ended", "barrier();"],
        ),
        (
            "if (thread < 32) {\nbarrier();\n} else {\nbarrier();\n}",
            &["threads of one block diverge"],
        ),
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
    // Warps may execute different instructions between barriers.
    let body = "
        u32 x = thread;
        if (thread < 32) { x = shuffle(x, 0); }
        params.out[thread] = barrier_any(x == 63);";
    equal("warps apart", &two_warps(body).run_all(emulator, &[], 64)?, &[1; 64])?;
    Kernel { body: "", threads: [8, 2], ..WARP }
        .fails_with(emulator, &["16 threads: a block has 1 to 32 whole warps"])
}

/// The fibers for processors without their own code to switch stacks.
pub(super) fn portable(emulator: &Emulator) -> Result<(), String> {
    let portable = Emulator::new(emulator.compiler().portable());
    shuffles(&portable)?;
    divergence(&portable)
}
