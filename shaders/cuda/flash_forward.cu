// FlashAttention-2, forward: a block holds BR queries and visits the keys that they see, BC at a
// time. The score matrix is never stored.
//
// For each row the kernel keeps m, the largest score so far, and l, the sum of exp(s - m). It
// rescales O when m grows, and divides O by l at the end. K and V pass through shared memory in
// blocks of KV_WIDTH columns; the next block loads while the current one is multiplied.
constexpr u32 OT = COLUMNS / KV_WIDTH; // blocks of columns of O that a thread holds

// Turns scaled products into the scores that softmax sees, and replaces those of keys that the
// query does not see by -inf. With masks and softcap the scores pass through p_tile, where each
// thread has places of its own: a loop over memory need not be unrolled, which keeps the kernel
// short.
DEVICE void mask_scores(
    const Params& params, const Item& item, float (&s)[RT][4 * KT], float* p_tile, u32 j_begin
) {
    const u32 tx = thread_x();
    const u32 ty = thread_y();
    if (!GENERAL) {
#pragma unroll
        for (u32 r = 0; r < RT; r++) {
            const Range visible = visible_keys(params, item, item.row_begin + ty + TY * r);
#pragma unroll
            for (u32 c = 0; c < 4 * KT; c++) {
                const u32 j = j_begin + c / 4 * 4 * TX + 4 * tx + c % 4;
                const bool absent = !allowed(visible, j, 0u);
                s[r][c] = absent ? bits_float(NEG_INF) : score<false>(s[r][c], 0u);
            }
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
        const u32 row = ty + TY * (n / KT);
        const u32 column = 4 * TX * (n % KT) + 4 * tx;
        const Four x = *(const Four*)(p_tile + row * P_PITCH + column);
#pragma unroll
        for (u32 c = 0; c < 4; c++) {
            s[n / KT][4 * (n % KT) + c] = x.x[c];
        }
    }
}

// The largest of this thread's scores in each row. Returns whether one of these is infinite, or so
// large that a smaller score that overflowed may tie with it.
DEVICE bool largest(float (&top)[RT], const float (&s)[RT][4 * KT]) {
    bool saturates = false;
#pragma unroll
    for (u32 r = 0; r < RT; r++) {
        top[r] = s[r][0];
#pragma unroll
        for (u32 c = 1; c < 4 * KT; c++) {
            top[r] = fmaxf(top[r], s[r][c]);
        }
        saturates = saturates || fabsf(top[r]) >= HIGHEST;
    }
    return saturates;
}

// P = exp(S - m), in place. `alpha` receives the factor that rescales earlier sums of each row.
DEVICE void make_weights(
    float (&m)[RT], float (&l)[RT], float (&s)[RT][4 * KT], const float (&top)[RT],
    float (&alpha)[RT]
) {
#pragma unroll
    for (u32 r = 0; r < RT; r++) {
        const float before = m[r];
        m[r] = fmaxf(before, row_max(top[r]));
        alpha[r] = rescale(before, m[r]);
        float sum = 0.0f;
#pragma unroll
        for (u32 c = 0; c < 4 * KT; c++) {
            const bool absent = float_bits(s[r][c]) == NEG_INF;
            s[r][c] = absent ? bits_float(ABSENT) : exp_nonpositive(s[r][c] - m[r]);
            sum += s[r][c];
        }
        l[r] = l[r] * alpha[r] + sum;
    }
}

// Drops weights. l ignores dropout.
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
    const u32 row_end = tile_row_end(params, item, BR);
    const Range range = kv_range(params, item, item.row_begin, row_end);
    const u32 j_end = range.end;
    const u32 tx = thread_x();
    const u32 ty = thread_y();
    const u32 thread = ty * TX + tx;
    const bool q_stays = params.head_dim <= Q_WIDTH;
    const u32 column_begin = item.across * COLUMNS;
    const u32 block_end = column_begin + COLUMNS;
    const u32 column_end = block_end < params.head_dim_v ? block_end : params.head_dim_v;

    // The thread's queries. l sums over the thread's own keys; row_sum adds the others at the end.
    float m[RT];
    float l[RT];
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

    u32 j_begin = (u32)range.begin / BC * BC;
    if (j_begin < j_end) {
        if (q_stays) {
            for (u32 d_begin = 0; d_begin < params.head_dim; d_begin += KV_WIDTH) {
                load_q_block(params, item, q_tile, d_begin, d_begin, thread);
            }
        }
        load_k_block(params, item, kv_tile, j_begin, 0, thread);
        copy_commit();
    }
    u32 stage = 0;
    for (; j_begin < j_end; j_begin += BC) {
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
            barrier(); // this block of K has arrived, and no thread reads the block before it
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
            const float* q = q_tile + (q_stays ? d_begin : 0);
            const float* k = kv_tile + stage * KV_FLOATS;
            const u32 left = params.head_dim - d_begin;
            add_scores(s, q, Q_PITCH, k, left < KV_WIDTH ? left : KV_WIDTH);
            stage ^= 1;
        }

        // Masks, and P = exp(S - m).
        const bool changes = GENERAL && (params.mask_kind != NO_MASK || params.dropout != 0);
        const bool edge = changes || !tile_is_full(params, item, row_end, j_begin, j_begin + BC);
#pragma unroll
        for (u32 n = 0; n < RT * 4 * KT; n++) {
            s[n / (4 * KT)][n % (4 * KT)] *= params.scale;
        }
        float top[RT];
        if (edge || (GENERAL && params.softcap > 0.0f)) {
            mask_scores(params, item, s, p_tile, j_begin);
            largest(top, s);
        } else if (warp_any(largest(top, s))) {
            // Saturation changes no other tile: where a row's largest score is below HIGHEST and
            // above LOWEST, the weight of a score that overflowed is 0 either way.
#pragma unroll
            for (u32 n = 0; n < RT * 4 * KT; n++) {
                float& x = s[n / (4 * KT)][n % (4 * KT)];
                x = score<false>(x, 0u);
            }
            largest(top, s);
        }
        float alpha[RT];
        make_weights(m, l, s, top, alpha);
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
            barrier(); // this block of V and all weights have arrived
            float* next = kv_tile + (stage ^ 1) * KV_FLOATS;
            if (d_begin + KV_WIDTH < column_end) {
                load_v_block(params, item, next, j_begin, d_begin + KV_WIDTH, thread);
            } else if (j_begin + BC < j_end) {
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

    // O / l, and lse = m + ln l (of a chunk: O, m and l).
#pragma unroll
    for (u32 r = 0; r < RT; r++) {
        const u32 row = item.row_begin + ty + TY * r;
        const float sum = row_sum(l[r]);
        if (!row_is_stored(params, item, row)) {
            continue;
        }
        const float factor = row_factor(params, sum);
#pragma unroll
        for (u32 t = 0; t < OT; t++) {
#pragma unroll
            for (u32 g = 0; g < VT; g++) {
                const u32 d = column_begin + t * KV_WIDTH + 4 * TX * g + 4 * tx;
                if (d < column_end) {
                    float x[4];
#pragma unroll
                    for (u32 c = 0; c < 4; c++) {
                        x[c] = o[t][r][4 * g + c] * factor;
                    }
                    store4_row(params, item, row, d, x);
                }
            }
        }
        if (tx == 0 && item.across == 0) {
            store_sums(params, item, row, m[r], sum);
        }
    }
}
