// Rows that are read and written in words of 16 bytes.

// The bits of an f32 without the sign, one to the left, from which on it is an infinity or NaN. A
// test of a sum of scores would not do: compilers may take the scale out of the sum, which is then
// finite though its terms are not.
const NOT_FINITE: u32 = 0xff000000u;

// e^x for a number x <= 0.
fn exp_number(x: f32) -> f32 {
    return exp2(max(x * LOG2_E, -150.0));
}

fn f16_values(a: u32, b: u32) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(a), unpack2x16float(b));
}

fn bf16_values(a: u32, b: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(a << 16u, a & 0xffff0000u, b << 16u, b & 0xffff0000u));
}

fn f16_words(x: vec4<f32>) -> vec2<u32> {
    return vec2<u32>(
        f16_bits(x.x) | (f16_bits(x.y) << 16u),
        f16_bits(x.z) | (f16_bits(x.w) << 16u),
    );
}

fn bf16_words(x: vec4<f32>) -> vec2<u32> {
    return vec2<u32>(
        bf16_bits(x.x) | (bf16_bits(x.y) << 16u),
        bf16_bits(x.z) | (bf16_bits(x.w) << 16u),
    );
}
