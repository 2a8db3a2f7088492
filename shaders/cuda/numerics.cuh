// NaN and infinities are made and tested as bits, as in the WGSL kernels.
#define NEG_INF 0xff800000u
#define QUIET_NAN 0x7fc00000u
#define HIGHEST 3.4028234663852886e38f
#define LOWEST (-3.4028234663852886e38f)
#define LOG2_E 1.4426950408889634f
#define LOG4_E 0.7213475204444817f
#define LN_4 1.3862943611198906f
// The weight of a key that is masked or dropped. Its sign distinguishes it from a weight that
// underflowed to zero.
#define ABSENT 0x80000000u

DEVICE bool is_nan(float x) { return (float_bits(x) & 0x7fffffffu) > 0x7f800000u; }

DEVICE bool is_finite(float x) { return (float_bits(x) & 0x7f800000u) != 0x7f800000u; }

// x within -limit..limit. NaN stays NaN, which fminf and fmaxf would lose.
DEVICE float saturated(float x, float limit) {
    return x > limit ? limit : (x < -limit ? -limit : x);
}

// Infinities become the largest finite numbers. NaN stays NaN.
DEVICE float finite(float x) { return saturated(x, HIGHEST); }

// e^x for x <= 0. NaN stays NaN.
DEVICE float exp_nonpositive(float x) { return exp2_fast(x * LOG2_E); }

// The factor that converts sums relative to the maximum `before` to sums relative to `now`.
// Exactly 1 if the maximum did not change.
DEVICE float rescale(float before, float now) {
    return before == now ? 1.0f : exp_nonpositive(before - now);
}

// tanh to a few ulp. Near 0, where a softcap magnifies the error, this is the Taylor series;
// elsewhere it is computed from exp2.
DEVICE float tanh_accurate(float x) {
    float a = fabsf(x);
    float z = x * x;
    float series = -929569.0f / 638512875.0f;
    series = fmaf(series, z, 21844.0f / 6081075.0f);
    series = fmaf(series, z, -1382.0f / 155925.0f);
    series = fmaf(series, z, 62.0f / 2835.0f);
    series = fmaf(series, z, -17.0f / 315.0f);
    series = fmaf(series, z, 2.0f / 15.0f);
    series = fmaf(series, z, -1.0f / 3.0f);
    float near = fmaf(x * z, series, x);
    float far = 1.0f - 2.0f / (exp2_fast(fminf(a, 20.0f) * (2.0f * LOG2_E)) + 1.0f);
    return a < 0.55f || is_nan(x) ? near : (x < 0.0f ? -far : far);
}

// ln x for x >= 1, or NaN.
DEVICE float ln(float x) { return logf(x); }

DEVICE float bf16_value(u32 bits) { return bits_float(bits << 16); }

DEVICE u32 bf16_bits(float x) {
    u32 bits = float_bits(x);
    if (is_nan(x)) {
        return (bits >> 16) | 0x40u;
    }
    return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

// The storage type of q, k, v and out.
#if defined(ELEM_F32)
typedef float elem;
DEVICE float value(elem x) { return x; }
DEVICE elem stored(float x) { return x; }
#elif defined(ELEM_F16)
typedef u16 elem;
DEVICE float value(elem x) { return f16_value(x); }
DEVICE elem stored(float x) { return (elem)f16_bits(x); }
DEVICE u32 pair(float low, float high) { return f16_pair(low, high); }
#else
typedef u16 elem;
DEVICE float value(elem x) { return bf16_value(x); }
DEVICE elem stored(float x) { return (elem)bf16_bits(x); }
#if defined(FLASHTILE_EMULATED) || __CUDA_ARCH__ >= 800
DEVICE u32 pair(float low, float high) { return bf16_pair(low, high); }
#endif
#endif

// Four neighbouring numbers that one instruction loads or stores.
struct alignas(16) Four {
    float x[4];
};

// A compile-time constant that is passed as a function argument.
template <u32 N> struct Constant {
    static constexpr u32 VALUE = N;
};
