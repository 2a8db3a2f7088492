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
        copy16_padded(to, row + d, 4 * (left < 4 ? left : 4));
        return;
    }
#endif
    *(Four*)to = load4(row, d, step, width, dense);
}

// Loads that a thread waits for together, where they are not asynchronous.
#if defined(ELEM_F32)
constexpr u32 LOADS_AT_ONCE = 2;
#else
constexpr u32 LOADS_AT_ONCE = 8;
#endif

// Begins to load rows row_begin .. row_begin + ROWS of global memory, KV_WIDTH columns from d_begin on, to a block in shared memory whose rows are
// PITCH apart, or lie at kv_place where that is 0. Zeros stand beyond row_end and `width`. `first` leads to row_begin, column 0.
template <u32 ROWS, u32 PITCH>
DEVICE void begin_load(float* tile, const elem* first, u64 row_step, u64 step, u32 row_begin, u32 row_end, u32 d_begin, u32 width, bool dense, u32 thread) {
    constexpr u32 CHUNKS = KV_WIDTH / 4;    // of four numbers, a thread each
    constexpr u32 PASS = THREADS / CHUNKS;  // rows that the block loads at once
    static_assert(PASS % 4 == 0 && ROWS % PASS == 0, "a pass begins where kv_place does, and all of them are whole");
    forget(thread); // or all that follows from it is kept from block to block
    const u32 d = d_begin + thread % CHUNKS * 4;
    const u32 r_begin = thread / CHUNKS;
    float* to = tile + (PITCH != 0 ? r_begin * PITCH : kv_place(r_begin)) + thread % CHUNKS * 4;
    const elem* from = first + r_begin * row_step;
#if defined(ELEM_F32)
    if (dense && row_begin + ROWS <= row_end && d_begin + KV_WIDTH <= width) {
        from += d;
#pragma unroll
        for (u32 r = 0; r < ROWS; r += PASS) {
            copy16(to + (PITCH != 0 ? r * PITCH : kv_place(r)), from);
            from += PASS * row_step;
        }
        return;
    }
#endif
#pragma unroll(LOADS_AT_ONCE)
    for (u32 r = 0; r < ROWS; r += PASS) {
        begin_load4(to, from, d, step, row_begin + r_begin + r < row_end ? width : 0, dense);
        to += PITCH != 0 ? PASS * PITCH : kv_place(PASS);
        from += PASS * row_step;
    }
}

// Begins to load Q[row_begin .. row_begin + BR, d_begin .. d_begin + KV_WIDTH] to column `place` of q_tile.
DEVICE void load_q_block(const Params& params, const Item& item, float* q_tile, u32 d_begin, u32 place, u32 thread) {
    begin_load<BR, Q_PITCH>(q_tile + place, (const elem*)params.q + q_row(params, item, item.row_begin), params.q_strides[2], params.q_strides[3],
                            item.row_begin, params.row_end, d_begin, params.head_dim, (params.dense & 1u) != 0, thread);
}

// Begins to load K[j_begin .. j_begin + BC, d_begin .. d_begin + KV_WIDTH].
DEVICE void load_k_block(const Params& params, const Item& item, float* kv_tile, u32 j_begin, u32 d_begin, u32 thread) {
    begin_load<BC, 0>(kv_tile, (const elem*)params.k + k_row(params, item, j_begin), params.k_strides[2], params.k_strides[3], j_begin, item.kv_len,
                      d_begin, params.head_dim, (params.dense & 2u) != 0, thread);
}

// Begins to load V[j_begin .. j_begin + BC, d_begin .. d_begin + KV_WIDTH].
DEVICE void load_v_block(const Params& params, const Item& item, float* kv_tile, u32 j_begin, u32 d_begin, u32 thread) {
    begin_load<BC, 0>(kv_tile, (const elem*)params.v + v_row(params, item, j_begin), params.v_strides[2], params.v_strides[3], j_begin, item.kv_len,
                      d_begin, params.head_dim_v, (params.dense & 4u) != 0, thread);
}

// Whether this thread's share of a block of V holds NaN or infinity.
DEVICE bool is_dirty(const float* kv_tile, u32 thread) {
    bool dirty = false;
    for (u32 block = thread; block < BC * (KV_WIDTH / 4); block += THREADS) {
        const Four x = *(const Four*)(kv_tile + kv_place(block / (KV_WIDTH / 4)) + block % (KV_WIDTH / 4) * 4);
        dirty = dirty || !is_finite(x.x[0]) || !is_finite(x.x[1]) || !is_finite(x.x[2]) || !is_finite(x.x[3]);
    }
    return dirty;
}

// Adds Q K^T over the columns of one block, `depth` of them. `q` leads to column 0 of the block in q_tile.
DEVICE void add_scores(float (&s)[RT][4 * KT], const float* q, u32 q_pitch, const float* k, u32 depth) {
    // The thread's first query and key; the others lie at distances that are known when this is compiled.
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

// P V over CHUNK keys of a block, from j_begin on. SELECT: some weights are ABSENT and their values NaN; those contribute nothing.
template <bool SELECT> DEVICE void weighted_values(float (&part)[RT][4 * VT], const float* p, u32 p_pitch, const float* v, u32 j_begin) {
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
DEVICE void add_values(float (&o)[RT][4 * VT], const float* p, u32 p_pitch, const float* v, bool select) {
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
