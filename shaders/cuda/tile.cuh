// Both products of attention pass through shared memory in blocks of KV_WIDTH columns:
// S = Q K^T sums over head_dim, O = P V over keys. A thread holds RT rows of the result and, in
// each, KT or VT groups of four columns. Its rows are TY apart, its groups 4 TX.
constexpr u32 RT = BR / TY;
constexpr u32 KT = BC / (4 * TX);
constexpr u32 VT = KV_WIDTH / (4 * TX);
constexpr u32 Q_PITCH = Q_WIDTH + 4;
constexpr u32 P_PITCH = BC + 4;
constexpr u32 KV_FLOATS = BC * KV_WIDTH + BC / 4 * 4;

// The offset of row `r` in a block of K or V. Four floats of padding follow every four rows, so
// that threads that read rows 4 tx access different banks.
DEVICE u32 kv_place(u32 r) { return r * KV_WIDTH + r / 4 * 4; }

// Four numbers of a row in global memory from column d on, with zeros beyond `width`. d is a
// multiple of 4. `dense`: the row's elements are contiguous, from a multiple of 16 bytes on.
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

// Starts to load what load4 returns into shared memory. copy_wait and a barrier must come before
// the first use.
DEVICE void begin_load4(float* to, const elem* row, u32 d, u64 step, u32 width, bool dense) {
#if defined(ELEM_F32)
    if (dense) {
        u32 left = d < width ? width - d : 0;
        copy16_padded(to, row + d, 4 * (left < 4 ? left : 4));
        return;
    }
#endif
    *(Four*)to = load4(row, d, step, width, dense);
}

// How many loads of a thread are in flight together where copies are not asynchronous.
#if defined(ELEM_F32)
constexpr u32 LOADS_AT_ONCE = 2;
#else
constexpr u32 LOADS_AT_ONCE = 8;
#endif

// Rows row_begin..row_end of a tensor, as an item reads them. `first` points to column 0 of
// row_begin; a row has `width` columns. `dense` is as for load4.
struct Rows {
    const elem* first;
    u64 row_step;
    u64 step;
    u32 row_begin;
    u32 row_end;
    u32 width;
    bool dense;
};

// Starts to load ROWS rows, KV_WIDTH columns from d_begin on, into a block in shared memory. The
// rows of the block are PITCH apart, or at kv_place if PITCH is 0. Elements beyond the last row or
// column become zeros.
template <u32 ROWS, u32 PITCH>
DEVICE void begin_load(float* tile, const Rows& rows, u32 d_begin, u32 thread) {
    constexpr u32 CHUNKS = KV_WIDTH / 4;    // of four numbers, one per thread
    constexpr u32 PASS = THREADS / CHUNKS;  // rows that the block loads at once
    static_assert(PASS % 4 == 0, "each pass starts where kv_place has whole groups of rows");
    static_assert(ROWS % PASS == 0, "all passes are whole");
    forget(thread); // keeps the compiler from holding the addresses below from block to block
    const u32 d = d_begin + thread % CHUNKS * 4;
    const u32 r_begin = thread / CHUNKS;
    float* to = tile + (PITCH != 0 ? r_begin * PITCH : kv_place(r_begin)) + thread % CHUNKS * 4;
    const elem* from = rows.first + r_begin * rows.row_step;
#if defined(ELEM_F32)
    if (rows.dense && rows.row_begin + ROWS <= rows.row_end && d_begin + KV_WIDTH <= rows.width) {
        from += d;
#pragma unroll
        for (u32 r = 0; r < ROWS; r += PASS) {
            copy16(to + (PITCH != 0 ? r * PITCH : kv_place(r)), from);
            from += PASS * rows.row_step;
        }
        return;
    }
#endif
#pragma unroll(LOADS_AT_ONCE)
    for (u32 r = 0; r < ROWS; r += PASS) {
        const bool exists = rows.row_begin + r_begin + r < rows.row_end;
        begin_load4(to, from, d, rows.step, exists ? rows.width : 0, rows.dense);
        to += PITCH != 0 ? PASS * PITCH : kv_place(PASS);
        from += PASS * rows.row_step;
    }
}

