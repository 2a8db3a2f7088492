// FlashAttention-2, forward, on tensor cores: a block holds BR queries and visits the keys that
// they see, BC at a time. The score matrix is never stored.
//
// For each row the kernel keeps m, the largest score so far, and l, the sum of exp(s - m). It
// rescales O when m grows, and divides O by l at the end. Scores, m, l and all sums are f32.
// Weights are rounded once to the storage type, as the left operand of P V. V loads during Q K^T;
// the next K loads while the weights are computed and during P V.

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

// Whether warps skip tiles that none of their rows see. From 10.0 on, the tiles with most scores and
// sums per thread would spill.
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

#if SPLIT
// Stores O, m and l of the item's chunk, from registers. They leave the units of this kernel: m
// becomes a score again, and O and l lose the factor 2^SHIFT.
DEVICE void store_partials(
    const Params& params, const Item& item, const Row (&rows)[MT][2], const float (&o)[MT][OT][4],
    u32 i_begin, u32 column_begin, u32 column_end, u32 lane
) {
#pragma unroll
    for (u32 n = 0; n < 2 * MT; n++) {
        const u32 half = n % 2;
        const u32 row = i_begin + 8 * n + lane / 4;
        const Row& state = rows[n / 2][half];
        const float sum = row_sum(state.l);
        if (!row_is_stored(params, item, row)) {
            continue;
        }
        float* to = partial_row(params, item, row, item.chunk);
#pragma unroll
        for (u32 c = 0; c < 2 * OT; c++) {
            const u32 d = column_begin + c / 2 * 8 + lane % 4 * 2 + c % 2;
            if (d < column_end) {
                to[d] = o[n / 2][c / 2][2 * half + c % 2] * UNSHIFT;
            }
        }
        if (lane % 4 == 0 && item.across == 0) {
            store_sums(params, item, row, finite(state.m * M_TO_LN), sum * UNSHIFT);
        }
    }
}
#endif

