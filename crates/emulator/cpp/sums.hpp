// How tensor cores add products. The model and its sources are described in src/sums.rs, which
// holds the same arithmetic for PTX.
namespace emulation {

// A finite number as significand * 2^(exponent - 23).
struct Split {
    i64 significand;
    i32 exponent;
};

// Splits a finite number. Subnormal numbers of its type have the type's smallest exponent.
static Split split(float x, i32 min_exponent) {
    if (x == 0.0f) {
        return Split{0, min_exponent};
    }
    const u32 bits = float_bits(x);
    const i32 biased = (i32)(bits >> 23 & 0xffu);
    const i64 fraction = bits & 0x7fffffu;
    const i32 normal = (biased > 1 ? biased : 1) - 127;
    const i32 exponent = normal > min_exponent ? normal : min_exponent;
    // Exact: the bits that a subnormal number of 16 bits lacks are zero.
    const i64 magnitude = (biased == 0 ? fraction : fraction | 1 << 23) >> (exponent - normal);
    return Split{bits >> 31 != 0 ? -magnitude : magnitude, exponent};
}

// Splits `count` numbers. False: not all of them are finite, and the result has no meaning.
static bool split_all(Split* to, const float* from, u32 count, i32 min_exponent) {
    bool finite = true;
    for (u32 n = 0; n < count; n++) {
        to[n] = split(from[n], min_exponent);
        finite = finite && from[n] - from[n] == 0.0f;
    }
    return finite;
}

// Shifts toward zero, by any number of bits.
static i64 shift_right(i64 x, i32 by) {
    const u64 magnitude = (u64)(x < 0 ? -x : x);
    const i64 shifted = (i64)(by < 0 ? magnitude << -by : by < 64 ? magnitude >> by : 0);
    return x < 0 ? -shifted : shifted;
}

// sum * 2^unit as f32, truncated toward zero; beyond the range of f32, infinity.
static float truncate(i64 sum, i32 unit) {
    if (sum == 0) {
        return 0.0f;
    }
    const i32 exponent = 63 - __builtin_clzll((u64)(sum < 0 ? -sum : sum)) + unit;
    if (exponent > 127) {
        return sum < 0 ? -__builtin_inff() : __builtin_inff();
    }
    const i32 last = (exponent > -126 ? exponent : -126) - 23;
    if (last > unit) {
        sum = shift_right(sum, last - unit);
        unit = last;
    }
    // Exact: at most 24 bits, whose last one an f32 can hold.
    const u64 power = (u64)(unit + 1023) << 52;
    double scale;
    __builtin_memcpy(&scale, &power, 8);
    return (float)((double)sum * scale);
}

// The operands of one sum: a row of A and a column of B, `depth` numbers each.
struct Operands {
    const float* a;
    const float* b;
    const Split* split_a;
    const Split* split_b;
    bool finite;
};

// One step: products `from` to `to`, and c.
static float add_truncated(float c, const Operands& of, u32 from, u32 to, i32 extra_bits) {
    if (!of.finite || __builtin_isinf(c) || c != c) {
        double sum = c;
        for (u32 k = from; k < to; k++) {
            sum += (double)of.a[k] * (double)of.b[k];
        }
        return (float)sum;
    }
    const Split split_c = split(c, -126);
    // Below every exponent of a product.
    constexpr i32 NONE = -1000;
    i32 largest = split_c.significand != 0 ? split_c.exponent : NONE;
    Split product[16];
    for (u32 k = from; k < to; k++) {
        // Aligned by the sum of the exponents: a product is not normalised first.
        product[k - from] = Split{of.split_a[k].significand * of.split_b[k].significand,
                                  of.split_a[k].exponent + of.split_b[k].exponent};
        if (product[k - from].significand != 0 && product[k - from].exponent > largest) {
            largest = product[k - from].exponent;
        }
    }
    if (largest == NONE) {
        return 0.0f;
    }
    // The last bit that addends keep is worth 2^unit. A product has twice the fraction bits.
    const i32 unit = largest - 23 - extra_bits;
    i64 sum = shift_right(split_c.significand, unit - (split_c.exponent - 23));
    for (u32 k = 0; k < to - from; k++) {
        sum += shift_right(product[k].significand, unit - (product[k].exponent - 46));
    }
    return truncate(sum, unit);
}

// c plus the sum of `depth` products, in their order. A truncated step adds `products` of them.
static float add_products(float c, const Operands& of, u32 depth, u32 products) {
    if (products != 0) {
        for (u32 k = 0; k < depth; k += products) {
            const u32 end = k + products < depth ? k + products : depth;
            c = add_truncated(c, of, k, end, (i32)block.launch->sum_extra_bits);
        }
        return c;
    }
    for (u32 k = 0; k < depth; k += 8) {
        float p[8];
        for (u32 i = 0; i < 8; i++) {
            p[i] = of.a[k + i] * of.b[k + i];
        }
        c += ((p[0] + p[1]) + (p[2] + p[3])) + ((p[4] + p[5]) + (p[6] + p[7]));
    }
    return c;
}

} // namespace emulation
