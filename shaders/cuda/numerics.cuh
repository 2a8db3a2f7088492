// NaN is made and tested as bits, as in the WGSL kernels; infinities too.
#define NEG_INF 0xff800000u
#define QUIET_NAN 0x7fc00000u
#define HIGHEST 3.4028234663852886e38f
#define LOWEST (-3.4028234663852886e38f)
#define LOG2_E 1.4426950408889634f
#define LN_2 0.6931471805599453f
// Weight of a key that is masked or dropped: a zero told from an underflowed weight by its sign.
#define ABSENT 0x80000000u

DEVICE bool is_nan(float x) { return (float_bits(x) & 0x7fffffffu) > 0x7f800000u; }

DEVICE bool is_finite(float x) { return (float_bits(x) & 0x7f800000u) != 0x7f800000u; }

// e^x for x <= 0. NaN stays NaN.
DEVICE float exp_nonpositive(float x) { return exp2_fast(x * LOG2_E); }

// What sums under the maximum `before` are worth under `now`. Exactly 1 where nothing changed.
DEVICE float rescale(float before, float now) { return before == now ? 1.0f : exp_nonpositive(before - now); }

// tanh to a few ulp: its Taylor series near 0, where a softcap multiplies errors back up, exp2 elsewhere.
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

// Four neighbours, moved at once.
struct alignas(16) Four {
    float x[4];
};

// A number that is known when the kernel is compiled, as an argument.
template <u32 N> struct Constant {
    static constexpr u32 VALUE = N;
};
