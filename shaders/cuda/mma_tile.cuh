// Both products of attention on tensor cores: S = Q K^T sums over head_dim, O = P V over keys.
// Q, K and V are in shared memory in their storage type. A warp holds 16 MT queries. With
// g = lane / 4 and t = lane % 4, a lane holds rows g and g + 8 of every 16, and columns 2 t and
// 2 t + 1 of every 8.
constexpr u32 MT = BR / TY / 16;
constexpr u32 ST = BC / 8;        // groups of 8 keys
constexpr u32 OT = COLUMNS / 8;   // groups of 8 columns of O
constexpr u32 K_ELEMS = BC * Q_WIDTH;
constexpr u32 V_ELEMS = BC * COLUMNS;

// Rows in shared memory have no padding. The chunks of eight elements, 16 bytes each, change places
// within a row, so that the same chunk of eight consecutive rows lies in different banks.
template <u32 WIDTH> constexpr u32 CHUNKS_SWAPPED = WIDTH % 64 == 0 ? 8 : 4;

// The offset of a chunk in a tile of WIDTH columns.
template <u32 WIDTH> DEVICE u32 place(u32 row, u32 chunk) {
    static_assert(WIDTH % 32 == 0, "a row has whole groups of chunks that change places");
    return row * WIDTH + (chunk ^ (CHUNKS_SWAPPED<WIDTH> == 8 ? row % 8 : row / 2 % 4)) * 8;
}

// The offset of the chunk `chunks` chunks to the right of the one at `at`. `chunks` is even, and
// the chunk at `at` is the first or second one of its row.
template <u32 WIDTH> DEVICE u32 right_of(u32 at, u32 chunks) {
    constexpr u32 SWAPPED = CHUNKS_SWAPPED<WIDTH>;
    return (at ^ (chunks % SWAPPED * 8)) + chunks / SWAPPED * SWAPPED * 8;
}

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
template <u32 ROWS, u32 WIDTH>
DEVICE void begin_load(elem* tile, const Rows& rows, u32 d_begin, u32 thread) {
    constexpr u32 CHUNKS = WIDTH / 8;                   // of eight numbers, one per thread
    constexpr u32 PASS = THREADS / CHUNKS;              // rows that the block loads at once
    constexpr u32 PASSES = (ROWS + PASS - 1) / PASS;
    forget(thread); // keeps the compiler from holding the addresses below from tile to tile
    const u32 chunk = thread % CHUNKS;
    const u32 d = d_begin + chunk * 8;
    const u32 r_begin = thread / CHUNKS;
    if (PASS * CHUNKS != THREADS && r_begin >= PASS) {
        return;
    }
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
                    *(Eight*)(tile + place<WIDTH>(r, chunk)) = Eight{};
                }
                return;
            }
#pragma unroll
            for (u32 n = 0; n < PASSES; n++) {
                if (ROWS % PASS != 0 && r_begin + n * PASS >= ROWS) {
                    break;
                }
                // After whole groups of eight rows, chunks change places in the same way.
                copy16(
                    PASS % 8 == 0 ? tile + place<WIDTH>(r_begin, chunk) + n * PASS * WIDTH
                                  : tile + place<WIDTH>(r_begin + n * PASS, chunk),
                    from
                );
                from += PASS * rows.row_step;
            }
            return;
        }
        const u32 bytes = 2 * (left < 8 ? left : 8);
