// Both products of attention in f32 on tensor cores: S = Q K^T sums over head_dim, O = P V over
// keys. Q, K and V are in shared memory as f32. A warp holds 16 MT queries. With g = lane / 4 and
// t = lane % 4, a lane holds rows g and g + 8 of every 16, and keys 2 t and 2 t + 1 of every 8.
//
// Tensor cores multiply TF32, which has the exponents of f32 and 11 significant bits. Each number
// is split into a high and a low part, x = hi + lo, and x y = lo hi + hi lo + hi hi; lo lo is below
// the last bit of an f32.
constexpr u32 MT = BR / TY / 16;
constexpr u32 ST = BC / 8;        // groups of 8 keys
constexpr u32 OT = COLUMNS / 8;   // groups of 8 columns of O
constexpr u32 K_ELEMS = BC * Q_WIDTH;
constexpr u32 V_ELEMS = BC * COLUMNS;

// Tensor cores sum so many products by themselves, two steps of eight; f32 units add the sums. They
// truncate, and the loss would add up in a longer sum.
constexpr u32 PART = 16;

// Rows in shared memory have no padding. Their chunks of four numbers, 16 bytes each, change places
// in groups of eight. So a read of four neighbouring chunks in two rows (Q, K), and of two chunks
// in four rows that are two apart (V), accesses all banks.
DEVICE u32 swapped(u32 row) { return (row / 2 % 4 * 2) ^ (row % 2 * 4); }

// The offset of a chunk in a tile of WIDTH columns.
template <u32 WIDTH> DEVICE u32 place(u32 row, u32 chunk) {
    static_assert(WIDTH % 32 == 0, "a row has whole groups of chunks that change places");
    return row * WIDTH + (chunk ^ swapped(row)) * 4;
}

// The offset of the chunk `chunks` chunks to the right of the one at `at`. `chunks` is a multiple
// of 4, and the chunk at `at` is one of the first four of its row.
DEVICE u32 right_of(u32 at, u32 chunks) { return (at ^ (chunks % 8 * 4)) + chunks / 8 * 32; }

// Rows row_begin..row_end of a tensor, as an item reads them. `first` points to column 0 of
// row_begin; a row has `width` columns. `dense`: the elements of each row are contiguous, and the
// row starts at a multiple of 16 bytes.
struct Rows {
    const float* first;
    u64 row_step;
    u64 step;
    u32 row_begin;
    u32 row_end;
    u32 width;
    bool dense;
};

// The threads of a block share a tile: each loads one chunk of every PASS-th row.
template <u32 WIDTH> struct Share {
    static constexpr u32 CHUNKS = WIDTH / 4;
    static constexpr u32 PASS = THREADS / CHUNKS;
    static_assert(THREADS % CHUNKS == 0, "passes have whole rows");
};

// Starts to load ROWS rows, WIDTH columns from d_begin on, into a tile in shared memory. Elements
// beyond the last row or column become zeros. copy_wait must come before the calling thread's first
// use, and a barrier before that of other threads.
template <u32 ROWS, u32 WIDTH>
DEVICE void begin_load(float* tile, const Rows& rows, u32 d_begin, u32 thread) {
    constexpr u32 PASS = Share<WIDTH>::PASS;
    static_assert(ROWS % PASS == 0, "all passes are whole");
    forget(thread); // keeps the compiler from holding the addresses below from tile to tile
    const u32 chunk = thread % Share<WIDTH>::CHUNKS;
    const u32 d = d_begin + chunk * 4;
    const u32 r_begin = thread / Share<WIDTH>::CHUNKS;
    const u32 left = d < rows.width ? rows.width - d : 0;
    const float* from = rows.first + r_begin * rows.row_step + d * rows.step;
    if (rows.dense && rows.row_begin + ROWS <= rows.row_end && rows.width % 4 == 0 && left > 0) {
#pragma unroll
        for (u32 n = 0; n < ROWS; n += PASS) {
            // After whole groups of eight rows, chunks change places in the same way.
            copy16(
                PASS % 8 == 0 ? tile + place<WIDTH>(r_begin, chunk) + n * WIDTH
                              : tile + place<WIDTH>(r_begin + n, chunk),
                from
            );
            from += PASS * rows.row_step;
        }
        return;
    }
#pragma unroll 1
    for (u32 r = r_begin; r < ROWS; r += PASS) {
        const u32 here = rows.row_begin + r < rows.row_end ? left : 0;
        float* to = tile + place<WIDTH>(r, chunk);
        if (rows.dense) {
            copy16_padded(to, from, 4 * (here < 4 ? here : 4));
        } else {
            u64 at = 0;
#pragma unroll
            for (u32 c = 0; c < 4; c++) {
                copy4_padded(to + c, from + at, c < here ? 4 : 0);
                at += rows.step;
            }
        }
        from += PASS * rows.row_step;
    }
}

