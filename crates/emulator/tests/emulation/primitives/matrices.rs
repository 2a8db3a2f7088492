//! Loads of matrices and products of matrices.

use super::{Kernel, WARP, equal};
use flashtile_emulator::{Emulator, TensorSums, ThreadOrder};
use flashtile_testkit::Rng;
use half::{bf16, f16};

/// Loads numbers that encode their matrix, row and column.
pub(super) fn loads(emulator: &Emulator) -> Result<(), String> {
    // Each lane writes one row. The rows lie in a mixed order, 16 bytes apart.
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

/// The operands of one `mma.m16n8k16`: A is 16 x 16, B is 16 x 8, C is 16 x 8, row by row.
struct Operands {
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
    bf16: bool,
}

impl Operands {
    /// Draws A and B, rounded to the 16-bit type, and C.
    fn new(bf16: bool, mut draw: impl FnMut() -> f32) -> Self {
        let half = |x: f32| round(bf16, x);
        let a = (0..16 * 16).map(|_| half(draw())).collect();
        let b = (0..16 * 8).map(|_| half(draw())).collect();
        Self { a, b, c: (0..16 * 8).map(|_| draw()).collect(), bf16 }
    }

    /// What the lanes hold: per lane four words of C, four of A and two of B, in the layout that
    /// PTX documents.
    fn words(&self) -> Vec<u32> {
        let bits = |x: f32| {
            u32::from(match self.bf16 {
                true => bf16::from_f32(x).to_bits(),
                false => f16::from_f32(x).to_bits(),
            })
        };
        let pair = |low, high| bits(low) | bits(high) << 16;
        let mut words = Vec::new();
        for lane in 0..32 {
            let (g, t) = (lane / 4, lane % 4);
            words.extend(places(lane).map(|(row, column)| self.c[row * 8 + column].to_bits()));
            let rows = [(g, 2 * t), (g + 8, 2 * t), (g, 2 * t + 8), (g + 8, 2 * t + 8)];
            words.extend(rows.map(|(row, k)| pair(self.a[row * 16 + k], self.a[row * 16 + k + 1])));
            words
                .extend([2 * t, 2 * t + 8].map(|k| pair(self.b[k * 8 + g], self.b[k * 8 + 8 + g])));
        }
        words
    }

    /// The result as the lanes hold it; `sum` adds a row times a column to an entry of C.
    fn expected(&self, sum: impl Fn(f32, &[f32], &[f32]) -> f32) -> Vec<u32> {
        let entry = |(row, column): (usize, usize)| {
            let column_of_b: Vec<f32> = (0..16).map(|k| self.b[k * 8 + column]).collect();
            sum(self.c[row * 8 + column], &self.a[row * 16..][..16], &column_of_b).to_bits()
        };
        (0..32).flat_map(|lane| places(lane).map(entry)).collect()
    }
}

/// The rows and columns of C that a lane holds.
fn places(lane: usize) -> [(usize, usize); 4] {
    let (g, t) = (lane / 4, lane % 4);
    [(g, 2 * t), (g, 2 * t + 1), (g + 8, 2 * t), (g + 8, 2 * t + 1)]
}

fn round(to_bf16: bool, x: f32) -> f32 {
    if to_bf16 { bf16::from_f32(x).to_f32() } else { f16::from_f32(x).to_f32() }
}

/// One product, 16 deep.
const DEEP: &str = "multiply_add_16x8x16(c, a, in[8], in[9], c);";

/// Two products, 8 deep, as on Turing. The halves of A follow each other; B's words are its halves.
const HALVES: &str = "
    multiply_add_16x8x8(c, a[0], a[1], in[8], c);
    multiply_add_16x8x8(c, a[2], a[3], in[9], c);";

fn body(multiply: &str) -> String {
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
}

/// Whole numbers: their products and sums are exact.
pub(super) fn products(emulator: &Emulator) -> Result<(), String> {
    let mut rng = Rng::new(3, 3);
    for (what, bf16, multiply) in
        [("f16", false, DEEP), ("bf16", true, DEEP), ("f16, twice 8 deep", false, HALVES)]
    {
        let operands = Operands::new(bf16, || rng.below(17) as f32 - 8.0);
        let exact =
            |c: f32, a: &[f32], b: &[f32]| c + a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        for sums in [TensorSums::Nearest, TensorSums::measured(90)] {
            let kernel = Kernel { body: &body(multiply), bf16, sums, ..WARP };
            let got = kernel.run_all(emulator, &operands.words(), 128)?;
            equal(what, &got, &operands.expected(exact))?;
        }
    }
    Ok(())
}

/// Numbers of all sizes, with subnormal ones, infinities and NaN. The interpreter of PTX adds them
/// in Rust, and every bit is the same.
pub(super) fn sums(emulator: &Emulator) -> Result<(), String> {
    let modes = [75, 80, 90].map(TensorSums::measured);
    let mut rng = Rng::new(5, 5);
    for round in 0..200 {
        let bf16 = round % 2 == 1;
        // From close together to far apart: far apart, most addends are lost.
        let spread = [1, 8, 30, 60][round % 4];
        let special = round % 5 == 4;
        let operands = Operands::new(bf16, || match rng.below(60) {
            0 if special => [f32::INFINITY, f32::NEG_INFINITY, f32::NAN][rng.below(3)],
            1..6 => 0.0,
            _ => {
                let power = rng.below(spread) as i32 - spread as i32 / 2;
                rng.normal() as f32 * f64::from(power).exp2() as f32
            }
        });
        for sums in modes.into_iter().chain([TensorSums::Nearest]) {
            for multiply in [DEEP, HALVES] {
                let kernel = Kernel { body: &body(multiply), bf16, sums, ..WARP };
                let depth = if multiply == DEEP { 16 } else { 8 };
                let expected = operands.expected(|c, a, b| {
                    let parts = a.chunks(depth).zip(b.chunks(depth));
                    parts.fold(c, |c, (a, b)| sums.add_products(c, a, b, bf16))
                });
                let got = kernel.run(emulator, ThreadOrder::Forward, &operands.words(), 128)?;
                // NaN is NaN, whatever its bits.
                let plain = |bits: &u32| match f32::from_bits(*bits).is_nan() {
                    true => f32::NAN.to_bits(),
                    false => *bits,
                };
                let [got, expected] =
                    [got, expected].map(|words| words.iter().map(plain).collect::<Vec<_>>());
                equal(&format!("round {round}, {sums:?}, {depth} deep"), &got, &expected)?;
            }
        }
    }
    Ok(())
}
