// Both products of attention go through shared memory in blocks KV_WIDTH wide: S = Q K^T sums over head_dim, O = P V over keys.
// A thread holds RT rows by KT or VT groups of four columns of the result. Its rows lie TY apart, its groups 4 TX.
constexpr u32 RT = BR / TY;
constexpr u32 KT = BC / (4 * TX);
constexpr u32 VT = KV_WIDTH / (4 * TX);
constexpr u32 Q_PITCH = Q_WIDTH + 4;
constexpr u32 P_PITCH = BC + 4;
constexpr u32 KV_FLOATS = BC * KV_WIDTH + BC / 4 * 4;

// Where row `r` of a block of K or V begins. Four floats of gap behind every four rows: threads that read rows 4 tx meet different banks.
DEVICE u32 kv_place(u32 r) { return r * KV_WIDTH + r / 4 * 4; }

// Four numbers of a row of global memory from column d on, zeros beyond `width`; d is a multiple of 4. `dense`: the row begins at a multiple of
// 16 bytes and its elements lie side by side.
DEVICE Four load4(const elem* row, u32 d, u64 step, u32 width, bool dense) {
    if (dense && d + 4 <= width) {
#if defined(ELEM_F32)
        return *(const Four*)(row + d);
#else
        struct alignas(8) Halves {
            elem x[4];
        };
        Halves h = *(const Halves*)(row + d);
        return Four{{value(h.x[0]), value(h.x[1]), value(h.x[2]), value(h.x[3])}};
#endif
    }
    Four x = {{0.0f, 0.0f, 0.0f, 0.0f}};
#pragma unroll
    for (u32 c = 0; c < 4; c++) {
        if (d + c < width) {
            x.x[c] = value(row[(d + c) * step]);
        }
    }
    return x;
}

// As load4, on its way to shared memory when this returns: copy_wait and a barrier stand before the first use.
DEVICE void begin_load4(float* to, const elem* row, u32 d, u64 step, u32 width, bool dense) {
#if defined(ELEM_F32)
    if (dense) {
        u32 left = d < width ? width - d : 0;
        copy16(to, left > 0 ? row + d : row, 4 * (left < 4 ? left : 4));
        return;
    }
#endif
    *(Four*)to = load4(row, d, step, width, dense);
}

// Loads Q[row_begin .. row_begin + BR, d_begin .. d_begin + KV_WIDTH] to column `place` of q_tile. Zeros stand beyond the queries and head_dim.
DEVICE void load_q_block(const Params& params, const Item& item, float* q_tile, u32 d_begin, u32 place, u32 thread) {
    for (u32 block = thread; block < BR * (KV_WIDTH / 4); block += THREADS) {
        u32 d = block % (KV_WIDTH / 4) * 4;
        u32 r = block / (KV_WIDTH / 4);
        u32 i = item.row_begin + r;
        u32 width = i < params.row_end ? params.head_dim : 0;
        u64 row = width > 0 ? q_row(params, item, i) : item.q_base;
        begin_load4(q_tile + r * Q_PITCH + place + d, (const elem*)params.q + row, d_begin + d, params.q_strides[3], width, (params.dense & 1u) != 0);
    }
}

// Loads K[j_begin .. j_begin + BC, d_begin .. d_begin + KV_WIDTH]. Zeros stand beyond the valid keys and head_dim.
DEVICE void load_k_block(const Params& params, const Item& item, float* kv_tile, u32 j_begin, u32 d_begin, u32 thread) {
    for (u32 block = thread; block < BC * (KV_WIDTH / 4); block += THREADS) {
        u32 d = block % (KV_WIDTH / 4) * 4;
        u32 r = block / (KV_WIDTH / 4);
        u32 j = j_begin + r;
        u32 width = j < item.kv_len ? params.head_dim : 0;
        u64 row = width > 0 ? k_row(params, item, j) : item.k_base;
        begin_load4(kv_tile + kv_place(r) + d, (const elem*)params.k + row, d_begin + d, params.k_strides[3], width, (params.dense & 2u) != 0);
    }
}

// Loads V[j_begin .. j_begin + BC, d_begin .. d_begin + KV_WIDTH]. Zeros stand beyond the valid keys and head_dim_v.
DEVICE void load_v_block(const Params& params, const Item& item, float* kv_tile, u32 j_begin, u32 d_begin, u32 thread) {
    for (u32 block = thread; block < BC * (KV_WIDTH / 4); block += THREADS) {
        u32 d = block % (KV_WIDTH / 4) * 4;
        u32 r = block / (KV_WIDTH / 4);
        u32 j = j_begin + r;
        u32 width = j < item.kv_len ? params.head_dim_v : 0;
        u64 row = width > 0 ? v_row(params, item, j) : item.v_base;
        begin_load4(kv_tile + kv_place(r) + d, (const elem*)params.v + row, d_begin + d, params.v_strides[3], width, (params.dense & 4u) != 0);
    }
}

