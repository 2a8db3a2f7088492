// Both products of attention on tensor cores: S = Q K^T sums over head_dim, O = P V over keys. Q, K and V lie in shared memory in their storage
// type, 16 bytes longer a row than they need be, so that eight rows begin in different banks.
// A warp holds MT times 16 queries, and of them, with g = lane / 4 and t = lane % 4, a lane the rows g and g + 8, columns 2 t and 2 t + 1 of every 8.
constexpr u32 MT = BR / TY / 16;
constexpr u32 ST = BC / 8;        // 8 keys each
constexpr u32 OT = COLUMNS / 8;   // 8 columns of O each
constexpr u32 QK_PITCH = Q_WIDTH + 8;
constexpr u32 V_PITCH = COLUMNS + 8;

struct alignas(16) Eight {
    elem x[8];
};

// Bits that tell how the rows of a tensor lie, as params.dense has them for q: their elements side by side, from a multiple of so many bytes on.
constexpr u32 BY_16_BYTES = 1;
constexpr u32 BY_4_BYTES = 16;

// Begins to load rows row_begin .. row_begin + ROWS of global memory, columns d_begin .. d_begin + WIDTH, to a tile. Zeros stand beyond row_end and
// `width`. `first` leads to row_begin. copy_wait and a barrier stand before the first use.
template <u32 ROWS, u32 WIDTH, u32 PITCH>
DEVICE void begin_load(elem* tile, const elem* first, u64 row_step, u64 step, u32 row_begin, u32 row_end, u32 d_begin, u32 width, u32 dense, u32 thread) {
    constexpr u32 CHUNKS = WIDTH / 8;                   // of eight numbers, a thread each
    constexpr u32 PASS = THREADS / CHUNKS;              // rows that the block loads at once
    constexpr u32 PASSES = (ROWS + PASS - 1) / PASS;
    forget(thread); // or all that follows from it is kept from tile to tile
    const u32 d = d_begin + thread % CHUNKS * 8;
    const u32 r_begin = thread / CHUNKS;
    if (PASS * CHUNKS != THREADS && r_begin >= PASS) {
        return;
    }
    elem* to = tile + r_begin * PITCH + thread % CHUNKS * 8;
    const elem* from = first + r_begin * row_step;
    const u32 left = d < width ? width - d : 0;
    if ((dense & BY_16_BYTES) != 0) {
        from += d;
        // Where all rows are there and the width is of whole eights, a thread's eight are there or are zeros.
        if (row_begin + ROWS <= row_end && width % 8 == 0) {
            if (left == 0) {
#pragma unroll 1
                for (u32 r = r_begin; r < ROWS; r += PASS) {
                    *(Eight*)to = Eight{};
                    to += PASS * PITCH;
                }
                return;
            }
#pragma unroll
            for (u32 n = 0; n < PASSES; n++) {
                if (ROWS % PASS != 0 && r_begin + n * PASS >= ROWS) {
                    break;
                }
                copy16(to + n * PASS * PITCH, from);
                from += PASS * row_step;
            }
            return;
        }
        const u32 bytes = 2 * (left < 8 ? left : 8);
#pragma unroll 1
        for (u32 r = r_begin; r < ROWS; r += PASS) {
            copy16_padded(to, from, row_begin + r < row_end ? bytes : 0);
            to += PASS * PITCH;
            from += PASS * row_step;
        }
        return;
    }
    if ((dense & BY_4_BYTES) != 0) {
        from += d;
#pragma unroll 1
        for (u32 r = r_begin; r < ROWS; r += PASS) {
            const u32 here = row_begin + r < row_end ? left : 0;
#pragma unroll
            for (u32 c = 0; c < 8; c += 2) {
                copy4_padded(to + c, from + c, c + 1 < here ? 4 : (c < here ? 2 : 0));
            }
            to += PASS * PITCH;
            from += PASS * row_step;
        }
        return;
    }
    from += d * step;
#pragma unroll 1
    for (u32 r = r_begin; r < ROWS; r += PASS) {
        const u32 here = row_begin + r < row_end ? left : 0;
        u64 at = 0; // walks: eight places are not kept while scores and sums are in registers
        Eight x;
#pragma unroll
        for (u32 c = 0; c < 8; c++) {
            x.x[c] = c < here ? from[at] : (elem)0;
            at += step;
            forget(at);
        }
        *(Eight*)to = x;
        to += PASS * PITCH;
        from += PASS * row_step;
    }
}

