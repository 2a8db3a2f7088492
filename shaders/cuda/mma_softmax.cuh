// The softmax of the kernels on tensor cores: masks, P = exp(S - m) and the rescaling of O, on the
// scores and sums that a lane holds in registers (mma_tile.cuh, tf32_tile.cuh).
//
// For each row the kernels keep m, the largest score so far, and l, the sum of exp(s - m). They
// rescale O when m grows, and divide O by l at the end. Scores, m, l and all sums are f32.

// Weights are scaled by 2^SHIFT. f16 then keeps weights down to 2^-29 of the largest one, where it
// would otherwise lose those below 2^-14.
#if defined(ELEM_F16)
constexpr float SHIFT = 15.0f;
constexpr float UNSHIFT = 1.0f / 32768.0f;
#else
constexpr float SHIFT = 0.0f;
constexpr float UNSHIFT = 1.0f;
#endif

// GENERAL kernels scale every score, and keep scores and m as they are. The others leave the scale
// to the exponent, exp2(s * scale * log2(e) - m): one fma per score. They keep m in units of ln 4,
// because the largest f32 score is no f32 number in units of ln 2.
constexpr float M_TO_LOG2 = GENERAL ? LOG2_E : 2.0f;
constexpr float M_TO_LN = GENERAL ? 1.0f : LN_4;
constexpr float M_HIGHEST = GENERAL ? HIGHEST : HIGHEST * LOG4_E;

// That fma sees more digits of a score than m has. From this |m| on, where they would change
// weights, the kernel rounds each score to f32 before it subtracts m.
constexpr float FAR = 524288.0f;

// Whether warps skip tiles that none of their rows see. From 10.0 on, the tiles with most scores
// and sums per thread would spill.
#if __CUDA_ARCH__ >= 1000
constexpr bool SKIPS = MT * (ST + OT) <= 40;
#else
constexpr bool SKIPS = true;
#endif

// The state of a row.
struct Row {
    float m;
    float l; // over the lane's own keys; row_sum adds the others at the end
};

// The key of element s[c / 2][2 half + c % 2] of a row, counted from the first key of the tile.
DEVICE u32 key_of(u32 c, u32 lane) { return c / 2 * 8 + lane % 4 * 2 + c % 2; }

// Adds the mask, and replaces the scores of keys that the query does not see by -inf.
DEVICE void mask_scores(
    const Params& params, const Item& item, float (&s)[MT][ST][4], u32 i_begin, u32 j_begin,
    u32 lane
) {
    with_mask_kind(params, [&](auto kind) {
#pragma unroll
        for (u32 n = 0; n < MT * 2; n++) {
            const u32 i = i_begin + 8 * n + lane / 4;
            const Range visible = visible_keys(params, item, i);
#pragma unroll
            for (u32 c = 0; c < 2 * ST; c++) {
                const u32 j = j_begin + key_of(c, lane);
                float& x = s[n / 2][c / 2][n % 2 * 2 + c % 2];
                const u32 bias = mask_at<kind.VALUE>(params, item, i, j);
                if (GENERAL) {
                    x = score<has_bias(kind.VALUE)>(x, bias);
                } else {
                    x = float_bits(x) == NEG_INF ? LOWEST : x; // make_weights saturates the rest
                }
                x = allowed(visible, j, bias) ? x : bits_float(NEG_INF);
            }
        }
    });
}

// The largest score of each row in this tile.
DEVICE void largest(float (&top)[MT][2], const float (&s)[MT][ST][4]) {
#pragma unroll
    for (u32 n = 0; n < 2 * MT; n++) {
        top[n / 2][n % 2] = s[n / 2][0][n % 2 * 2];
#pragma unroll
        for (u32 c = 1; c < 2 * ST; c++) {
            top[n / 2][n % 2] = fmaxf(top[n / 2][n % 2], s[n / 2][c / 2][n % 2 * 2 + c % 2]);
        }
    }
    // The rows take turns, so that none waits for its own previous shuffle.
#pragma unroll
    for (u32 lanes = 1; lanes < 4; lanes *= 2) {
#pragma unroll
        for (u32 n = 0; n < 2 * MT; n++) {
            float& x = top[n / 2][n % 2];
            x = fmaxf(x, shuffle_xor(x, lanes));
        }
    }
}

