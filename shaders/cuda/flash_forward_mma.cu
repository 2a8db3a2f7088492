// FlashAttention-2, forward, on tensor cores: a block holds BR queries and visits the keys they see, BC at a time. The score table never exists.
//
// Per row it keeps m, the largest score so far, and l, the sum of exp(s - m); O is rescaled when m grows and divided by l at the end.
// Scores, m, l and all sums are f32. Weights are rounded once to the storage type, as the left operand of P V.
// V is on its way while Q K^T is multiplied, the next K while the weights are made and P V is.

// Weights are kept times 2^SHIFT: those that f16 would lose as too small are then 2^29 times smaller than the largest, not 2^14 times.
#if defined(ELEM_F16)
constexpr float SHIFT = 15.0f;
constexpr float UNSHIFT = 1.0f / 32768.0f;
#else
constexpr float SHIFT = 0.0f;
constexpr float UNSHIFT = 1.0f;
#endif

// Without masks and softcap m counts in units of log2, and a score is told from it in one fused step. That step sees more digits of a score than m
// has: from this size on, where they would count, scores are rounded before.
constexpr float FAR = 1048576.0f;

// Products beyond 1e38 count as that: only masking makes a key absent. NaN stays NaN.
DEVICE float saturated(float x) { return x > 1e38f ? 1e38f : (x < -1e38f ? -1e38f : x); }

// The state of a row.
struct Row {
    float m;
    float l; // over the lane's own keys; summed along the row at the end
};

// The key of element c of a row's part in this lane, s[c / 2][2 half + c % 2], from the first of the tile.
DEVICE u32 key_of(u32 c, u32 lane) { return c / 2 * 8 + lane % 4 * 2 + c % 2; }

// Adds the mask, and puts -inf in the place of scores of keys that are not seen. A score that overflowed to it is a number still.
DEVICE void mask_scores(const Params& params, const Item& item, float (&s)[MT][ST][4], u32 i_begin, u32 j_begin, u32 lane) {
    with_mask_kind(params, [&](auto kind) {
#pragma unroll
        for (u32 n = 0; n < MT * 2; n++) {
            const u32 i = i_begin + 8 * n + lane / 4;
            const Range seen = i < params.row_end ? kv_range(params, item, i, i + 1) : Range{0, 0};
#pragma unroll
            for (u32 c = 0; c < 2 * ST; c++) {
                const u32 j = j_begin + key_of(c, lane);
                float& x = s[n / 2][c / 2][n % 2 * 2 + c % 2];
                const u32 bias = mask_at<kind.VALUE>(params, item, i, j);
                x = GENERAL ? score(x, bias) : (float_bits(x) == NEG_INF ? LOWEST : x);
                x = j - seen.begin < seen.end - seen.begin && bias != NEG_INF ? x : bits_float(NEG_INF);
            }
        }
    });
}

// Turns scores into weights, for all rows of a warp's tile. `alpha`: what the sums so far are worth beside the new ones. `edge`: -inf is a key that is
// not seen; else it is a product that overflowed.
DEVICE void make_weights(const Params& params, Row (&rows)[MT][2], float (&s)[MT][ST][4], bool edge, float (&alpha)[MT][2]) {
    float top[MT][2];
#pragma unroll
    for (u32 r = 0; r < MT; r++) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            top[r][half] = s[r][0][2 * half];
#pragma unroll
            for (u32 c = 1; c < 2 * ST; c++) {
                top[r][half] = fmaxf(top[r][half], s[r][c / 2][2 * half + c % 2]);
            }
        }
    }
    // One row after the other they would wait for each other.
#pragma unroll
    for (u32 lanes = 1; lanes < 4; lanes *= 2) {
#pragma unroll
        for (u32 n = 0; n < 2 * MT; n++) {
            top[n / 2][n % 2] = fmaxf(top[n / 2][n % 2], shuffle_xor(top[n / 2][n % 2], lanes));
        }
    }

    const float absent = bits_float(edge ? NEG_INF : QUIET_NAN);
    // Not 0, or keys that are not seen would make NaN of it: the smallest number there is makes 0 of every score as well.
    float factor = GENERAL ? LOG2_E : fmaxf(fabsf(params.scale) * LOG2_E, bits_float(1));
    bool far = false;