#pragma unroll 1
        for (u32 r = r_begin; r < ROWS; r += PASS) {
            elem* to = tile + place<WIDTH>(r, chunk);
            copy16_padded(to, from, rows.row_begin + r < rows.row_end ? bytes : 0);
            from += PASS * rows.row_step;
        }
        return;
    }
    if ((rows.dense & BY_4_BYTES) != 0) {
        from += d;
#pragma unroll 1
        for (u32 r = r_begin; r < ROWS; r += PASS) {
            const u32 here = rows.row_begin + r < rows.row_end ? left : 0;
            elem* to = tile + place<WIDTH>(r, chunk);
#pragma unroll
            for (u32 c = 0; c < 8; c += 2) {
                copy4_padded(to + c, from + c, c + 1 < here ? 4 : (c < here ? 2 : 0));
            }
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
        *(Eight*)(tile + place<WIDTH>(r, chunk)) = x;
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
            q_tile[place<Q_WIDTH>(n / Q_WIDTH, d / 8) + d % 8] = x;
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
    begin_load<BR, Q_WIDTH>(q_tile, rows, 0, thread);
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
    begin_load<BC, Q_WIDTH>(k_tile, rows, 0, thread);
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
    begin_load<BC, COLUMNS>(v_tile, rows, d_begin, thread);
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
    bool dirty = false;
    for (u32 n = thread; n < V_ELEMS / 8; n += THREADS) {
        const Eight x = *(const Eight*)(v_tile + n * 8);
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
    for (u32 n = thread; n < V_ELEMS; n += THREADS) {
        elem* x = v_tile + n;
        *x = is_dirty_half(*x) ? (elem)0 : *x;
    }
}

// C += A B over a depth of 16. With `fresh`, C = A B.
DEVICE void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, bool fresh) {
    // A constant zero as an operand needs no register.
    const float before[4] = {
        fresh ? 0.0f : c[0], fresh ? 0.0f : c[1], fresh ? 0.0f : c[2], fresh ? 0.0f : c[3]
    };
#if defined(TENSOR_DEPTH_8)
    multiply_add_16x8x8(c, a[0], a[1], b0, before);
    multiply_add_16x8x8(c, a[2], a[3], b1, c);
#else
    multiply_add_16x8x16(c, a, b0, b1, before);
#endif
}

// Q K^T over `width` columns from d_begin on, for COUNT groups of 8 keys. The lane's first chunks
// of Q and K are at these offsets in shared memory.
template <u32 COUNT>
DEVICE void multiply_part(
    float (&s)[MT][COUNT][4], const elem* tiles, u32 q_at, u32 k_at, u32 d_begin, u32 width
) {
#pragma unroll
    for (u32 d = 0; d < width; d += 16) {
        const u32 chunks = (d_begin + d) / 8;
        u32 a[MT][4];
#pragma unroll
        for (u32 r = 0; r < MT; r++) {
            load_matrix4(a[r], tiles + right_of<Q_WIDTH>(q_at, chunks) + 16 * r * Q_WIDTH);
        }
#pragma unroll
        for (u32 c = 0; c < COUNT; c += 2) {
            u32 b[4];
            load_matrix4(b, tiles + right_of<Q_WIDTH>(k_at, chunks) + 8 * c * Q_WIDTH);
#pragma unroll
            for (u32 r = 0; r < MT; r++) {
                multiply_add(s[r][c], a[r], b[0], b[1], d == 0);
                multiply_add(s[r][c + 1], a[r], b[2], b[3], d == 0);
            }
        }
    }
}

// S = Q K^T. The warp's first query and the tile of K are at these offsets in shared memory. Tensor
// cores sum parts of head_dim, and f32 units add the parts.
DEVICE void compute_scores(
    float (&s)[MT][ST][4], const elem* tiles, u32 q_at, u32 k_at, u32 lane
) {
    q_at += place<Q_WIDTH>(lane % 16, lane / 16);
    k_at += place<Q_WIDTH>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
    const u32 width = Q_WIDTH / ((Q_WIDTH + sum_depth() - 1) / sum_depth());
    multiply_part(s, tiles, q_at, k_at, 0, width);
    // Fewer keys at a time, because the sums of a part need registers of their own.
    constexpr u32 COUNT = ST % 4 == 0 ? 4 : 2;
#pragma unroll(Q_WIDTH <= 128 ? 4 : 1)
    for (u32 d = width; d < Q_WIDTH; d += width) {
#pragma unroll
        for (u32 c = 0; c < ST; c += COUNT) {
            float sums[MT][COUNT][4];
            multiply_part(sums, tiles, q_at, k_at + 8 * c * Q_WIDTH, d, width);
#pragma unroll
            for (u32 n = 0; n < MT * COUNT * 4; n++) {
                s[n / (COUNT * 4)][c + n / 4 % COUNT][n % 4] +=
                    sums[n / (COUNT * 4)][n / 4 % COUNT][n % 4];
            }
        }
    }
}

// Adds P V, for columns 8 c..8 c + 16 of V, to two groups of `sums`, from group `to` on; with
// `fresh`, replaces these sums. The lane's first chunk of V is at v_at.
template <u32 GROUPS>
DEVICE void add_columns(
    float (&sums)[MT][GROUPS][4], u32 to, const u32 (&p)[MT][BC / 16][4], const elem* tiles,
    u32 v_at, u32 c, bool fresh
) {
#pragma unroll
    for (u32 j = 0; j < BC / 16; j++) {
        u32 b[4];
        load_matrix4_transposed(b, tiles + right_of<COLUMNS>(v_at, c) + 16 * j * COLUMNS);
#pragma unroll
        for (u32 r = 0; r < MT; r++) {
            multiply_add(sums[r][to], p[r][j], b[0], b[1], fresh && j == 0);
            multiply_add(sums[r][to + 1], p[r][j], b[2], b[3], fresh && j == 0);
        }
    }
}

// O += P V. `p` holds the weights as the left operand. The lane's first chunk of V is at v_at.
DEVICE void add_values(
    float (&o)[MT][OT][4], const u32 (&p)[MT][BC / 16][4], const elem* tiles, u32 v_at
) {
#pragma unroll
    for (u32 c = 0; c < OT; c += 2) {
        add_columns(o, c, p, tiles, v_at, c, false);
    }
}

// O = alpha O + P V. Tensor cores sum P V alone, and f32 units add O.
DEVICE void rescale_and_add_values(
    float (&o)[MT][OT][4], const float (&alpha)[MT][2], const u32 (&p)[MT][BC / 16][4],
    const elem* tiles, u32 v_at
) {
#pragma unroll
    for (u32 c = 0; c < OT; c += 2) {
        float sums[MT][2][4];
        add_columns(sums, 0, p, tiles, v_at, c, true);
#pragma unroll
        for (u32 n = 0; n < MT * 8; n++) {
            float& x = o[n / 8][c + n / 4 % 2][n % 4];
            x = fmaf(x, alpha[n / 8][n % 4 / 2], sums[n / 8][n / 4 % 2][n % 4]);
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
                        const elem x = v[place<COLUMNS>(j, c) + lane % 4 * 2 + n];
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
