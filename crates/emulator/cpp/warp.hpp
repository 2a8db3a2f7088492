// The operations that the 32 lanes of a warp do together. Each lane stores its inputs and waits.
// Once all lanes wait, the scheduler does the operation for all of them.
namespace emulation {

// Loads four 8 x 8 matrices of 16-bit numbers, in the layout that PTX documents for ldmatrix. Lane
// 8 n + r gives the address of row r of matrix n. From each matrix, lane 4 g + t receives columns 2
// t and 2 t + 1 of row g; with transposed matrices, rows 2 t and 2 t + 1 of column g.
static void load_matrices(Thread* lane, bool transposed) {
    for (u32 n = 0; n < 4; n++) {
        u16 matrix[8][8];
        for (u32 r = 0; r < 8; r++) {
            memcpy(matrix[r], lane[8 * n + r].pointer, 16);
        }
        for (u32 to = 0; to < WARP; to++) {
            const u32 g = to / 4;
            const u32 t = to % 4;
            const u32 low = transposed ? matrix[2 * t][g] : matrix[g][2 * t];
            const u32 high = transposed ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
            lane[to].x[n] = low | high << 16;
        }
    }
}

// C += A B for `depth` columns of A, with the bits of each lane's C in x from 0 on. B is in memory
// column by column. A truncated step adds `products` products.
static void add_matrices(Thread* lane, const float (&a)[16][16], const float (&b)[8][16], u32 depth,
                         u32 products, i32 min_exponent) {
    Split split_a[16][16];
    Split split_b[8][16];
    bool finite_a[16];
    bool finite_b[8];
    if (products != 0) {
        for (u32 row = 0; row < 16; row++) {
            finite_a[row] = split_all(split_a[row], a[row], depth, min_exponent);
        }
        for (u32 column = 0; column < 8; column++) {
            finite_b[column] = split_all(split_b[column], b[column], depth, min_exponent);
        }
    }
    for (u32 to = 0; to < WARP; to++) {
        for (u32 n = 0; n < 4; n++) {
            const u32 row = to / 4 + n / 2 * 8;
            const u32 column = to % 4 * 2 + n % 2;
            const bool finite = finite_a[row] && finite_b[column];
            const Operands of{a[row], b[column], split_a[row], split_b[column], finite};
            const float c = bits_float(lane[to].x[n]);
            lane[to].x[n] = float_bits(add_products(c, of, depth, products));
        }
    }
}

// D = A B + C, in the layouts that PTX documents for mma.m16n8k16, and for m16n8k8 if `depth` is 8.
// x holds C from 0 on, A from 4 on and B from 8 on.
static void multiply_add(Thread* lane, u32 depth) {
    float a[16][16];
    float b[8][16];
    const bool bf16 = block.launch->bf16 != 0;
    const auto value = [=](u32 half) { return bf16 ? bits_float(half << 16) : f16_value(half); };
    const auto low = [=](u32 x) { return value(x & 0xffffu); };
    const auto high = [=](u32 x) { return value(x >> 16); };
    for (u32 from = 0; from < WARP; from++) {
        const u32 g = from / 4;
        const u32 t = from % 4;
        const u32* x = lane[from].x;
        for (u32 n = 0; n < depth / 4; n++) {
            a[g + n % 2 * 8][2 * t + n / 2 * 8] = low(x[4 + n]);
            a[g + n % 2 * 8][2 * t + n / 2 * 8 + 1] = high(x[4 + n]);
        }
        for (u32 n = 0; n < depth / 8; n++) {
            b[g][2 * t + 8 * n] = low(x[8 + n]);
            b[g][2 * t + 8 * n + 1] = high(x[8 + n]);
        }
    }
    add_matrices(lane, a, b, depth, block.launch->sum_products, bf16 ? -126 : -14);
}

// The same for mma.m16n8k8 with TF32, whose truncated steps add half as many products.
static void multiply_add_tf32(Thread* lane) {
    float a[16][16];
    float b[8][16];
    for (u32 from = 0; from < WARP; from++) {
        const u32 g = from / 4;
        const u32 t = from % 4;
        const u32* x = lane[from].x;
        for (u32 n = 0; n < 4; n++) {
            a[g + n % 2 * 8][t + n / 2 * 4] = bits_float(x[4 + n]);
        }
        b[g][t] = bits_float(x[8]);
        b[g][t + 4] = bits_float(x[9]);
    }
    add_matrices(lane, a, b, 8, block.launch->sum_products / 2, -126);
}

// Does the operation that all lanes of a warp wait for.
static void do_together(Thread* lane) {
    u32 before[WARP];
    u32 any = 0;
    for (u32 n = 0; n < WARP; n++) {
        before[n] = lane[n].x[0];
        any |= before[n];
    }
    switch (lane[0].meeting) {
    case Meeting::ShuffleXor:
        for (u32 n = 0; n < WARP; n++) {
            lane[n].x[0] = before[(n ^ lane[n].x[1]) % WARP];
        }
        break;
    case Meeting::Shuffle:
        for (u32 n = 0; n < WARP; n++) {
            lane[n].x[0] = before[lane[n].x[1] % WARP];
        }
        break;
    case Meeting::Any:
        for (u32 n = 0; n < WARP; n++) {
            lane[n].x[0] = any;
        }
        break;
    case Meeting::LoadMatrix:
        load_matrices(lane, false);
        break;
    case Meeting::LoadMatrixTransposed:
        load_matrices(lane, true);
        break;
    case Meeting::MultiplyAdd:
        multiply_add(lane, 16);
        break;
    case Meeting::MultiplyAddHalf:
        multiply_add(lane, 8);
        break;
    case Meeting::MultiplyAddTf32:
        multiply_add_tf32(lane);
        break;
    case Meeting::WarpBarrier:
    case Meeting::Barrier:
    case Meeting::BarrierAny:
        break;
    }
}

static void load_matrix(u32 (&x)[4], const void* row, Meeting meeting, u32 line) {
    if (!are_shared(row, 16, line, "a row of a matrix")) {
        leave();
    }
    current().pointer = (const u8*)row;
    memcpy(x, meet(meeting, line).x, sizeof x);
}

template <u32 A, u32 B>
static void multiply_together(float (&d)[4], const u32 (&a)[A], const u32 (&b)[B],
                              const float (&c)[4], Meeting meeting, u32 line) {
    Thread& thread = current();
    memcpy(thread.x, c, sizeof c);
    memcpy(thread.x + 4, a, sizeof a);
    memcpy(thread.x + 8, b, sizeof b);
    memcpy(d, meet(meeting, line).x, sizeof d);
}

} // namespace emulation