// Whether this thread's share of a block of V holds NaN or infinity.
DEVICE bool is_dirty(const float* kv_tile, u32 thread) {
    bool dirty = false;
    for (u32 block = thread; block < BC * (KV_WIDTH / 4); block += THREADS) {
        const float* x = kv_tile + kv_place(block / (KV_WIDTH / 4)) + block % (KV_WIDTH / 4) * 4;
        dirty = dirty || !is_finite(x[0]) || !is_finite(x[1]) || !is_finite(x[2]) || !is_finite(x[3]);
    }
    return dirty;
}

// Adds Q K^T over the columns of one block, `depth` of them. `q` leads to column 0 of the block in q_tile.
DEVICE void add_scores(float (&s)[RT][4 * KT], const float* q, u32 q_pitch, const float* k, u32 depth) {
#pragma unroll 1
    for (u32 d = 0; d < depth; d += 4) {
        Four keys[4 * KT];
#pragma unroll
        for (u32 c = 0; c < 4 * KT; c++) {
            u32 j = c / 4 * 4 * TX + 4 * thread_x() + c % 4;
            keys[c] = *(const Four*)(k + kv_place(j) + d);
        }
#pragma unroll
        for (u32 r = 0; r < RT; r++) {
            Four query = *(const Four*)(q + (thread_y() + TY * r) * q_pitch + d);
#pragma unroll
            for (u32 c = 0; c < 4 * KT; c++) {
#pragma unroll
                for (u32 n = 0; n < 4; n++) {
                    s[r][c] = fmaf(query.x[n], keys[c].x[n], s[r][c]);
                }
            }
        }
    }
}

// Puts a thread's scores or weights where it and, behind a barrier, others find them.
DEVICE void store_weights(float* p, u32 p_pitch, const float (&s)[RT][4 * KT]) {
#pragma unroll
    for (u32 n = 0; n < RT * KT; n++) {
        const u32 r = n / KT;
        const u32 c = 4 * (n % KT);
        *(Four*)(p + (thread_y() + TY * r) * p_pitch + TX * c + 4 * thread_x()) = Four{{s[r][c], s[r][c + 1], s[r][c + 2], s[r][c + 3]}};
    }
}

// Four scaled q.k as softmax sees them, of query i and keys j ..= j + 3: capped, with the mask, -inf where the key is not seen.
DEVICE void finish_scores(const Params& params, const Item& item, Four& x, u32 i, u32 j) {
    if (GENERAL && params.softcap > 0.0f) {
#pragma unroll
        for (u32 c = 0; c < 4; c++) {
            x.x[c] = capped(params, x.x[c]);
        }
    }
    with_mask_kind(params, [&](auto kind) {
#pragma unroll
        for (u32 c = 0; c < 4; c++) {
            const u32 bias = mask_at<kind.VALUE>(params, item, i, j + c);
            x.x[c] = allowed(params, item, i, j + c, bias) ? score(x.x[c], bias) : bits_float(NEG_INF);
        }
    });
}

// Keys whose products are summed by themselves: rounding then grows with the number of such chunks, not of keys.
constexpr u32 CHUNK = 32;
static_assert(BC % CHUNK == 0, "blocks of whole chunks");

// P V over CHUNK keys of a block, from j_begin on. `select`: some weights are ABSENT and their values NaN; those contribute nothing.
DEVICE void weighted_values(float (&part)[RT][4 * VT], const float* p, u32 p_pitch, const float* v, u32 j_begin, bool select) {
#pragma unroll
    for (u32 r = 0; r < RT; r++) {
#pragma unroll
        for (u32 c = 0; c < 4 * VT; c++) {
            part[r][c] = 0.0f;
        }
    }
#pragma unroll 2
    for (u32 j = j_begin; j < j_begin + CHUNK; j += 4) {
        Four values[4][VT];
#pragma unroll
        for (u32 n = 0; n < 4; n++) {
#pragma unroll
            for (u32 g = 0; g < VT; g++) {
                values[n][g] = *(const Four*)(v + kv_place(j + n) + 4 * TX * g + 4 * thread_x());
            }
        }
#pragma unroll
        for (u32 r = 0; r < RT; r++) {
            Four weights = *(const Four*)(p + (thread_y() + TY * r) * p_pitch + j);
#pragma unroll
            for (u32 n = 0; n < 4; n++) {
                if (select && float_bits(weights.x[n]) == ABSENT) {
                    continue;
                }
#pragma unroll
                for (u32 c = 0; c < 4 * VT; c++) {
                    part[r][c] = fmaf(weights.x[n], values[n][c / 4].x[c % 4], part[r][c]);
                }
            }
        }
    }
}

// Reductions over the TX threads that share a row. They are neighbours in a warp.
DEVICE float row_max(float x) {
#pragma unroll
    for (u32 lanes = 1; lanes < TX; lanes *= 2) {
        x = fmaxf(x, shuffle_xor(x, lanes));
    }
    return x;
}

DEVICE float row_sum(float x) {
#pragma unroll
    for (u32 lanes = 1; lanes < TX; lanes *= 2) {
        x += shuffle_xor(x, lanes);
    }
    return x;
}
