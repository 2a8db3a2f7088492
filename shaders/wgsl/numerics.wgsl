// Infinities and NaN are made and tested as bits, because WGSL lets compilers assume that floats
// are neither (and Metal's fast math does).
const NEG_INF: u32 = 0xff800000u;
const LOWEST: f32 = -3.4028234663852886e38;
const LOG2_E: f32 = 1.4426950408889634;
const LN_2: f32 = 0.6931471805599453;
// The weight of a key that is masked or dropped: a zero whose sign tells it from an underflowed
// weight.
const ABSENT: u32 = 0x80000000u;

fn is_nan(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}

// An infinity becomes the largest finite number of its sign; NaN stays NaN.
fn finite(x: f32) -> f32 {
    let bits = bitcast<u32>(x);
    let infinite = (bits & 0x7fffffffu) == 0x7f800000u;
    return select(x, bitcast<f32>((bits & 0x80000000u) | 0x7f7fffffu), infinite);
}

fn is_finite4(x: vec4<f32>) -> bool {
    return all((bitcast<vec4<u32>>(x) & vec4<u32>(0x7f800000u)) != vec4<u32>(0x7f800000u));
}

// e^x for x <= 0. NaN stays NaN even where the built-in function loses it.
fn exp_nonpositive(x: f32) -> f32 {
    return select(exp2(max(x * LOG2_E, -150.0)), x, is_nan(x));
}

fn exp4(x: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(
        exp_nonpositive(x.x),
        exp_nonpositive(x.y),
        exp_nonpositive(x.z),
        exp_nonpositive(x.w),
    );
}

// The factor that takes sums relative to the maximum `before` to the maximum `now`. Exactly 1 where
// the maximum did not change: WGSL allows exp2(0) an error of 3 ulp, which would accumulate from
// tile to tile.
fn rescale(before: f32, now: f32) -> f32 {
    return select(exp_nonpositive(before - now), 1.0, before == now);
}

// tanh to a few ulp. Built-in functions are hundreds of ulp off near 0, and a softcap scales that
// error back up. This is the Taylor series near 0 and exp2 elsewhere.
fn tanh_accurate(x: f32) -> f32 {
    let a = abs(x);
    let z = x * x;
    var series = -929569.0 / 638512875.0;
    series = fma(series, z, 21844.0 / 6081075.0);
    series = fma(series, z, -1382.0 / 155925.0);
    series = fma(series, z, 62.0 / 2835.0);
    series = fma(series, z, -17.0 / 315.0);
    series = fma(series, z, 2.0 / 15.0);
    series = fma(series, z, -1.0 / 3.0);
    let near = fma(x * z, series, x);
    let far = 1.0 - 2.0 / (exp2(min(a, 20.0) * (2.0 * LOG2_E)) + 1.0);
    return select(select(far, -far, x < 0.0), near, a < 0.55 || is_nan(x));
}

// ln x for x >= 1, or NaN.
fn ln(x: f32) -> f32 {
    return select(log2(x) * LN_2, x, is_nan(x));
}

// Storage types, rounded to nearest even by integer arithmetic: pack2x16float may round either way,
// and its overflow is implementation-defined.
fn f16_bits(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    if (magnitude >= 0x47800000u) { // 65536 and over, infinity, NaN
        return sign | select(0x7c00u, 0x7e00u, magnitude > 0x7f800000u);
    }
    if (magnitude < 0x38800000u) { // below the smallest normal number: counts of 2^-24
        let exponent = magnitude >> 23u;
        if (exponent < 102u) {
            return sign;
        }
        let significand = (magnitude & 0x7fffffu) | 0x800000u;
        let shift = 126u - exponent; // 14 to 24
        let kept = significand >> shift;
        let rest = significand & ((1u << shift) - 1u);
        let half = 1u << (shift - 1u);
        let up = rest > half || (rest == half && (kept & 1u) == 1u);
        return sign | (kept + select(0u, 1u, up));
    }
    let rounded = magnitude + 0xfffu + ((magnitude >> 13u) & 1u);
    return sign | ((rounded - 0x38000000u) >> 13u);
}

fn bf16_bits(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    if (is_nan(x)) {
        return (bits >> 16u) | 0x40u;
    }
    return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
}

fn f16_value(bits: u32) -> f32 {
    return unpack2x16float(bits & 0xffffu).x;
}

fn bf16_value(bits: u32) -> f32 {
    return bitcast<f32>(bits << 16u);
}