KERNEL(flash_forward) {
    elem* tiles = (elem*)shared_memory();       // Q [BR][Q_WIDTH]
    constexpr u32 K_TILES = BR * Q_WIDTH;       // [STAGES][BC][Q_WIDTH]
    constexpr u32 V_TILES = K_TILES + STAGES * K_ELEMS; // [STAGES][BC][COLUMNS]

    const Item item = work_item(params, block_index(), BR);
    const u32 row_end = tile_row_end(params, item, BR);
    const Range range = kv_range(params, item, item.row_begin, row_end);
    const u32 j_end = range.end;
    const u32 lane = thread_x();
    const u32 thread = thread_y() * TX + lane;
    const u32 first = thread_y() * (16 * MT);   // the warp's first query in the tile
    const u32 i_begin = item.row_begin + first;
    const u32 i_end = i_begin + 16 * MT < row_end ? i_begin + 16 * MT : row_end;
    Range mine = kv_range(params, item, i_begin, i_end); // the keys that the warp's queries see
    mine.end = i_begin < i_end ? mine.end : 0;
    const u32 column_begin = item.across * COLUMNS;
    const u32 block_end = column_begin + COLUMNS;
    const u32 column_end = block_end < params.head_dim_v ? block_end : params.head_dim_v;

    Row rows[MT][2];
    float o[MT][OT][4];
#pragma unroll
    for (u32 r = 0; r < MT; r++) {
        rows[r][0] = rows[r][1] = Row{LOWEST, 0.0f};
#pragma unroll
        for (u32 c = 0; c < OT; c++) {
            o[r][c][0] = o[r][c][1] = o[r][c][2] = o[r][c][3] = 0.0f;
        }
    }

    const u32 j_first = (u32)range.begin / BC * BC;
    u32 j_begin = j_first;
    if (j_begin < j_end) {
        load_q(params, item, tiles, thread);
        load_k(params, item, tiles + K_TILES, j_begin, thread);
        if (STAGES == 2) {
            load_v(params, item, tiles + V_TILES, j_begin, column_begin, thread);
        }
        copy_commit();
    }
    u32 stage = 0;
    for (; j_begin < j_end; j_begin += BC) {
        const u32 k_at = K_TILES + stage * K_ELEMS;
        const u32 v_at = V_TILES + stage * V_ELEMS;
        elem* v_tile = tiles + v_at;
        stage ^= STAGES - 1;
        copy_wait<0>();
        if (STAGES == 2) {
            barrier(); // K and V have arrived, and no thread reads the tiles before them any more
            if (j_begin + BC < j_end) {
                elem* next_k = tiles + K_TILES + stage * K_ELEMS;
                elem* next_v = tiles + V_TILES + stage * V_ELEMS;
                load_k(params, item, next_k, j_begin + BC, thread);
                load_v(params, item, next_v, j_begin + BC, column_begin, thread);
                copy_commit();
            }
        } else {
            barrier(); // K has arrived, and no thread reads V any more
            load_v(params, item, v_tile, j_begin, column_begin, thread);
            copy_commit();
        }

        // S = Q K^T
        const bool sees =
            !SKIPS || warp_any(j_begin < mine.end && j_begin + BC > mine.begin);
        float s[MT][ST][4];
        if (sees) {
            compute_scores(s, tiles, first * Q_WIDTH, k_at, lane);
        } else {
            clear(s);
        }

        if (STAGES == 1) {
            copy_wait<0>();
            barrier(); // V has arrived, and no thread reads K any more
            if (j_begin + BC < j_end) {
                load_k(params, item, tiles + K_TILES, j_begin + BC, thread);
                copy_commit();
            }
        }

        // Masks, and P = exp(S - m).
        const bool changes = GENERAL && (params.mask_kind != NO_MASK || params.dropout != 0);
        const bool edge = changes || !tile_is_full(params, item, row_end, j_begin, j_begin + BC);
        float alpha[MT][2];
        u32 p[MT][BC / 16][4];
        if (sees) {
            finish_scores(params, item, s, edge, i_begin, j_begin, lane);
            float top[MT][2];
            largest(top, s);
            make_weights(params, rows, s, top, edge, alpha);
            if (GENERAL && params.dropout != 0) {
                drop_weights(params, item, s, i_begin, j_begin, lane);
            }
#pragma unroll
            for (u32 n = 0; n < MT * BC / 16; n++) {
                const float(&x)[ST][4] = s[n / (BC / 16)];
                u32(&pairs)[4] = p[n / (BC / 16)][n % (BC / 16)];
                const u32 c = n % (BC / 16) * 2;
                pairs[0] = pair(x[c][0], x[c][1]);
                pairs[1] = pair(x[c][2], x[c][3]);
                pairs[2] = pair(x[c + 1][0], x[c + 1][1]);
                pairs[3] = pair(x[c + 1][2], x[c + 1][3]);
            }
        } else {
            clear(p);
#pragma unroll
            for (u32 n = 0; n < 2 * MT; n++) {
                alpha[n / 2][n % 2] = 1.0f;
            }
        }

        // O = alpha O + P V
        if (edge && barrier_any(is_dirty(v_tile, thread))) {
            if (sees) {
                rescale_values(o, alpha);
                add_dirty_values(params, item, o, p, v_tile, i_begin, j_begin, lane);
            }
            barrier();
            clean(v_tile, thread);
            barrier();
        }
        if (sees) {
            const u32 chunk_at = v_at + place<COLUMNS>(lane % 16, lane / 16);
            if (j_begin - j_first < DIRECT_KEYS) {
                rescale_values(o, alpha);
                add_values(o, p, tiles, chunk_at);
            } else {
                rescale_and_add_values(o, alpha, p, tiles, chunk_at);
            }
        }
    }

#if SPLIT
    store_partials(params, item, rows, o, item.row_begin + first, column_begin, column_end, lane);
    return;
#endif

    // O / l and lse = m + ln l. O passes through the place of Q, so that whole rows are stored.
    // Only the warp itself has read these rows of Q.
#pragma unroll
    for (u32 n = 0; n < 2 * MT; n++) {
        const u32 r = n / 2;
        const u32 half = n % 2;
        const u32 row_of_tile = first + 8 * n + lane / 4;
        const u32 i = item.row_begin + row_of_tile;
        const Row row = rows[r][half];
        const float sum = row_sum(row.l);
        const bool empty = sum == 0.0f; // a row that sees any key has a sum near 2^SHIFT or above
        const float factor = empty ? 0.0f : params.keep_scale / sum;
#pragma unroll
        for (u32 c = 0; c < OT; c++) {
            const float low = o[r][c][2 * half] * factor;
            const float high = o[r][c][2 * half + 1] * factor;
            const u32 at = place<Q_WIDTH>(row_of_tile, c) + lane % 4 * 2;
            *(u32*)(tiles + at) = pair(low, high);
        }
        if (lane % 4 == 0 && item.across == 0 && i < row_end) {
            const float lse = row.m * M_TO_LN + ln(sum * UNSHIFT);
            store_lse(params, lse_row(params, item, i), empty ? NEG_INF : float_bits(lse));
        }
    }
    barrier();
    for (u32 block = thread; block < BR * (COLUMNS / 8); block += THREADS) {
        const u32 d = column_begin + block % (COLUMNS / 8) * 8;
        const u32 row_of_tile = block / (COLUMNS / 8);
        const u32 i = item.row_begin + row_of_tile;
        if (i < row_end && d < column_end) {
            const elem* from = tiles + place<Q_WIDTH>(row_of_tile, (d - column_begin) / 8);
            store8_out(params, out_row(params, item, i), d, from);
        }
    }
}
