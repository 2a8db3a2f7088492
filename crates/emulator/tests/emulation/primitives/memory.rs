//! Asynchronous copies, shared memory, and accesses outside the kernel's memory.

use super::{Kernel, NAN, WARP, equal};
use flashtile_emulator::Emulator;

pub(super) fn copies(emulator: &Emulator) -> Result<(), String> {
    // Three groups. The last one is still open at the first two waits.
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

pub(super) fn poison(emulator: &Emulator) -> Result<(), String> {
    let body = "params.out[block_index() * 32 + thread] = shared[thread]; shared[thread] = 1;";
    let got = Kernel { body, grid: 3, ..WARP }.run_all(emulator, &[], 96)?;
    equal("shared memory", &got, &[NAN; 96])
}

pub(super) fn bounds(emulator: &Emulator) -> Result<(), String> {
    let cases: [(&str, &[&str]); 13] = [
        (
            "shared[256 + thread] = 1;",
            &["memory after the 1024 bytes of shared memory was written"],
        ),
        ("shared[-1] = 1;", &["memory before shared memory was written"]),
        (
            "copy16(shared + 1, params.in);",
            &["a copy at byte 4 of shared memory, not a multiple of 16"],
        ),
        (
            "copy16(shared + 256, params.in);",
            &["a copy outside shared memory, at byte 1024 of 1024"],
        ),
        (
            "copy16(shared, params.in + 1);",
            &["a copy from an address that is not a multiple of 16"],
        ),
        (
            "copy16_padded(shared, params.in + 64, 4);",
            &["a copy from memory outside every tensor", "params.in + 64"],
        ),
        ("copy16_padded(shared, params.in, 20);", &["a copy of 20 bytes"]),
        (
            "copy4_padded((u8*)shared + 2, params.in, 4);",
            &["a copy at byte 2 of shared memory, not a multiple of 4"],
        ),
        (
            "copy4_padded(shared, (const u8*)params.in + 2, 4);",
            &["a copy from an address that is not a multiple of 4"],
        ),
        (
            "copy4_padded(shared + 256, params.in, 4);",
            &["a copy outside shared memory, at byte 1024 of 1024"],
        ),
        ("copy4_padded(shared, params.in, 8);", &["a copy of 8 bytes"]),
        ("u32 x[4]; load_matrix4(x, shared + thread);", &["a row of a matrix at byte"]),
        (
            "u32 x[4]; load_matrix4_transposed(x, shared + 8 * thread + 32);",
            &["a row of a matrix outside shared memory"],
        ),
    ];
    for (body, words) in cases {
        Kernel { body, ..WARP }.fails_with(emulator, words)?;
    }
    Kernel { body: "params.out[64 + thread] = 1;", ..WARP }
        .fails_with(emulator, &["memory after the end of out"])?;
    Kernel { body: "params.out[-1] = 1;", ..WARP }
        .fails_with(emulator, &["memory before out was written"])
}
