// Both products of attention on tensor cores: S = Q K^T sums over head_dim, O = P V over keys.
// Q, K and V are in shared memory in their storage type. Each row is 16 bytes longer than its
// data, so that eight consecutive rows start in different banks. A warp holds 16 MT queries. With
// g = lane / 4 and t = lane % 4, a lane holds rows g and g + 8 of every 16, and columns 2 t and
// 2 t + 1 of every 8.
constexpr u32 MT = BR / TY / 16;
constexpr u32 ST = BC / 8;        // groups of 8 keys
constexpr u32 OT = COLUMNS / 8;   // groups of 8 columns of O
constexpr u32 QK_PITCH = Q_WIDTH + 8;
constexpr u32 V_PITCH = COLUMNS + 8;

struct alignas(16) Eight {
    elem x[8];
};

// Rows row_begin..row_end of a tensor, as an item reads them. `first` points to column 0 of
// row_begin; a row has `width` columns.
struct Rows {
    const elem* first;
    u64 row_step;
    u64 step;
    u32 row_begin;
    u32 row_end;
    u32 width;
    u32 dense;
};

// Bits of Rows::dense: the elements of each row are contiguous, and the row starts at a multiple
// of so many bytes. Params::dense has these bits for q, and shifted left for k and v.
constexpr u32 BY_16_BYTES = 1;
constexpr u32 BY_4_BYTES = 16;

// Starts to load ROWS rows, WIDTH columns from d_begin on, into a tile in shared memory. Elements
// beyond the last row or column become zeros. copy_wait and a barrier must come before the first
// use.
//
// Lanes of a warp leave this function at different places, some after more passes than others.
// ldmatrix and mma need no __syncwarp() after it: every lane reaches them, and PTX defines that
// `.sync` makes each lane wait there for its warp. The machine code for compute capabilities 7.5
// to 12.0 reconverges the warp (BSYNC) where this function ends.
template <u32 ROWS, u32 WIDTH, u32 PITCH>
DEVICE void begin_load(elem* tile, const Rows& rows, u32 d_begin, u32 thread) {
    constexpr u32 CHUNKS = WIDTH / 8;                   // of eight numbers, one per thread
    constexpr u32 PASS = THREADS / CHUNKS;              // rows that the block loads at once
    constexpr u32 PASSES = (ROWS + PASS - 1) / PASS;
    forget(thread); // keeps the compiler from holding the addresses below from tile to tile
    const u32 d = d_begin + thread % CHUNKS * 8;
    const u32 r_begin = thread / CHUNKS;
    if (PASS * CHUNKS != THREADS && r_begin >= PASS) {
        return;
    }
    elem* to = tile + r_begin * PITCH + thread % CHUNKS * 8;
    const elem* from = rows.first + r_begin * rows.row_step;
    const u32 left = d < rows.width ? rows.width - d : 0;
    if ((rows.dense & BY_16_BYTES) != 0) {
        from += d;
        // If all rows exist and the width is a multiple of 8, a thread's eight numbers either all
        // exist or are all zeros.
        if (rows.row_begin + ROWS <= rows.row_end && rows.width % 8 == 0) {
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
                from += PASS * rows.row_step;
            }
            return;
        }
        const u32 bytes = 2 * (left < 8 ? left : 8);
#pragma unroll 1
        for (u32 r = r_begin; r < ROWS; r += PASS) {
            copy16_padded(to, from, rows.row_begin + r < rows.row_end ? bytes : 0);
            to += PASS * PITCH;
            from += PASS * rows.row_step;
        }
        return;
    }
    if ((rows.dense & BY_4_BYTES) != 0) {
        from += d;
#pragma unroll 1
        for (u32 r = r_begin; r < ROWS; r += PASS) {
            const u32 here = rows.row_begin + r < rows.row_end ? left : 0;
#pragma unroll
            for (u32 c = 0; c < 8; c += 2) {
                copy4_padded(to + c, from + c, c + 1 < here ? 4 : (c < here ? 2 : 0));
            }
            to += PASS * PITCH;
            from += PASS * rows.row_step;
        }
        return;
    }
    from += d * rows.step;
#pragma unroll 1
    for (u32 r = r_begin; r < ROWS; r += PASS) {
        const u32 here = rows.row_begin + r < rows.row_end ? left : 0;
        // One index that advances: eight of them would need registers that hold scores and sums.
        u64 at = 0;
        Eight x;
#pragma unroll
        for (u32 c = 0; c < 8; c++) {
            x.x[c] = c < here ? from[at] : (elem)0;
            at += rows.step;
            forget(at);
        }
        *(Eight*)to = x;
        to += PASS * PITCH;
        from += PASS * rows.row_step;
    }
}