// P = exp(S - m), in place, for all rows of a warp. `alpha` receives the factor that rescales
// earlier sums of each row. In an `edge` tile -inf marks a key that the query does not see;
// elsewhere it is a product that overflowed.
DEVICE void make_weights(
    const Params& params, Row (&rows)[MT][2], float (&s)[MT][ST][4], const float (&top)[MT][2],
    bool edge, float (&alpha)[MT][2]
) {
    const float absent = bits_float(edge ? NEG_INF : QUIET_NAN);
    // Converts s to units of m. A factor of 0 would turn -inf into NaN. The smallest number
    // instead of it gives the same weights.
    const float factor = GENERAL ? 1.0f : fmaxf(fabsf(params.scale) * LOG4_E, bits_float(1));
    bool far = !GENERAL && M_TO_LOG2 * factor > HIGHEST;
#pragma unroll
    for (u32 n = 0; n < 2 * MT; n++) {
        Row& row = rows[n / 2][n % 2];
        const float x = top[n / 2][n % 2];
        const bool none = x == absent;
        const float before = row.m;
        row.m = fmaxf(before, GENERAL || none ? x : saturated(x * factor, M_HIGHEST));
        far = far || (!GENERAL && !none && fabsf(row.m) >= FAR);
        alpha[n / 2][n % 2] = before == row.m ? 1.0f : exp2_fast((before - row.m) * M_TO_LOG2);
    }
    float multiplier = GENERAL ? LOG2_E : M_TO_LOG2 * factor;
    float from[MT][2];
#pragma unroll
    for (u32 n = 0; n < 2 * MT; n++) {
        // Finite: -inf must not meet +inf in a row that has seen no key yet.
        from[n / 2][n % 2] = fminf(fmaf(rows[n / 2][n % 2].m, -M_TO_LOG2, SHIFT), HIGHEST);
    }
    if (!GENERAL && warp_any(far)) {
#pragma unroll
        for (u32 n = 0; n < MT * ST * 4; n++) {
            float& x = s[n / (ST * 4)][n / 4 % ST][n % 4];
            const float m = rows[n / (ST * 4)][n % 4 / 2].m;
            x = x == absent ? x : saturated(x * factor, M_HIGHEST) - m;
        }
        multiplier = M_TO_LOG2;
#pragma unroll
        for (u32 n = 0; n < 2 * MT; n++) {
            from[n / 2][n % 2] = SHIFT;
        }
    }
#pragma unroll
    for (u32 n = 0; n < 2 * MT; n++) {
        Row& row = rows[n / 2][n % 2];
        float sum = 0.0f;
#pragma unroll
        for (u32 c = 0; c < 2 * ST; c++) {
            float& x = s[n / 2][c / 2][n % 2 * 2 + c % 2];
            const float exponent = GENERAL ? fmaf(x - row.m, multiplier, SHIFT)
                                           : fmaf(x, multiplier, from[n / 2][n % 2]);
            x = exp2_fast(exponent);
            sum += x;
        }
        row.l = fmaf(row.l, alpha[n / 2][n % 2], sum);
    }
}

// Drops weights. l ignores dropout.
DEVICE void drop_weights(
    const Params& params, const Item& item, float (&s)[MT][ST][4], u32 i_begin, u32 j_begin,
    u32 lane
) {
#pragma unroll
    for (u32 n = 0; n < MT * 2 * ST; n++) {
        float(&x)[4] = s[n / (2 * ST)][n % ST];
        const u32 half = n / ST % 2;
        const u32 i = i_begin + 16 * (n / (2 * ST)) + 8 * half + lane / 4;
        const u32 j = j_begin + 8 * (n % ST) + lane % 4 / 2 * 4;
        const Words words = dropout_words(params, item, i, j);
        const bool second = lane % 2 != 0;
        const bool low = kept(params, second ? words.word[2] : words.word[0]);
        const bool high = kept(params, second ? words.word[3] : words.word[1]);
        x[2 * half] = low ? x[2 * half] : 0.0f;
        x[2 * half + 1] = high ? x[2 * half + 1] : 0.0f;
    }
}

// Sets what a warp does not compute. Otherwise the compiler would keep registers for it all along.
template <typename T, u32 A, u32 B, u32 C> DEVICE void clear(T (&x)[A][B][C]) {
#pragma unroll
    for (u32 n = 0; n < A * B * C; n++) {
        x[n / (B * C)][n / C % B][n % C] = 0;
    }
}

// Turns products of Q and K into the scores that softmax sees. In an `edge` tile, the scores of
// keys that the query does not see become -inf.
DEVICE void finish_scores(
    const Params& params, const Item& item, float (&s)[MT][ST][4], bool edge, u32 i_begin,
    u32 j_begin, u32 lane
) {
    if (GENERAL || params.scale < 0.0f) {
        // make_weights multiplies by the size of the scale where this does not.
        const float factor = GENERAL ? params.scale : -1.0f;
#pragma unroll
        for (u32 n = 0; n < MT * ST * 4; n++) {
            s[n / (ST * 4)][n / 4 % ST][n % 4] *= factor;
        }
    }
    if (GENERAL && params.softcap > 0.0f) {
#pragma unroll
        for (u32 n = 0; n < MT * ST * 4; n++) {
            float& x = s[n / (ST * 4)][n / 4 % ST][n % 4];
            x = capped(params, x);
        }
    }
    if (edge) {
        mask_scores(params, item, s, i_begin, j_begin, lane);
    } else if (GENERAL) {
#pragma unroll
        for (u32 n = 0; n < MT * ST * 4; n++) {
            float& x = s[n / (ST * 4)][n / 4 % ST][n % 4];
            x = score<false>(x, 0u);
        }
    }
}

// O = alpha O, and alpha = 1. Most tiles raise no row's maximum, and leave every alpha at 1.
DEVICE void rescale_values(float (&o)[MT][OT][4], float (&alpha)[MT][2]) {
    bool changes = false;
#pragma unroll
    for (u32 n = 0; n < 2 * MT; n++) {
        changes = changes || alpha[n / 2][n % 2] != 1.0f;
    }
    if (warp_any(changes)) {
#pragma unroll
        for (u32 n = 0; n < MT * OT * 4; n++) {
            o[n / (OT * 4)][n / 4 % OT][n % 4] *= alpha[n / (OT * 4)][n % 4 / 2];
        }
#pragma unroll
        for (u32 n = 0; n < 2 * MT; n++) {
            alpha[n / 2][n % 2] = 1.0f;
        }
    }
}