#pragma unroll
    for (u32 n = 0; n < 2 * MT; n++) {
        Row& row = rows[n / 2][n % 2];
        float x = top[n / 2][n % 2];
        const bool none = x == absent;
        x = GENERAL || none ? x : saturated(x * factor);
        const float before = row.m;
        row.m = fmaxf(before, x);
        far = far || (!GENERAL && !none && fabsf(row.m) >= FAR);
        alpha[n / 2][n % 2] = before == row.m ? 1.0f : exp2_fast(GENERAL ? (before - row.m) * LOG2_E : before - row.m);
    }
    float from[MT][2];
#pragma unroll
    for (u32 n = 0; n < 2 * MT; n++) {
        from[n / 2][n % 2] = SHIFT - rows[n / 2][n % 2].m;
    }
    if (!GENERAL && warp_any(far)) {
#pragma unroll
        for (u32 n = 0; n < MT * ST * 4; n++) {
            float& x = s[n / (ST * 4)][n / 4 % ST][n % 4];
            x = x == absent ? x : saturated(x * factor) - rows[n / (ST * 4)][n % 4 / 2].m;
        }
        factor = 1.0f;
#pragma unroll
        for (u32 n = 0; n < 2 * MT; n++) {
            from[n / 2][n % 2] = SHIFT;
        }
    }
#pragma unroll
    for (u32 r = 0; r < MT; r++) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            Row& row = rows[r][half];
            float sum = 0.0f;
#pragma unroll
            for (u32 c = 0; c < 2 * ST; c++) {
                float& x = s[r][c / 2][2 * half + c % 2];
                x = exp2_fast(GENERAL ? fmaf(x - row.m, factor, SHIFT) : fmaf(x, factor, from[r][half]));
                sum += x;
            }
            row.l = fmaf(row.l, alpha[r][half], sum);
        }
    }
}

// Drops weights, which l does not see.
DEVICE void drop_weights(const Params& params, const Item& item, float (&s)[MT][ST][4], u32 i_begin, u32 j_begin, u32 lane) {
#pragma unroll
    for (u32 n = 0; n < MT * 2 * ST; n++) {
        float(&x)[4] = s[n / (2 * ST)][n % ST];
        const u32 half = n / ST % 2;
        const Words words = dropout_words(params, item, i_begin + 16 * (n / (2 * ST)) + 8 * half + lane / 4, j_begin + 8 * (n % ST) + lane % 4 / 2 * 4);
        const bool second = lane % 2 != 0;
        x[2 * half] = kept(params, second ? words.word[2] : words.word[0]) ? x[2 * half] : 0.0f;
        x[2 * half + 1] = kept(params, second ? words.word[3] : words.word[1]) ? x[2 * half + 1] : 0.0f;
    }
}

