// FlashAttention-2, forward, on tensor cores: a block holds BR queries and visits the keys they see, BC at a time. The score table never exists.
//
// Per row it keeps m, the largest score so far, and l, the sum of exp(s - m); O is rescaled when m grows and divided by l at the end.
// Scores, m, l and all sums are f32. Weights are rounded once to the storage type, as the left operand of P V.
// V is on its way while Q K^T is multiplied, the next K while the weights are made and P V is.

// Weights are kept times 2^SHIFT: those that f16 would lose as too small are then 2^29 times smaller than the largest, not 2^14 times.
#if defined(ELEM_F16)
constexpr float SHIFT = 15.0f;
#else
constexpr float SHIFT = 0.0f;
#endif

// Without masks and softcap m counts in units of log2, and a score is told from it in one fused step. Beyond this size products saturate.
constexpr float FAR = 1e38f;

// The state of a row.
struct Row {
    float m;
    float l; // over the lane's own keys; summed along the row at the end
};

// Turns scores into weights, for one row of one tile: element c of the row is s[c / 2][half + c % 2], and bit c of `absent` says that it is not seen.
// Returns what the sums so far are worth beside the new ones.
template <bool EDGE> DEVICE float make_weights(Row& row, float (&s)[ST][4], u32 half, u32 absent, float scale_log2) {
    float top = EDGE ? LOWEST : s[0][half];
#pragma unroll
    for (u32 c = 0; c < 2 * ST; c++) {
        const float x = s[c / 2][half + c % 2];
        top = EDGE && (absent >> c & 1u) != 0 ? top : fmaxf(top, x);
    }
    top = row_max(top);
    const float before = row.m;
    float sum = 0.0f;
    if (GENERAL) {
        row.m = fmaxf(before, top);
#pragma unroll
        for (u32 c = 0; c < 2 * ST; c++) {
            float& x = s[c / 2][half + c % 2];
            const float p = exp2_fast(fmaf(x - row.m, LOG2_E, SHIFT));
            x = EDGE && (absent >> c & 1u) != 0 ? bits_float(ABSENT) : p;
            sum += x;
        }
    } else {
        // A row that has not seen a key keeps LOWEST, whatever the scale.
        const bool none = EDGE && top == LOWEST;
        const float scaled = top * scale_log2;
        row.m = none ? before : fmaxf(before, fminf(fmaxf(scaled, -FAR), FAR));
        const float from = SHIFT - row.m;
        if (fabsf(scaled) < FAR || none) {
#pragma unroll
            for (u32 c = 0; c < 2 * ST; c++) {
                float& x = s[c / 2][half + c % 2];
                const float p = exp2_fast(fmaf(x, scale_log2, from));
                x = EDGE && (absent >> c & 1u) != 0 ? bits_float(ABSENT) : p;
                sum += x;
            }
        } else {
#pragma unroll
            for (u32 c = 0; c < 2 * ST; c++) {
                float& x = s[c / 2][half + c % 2];
                const float scaled_x = is_nan(x) ? x : fminf(fmaxf(x * scale_log2, -FAR), FAR);
                x = EDGE && (absent >> c & 1u) != 0 ? bits_float(ABSENT) : exp2_fast(scaled_x - row.m + SHIFT);
                sum += x;
            }
        }
    }
    const float alpha = before == row.m ? 1.0f : exp2_fast(GENERAL ? (before - row.m) * LOG2_E : before - row.m);
    row.l = fmaf(row.l, alpha, sum);
    return alpha;
}