// Begins to load Q[row_begin .. row_begin + BR].
DEVICE void load_q(const Params& params, const Item& item, elem* q_tile, u32 thread) {
    begin_load<BR, Q_WIDTH, QK_PITCH>(q_tile, (const elem*)params.q + q_row(params, item, item.row_begin), params.q_strides[2], params.q_strides[3],
                                      item.row_begin, params.row_end, 0, params.head_dim, params.dense, thread);
}

// Begins to load K[j_begin .. j_begin + BC].
DEVICE void load_k(const Params& params, const Item& item, elem* k_tile, u32 j_begin, u32 thread) {
    begin_load<BC, Q_WIDTH, QK_PITCH>(k_tile, (const elem*)params.k + k_row(params, item, j_begin), params.k_strides[2], params.k_strides[3], j_begin,
                                      item.kv_len, 0, params.head_dim, params.dense >> 1, thread);
}

// Begins to load V[j_begin .. j_begin + BC, d_begin .. d_begin + COLUMNS].
DEVICE void load_v(const Params& params, const Item& item, elem* v_tile, u32 j_begin, u32 d_begin, u32 thread) {
    begin_load<BC, COLUMNS, V_PITCH>(v_tile, (const elem*)params.v + v_row(params, item, j_begin), params.v_strides[2], params.v_strides[3], j_begin,
                                     item.kv_len, d_begin, params.head_dim_v, params.dense >> 2, thread);
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
#pragma unroll 1
    for (u32 block = thread; block < BC * COLUMNS; block += THREADS) {
        elem* x = v_tile + block / COLUMNS * V_PITCH + block % COLUMNS;
        *x = is_dirty_half(*x) ? (elem)0 : *x;
    }
}

// C += A B, 16 deep.
DEVICE void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if defined(TENSOR_DEPTH_8)
    multiply_add_16x8x8(c, a[0], a[1], b0);
    multiply_add_16x8x8(c, a[2], a[3], b1);
#else
    multiply_add_16x8x16(c, a, b0, b1);
#endif
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
                multiply_add(s[r][c], a[r], b[0], b[1]);
                multiply_add(s[r][c + 1], a[r], b[2], b[3]);
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
                multiply_add(o[r][c], p[r][j], b[0], b[1]);
                multiply_add(o[r][c + 1], p[r][j], b[2], b[3]);
            }
        }
    }
}

// Adds what NaN and infinities in V give to the rows that see them, and to no others. Then they can be cleaned, and the product be done as ever.
DEVICE void add_dirty_values(const Params& params, const Item& item, float (&o)[MT][OT][4], const u32 (&p)[MT][BC / 16][4], const elem* v, u32 i_begin,
                             u32 j_begin, u32 lane) {
#pragma unroll 1
    for (u32 j = 0; j < BC; j++) {
#pragma unroll
        for (u32 r = 0; r < MT; r++) {
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                // Registers have no indices: one is picked among all, by masks, since compilers make an index of a choice.
                u32 mine = 0;
#pragma unroll
                for (u32 place = 0; place < BC / 8; place++) {
                    mine |= p[r][place / 2][place % 2 * 2 + half] & (0u - (u32)(place == j / 8));
                }
                const u32 pair = shuffle(mine, (lane & 28u) | (j % 8 / 2));
                const float weight = value((elem)(j % 2 == 0 ? pair & 0xffffu : pair >> 16));
                if (!contributes(params, item, i_begin + 16 * r + 8 * half + lane / 4, j_begin + j)) {
                    continue;
                }
#pragma unroll
                for (u32 c = 0; c < OT; c++) {
#pragma unroll
                    for (u32 n = 0; n < 2; n++) {
                        const elem x = v[j * V_PITCH + 8 * c + lane % 4 * 2 + n];
                        if (is_dirty_half(x)) {
                            o[r][c][2 * half + n] = fmaf(weight, value(x), o[r][c][2 * half + n]);
                        }
                    }
                }
            }
        }
    }
}

// The sum over the four lanes that share a row.
DEVICE float row_sum(float x) {
    x += shuffle_xor(x, 1);
    return x + shuffle_xor(x, 2);
}