// Starts to load Q[row_begin .. row_begin + BR].
DEVICE void load_q(const Params& params, const Item& item, float* q_tile, u32 thread) {
    if (SPLIT) {
        // The rows of several heads. There are few.
        for (u32 n = thread; n < BR * Q_WIDTH; n += THREADS) {
            const u32 row = item.row_begin + n / Q_WIDTH;
            const u32 d = n % Q_WIDTH;
            float x = 0.0f;
            if (row < launch_row_end(params) && d < params.head_dim) {
                x = ((const float*)params.q)[q_row(params, item, row) + d * params.q_strides[3]];
            }
            q_tile[place<Q_WIDTH>(n / Q_WIDTH, d / 4) + d % 4] = x;
        }
        return;
    }
    const Rows rows = {
        (const float*)params.q + q_row(params, item, item.row_begin),
        params.q_strides[2],
        params.q_strides[3],
        item.row_begin,
        params.row_end,
        params.head_dim,
        (params.dense & 1u) != 0,
    };
    begin_load<BR, Q_WIDTH>(q_tile, rows, 0, thread);
}

// Starts to load K[j_begin .. j_begin + BC].
DEVICE void load_k(const Params& params, const Item& item, float* k_tile, u32 j_begin, u32 thread) {
    const Rows rows = {
        (const float*)params.k + k_row(params, item, j_begin),
        params.k_strides[2],
        params.k_strides[3],
        j_begin,
        item.kv_len,
        params.head_dim,
        (params.dense & 2u) != 0,
    };
    begin_load<BC, Q_WIDTH>(k_tile, rows, 0, thread);
}

// Starts to load V[j_begin .. j_begin + BC, d_begin .. d_begin + COLUMNS].
DEVICE void load_v(
    const Params& params, const Item& item, float* v_tile, u32 j_begin, u32 d_begin, u32 thread
) {
    const Rows rows = {
        (const float*)params.v + v_row(params, item, j_begin),
        params.v_strides[2],
        params.v_strides[3],
        j_begin,
        item.kv_len,
        params.head_dim_v,
        (params.dense & 4u) != 0,
    };
    begin_load<BC, COLUMNS>(v_tile, rows, d_begin, thread);
}

// Whether a number cannot be split: NaN, infinity, and finite numbers that round to infinity in
// TF32. An infinite high part leaves NaN for the low part.
DEVICE bool is_dirty_number(float x) { return (float_bits(x) & 0x7fffffffu) >= 0x7f7ff000u; }

// Whether what this thread has loaded of V contains such a number.
DEVICE bool is_dirty(const float* v_tile, u32 thread) {
    bool dirty = false;
#pragma unroll
    for (u32 n = 0; n < BC; n += Share<COLUMNS>::PASS) {
        const u32 row = thread / Share<COLUMNS>::CHUNKS + n;
        const u32 chunk = thread % Share<COLUMNS>::CHUNKS;
        const Four x = *(const Four*)(v_tile + place<COLUMNS>(row, chunk));
#pragma unroll
        for (u32 c = 0; c < 4; c++) {
            dirty = dirty || is_dirty_number(x.x[c]);
        }
    }
    return dirty;
}

