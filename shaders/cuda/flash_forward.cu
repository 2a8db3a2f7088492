// FlashAttention-2, forward: a block holds BR queries and visits the keys they see, BC at a time. The score table never exists.
//
// Per row it keeps m, the largest score so far, and l, the sum of exp(s - m); O is rescaled when m grows and divided by l at the end.
// K and V come through shared memory in blocks of KV_WIDTH columns: while one is multiplied, the next is on its way.
constexpr u32 OT = COLUMNS / KV_WIDTH; // blocks of columns of O that a thread holds

// Puts -inf in the place of scores of keys that are not seen, and makes of the others what softmax sees.
// With masks and softcap this goes by way of the weights' place in p_tile, where each thread has its own: a loop over memory is a short text.
DEVICE void mask_scores(const Params& params, const Item& item, float (&s)[RT][4 * KT], float* p_tile, u32 j_begin) {
    const u32 tx = thread_x();
    const u32 ty = thread_y();
    if (!GENERAL) {
#pragma unroll
        for (u32 n = 0; n < RT * 4 * KT; n++) {
            const u32 c = n % (4 * KT);
            float& x = s[n / (4 * KT)][c];
            const bool seen = allowed(params, item, item.row_begin + ty + TY * (n / (4 * KT)), j_begin + c / 4 * 4 * TX + 4 * tx + c % 4, 0u);
            x = seen ? score(x, 0u) : bits_float(NEG_INF);
        }
        return;
    }
    store_weights(p_tile, P_PITCH, s);
#pragma unroll 1
    for (u32 n = 0; n < RT * KT; n++) {
        const u32 row = ty + TY * (n / KT);
        const u32 column = 4 * TX * (n % KT) + 4 * tx;
        Four* place = (Four*)(p_tile + row * P_PITCH + column);
        Four x = *place;
        finish_scores(params, item, x, item.row_begin + row, j_begin + column);
        *place = x;
    }
#pragma unroll
    for (u32 n = 0; n < RT * KT; n++) {
        const Four x = *(const Four*)(p_tile + (ty + TY * (n / KT)) * P_PITCH + 4 * TX * (n % KT) + 4 * tx);
#pragma unroll
        for (u32 c = 0; c < 4; c++) {
            s[n / KT][4 * (n % KT) + c] = x.x[c];
        }
    }
}

// The largest of a thread's scores in each row. Whether one is infinite.
DEVICE bool largest(float (&tops)[RT], const float (&s)[RT][4 * KT]) {
    bool infinite = false;
#pragma unroll
    for (u32 r = 0; r < RT; r++) {
        tops[r] = s[r][0];
#pragma unroll
        for (u32 c = 1; c < 4 * KT; c++) {
            tops[r] = fmaxf(tops[r], s[r][c]);
        }
        infinite = infinite || fabsf(tops[r]) > HIGHEST;
    }
    return infinite;
}

// Drops weights, which l does not see.
DEVICE void drop_weights(const Params& params, const Item& item, float* p_tile, u32 j_begin) {
#pragma unroll 1
    for (u32 n = 0; n < RT * KT; n++) {
        const u32 row = thread_y() + TY * (n / KT);
        const u32 column = 4 * TX * (n % KT) + 4 * thread_x();
        Four* place = (Four*)(p_tile + row * P_PITCH + column);
        const Words words = dropout_words(params, item, item.row_begin + row, j_begin + column);
        Four x = *place;
#pragma unroll
        for (u32 c = 0; c < 4; c++) {
            x.x[c] = kept(params, words.word[c]) ? x.x[c] : bits_float(ABSENT);
        }
        *place = x;
    }
}