KERNEL(flash_forward) {
    elem* q_tile = (elem*)shared_memory();      // [query][QK_PITCH]
    elem* k_tile = q_tile + BR * QK_PITCH;      // [key][QK_PITCH]
    elem* v_tile = k_tile + BC * QK_PITCH;      // [key][V_PITCH]

    const Item item = work_item(params, block_index(), BR);
    const u32 row_end = item.row_begin + BR < params.row_end ? item.row_begin + BR : params.row_end;
    const Range range = kv_range(params, item, item.row_begin, row_end);
    const u32 lane = thread_x();
    const u32 thread = thread_y() * TX + lane;
    const u32 first = thread_y() * (16 * MT);   // the warp's first query in the tile
    const u32 column_begin = item.across * COLUMNS;
    const u32 column_end = column_begin + COLUMNS < params.head_dim_v ? column_begin + COLUMNS : params.head_dim_v;

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

    u32 j_begin = range.begin / BC * BC;
    if (j_begin < range.end) {
        load_q(params, item, q_tile, thread);
        load_k(params, item, k_tile, j_begin, thread);
        copy_commit();
    }
    for (; j_begin < range.end; j_begin += BC) {
        copy_wait<0>();
        barrier(); // K is here, and nobody reads V any more
        load_v(params, item, v_tile, j_begin, column_begin, thread);
        copy_commit();

        // S = Q K^T
        float s[MT][ST][4];
#pragma unroll
        for (u32 r = 0; r < MT; r++) {
#pragma unroll
            for (u32 c = 0; c < ST; c++) {
                s[r][c][0] = s[r][c][1] = s[r][c][2] = s[r][c][3] = 0.0f;
            }
        }
        add_scores(s, q_tile + first * QK_PITCH, k_tile, lane);

        copy_wait<0>();
        barrier(); // V is here, and nobody reads K any more
        if (j_begin + BC < range.end) {
            load_k(params, item, k_tile, j_begin + BC, thread);
            copy_commit();
        }

        // Masks, P = exp(S - m), and what the rows so far are worth beside it.
        const bool edge = (GENERAL && (params.mask_kind != NO_MASK || params.dropout != 0)) || !tile_is_full(params, item, row_end, j_begin, j_begin + BC);
        if (GENERAL || params.scale < 0.0f) {
            // Else the scale is part of what a score is told from m by, which takes its size alone.
            const float factor = GENERAL ? params.scale : -1.0f;
#pragma unroll
            for (u32 n = 0; n < MT * ST * 4; n++) {
                s[n / (ST * 4)][n / 4 % ST][n % 4] *= factor;
            }
        }
        if (GENERAL && params.softcap > 0.0f) {
#pragma unroll
            for (u32 n = 0; n < MT * ST * 4; n++) {
                s[n / (ST * 4)][n / 4 % ST][n % 4] = capped(params, s[n / (ST * 4)][n / 4 % ST][n % 4]);
            }
        }
        if (edge) {
            mask_scores(params, item, s, item.row_begin + first, j_begin, lane);
        } else if (GENERAL) {
#pragma unroll
            for (u32 n = 0; n < MT * ST * 4; n++) {
                s[n / (ST * 4)][n / 4 % ST][n % 4] = score(s[n / (ST * 4)][n / 4 % ST][n % 4], 0u);
            }
        }
        float alpha[MT][2];
        make_weights(params, rows, s, edge, alpha);
        if (GENERAL && params.dropout != 0) {
            drop_weights(params, item, s, item.row_begin + first, j_begin, lane);
        }
        u32 p[MT][BC / 16][4];
#pragma unroll
        for (u32 r = 0; r < MT; r++) {
#pragma unroll
            for (u32 j = 0; j < BC / 16; j++) {
                p[r][j][0] = pair(s[r][2 * j][0], s[r][2 * j][1]);
                p[r][j][1] = pair(s[r][2 * j][2], s[r][2 * j][3]);
                p[r][j][2] = pair(s[r][2 * j + 1][0], s[r][2 * j + 1][1]);
                p[r][j][3] = pair(s[r][2 * j + 1][2], s[r][2 * j + 1][3]);
            }
        }

        // O = alpha O + P V
#pragma unroll
        for (u32 n = 0; n < MT * OT * 4; n++) {
            o[n / (OT * 4)][n / 4 % OT][n % 4] *= alpha[n / (OT * 4)][n % 4 / 2];
        }
        if (edge && barrier_any(is_dirty(v_tile, thread))) {
            add_dirty_values(params, item, o, p, v_tile, item.row_begin + first, j_begin, lane);
            barrier();
            clean(v_tile, thread);
            barrier();
        }
        add_values(o, p, v_tile, lane);
    }

    // O / l by way of the place of Q, so that whole rows are stored, and lse = m + ln l. Only the warp itself has read these rows of Q.
#pragma unroll
    for (u32 r = 0; r < MT; r++) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 place = first + 16 * r + 8 * half + lane / 4;
            const u32 i = item.row_begin + place;
            const Row row = rows[r][half];
            const float sum = row_sum(row.l);
            const bool empty = sum == 0.0f; // a row that sees any key has a sum of 2^SHIFT or hardly less
            const float factor = empty ? 0.0f : params.keep_scale / sum;
#pragma unroll
            for (u32 c = 0; c < OT; c++) {
                *(u32*)(q_tile + place * QK_PITCH + 8 * c + lane % 4 * 2) = pair(o[r][c][2 * half] * factor, o[r][c][2 * half + 1] * factor);
            }
            if (lane % 4 == 0 && item.across == 0 && i < row_end) {
                const float m = GENERAL ? row.m : row.m * LN_2;
                store_lse(params, lse_row(params, item, i), empty ? NEG_INF : float_bits(m + ln(sum * UNSHIFT)));
            }
        }
    }
    barrier();
    for (u32 block = thread; block < BR * (COLUMNS / 8); block += THREADS) {
        const u32 d = column_begin + block % (COLUMNS / 8) * 8;
        const u32 place = block / (COLUMNS / 8);
        if (item.row_begin + place < row_end && d < column_end) {
            store8_out(params, out_row(params, item, item.row_begin + place), d, q_tile + place * QK_PITCH + (d - column_begin));
        }
    }
}