// Replaces such numbers in this thread's share of V by zeros.
DEVICE void clean(float* v_tile, u32 thread) {
#pragma unroll 1
    for (u32 n = thread; n < V_ELEMS; n += THREADS) {
        float* x = v_tile + n;
        *x = is_dirty_number(*x) ? 0.0f : *x;
    }
}

// The high and the low part of a number. The high part is the nearest TF32 number; the low part is
// what that leaves, truncated to TF32. The last 13 bits of both are zeros. At least one part of
// NaN is NaN.
struct Halves {
    u32 hi;
    u32 lo;
};
DEVICE Halves halves(float x) {
    const u32 hi = (float_bits(x) + 0x1000u) & 0xffffe000u;
    return Halves{hi, float_bits(x - bits_float(hi)) & 0xffffe000u};
}

// The operands of a product over PART numbers: 16 rows of A, and 8 columns of B.
struct Left {
    u32 hi[2][4];
    u32 lo[2][4];
};
struct Right {
    u32 hi[2][2];
    u32 lo[2][2];
};

DEVICE void set_left(Left& to, u32 step, u32 word, float x) {
    const Halves parts = halves(x);
    to.hi[step][word] = parts.hi;
    to.lo[step][word] = parts.lo;
}

DEVICE void set_right(Right& to, u32 step, u32 word, float x) {
    const Halves parts = halves(x);
    to.hi[step][word] = parts.hi;
    to.lo[step][word] = parts.lo;
}

