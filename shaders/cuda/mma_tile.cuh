// Both products of attention on tensor cores: S = Q K^T sums over head_dim, O = P V over keys. Q, K and V lie in shared memory in their storage
// type, 16 bytes longer a row than they need be, so that eight rows begin in different banks.
// A warp holds MT times 16 queries, and of them, with g = lane / 4 and t = lane % 4, a lane the rows g and g + 8, columns 2 t and 2 t + 1 of every 8.
constexpr u32 MT = BR / TY / 16;
constexpr u32 ST = BC / 8;        // 8 keys each
constexpr u32 OT = COLUMNS / 8;   // 8 columns of O each
constexpr u32 QK_PITCH = Q_WIDTH + 8;
constexpr u32 V_PITCH = COLUMNS + 8;
constexpr u32 ABSENT_HALF = ABSENT >> 16;

struct alignas(16) Eight {
    elem x[8];
};

// Begins to load eight numbers of a row of global memory from column d on, zeros beyond `width`; d is a multiple of 8. `dense`: the row begins at
// a multiple of 16 bytes and its elements lie side by side. copy_wait and a barrier stand before the first use.
DEVICE void begin_load8(elem* to, const elem* row, u32 d, u64 step, u32 width, bool dense) {
    if (dense) {
        const u32 left = d < width ? width - d : 0;
        copy16(to, left > 0 ? row + d : row, 2 * (left < 8 ? left : 8));
        return;
    }
    Eight x;
#pragma unroll
    for (u32 c = 0; c < 8; c++) {
        x.x[c] = d + c < width ? row[(d + c) * step] : (elem)0;
    }
    *(Eight*)to = x;
}

// Loads Q[row_begin .. row_begin + BR]. Zeros stand beyond the queries and head_dim.
DEVICE void load_q(const Params& params, const Item& item, elem* q_tile, u32 thread) {
    for (u32 block = thread; block < BR * (Q_WIDTH / 8); block += THREADS) {
        const u32 d = block % (Q_WIDTH / 8) * 8;
        const u32 r = block / (Q_WIDTH / 8);
        const u32 i = item.row_begin + r;
        const u32 width = i < params.row_end ? params.head_dim : 0;
        const u64 row = width > 0 ? q_row(params, item, i) : 0;
        begin_load8(q_tile + r * QK_PITCH + d, (const elem*)params.q + row, d, params.q_strides[3], width, (params.dense & 1u) != 0);
    }
}

// Loads K[j_begin .. j_begin + BC]. Zeros stand beyond the valid keys and head_dim.
DEVICE void load_k(const Params& params, const Item& item, elem* k_tile, u32 j_begin, u32 thread) {
    for (u32 block = thread; block < BC * (Q_WIDTH / 8); block += THREADS) {
        const u32 d = block % (Q_WIDTH / 8) * 8;
        const u32 r = block / (Q_WIDTH / 8);
        const u32 j = j_begin + r;
        const u32 width = j < item.kv_len ? params.head_dim : 0;
        const u64 row = width > 0 ? k_row(params, item, j) : 0;
        begin_load8(k_tile + r * QK_PITCH + d, (const elem*)params.k + row, d, params.k_strides[3], width, (params.dense & 2u) != 0);
    }
}

// Loads V[j_begin .. j_begin + BC, d_begin .. d_begin + COLUMNS]. Zeros stand beyond the valid keys and head_dim_v.
DEVICE void load_v(const Params& params, const Item& item, elem* v_tile, u32 j_begin, u32 d_begin, u32 thread) {
    for (u32 block = thread; block < BC * (COLUMNS / 8); block += THREADS) {
        const u32 d = block % (COLUMNS / 8) * 8;
        const u32 r = block / (COLUMNS / 8);
        const u32 j = j_begin + r;
        const u32 width = j < item.kv_len ? params.head_dim_v : 0;
        const u64 row = width > 0 ? v_row(params, item, j) : 0;
        begin_load8(v_tile + r * V_PITCH + d, (const elem*)params.v + row, d_begin + d, params.v_strides[3], width, (params.dense & 4u) != 0);
    }
}

// Whether an element is NaN or infinity.
DEVICE bool is_dirty_half(elem x) {
#if defined(ELEM_BF16)
    return (x & 0x7f80u) == 0x7f80u;
#else
    return (x & 0x7c00u) == 0x7c00u;
#endif
}

