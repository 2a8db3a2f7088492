// FlashAttention-2, forward, for f32 on tensor cores: a block holds BR queries and visits the keys
// that they see, BC at a time. The score matrix is never stored.
//
// With two stages, the next K and V load during a whole tile. With one, V loads during Q K^T, and
// the next K while the weights are computed and during P V.
KERNEL(flash_forward) {
    float* tiles = (float*)shared_memory();             // Q [BR][Q_WIDTH]
    constexpr u32 K_TILES = BR * Q_WIDTH;               // [STAGES][BC][Q_WIDTH]
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
    clear(o);
#pragma unroll
    for (u32 n = 0; n < 2 * MT; n++) {
        rows[n / 2][n % 2] = Row{LOWEST, 0.0f};
    }

    u32 j_begin = (u32)range.begin / BC * BC;
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
        float* v_tile = tiles + v_at;
        bool dirty = false;
        stage ^= STAGES - 1;
        copy_wait<0>();
        if (STAGES == 2) {
            // K and V have arrived, and no thread reads the tiles before them any more.
            dirty = barrier_any(is_dirty(v_tile, thread));
            if (j_begin + BC < j_end) {
                float* next_k = tiles + K_TILES + stage * K_ELEMS;
                float* next_v = tiles + V_TILES + stage * V_ELEMS;
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
            // V has arrived, and no thread reads K any more.
            dirty = barrier_any(is_dirty(v_tile, thread));
            if (j_begin + BC < j_end) {
                load_k(params, item, tiles + K_TILES, j_begin + BC, thread);
                copy_commit();
            }
        }

        // Masks, and P = exp(S - m), in place.
        if (sees) {
            const bool changes = GENERAL && (params.mask_kind != NO_MASK || params.dropout != 0);
            const bool edge =
                changes || !tile_is_full(params, item, row_end, j_begin, j_begin + BC);
            finish_scores(params, item, s, edge, i_begin, j_begin, lane);
            float top[MT][2];
            float alpha[MT][2];
            largest(top, s);
            make_weights(params, rows, s, top, edge, alpha);
            if (GENERAL && params.dropout != 0) {
                drop_weights(params, item, s, i_begin, j_begin, lane);
            }
            rescale_values(o, alpha);
        }

        // O = alpha O + P V
        if (dirty) {
            if (sees) {
                add_dirty_values(params, item, o, s, v_tile, i_begin, j_begin, lane);
            }
            barrier();
            clean(v_tile, thread);
            barrier();
        }
        if (sees) {
            add_values(o, s, tiles, v_at, lane);
        }
    }

    // O / l, and lse = m + ln l (of a chunk: O, m and l).
#pragma unroll
    for (u32 n = 0; n < 2 * MT; n++) {
        const u32 half = n % 2;
        const u32 row = i_begin + 8 * n + lane / 4;
        const Row state = rows[n / 2][half];
        const float sum = row_sum(state.l);
        if (!row_is_stored(params, item, row)) {
            continue;
        }
        const float factor = row_factor(params, sum);
#pragma unroll
        for (u32 c = 0; c < 2 * OT; c += 4) {
            // Four groups of columns of O hold eight neighbouring columns.
            const u32 group = c / 8 * 4;
            const u32 d = column_begin + column_of(group, c / 4 % 2, lane);
            if (d < column_end) {
                float x[4];
#pragma unroll
                for (u32 k = 0; k < 4; k++) {
                    x[k] = o[n / 2][group + k][2 * half + c / 4 % 2] * factor;
                }
                store4_row(params, item, row, d, x);
            }
        }
        if (lane % 4 == 0 && item.across == 0) {
            store_sums(params, item, row, finite(state.m * M_TO_LN), sum);
        }
    }
}