KERNEL(flash_forward) {
    float* q_tile = (float*)shared_memory();    // [query][Q_PITCH]
    float* p_tile = q_tile + BR * Q_PITCH;      // [query][P_PITCH], weights
    float* kv_tile = p_tile + BR * P_PITCH;     // [2][KV_FLOATS]

    const Item item = work_item(params, block_index(), BR);
    const u32 row_end = item.row_begin + BR < params.row_end ? item.row_begin + BR : params.row_end;
    const Range range = kv_range(params, item, item.row_begin, row_end);
    const u32 tx = thread_x();
    const u32 ty = thread_y();
    const u32 thread = ty * TX + tx;
    const bool q_stays = params.head_dim <= Q_WIDTH;
    const u32 column_begin = item.across * COLUMNS;
    const u32 column_end = column_begin + COLUMNS < params.head_dim_v ? column_begin + COLUMNS : params.head_dim_v;

    float m[RT]; // of the thread's queries
    float l[RT]; // over the thread's own keys; summed along the row at the end
    float o[OT][RT][4 * VT];
#pragma unroll
    for (u32 r = 0; r < RT; r++) {
        m[r] = LOWEST;
        l[r] = 0.0f;
#pragma unroll
        for (u32 t = 0; t < OT; t++) {
#pragma unroll
            for (u32 c = 0; c < 4 * VT; c++) {
                o[t][r][c] = 0.0f;
            }
        }
    }

    u32 j_begin = range.begin / BC * BC;
    if (j_begin < range.end) {
        if (q_stays) {
            for (u32 d_begin = 0; d_begin < params.head_dim; d_begin += KV_WIDTH) {
                load_q_block(params, item, q_tile, d_begin, d_begin, thread);
            }
        }
        load_k_block(params, item, kv_tile, j_begin, 0, thread);
        copy_commit();
    }
    u32 stage = 0;
    for (; j_begin < range.end; j_begin += BC) {
        // S = Q K^T
        float s[RT][4 * KT];
#pragma unroll
        for (u32 r = 0; r < RT; r++) {
#pragma unroll
            for (u32 c = 0; c < 4 * KT; c++) {
                s[r][c] = 0.0f;
            }
        }
        for (u32 d_begin = 0; d_begin < params.head_dim; d_begin += KV_WIDTH) {
            copy_wait<0>();
            barrier(); // this block is here, and nobody reads the one before it
            if (!q_stays) {
                load_q_block(params, item, q_tile, d_begin, 0, thread);
                copy_commit();
                copy_wait<0>();
                barrier();
            }
            float* next = kv_tile + (stage ^ 1) * KV_FLOATS;
            if (d_begin + KV_WIDTH < params.head_dim) {
                load_k_block(params, item, next, j_begin, d_begin + KV_WIDTH, thread);
            } else {
                load_v_block(params, item, next, j_begin, column_begin, thread);
            }
            copy_commit();
            u32 depth = params.head_dim - d_begin < KV_WIDTH ? params.head_dim - d_begin : KV_WIDTH;
            add_scores(s, q_tile + (q_stays ? d_begin : 0), Q_PITCH, kv_tile + stage * KV_FLOATS, depth);
            stage ^= 1;
        }

        // Masks, the largest score of each row, P = exp(S - m), and what the rows so far are worth beside it.
        const bool edge = (GENERAL && (params.mask_kind != NO_MASK || params.dropout != 0)) || !tile_is_full(params, item, row_end, j_begin, j_begin + BC);
#pragma unroll
        for (u32 n = 0; n < RT * 4 * KT; n++) {
            s[n / (4 * KT)][n % (4 * KT)] *= params.scale;
        }
        float tops[RT];
        if (edge || (GENERAL && params.softcap > 0.0f)) {
            mask_scores(params, item, s, p_tile, j_begin);
            largest(tops, s);
        } else if (warp_any(largest(tops, s))) {
            // Where a row's largest score is finite, one that overflowed below is as good as absent. Else it is a number still.
#pragma unroll
            for (u32 n = 0; n < RT * 4 * KT; n++) {
                s[n / (4 * KT)][n % (4 * KT)] = score(s[n / (4 * KT)][n % (4 * KT)], 0u);
            }
            largest(tops, s);
        }
        float alpha[RT];
#pragma unroll
        for (u32 r = 0; r < RT; r++) {
            const float top = fmaxf(m[r], row_max(tops[r]));
            alpha[r] = rescale(m[r], top);
            m[r] = top;
            float sum = 0.0f;
#pragma unroll
            for (u32 c = 0; c < 4 * KT; c++) {
                s[r][c] = float_bits(s[r][c]) == NEG_INF ? bits_float(ABSENT) : exp_nonpositive(s[r][c] - top);
                sum += s[r][c];
            }
            l[r] = l[r] * alpha[r] + sum;
        }
        store_weights(p_tile, P_PITCH, s);
        if (GENERAL && params.dropout != 0) {
            drop_weights(params, item, p_tile, j_begin);
        }

        // O = alpha O + P V
#pragma unroll
        for (u32 t = 0; t < OT; t++) {
            const u32 d_begin = column_begin + t * KV_WIDTH;
            if (d_begin >= column_end) {
                break;
            }
            copy_wait<0>();
            barrier(); // the weights too
            float* next = kv_tile + (stage ^ 1) * KV_FLOATS;
            if (d_begin + KV_WIDTH < column_end) {
                load_v_block(params, item, next, j_begin, d_begin + KV_WIDTH, thread);
            } else if (j_begin + BC < range.end) {
                load_k_block(params, item, next, j_begin + BC, 0, thread);
            }
            copy_commit();
            const float* v = kv_tile + stage * KV_FLOATS;
            const bool select = edge && barrier_any(is_dirty(v, thread));
#pragma unroll
            for (u32 r = 0; r < RT; r++) {
#pragma unroll
                for (u32 c = 0; c < 4 * VT; c++) {
                    o[t][r][c] *= alpha[r];
                }
            }
            add_values(o[t], p_tile, P_PITCH, v, select);
            stage ^= 1;
        }
    }

    // O / l, and lse = m + ln l.
#pragma unroll
    for (u32 r = 0; r < RT; r++) {
        const u32 i = item.row_begin + ty + TY * r;
        const float sum = row_sum(l[r]);
        if (i >= row_end) {
            continue;
        }
        const bool empty = sum == 0.0f; // a row that sees any key has sum >= 1
        const float factor = empty ? 0.0f : params.keep_scale / sum;
#pragma unroll
        for (u32 t = 0; t < OT; t++) {
#pragma unroll
            for (u32 g = 0; g < VT; g++) {
                const u32 d = column_begin + t * KV_WIDTH + 4 * TX * g + 4 * tx;
                if (d < column_end) {
                    const float x[4] = {o[t][r][4 * g] * factor, o[t][r][4 * g + 1] * factor, o[t][r][4 * g + 2] * factor, o[t][r][4 * g + 3] * factor};
                    store4_out(params, out_row(params, item, i), d, x);
                }
            }
        }
        if (tx == 0 && item.across == 0) {
            store_lse(params, lse_row(params, item, i), empty ? NEG_INF : float_bits(m[r] + ln(sum)));
        }
    }
}