// Starts to load Q[row_begin .. row_begin + BR, d_begin .. d_begin + KV_WIDTH] to column `place`
// of q_tile.
DEVICE void load_q_block(
    const Params& params, const Item& item, float* q_tile, u32 d_begin, u32 place, u32 thread
) {
    if (SPLIT) {
        // The rows of several heads. There are few.
        for (u32 n = thread; n < BR * KV_WIDTH; n += THREADS) {
            const u32 row = item.row_begin + n / KV_WIDTH;
            const u32 d = d_begin + n % KV_WIDTH;
            float x = 0.0f;
            if (row < launch_row_end(params) && d < params.head_dim) {
                const u64 at = q_row(params, item, row) + d * params.q_strides[3];
                x = value(((const elem*)params.q)[at]);
            }
            q_tile[n / KV_WIDTH * Q_PITCH + place + n % KV_WIDTH] = x;
        }
        return;
    }
    const Rows rows = {
        (const elem*)params.q + q_row(params, item, item.row_begin),
        params.q_strides[2],
        params.q_strides[3],
        item.row_begin,
        params.row_end,
        params.head_dim,
        (params.dense & 1u) != 0,
    };
    begin_load<BR, Q_PITCH>(q_tile + place, rows, d_begin, thread);
}

// Starts to load K[j_begin .. j_begin + BC, d_begin .. d_begin + KV_WIDTH].
DEVICE void load_k_block(
    const Params& params, const Item& item, float* kv_tile, u32 j_begin, u32 d_begin, u32 thread
) {
    const Rows rows = {
        (const elem*)params.k + k_row(params, item, j_begin),
        params.k_strides[2],
        params.k_strides[3],
        j_begin,
        item.kv_len,
        params.head_dim,
        (params.dense & 2u) != 0,
    };
    begin_load<BC, 0>(kv_tile, rows, d_begin, thread);
}

// Starts to load V[j_begin .. j_begin + BC, d_begin .. d_begin + KV_WIDTH].
DEVICE void load_v_block(
    const Params& params, const Item& item, float* kv_tile, u32 j_begin, u32 d_begin, u32 thread
) {
    const Rows rows = {
        (const elem*)params.v + v_row(params, item, j_begin),
        params.v_strides[2],
        params.v_strides[3],
        j_begin,
        item.kv_len,
        params.head_dim_v,
        (params.dense & 4u) != 0,
    };
    begin_load<BC, 0>(kv_tile, rows, d_begin, thread);
}

// Whether this thread's share of a block of V contains NaN or infinity.
DEVICE bool is_dirty(const float* kv_tile, u32 thread) {
    constexpr u32 CHUNKS = KV_WIDTH / 4;
    bool dirty = false;
    for (u32 block = thread; block < BC * CHUNKS; block += THREADS) {
        const Four x = *(const Four*)(kv_tile + kv_place(block / CHUNKS) + block % CHUNKS * 4);
#pragma unroll
        for (u32 c = 0; c < 4; c++) {
            dirty = dirty || !is_finite(x.x[c]);
        }
    }
    return dirty;
}

// Adds Q K^T over the first `depth` columns of one block. `q` points to column 0 of the block in
// q_tile.
DEVICE void add_scores(
    float (&s)[RT][4 * KT], const float* q, u32 q_pitch, const float* k, u32 depth
) {
    // The thread's first query and key. Compile-time offsets lead to the others.
    const float* q_row = q + thread_y() * q_pitch;
    const float* k_row = k + kv_place(4 * thread_x());
#pragma unroll 1
    for (u32 d = 0; d < depth; d += 4) {
        Four keys[4 * KT];
#pragma unroll
        for (u32 c = 0; c < 4 * KT; c++) {
            const u32 j = c / 4 * 4 * TX + c % 4;
            keys[c] = *(const Four*)(k_row + kv_place(j));
        }
#pragma unroll
        for (u32 r = 0; r < RT; r++) {
            Four query = *(const Four*)(q_row + TY * r * q_pitch);
#pragma unroll
            for (u32 c = 0; c < 4 * KT; c++) {
#pragma unroll
                for (u32 n = 0; n < 4; n++) {
                    s[r][c] = fmaf(query.x[n], keys[c].x[n], s[r][c]);
                }
            }
        }
        q_row += 4;
        k_row += 4;
    }
}

