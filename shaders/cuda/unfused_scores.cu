// The first of the unfused kernels: scores of BR queries by BC keys, masks applied, stored as f32. Masked ones are -inf.
KERNEL(unfused_scores) {
    float* q_tile = (float*)shared_memory();  // [query][Q_PITCH], one block of columns at a time
    float* k_tile = q_tile + BR * Q_PITCH;

    const Item item = work_item(params, block_index(), BR);
    const u32 j_begin = item.across * BC;
    const u32 tx = thread_x();
    const u32 ty = thread_y();
    const u32 thread = ty * TX + tx;

    float s[RT][4 * KT];
#pragma unroll
    for (u32 r = 0; r < RT; r++) {
#pragma unroll
        for (u32 c = 0; c < 4 * KT; c++) {
            s[r][c] = 0.0f;
        }
    }
    for (u32 d_begin = 0; d_begin < params.head_dim; d_begin += KV_WIDTH) {
        load_q_block(params, item, q_tile, d_begin, 0, thread);
        load_k_block(params, item, k_tile, j_begin, d_begin, thread);
        copy_commit();
        copy_wait<0>();
        barrier();
        add_scores(s, q_tile, Q_PITCH, k_tile, params.head_dim - d_begin < KV_WIDTH ? params.head_dim - d_begin : KV_WIDTH);
        barrier();
    }

#pragma unroll
    for (u32 n = 0; n < RT * 4 * KT; n++) {
        s[n / (4 * KT)][n % (4 * KT)] *= params.scale;
    }
    if (GENERAL && params.softcap > 0.0f) {
#pragma unroll
        for (u32 n = 0; n < RT * 4 * KT; n++) {
            s[n / (4 * KT)][n % (4 * KT)] = capped(params, s[n / (4 * KT)][n % (4 * KT)]);
        }
    }
    with_mask_kind(params, [&](auto kind) {
#pragma unroll
        for (u32 n = 0; n < RT * 4 * KT; n++) {
            const u32 r = n / (4 * KT);
            const u32 c = n % (4 * KT);
            const u32 i = item.row_begin + ty + TY * r;
            const u32 j = j_begin + c / 4 * 4 * TX + 4 * tx + c % 4;
            if (i < params.row_end && j < params.seq_kv) {
                const u32 bias = mask_at<kind.VALUE>(params, item, i, j);
                const float x = score(s[r][c], bias);
                params.scores[score_row(params, item, i) + j] = allowed(params, item, i, j, bias) ? x : bits_float(NEG_INF);
            }
        }
    });
}
