// The first of the unfused kernels: the scores of BR queries and BC keys, with masks applied,
// stored as f32. The score of a key that a query does not see is -inf.
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
        const u32 left = params.head_dim - d_begin;
        add_scores(s, q_tile, Q_PITCH, k_tile, left < KV_WIDTH ? left : KV_WIDTH);
        barrier();
    }

    // The scores pass through the place of Q, where each thread has places of its own: a loop over
    // memory need not be unrolled, which keeps the kernel short.
#pragma unroll
    for (u32 n = 0; n < RT * 4 * KT; n++) {
        s[n / (4 * KT)][n % (4 * KT)] *= params.scale;
    }
    store_weights(q_tile, Q_PITCH, s);
#pragma unroll 1
    for (u32 n = 0; n < RT * KT; n++) {
        const u32 row = ty + TY * (n / KT);
        const u32 column = 4 * TX * (n % KT) + 4 * tx;
        const u32 i = item.row_begin + row;
        if (i >= params.row_end) {
            break;
        }
        Four x = *(const Four*)(q_tile + row * Q_PITCH + column);
        finish_scores(params, item, x, i, j_begin + column);
        float* scores = params.scores + score_row(params, item, i);
#pragma unroll
        for (u32 c = 0; c < 4; c++) {
            if (j_begin + column + c < params.seq_kv) {
                scores[j_begin + column + c] = x.x[c];
            }
        }
    }
}
