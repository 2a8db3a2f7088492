//! Conversions and arithmetic.

use super::{Kernel, WARP, equal};
use flashtile_emulator::{Emulator, ThreadOrder};
use flashtile_testkit::Rng;
use half::{bf16, f16};

/// Every f16; f32 values at, between and beside them; and random ones.
pub(super) fn conversions(emulator: &Emulator) -> Result<(), String> {
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
    let kernel = Kernel { body: &body, ..WARP };
    let got = kernel.run(emulator, ThreadOrder::Forward, &floats, 4 * floats.len())?;
    // The device has exactly one NaN in 16 bits.
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

pub(super) fn arithmetic(emulator: &Emulator) -> Result<(), String> {
    let body = "
        const float x = bits_float(params.in[thread]);
        const float y = bits_float(params.in[32 + thread]);
        params.out[thread] = float_bits(exp2_fast(x));
        params.out[32 + thread] = float_bits(fmaxf(x, y));
        params.out[64 + thread] = float_bits(fminf(x, y));
        params.out[96 + thread] = float_bits(fmaf(x, x, y));";
    let (infinity, minus_infinity) = (f32::INFINITY, f32::NEG_INFINITY);
    let xs = [
        [0.0, 1.0, -3.0, 0.5, -0.7, 10.25],
        [-126.0, -126.5, -149.0, 128.0, infinity, minus_infinity],
    ]
    .concat();
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
    // Of a number and NaN, max and min return the number; of two NaN, NaN.
    equal("a number and NaN", &[got[32 + 15], got[64 + 15]], &[0.25f32.to_bits(); 2])?;
    let nan = [got[31], got[63], got[95], got[127]].map(f32::from_bits);
    if nan.iter().all(|x| x.is_nan()) { Ok(()) } else { Err(format!("NaN was lost: {nan:?}")) }
}
