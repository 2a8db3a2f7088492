// The last of the unfused kernels: O = P V for BR queries and COLUMNS columns of V.
KERNEL(unfused_values) {
    float* p_tile = (float*)shared_memory();  // [query][P_PITCH]
    float* v_tile = p_tile + BR * P_PITCH;

    const Item item = work_item(params, block_index(), BR);
    const u32 d_begin = item.across * COLUMNS;
    const u32 tx = thread_x();
    const u32 ty = thread_y();
    const u32 thread = ty * TX + tx;

    float o[RT][4 * VT];
#pragma unroll
    for (u32 r = 0; r < RT; r++) {
#pragma unroll
        for (u32 c = 0; c < 4 * VT; c++) {
            o[r][c] = 0.0f;
        }
    }
    for (u32 j_begin = 0; j_begin < params.seq_kv; j_begin += BC) {
        for (u32 place = thread; place < BR * BC; place += THREADS) {
            const u32 i = item.row_begin + place / BC;
            const u32 j = j_begin + place % BC;
            float weight = bits_float(ABSENT);
            if (i < params.row_end && j < params.seq_kv) {
                weight = params.scores[score_row(params, item, i) + j];
            }
            p_tile[place / BC * P_PITCH + place % BC] = weight;
        }
        load_v_block(params, item, v_tile, j_begin, d_begin, thread);
        copy_commit();
        copy_wait<0>();
        // Each thread inspects what it loaded itself, so this is the only barrier before the
        // products.
        const bool select = barrier_any(is_dirty(v_tile, thread));
        add_values(o, p_tile, P_PITCH, v_tile, select);
        barrier();
    }

#pragma unroll
    for (u32 r = 0; r < RT; r++) {
        const u32 i = item.row_begin + ty + TY * r;
#pragma unroll
        for (u32 g = 0; g < VT; g++) {
            const u32 d = d_begin + 4 * TX * g + 4 * tx;
            if (i < params.row_end && d < params.head_dim_v) {
                const float x[4] = {o[r][4 * g], o[r][4 * g + 1], o[r][4 * g + 2], o[r][4 * g + 3]};
                store4_out(params, out_row(params, item, i), d, x);
            }
        }
    }
}