// Stores a thread's scores or weights. The thread itself can read them at once, other threads
// after a barrier.
DEVICE void store_weights(float* p, u32 p_pitch, const float (&s)[RT][4 * KT]) {
#pragma unroll
    for (u32 n = 0; n < RT * KT; n++) {
        const u32 r = n / KT;
        const u32 c = 4 * (n % KT);
        float* place = p + (thread_y() + TY * r) * p_pitch + TX * c + 4 * thread_x();
        *(Four*)place = Four{{s[r][c], s[r][c + 1], s[r][c + 2], s[r][c + 3]}};
    }
}

// Turns four scaled products of query i and keys j ..= j + 3 into the scores that softmax sees.
// The score of a key that the query does not see is -inf.
DEVICE void finish_scores(const Params& params, const Item& item, Four& x, u32 i, u32 j) {
    const Range visible = visible_keys(params, item, i);
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
            const bool absent = !allowed(visible, j + c, bias);
            x.x[c] = absent ? bits_float(NEG_INF) : score<has_bias(kind.VALUE)>(x.x[c], bias);
        }
    });
}

// The products of so many keys are summed by themselves, so that the rounding error grows with the
// number of chunks and not with the number of keys.
constexpr u32 CHUNK = 32;
static_assert(BC % CHUNK == 0, "blocks consist of whole chunks");

// P V over CHUNK keys of a block, from j_begin on. SELECT: skip keys whose weight is ABSENT,
// because their values may be NaN.
template <bool SELECT>
DEVICE void weighted_values(
    float (&part)[RT][4 * VT], const float* p, u32 p_pitch, const float* v, u32 j_begin
) {
#pragma unroll
    for (u32 r = 0; r < RT; r++) {
#pragma unroll
        for (u32 c = 0; c < 4 * VT; c++) {
            part[r][c] = 0.0f;
        }
    }
    const float* p_row = p + thread_y() * p_pitch + j_begin;
    const float* v_row = v + kv_place(j_begin) + 4 * thread_x();
#pragma unroll 1
    for (u32 j = 0; j < CHUNK; j += 4) {
        Four values[4][VT];
#pragma unroll
        for (u32 n = 0; n < 4; n++) {
#pragma unroll
            for (u32 g = 0; g < VT; g++) {
                values[n][g] = *(const Four*)(v_row + kv_place(n) + 4 * TX * g);
            }
        }
#pragma unroll
        for (u32 r = 0; r < RT; r++) {
            Four weights = *(const Four*)(p_row + TY * r * p_pitch);
#pragma unroll
            for (u32 n = 0; n < 4; n++) {
                if (SELECT && float_bits(weights.x[n]) == ABSENT) {
                    continue;
                }
#pragma unroll
                for (u32 c = 0; c < 4 * VT; c++) {
                    part[r][c] = fmaf(weights.x[n], values[n][c / 4].x[c % 4], part[r][c]);
                }
            }
        }
        p_row += 4;
        v_row += kv_place(4);
    }
}

// Adds P V over all keys of a block.
DEVICE void add_values(
    float (&o)[RT][4 * VT], const float* p, u32 p_pitch, const float* v, bool select
) {
#pragma unroll 1
    for (u32 j = 0; j < BC; j += CHUNK) {
        float part[RT][4 * VT];
        if (select) {
            weighted_values<true>(part, p, p_pitch, v, j);
        } else {
            weighted_values<false>(part, p, p_pitch, v, j);
        }
#pragma unroll
        for (u32 r = 0; r < RT; r++) {
#pragma unroll
            for (u32 c = 0; c < 4 * VT; c++) {
                o[r][c] += part[r][c];
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
