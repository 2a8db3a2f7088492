// The second of the unfused kernels: softmax and dropout of one row of scores, in place. The
// weight of a key that is masked or dropped is ABSENT.

// Reduces over the block. Every thread receives the result.
template <bool MAX> DEVICE float reduce(float x, float* part) {
    const u32 thread = thread_x();
#pragma unroll
    for (u32 lanes = 1; lanes < 32; lanes *= 2) {
        const float other = shuffle_xor(x, lanes);
        x = MAX ? fmaxf(x, other) : x + other;
    }
    barrier(); // no thread reads the previous reduction any more
    if (thread % 32 == 0) {
        part[thread / 32] = x;
    }
    barrier();
    x = part[0];
    for (u32 warp = 1; warp < THREADS / 32; warp++) {
        x = MAX ? fmaxf(x, part[warp]) : x + part[warp];
    }
    return x;
}

KERNEL(unfused_softmax) {
    float* part = (float*)shared_memory();
    const Item item = work_item(params, block_index(), 1);
    const u32 i = item.row_begin;
    const u32 thread = thread_x();
    float* row = params.scores + score_row(params, item, i);

    float m = LOWEST;
    for (u32 j = thread; j < params.seq_kv; j += THREADS) {
        if (float_bits(row[j]) != NEG_INF) {
            m = fmaxf(m, row[j]);
        }
    }
    m = reduce<true>(m, part);

    float l = 0.0f;
    for (u32 j = thread; j < params.seq_kv; j += THREADS) {
        if (float_bits(row[j]) != NEG_INF) {
            l += exp_nonpositive(row[j] - m);
        }
    }
    l = reduce<false>(l, part);

    for (u32 j = thread; j < params.seq_kv; j += THREADS) {
        bool present = float_bits(row[j]) != NEG_INF;
        if (GENERAL && params.dropout != 0) {
            present = present && kept(params, dropout_word(params, item, i, j));
        }
        const float p = exp_nonpositive(row[j] - m) / l * params.keep_scale;
        row[j] = present ? p : bits_float(ABSENT);
    }
    if (thread == 0) {
        const u32 lse = l == 0.0f ? NEG_INF : float_bits(m + ln(l));
        if (params.lse != nullptr) {
            ((u32*)params.lse)[lse_row(params, item, i)] = lse;
        }
    }
}
