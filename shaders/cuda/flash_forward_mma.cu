// FlashAttention-2, forward, on tensor cores: a block holds BR queries and visits the keys that
// they see, BC at a time. The score matrix is never stored.
//
// Weights are rounded once to the storage type, as the left operand of P V. V loads during Q K^T;
// the next K loads while the weights are computed and during P V.

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
