// What the 32 lanes of a warp do together. Every lane leaves what it brings and waits; when all are there, the scheduler does it for all.
namespace emulation {

// Four 8 x 8 matrices of 16-bit numbers, by the layout that PTX documents for ldmatrix: lane 8 n + r says where row r of matrix n begins, and lane
// 4 g + t receives of each matrix columns 2 t and 2 t + 1 of row g, or rows 2 t and 2 t + 1 of column g where it is transposed.
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

// C += A B by the layouts that PTX documents for mma.m16n8k16, and for m16n8k8 where `depth` is 8. x holds c in 0 to 3, a from 4 on, b from 8 on.
// Products are exact, and summed in f32: of each eight ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)), to which c comes last; then the other eight.
static void multiply_add(Thread* lane, u32 depth) {
    float a[16][16];
    float b[8][16]; // columns of B
    const bool bf16 = block.launch->bf16 != 0;
    const auto low = [=](u32 x) { return bf16 ? bits_float(x << 16) : f16_value(x & 0xffffu); };
    const auto high = [=](u32 x) { return bf16 ? bits_float(x & 0xffff0000u) : f16_value(x >> 16); };
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
    for (u32 to = 0; to < WARP; to++) {
        for (u32 n = 0; n < 4; n++) {
            const float* row = a[to / 4 + n / 2 * 8];
            const float* column = b[to % 4 * 2 + n % 2];
            float c = bits_float(lane[to].x[n]);
            for (u32 k = 0; k < depth; k += 8) {
                float p[8];
                for (u32 i = 0; i < 8; i++) {
                    p[i] = row[k + i] * column[k + i];
                }
                c += ((p[0] + p[1]) + (p[2] + p[3])) + ((p[4] + p[5]) + (p[6] + p[7]));
            }
            lane[to].x[n] = float_bits(c);
        }
    }
}

// Does what all lanes of a warp wait for.
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

template <u32 A, u32 B> static void multiply_together(float (&c)[4], const u32 (&a)[A], const u32 (&b)[B], Meeting meeting, u32 line) {
    Thread& thread = current();
    memcpy(thread.x, c, sizeof c);
    memcpy(thread.x + 4, a, sizeof a);
    memcpy(thread.x + 8, b, sizeof b);
    memcpy(c, meet(meeting, line).x, sizeof c);
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

DEVICE void load_matrix4(u32 (&x)[4], const void* row, u32 line = __builtin_LINE()) {
    emulation::load_matrix(x, row, emulation::Meeting::LoadMatrix, line);
}

DEVICE void load_matrix4_transposed(u32 (&x)[4], const void* row, u32 line = __builtin_LINE()) {
    emulation::load_matrix(x, row, emulation::Meeting::LoadMatrixTransposed, line);
}

DEVICE void multiply_add_16x8x16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, u32 line = __builtin_LINE()) {
    const u32 b[2] = {b0, b1};
    emulation::multiply_together(c, a, b, emulation::Meeting::MultiplyAdd, line);
}

DEVICE void multiply_add_16x8x8(float (&c)[4], u32 a0, u32 a1, u32 b, u32 line = __builtin_LINE()) {
    const u32 a[2] = {a0, a1};
    const u32 all_of_b[1] = {b};
    emulation::multiply_together(c, a, all_of_b, emulation::Meeting::MultiplyAddHalf, line);
}