// Whether this thread's share of V holds NaN or infinity.
DEVICE bool is_dirty(const elem* v_tile, u32 thread) {
    bool dirty = false;
    for (u32 block = thread; block < BC * (COLUMNS / 8); block += THREADS) {
        const Eight x = *(const Eight*)(v_tile + block / (COLUMNS / 8) * V_PITCH + block % (COLUMNS / 8) * 8);
#pragma unroll
        for (u32 c = 0; c < 8; c++) {
            dirty = dirty || is_dirty_half(x.x[c]);
        }
    }
    return dirty;
}

// Puts zeros in the place of NaN and infinity in this thread's share of V.
DEVICE void clean(elem* v_tile, u32 thread) {
    for (u32 block = thread; block < BC * COLUMNS; block += THREADS) {
        elem* x = v_tile + block / COLUMNS * V_PITCH + block % COLUMNS;
        *x = is_dirty_half(*x) ? (elem)0 : *x;
    }
}

// Adds Q K^T. `q` leads to the warp's first query.
DEVICE void add_scores(float (&s)[MT][ST][4], const elem* q, const elem* k, u32 lane) {
    const elem* a_row = q + lane % 16 * QK_PITCH + lane / 16 * 8;
    const elem* b_row = k + (lane / 16 * 8 + lane % 8) * QK_PITCH + lane / 8 % 2 * 8;
#pragma unroll(Q_WIDTH <= 128 ? Q_WIDTH / 16 : 2)
    for (u32 d = 0; d < Q_WIDTH; d += 16) {
        u32 a[MT][4];
#pragma unroll
        for (u32 r = 0; r < MT; r++) {
            load_matrix4(a[r], a_row + 16 * r * QK_PITCH + d);
        }
#pragma unroll
        for (u32 c = 0; c < ST; c += 2) {
            u32 b[4];
            load_matrix4(b, b_row + 8 * c * QK_PITCH + d);
#pragma unroll
            for (u32 r = 0; r < MT; r++) {
                multiply_add_16x8x16(s[r][c], a[r], b[0], b[1]);
                multiply_add_16x8x16(s[r][c + 1], a[r], b[2], b[3]);
            }
        }
    }
}

// Adds P V; `p` holds the weights as the left operand.
DEVICE void add_values(float (&o)[MT][OT][4], const u32 (&p)[MT][BC / 16][4], const elem* v, u32 lane) {
    const elem* row = v + lane % 16 * V_PITCH + lane / 16 * 8;
#pragma unroll
    for (u32 j = 0; j < BC / 16; j++) {
#pragma unroll
        for (u32 c = 0; c < OT; c += 2) {
            u32 b[4];
            load_matrix4_transposed(b, row + 16 * j * V_PITCH + 8 * c);
#pragma unroll
            for (u32 r = 0; r < MT; r++) {
                multiply_add_16x8x16(o[r][c], p[r][j], b[0], b[1]);
                multiply_add_16x8x16(o[r][c + 1], p[r][j], b[2], b[3]);
            }
        }
    }
}

// Adds what NaN and infinities in V give to the rows that see them, and to no others. Then they can be cleaned, and the product be done as ever.
DEVICE void add_dirty_values(float (&o)[MT][OT][4], const u32 (&p)[MT][BC / 16][4], const elem* v, u32 lane) {
#pragma unroll 1
    for (u32 j = 0; j < BC; j++) {
#pragma unroll
        for (u32 r = 0; r < MT; r++) {
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                // Registers have no indices: one is picked among all.
                u32 mine = 0;
#pragma unroll
                for (u32 place = 0; place < BC / 8; place++) {
                    mine = place == j / 8 ? p[r][place / 2][place % 2 * 2 + half] : mine;
                }
                const u32 pair = shuffle(mine, (lane & 28u) | (j % 8 / 2));
                const u32 weight = j % 2 == 0 ? pair & 0xffffu : pair >> 16;
                if (weight == ABSENT_HALF) {
                    continue;
                }
#pragma unroll
                for (u32 c = 0; c < OT; c++) {
#pragma unroll
                    for (u32 n = 0; n < 2; n++) {
                        const elem x = v[j * V_PITCH + 8 * c + lane % 4 * 2 + n];
                        if (is_dirty_half(x)) {
                            o[r][c][2 * half + n] = fmaf(value((elem)weight), value(x), o[r][c][2 * half + n]);
                        }
                    }
                }
            }
        }
    }
}

// Reductions over the four lanes that share a row.
DEVICE float row_max(float x) {
    x = fmaxf(x, shuffle_xor(x, 1));
    return fmaxf(x, shuffle_xor(x, 2));
}

DEVICE float row_sum(float x) {
    x += shuffle_xor(x, 1);
    return x + shuffle_xor(x, 2);
}