DEVICE float shuffle_xor(float x, u32 lanes, u32 line = __builtin_LINE()) {
    emulation::current().x[0] = float_bits(x);
    emulation::current().x[1] = lanes;
    return bits_float(emulation::meet(emulation::Meeting::ShuffleXor, line).x[0]);
}

DEVICE u32 shuffle(u32 x, u32 lane, u32 line = __builtin_LINE()) {
    emulation::current().x[0] = x;
    emulation::current().x[1] = lane;
    return emulation::meet(emulation::Meeting::Shuffle, line).x[0];
}

DEVICE bool warp_any(bool mine, u32 line = __builtin_LINE()) {
    emulation::current().x[0] = mine;
    return emulation::meet(emulation::Meeting::Any, line).x[0] != 0;
}

DEVICE void warp_barrier(u32 line = __builtin_LINE()) {
    emulation::meet(emulation::Meeting::WarpBarrier, line);
}

DEVICE void load_matrix4(u32 (&x)[4], const void* row, u32 line = __builtin_LINE()) {
    emulation::load_matrix(x, row, emulation::Meeting::LoadMatrix, line);
}

DEVICE void load_matrix4_transposed(u32 (&x)[4], const void* row, u32 line = __builtin_LINE()) {
    emulation::load_matrix(x, row, emulation::Meeting::LoadMatrixTransposed, line);
}

// As in device.cuh, for the generation whose sums are emulated.
DEVICE u32 sum_depth() {
    const u32 products = emulation::block.launch->sum_products;
    return products != 0 ? 8 * products : 64;
}

DEVICE void multiply_add_16x8x16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1,
                                 const float (&c)[4], u32 line = __builtin_LINE()) {
    const u32 b[2] = {b0, b1};
    emulation::multiply_together(d, a, b, c, emulation::Meeting::MultiplyAdd, line);
}

DEVICE void multiply_add_16x8x8(float (&d)[4], u32 a0, u32 a1, u32 b, const float (&c)[4],
                                u32 line = __builtin_LINE()) {
    const u32 a[2] = {a0, a1};
    const u32 all_of_b[1] = {b};
    emulation::multiply_together(d, a, all_of_b, c, emulation::Meeting::MultiplyAddHalf, line);
}

DEVICE void multiply_add_tf32(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2],
                              const float (&c)[4], u32 line = __builtin_LINE()) {
    // What a tensor core makes of the last 13 bits of an f32 is not defined.
    if (((a[0] | a[1] | a[2] | a[3] | b[0] | b[1]) & 0x1fffu) != 0) {
        emulation::report(line, 0, "thread %u: an operand is not a number of TF32",
                          emulation::current().index);
        emulation::leave();
    }
    emulation::multiply_together(d, a, b, c, emulation::Meeting::MultiplyAddTf32, line);
}