// Starts to load Q[row_begin .. row_begin + BR].
DEVICE void load_q(const Params& params, const Item& item, elem* q_tile, u32 thread) {
    if (SPLIT) {
        // The rows of several heads. There are few.
        for (u32 n = thread; n < BR * Q_WIDTH; n += THREADS) {
            const u32 row = item.row_begin + n / Q_WIDTH;
            const u32 d = n % Q_WIDTH;
            elem x = 0;
            if (row < launch_row_end(params) && d < params.head_dim) {
                x = ((const elem*)params.q)[q_row(params, item, row) + d * params.q_strides[3]];
            }
            q_tile[n / Q_WIDTH * QK_PITCH + d] = x;
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
        params.dense,
    };
    begin_load<BR, Q_WIDTH, QK_PITCH>(q_tile, rows, 0, thread);
}

// Starts to load K[j_begin .. j_begin + BC].
DEVICE void load_k(const Params& params, const Item& item, elem* k_tile, u32 j_begin, u32 thread) {
    const Rows rows = {
        (const elem*)params.k + k_row(params, item, j_begin),
        params.k_strides[2],
        params.k_strides[3],
        j_begin,
        item.kv_len,
        params.head_dim,
        params.dense >> 1,
    };
    begin_load<BC, Q_WIDTH, QK_PITCH>(k_tile, rows, 0, thread);
}

// Starts to load V[j_begin .. j_begin + BC, d_begin .. d_begin + COLUMNS].
DEVICE void load_v(
    const Params& params, const Item& item, elem* v_tile, u32 j_begin, u32 d_begin, u32 thread
) {
    const Rows rows = {
        (const elem*)params.v + v_row(params, item, j_begin),
        params.v_strides[2],
        params.v_strides[3],
        j_begin,
        item.kv_len,
        params.head_dim_v,
        params.dense >> 2,
    };
    begin_load<BC, COLUMNS, V_PITCH>(v_tile, rows, d_begin, thread);
}

// Whether an element is NaN or infinity.
DEVICE bool is_dirty_half(elem x) {
#if defined(ELEM_BF16)
    return (x & 0x7f80u) == 0x7f80u;
#else
    return (x & 0x7c00u) == 0x7c00u;
#endif
}

// Whether this thread's share of V contains NaN or infinity.
DEVICE bool is_dirty(const elem* v_tile, u32 thread) {
    constexpr u32 CHUNKS = COLUMNS / 8;
    bool dirty = false;
    for (u32 block = thread; block < BC * CHUNKS; block += THREADS) {
        const Eight x = *(const Eight*)(v_tile + block / CHUNKS * V_PITCH + block % CHUNKS * 8);
#pragma unroll
        for (u32 c = 0; c < 8; c++) {
            dirty = dirty || is_dirty_half(x.x[c]);
        }
    }
    return dirty;
}

// Replaces NaN and infinity in this thread's share of V by zeros.
DEVICE void clean(elem* v_tile, u32 thread) {
#pragma unroll 1
    for (u32 block = thread; block < BC * COLUMNS; block += THREADS) {
        elem* x = v_tile + block / COLUMNS * V_PITCH + block % COLUMNS;
        *x = is_dirty_half(*x) ? (elem)0 : *x;
    }
}

// C += A B over a depth of 16.
DEVICE void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if defined(TENSOR_DEPTH_8)
    multiply_add_16x8x8(c, a[0], a[1], b0);
    multiply_add_16x8x8(c, a[2], a[3], b1);
#else
    multiply_add_16x8x16(c, a, b0, b1);
#endif
}

// Adds Q K^T. `q` points to the warp's first query.
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

// Adds P V. `p` holds the weights as the left operand.
DEVICE void add_values(
    float (&o)[MT][OT][4], const u32 (&p)[MT][BC / 16][4], const elem* v, u32 lane
) {
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

// Adds what NaN and infinities in V contribute to the rows that see them, and to no others. The
// caller can then clean V and multiply as usual.
DEVICE void add_dirty_values(
    const Params& params, const Item& item, float (&o)[MT][OT][4], const u32 (&p)[MT][BC / 16][4],
    const elem* v, u32 i_begin, u32 j_begin, u32 lane
) {
#pragma unroll 1
    for (u32 j = 0; j < BC; j++) {
#pragma unroll
        for (u32 r = 0; r < MT; r++) {
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                // Registers cannot be indexed. Bit masks pick one of them, because compilers turn
                // conditional expressions back into an index.
                u32 mine = 0;
#pragma unroll
                for (u32 place = 0; place < BC / 8; place++) {
                    const u32 word = p[r][place / 2][place % 2 * 2 + half];
                    mine |= word & (0u - (u32)(place == j / 8));
                }
                const u32 pair = shuffle(mine, (lane & 28u) | (j % 8 / 2));
                const float weight = value((elem)(j % 2 == 0 ? pair & 0xffffu : pair >> 16));
                const u32 i = i_begin + 16 * r + 8 * half + lane / 4;
                if (!contributes(params, item, i, j_begin + j)) {
                    continue;
                }
#pragma unroll
                for (u32 c = 0; c < OT; c++) {
#pragma unroll
                    for (u32 n = 0; n < 2; n++) {
                        const elem x = v[j * V_PITCH + 8 * c + lane % 4 * 2 + n];
                        float& sum = o[r][c][2 * half + n];
                        sum = is_dirty_half(x) ? fmaf(weight, value(x), sum) : sum;
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
