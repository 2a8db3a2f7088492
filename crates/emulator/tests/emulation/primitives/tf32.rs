//! Products of matrices of TF32.

use super::{Kernel, WARP, equal};
use flashtile_emulator::{Emulator, TensorSums, ThreadOrder};
use flashtile_testkit::Rng;

const BODY: &str = "
    const u32* in = params.in + thread * 10;
    float c[4];
    u32 a[4];
    const u32 b[2] = {in[8], in[9]};
    for (u32 n = 0; n < 4; n++) {
        c[n] = bits_float(in[n]);
        a[n] = in[4 + n];
    }
    multiply_add_tf32(c, a, b, c);
    for (u32 n = 0; n < 4; n++) {
        params.out[thread * 4 + n] = float_bits(c[n]);
    }";

/// Numbers of all sizes, with subnormal ones, infinities and NaN: the sums are those of
/// [`TensorSums`], which the interpreter of PTX uses too.
pub(super) fn sums(emulator: &Emulator) -> Result<(), String> {
    let modes = [80, 90].map(TensorSums::measured).into_iter().chain([TensorSums::Nearest]);
    let modes: Vec<TensorSums> = modes.collect();
    let mut rng = Rng::new(9, 9);
    for round in 0..100 {
        let spread = [1, 8, 30, 150][round % 4];
        let special = round % 5 == 4;
        let mut draw = || match rng.below(60) {
            0 if special => [f32::INFINITY, f32::NEG_INFINITY, f32::NAN][rng.below(3)],
            1..6 => 0.0,
            _ => {
                let power = rng.below(spread) as i32 - spread as i32 / 2;
                (rng.normal() * f64::from(power).exp2()) as f32
            }
        };
        // A is 16 x 8, row by row; B is 8 x 8, column by column; C is 16 x 8, row by row.
        let rounded = |x: f32| f32::from_bits(x.to_bits() & 0xFFFF_E000);
        let a: Vec<f32> = (0..16 * 8).map(|_| rounded(draw())).collect();
        let b: Vec<f32> = (0..8 * 8).map(|_| rounded(draw())).collect();
        let c: Vec<f32> = (0..16 * 8).map(|_| draw()).collect();
        let places = |lane: usize| {
            let (g, t) = (lane / 4, lane % 4);
            [(g, 2 * t), (g, 2 * t + 1), (g + 8, 2 * t), (g + 8, 2 * t + 1)]
        };
        let words: Vec<u32> = (0..32)
            .flat_map(|lane| {
                let (g, t) = (lane / 4, lane % 4);
                let of_c = places(lane).map(|(row, column)| c[row * 8 + column]);
                let rows = [(g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)];
                let of_a = rows.map(|(row, k)| a[row * 8 + k]);
                let of_b = [b[g * 8 + t], b[g * 8 + t + 4]];
                [&of_c[..], &of_a, &of_b].concat()
            })
            .map(f32::to_bits)
            .collect();
        for &sums in &modes {
            let entry = |(row, column): (usize, usize)| {
                let (row_of_a, column_of_b) = (&a[row * 8..][..8], &b[column * 8..][..8]);
                sums.of_tf32().add_products(c[row * 8 + column], row_of_a, column_of_b, true)
            };
            let expected: Vec<f32> = (0..32).flat_map(|lane| places(lane).map(entry)).collect();
            let kernel = Kernel { body: BODY, sums, ..WARP };
            let got = kernel.run(emulator, ThreadOrder::Forward, &words, 128)?;
            // NaN is NaN, whatever its bits.
            let plain = |x: f32| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() };
            let got: Vec<u32> = got.into_iter().map(|bits| plain(f32::from_bits(bits))).collect();
            let expected: Vec<u32> = expected.into_iter().map(plain).collect();
            equal(&format!("round {round}, {sums:?}"), &got, &expected)?;
        }
    }
    Ok(())
}

/// An operand with more digits than TF32 has is a mistake of the kernel.
pub(super) fn digits(emulator: &Emulator) -> Result<(), String> {
    let body = "
        float c[4] = {};
        u32 a[4] = {};
        u32 b[2] = {};
        b[1] = float_bits(thread == 5 ? 1.0001f : 1.0f);
        multiply_add_tf32(c, a, b, c);";
    Kernel { body, ..WARP }.fails_with(emulator, &["thread 5", "not a number of TF32"])
}