// A B. The products of low parts come first, while the sum is so small that truncation loses
// nothing of it.
DEVICE void multiply(float (&sum)[4], const Left& a, const Right& b) {
    const float zero[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    multiply_add_tf32(sum, a.lo[0], b.hi[0], zero);
    multiply_add_tf32(sum, a.hi[0], b.lo[0], sum);
    multiply_add_tf32(sum, a.lo[1], b.hi[1], sum);
    multiply_add_tf32(sum, a.hi[1], b.lo[1], sum);
    multiply_add_tf32(sum, a.hi[0], b.hi[0], sum);
    multiply_add_tf32(sum, a.hi[1], b.hi[1], sum);
}

// S += Q K^T over PART columns from d on. With `first`, S = Q K^T. A lane reads columns 4 t to
// 4 t + 3: two steps of eight columns take 4 t, 4 t + 1 and 4 t + 2, 4 t + 3 from it.
DEVICE void add_scores(
    float (&s)[MT][ST][4], const float* tiles, u32 q_at, u32 k_at, u32 d, bool first
) {
    Left a[MT];
#pragma unroll
    for (u32 n = 0; n < 2 * MT; n++) {
        const float* row = tiles + right_of(q_at, d / 4) + 8 * n * Q_WIDTH;
        const Four x = *(const Four*)row;
#pragma unroll
        for (u32 c = 0; c < 4; c++) {
            set_left(a[n / 2], c / 2, c % 2 * 2 + n % 2, x.x[c]);
        }
    }
#pragma unroll
    for (u32 n = 0; n < ST; n++) {
        const float* row = tiles + right_of(k_at, d / 4) + 8 * n * Q_WIDTH;
        const Four x = *(const Four*)row;
        Right b;
#pragma unroll
        for (u32 c = 0; c < 4; c++) {
            set_right(b, c / 2, c % 2, x.x[c]);
        }
#pragma unroll
        for (u32 r = 0; r < MT; r++) {
            float sum[4];
            multiply(sum, a[r], b);
#pragma unroll
            for (u32 c = 0; c < 4; c++) {
                s[r][n][c] = first ? sum[c] : s[r][n][c] + sum[c];
            }
        }
    }
}

// S = Q K^T. The warp's first query and the tile of K are at these offsets in shared memory.
DEVICE void compute_scores(
    float (&s)[MT][ST][4], const float* tiles, u32 q_at, u32 k_at, u32 lane
) {
    q_at += place<Q_WIDTH>(lane / 4, lane % 4);
    k_at += place<Q_WIDTH>(lane / 4, lane % 4);
    add_scores(s, tiles, q_at, k_at, 0, true);
#pragma unroll 1
    for (u32 d = PART; d < Q_WIDTH; d += PART) {
        add_scores(s, tiles, q_at, k_at, d, false);
    }
}

// The column of O that o[..][c][2 half + n] holds, counted from the first column of the block.
DEVICE u32 column_of(u32 c, u32 n, u32 lane) { return c / 4 * 32 + lane % 4 * 8 + n * 4 + c % 4; }

// O += P V. A lane's weights are those of keys 2 t and 2 t + 1, so its rows of V are these. It
// reads four columns at once, one for each of four groups of eight columns of O.
DEVICE void add_values(
    float (&o)[MT][OT][4], const float (&p)[MT][ST][4], const float* tiles, u32 v_at, u32 lane
) {
    const u32 even_at = v_at + place<COLUMNS>(lane % 4 * 2, lane / 4);
    const u32 odd_at = v_at + place<COLUMNS>(lane % 4 * 2 + 1, lane / 4);
#pragma unroll
    for (u32 j = 0; j < BC; j += PART) {
        warp_barrier(); // otherwise the compiler loads more of V ahead than registers can hold
        Left a[MT];
#pragma unroll
        for (u32 n = 0; n < MT * 8; n++) {
            const u32 word = n % 4;
            const float x = p[n / 8][j / 8 + n / 4 % 2][word];
            set_left(a[n / 8], n / 4 % 2, word % 2 * 2 + word / 2, x);
        }
#pragma unroll
        for (u32 column = 0; column < COLUMNS; column += 32) {
            Four x[2][2];
#pragma unroll
            for (u32 n = 0; n < 4; n++) {
                const u32 at = n % 2 == 0 ? even_at : odd_at;
                x[n / 2][n % 2] = *(const Four*)(tiles + at + (j + n / 2 * 8) * COLUMNS + column);
            }
#pragma unroll
            for (u32 c = 0; c < 4; c++) {
                Right b;
#pragma unroll
                for (u32 n = 0; n < 4; n++) {
                    set_right(b, n / 2, n % 2, x[n / 2][n % 2].x[c]);
                }
#pragma unroll
                for (u32 r = 0; r < MT; r++) {
                    float sum[4];
                    multiply(sum, a[r], b);
#pragma unroll
                    for (u32 n = 0; n < 4; n++) {
                        o[r][column / 8 + c][n] += sum[n];
                    }
                }
            }
        }
    }
}

// Adds what NaN, infinities and other numbers that cannot be split contribute to the rows that see
// them, and to no others. The caller can then clean V and multiply as usual.
DEVICE void add_dirty_values(
    const Params& params, const Item& item, float (&o)[MT][OT][4], const float (&p)[MT][ST][4],
    const float* v, u32 i_begin, u32 j_begin, u32 lane
) {
#pragma unroll 1
    for (u32 j = 0; j < BC; j++) {
#pragma unroll
        for (u32 n = 0; n < 2 * MT; n++) {
            // Registers cannot be indexed. Bit masks pick one of them, because compilers turn
            // conditional expressions back into an index.
            u32 mine = 0;
#pragma unroll
            for (u32 c = 0; c < 2 * ST; c++) {
                const u32 word = float_bits(p[n / 2][c / 2][n % 2 * 2 + c % 2]);
                mine |= word & (0u - (u32)(c == j / 8 * 2 + j % 2));
            }
            const float weight = bits_float(shuffle(mine, (lane & 28u) | (j % 8 / 2)));
            if (!contributes(params, item, i_begin + 8 * n + lane / 4, j_begin + j)) {
                continue;
            }
#pragma unroll
            for (u32 c = 0; c < 2 * OT; c++) {
                const u32 column = column_of(c / 2, c % 2, lane);
                const float x = v[place<COLUMNS>(j, column / 4) + column % 4];
                float& sum = o[n / 2][c / 2][n % 2 * 2 + c % 2];
                sum = is_dirty_number(x) ? fmaf(weight, x, sum) : sum;
            }
        }
    }
}

// The sum over the four lanes that share a row.
DEVICE float row_sum(float x) {
    x += shuffle_xor(x, 1);
    return x + shuffle_xor(x, 2);
}
