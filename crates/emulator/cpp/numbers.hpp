// The device's types and arithmetic. Functions that a GPU approximates are exact to an ulp here;
// everything that a GPU rounds is rounded the same way.
#define FLASHTILE_EMULATED 1

typedef int i32;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
typedef long long i64;
typedef unsigned long long u64;

#define DEVICE static inline

// Declared rather than included: <cmath> takes as long to compile as a kernel.
extern "C" float exp2f(float);
extern "C" float logf(float);

DEVICE float fabsf(float x) { return __builtin_fabsf(x); }
DEVICE float fmaf(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

// Of a number and NaN, the number.
DEVICE float fmaxf(float a, float b) { return a != a ? b : (b != b ? a : (a < b ? b : a)); }
DEVICE float fminf(float a, float b) { return a != a ? b : (b != b ? a : (b < a ? b : a)); }

DEVICE u32 float_bits(float x) {
    u32 bits;
    __builtin_memcpy(&bits, &x, 4);
    return bits;
}
DEVICE float bits_float(u32 bits) {
    float x;
    __builtin_memcpy(&x, &bits, 4);
    return x;
}

template <typename T> DEVICE void forget(T&) {}
DEVICE u32 multiply_high(u32 a, u32 b) { return (u32)((u64)a * b >> 32); }

DEVICE float exp2_fast(float x) {
    const float y = exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
}

DEVICE float f16_value(u32 bits) {
    // In f32's place the exponent is too small by 112. The product is exact, also for subnormal
    // numbers.
    const u32 sign = (bits & 0x8000u) << 16;
    const u32 rest = (bits & 0x7fffu) << 13;
    const u32 scaled = float_bits(bits_float(rest) * 0x1p112f);
    return bits_float(sign | (rest >= 0x0f800000u ? rest | 0x7f800000u : scaled));
}

DEVICE u32 f16_bits(float x) {
    const u32 sign = float_bits(x) >> 16 & 0x8000u;
    const u32 rest = float_bits(x) & 0x7fffffffu;
    if (rest > 0x7f800000u) {
        return 0x7fffu; // the device's NaN
    }
    if (rest >= 0x477ff000u) {
        return sign | 0x7c00u; // 65520, halfway between the largest number and 2^16
    }
    if (rest < 0x38800000u) {
        // Below 2^-14, the smallest normal number, f16 counts in units of 2^-24. That is the ulp of
        // f32 numbers around 0.5.
        return sign | (float_bits(bits_float(rest) + 0.5f) - float_bits(0.5f));
    }
    return sign | ((rest - 0x38000000u + 0xfffu + (rest >> 13 & 1u)) >> 13);
}

DEVICE u32 f16_pair(float low, float high) { return f16_bits(low) | f16_bits(high) << 16; }

DEVICE u32 bf16_pair(float low, float high) {
    const auto rounded = [](float x) {
        const u32 bits = float_bits(x);
        return x != x ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    };
    return rounded(low) | rounded(high) << 16;
}