KERNEL(flash_forward) {
    elem* q_tile = (elem*)shared_memory();      // [query][QK_PITCH]
    elem* k_tile = q_tile + BR * QK_PITCH;      // [key][QK_PITCH]
    elem* v_tile = k_tile + BC * QK_PITCH;      // [key][V_PITCH]

    const Item item = work_item(params, block_index(), BR);
    const u32 row_end = item.row_begin + BR < params.row_end ? item.row_begin + BR : params.row_end;
    const Range range = kv_range(params, item, row_end);
    const u32 lane = thread_x();
    const u32 thread = thread_y() * TX + lane;
    const u32 first = thread_y() * (16 * MT);   // the warp's first query in the tile
    const u32 column_begin = item.across * COLUMNS;
    const u32 column_end = column_begin + COLUMNS < params.head_dim_v ? column_begin + COLUMNS : params.head_dim_v;
    const float scale_log2 = fabsf(params.scale) * LOG2_E;

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
        const bool edge = (GENERAL && (params.mask_kind != 0 || params.dropout != 0)) || !tile_is_full(params, item, row_end, j_begin, j_begin + BC);
        if (!GENERAL && params.scale < 0.0f) {
#pragma unroll
            for (u32 n = 0; n < MT * ST * 4; n++) {
                s[n / (ST * 4)][n / 4 % ST][n % 4] = -s[n / (ST * 4)][n / 4 % ST][n % 4];
            }
        }
#pragma unroll
        for (u32 r = 0; r < MT; r++) {
#pragma unroll
            for (u32 half = 0; half < 4; half += 2) {
                const u32 i = item.row_begin + first + 16 * r + lane / 4 + 4 * half;
                u32 absent = 0; // a bit a key
                if (edge || GENERAL) {
#pragma unroll
                    for (u32 c = 0; c < 2 * ST; c++) {
                        const u32 j = j_begin + c / 2 * 8 + lane % 4 * 2 + c % 2;
                        u32 bias = 0;
                        if (edge) {
                            bias = mask_at(params, item, i, j);
                            absent |= (allowed(params, item, i, j, bias) ? 0u : 1u) << c;
                        }
                        if (GENERAL) {
                            s[r][c / 2][half + c % 2] = score(params, s[r][c / 2][half + c % 2] * params.scale, bias);
                        }
                    }
                }
                Row& row = rows[r][half / 2];
                const float alpha = edge ? make_weights<true>(row, s[r], half, absent, scale_log2) : make_weights<false>(row, s[r], half, 0, scale_log2);
#pragma unroll
                for (u32 c = 0; c < OT; c++) {
                    o[r][c][half] *= alpha;
                    o[r][c][half + 1] *= alpha;
                }
                if (GENERAL && params.dropout != 0) {
#pragma unroll
                    for (u32 c = 0; c < ST; c++) {
                        const Words words = dropout_words(params, item, i, j_begin + 8 * c + lane % 4 / 2 * 4);
                        const bool second = lane % 2 != 0;
                        s[r][c][half] = kept(params, second ? words.word[2] : words.word[0]) ? s[r][c][half] : bits_float(ABSENT);
                        s[r][c][half + 1] = kept(params, second ? words.word[3] : words.word[1]) ? s[r][c][half + 1] : bits_float(ABSENT);
                    }
                }
            }
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
        if (edge && barrier_any(is_dirty(v_tile, thread))) {
            add_dirty_values(o, p, v_tile, lane);
            barrier();
            clean(v_tile, thread);
            barrier();
        }
        add_values(o, p, v_tile, lane);
    }

    // O / l by way of the place of Q, so that whole rows are stored, and lse = m + ln l.
    barrier();
#pragma unroll
    for (u32 r = 0; r < MT; r++) {
#pragma unroll
        for (u32 half = 0; half < 4; half += 2) {
            const u32 place = first + 16 * r + lane / 4 + 4 * half;
            const u32 i = item.row_begin + place;
            const Row row = rows[r][half / 2];
            const float sum = row_sum(row.l);
            const bool empty = sum == 0.0f; // a row that sees any key has sum >= 2^SHIFT
            const float factor = empty ? 0.0f : params.keep_scale / sum;
#pragma unroll
            for (u32 c = 0; c < OT; c++) {
                *(u32*)(q_tile + place * QK_PITCH + 8 * c + lane % 4 * 2) = pair(o[r][c][half] * factor, o[r][c][half + 1] * factor);
            }
            if (lane % 4 == 0 && item.across == 0 && i < row_end) {
                const float m = GENERAL ? row.m : row.m * LN_2;
                store_lse(params, item.lse_base + i, empty ? NEG_INF : float_bits(m + (ln(sum) - SHIFT * LN_2)));
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
