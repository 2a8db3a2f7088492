// Everything that the kernels need beyond plain C++. The emulator replaces this file by
// crates/emulator/cpp to run the kernels on a CPU.
#ifndef FLASHTILE_EMULATED
typedef int i32;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
typedef unsigned long long u64;

// No kernel calls all of these functions.
#pragma nv_diag_suppress 177

#define DEVICE static __device__ __forceinline__
#if __CUDA_ARCH__ >= 700
#define KERNEL_PARAMS const __grid_constant__ Params params // read in place, never copied
#else
#define KERNEL_PARAMS const Params params
#endif
#define KERNEL(name) \
    extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) name(KERNEL_PARAMS)

DEVICE u32 block_index() { return blockIdx.x; }
DEVICE u32 thread_x() { return threadIdx.x; } // the fastest index
DEVICE u32 thread_y() { return threadIdx.y; }

// The block's dynamic shared memory. It starts in the first bank.
DEVICE u8* shared_memory() {
    extern __shared__ __align__(128) u8 shared_bytes[];
    return shared_bytes;
}

DEVICE void barrier() { __syncthreads(); }

// A barrier that returns to every thread of the block whether `mine` is true for any of them.
DEVICE bool barrier_any(bool mine) { return __syncthreads_or(mine) != 0; }

// Exchanges between the 32 lanes of a warp, all of which must take part.
DEVICE float shuffle_xor(float x, u32 lanes) { return __shfl_xor_sync(0xffffffffu, x, lanes); }
DEVICE u32 shuffle(u32 x, u32 lane) { return __shfl_sync(0xffffffffu, x, lane); }
DEVICE bool warp_any(bool mine) { return __any_sync(0xffffffffu, mine) != 0; }

DEVICE u32 float_bits(float x) { return __float_as_uint(x); }
DEVICE float bits_float(u32 x) { return __uint_as_float(x); }

// Hides from the compiler how a number was computed, so that it neither computes nor keeps what
// follows from the number ahead of time.
DEVICE void forget(u32& x) { asm volatile("" : "+r"(x)); }
DEVICE void forget(u64& x) { asm volatile("" : "+l"(x)); }

DEVICE u32 multiply_high(u32 a, u32 b) { return __umulhi(a, b); }

// 2^x to 2 ulp, or 0 where that would be subnormal.
DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Conversions to and from f16, rounded to nearest even. Numbers from 65520 on become infinity.
DEVICE float f16_value(u32 bits) {
    float x;
    asm("{ .reg .b16 h; cvt.u16.u32 h, %1; cvt.f32.f16 %0, h; }" : "=f"(x) : "r"(bits & 0xffffu));
    return x;
}
DEVICE u32 f16_bits(float x) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

// Two numbers in one word, the first in the low half.
DEVICE u32 f16_pair(float low, float high) {
#if __CUDA_ARCH__ >= 800
    u32 bits;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
#else
    return f16_bits(low) | (f16_bits(high) << 16);
#endif
}
#if __CUDA_ARCH__ >= 800
DEVICE u32 bf16_pair(float low, float high) {
    u32 bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}
#endif

// Copies 16 bytes to shared memory. Both addresses are multiples of 16. The calling thread can
// read the copy after copy_wait, other threads after a barrier that follows it.
DEVICE void copy16(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
    u32 to = (u32)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                 :
                 : "r"(to), "l"(global)
                 : "memory");
#else
    *(uint4*)shared = *(const uint4*)global;
#endif
}

// As copy16, but copies only the first `bytes` bytes and fills the rest with zeros. This takes
// several more instructions.
DEVICE void copy16_padded(void* shared, const void* global, u32 bytes) {
#if __CUDA_ARCH__ >= 800
    u32 to = (u32)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(to), "l"(global), "r"(bytes)
                 : "memory");
#else
    if (bytes == 16) {
        *(uint4*)shared = *(const uint4*)global;
        return;
    }
    *(uint4*)shared = make_uint4(0, 0, 0, 0);
#pragma unroll 1
    for (u32 n = 0; n < bytes / 2; n++) {
        ((u16*)shared)[n] = ((const u16*)global)[n];
    }
#endif
}

// As copy16_padded, but for four bytes. Both addresses are multiples of 4.
DEVICE void copy4_padded(void* shared, const void* global, u32 bytes) {
#if __CUDA_ARCH__ >= 800
    u32 to = (u32)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :
                 : "r"(to), "l"(global), "r"(bytes)
                 : "memory");
#else
    const u32 short_copy = bytes == 2 ? *(const u16*)global : 0u;
    *(u32*)shared = bytes == 4 ? *(const u32*)global : short_copy;
#endif
}

// Ends a group of copies.
DEVICE void copy_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for all groups except the last `LATEST`.
template <int LATEST> DEVICE void copy_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(LATEST) : "memory");
#endif
}

// Loads four 8 x 8 matrices of 16-bit numbers from shared memory into the registers of a warp.
// Lanes 0 to 7 pass the addresses of the rows of the first matrix, lanes 8 to 15 those of the
// second, and so on. Every row is 16 aligned bytes. Lane 4 g + t receives columns 2 t and 2 t + 1
// of row g, the first in the low half; if transposed, rows 2 t and 2 t + 1 of column g.
DEVICE void load_matrix4(u32 (&x)[4], const void* row) {
    u32 from = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(from)
                 : "memory");
}
DEVICE void load_matrix4_transposed(u32 (&x)[4], const void* row) {
    u32 from = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(from)
                 : "memory");
}

// How many products of a dot product tensor cores sum. They truncate every sum. In a longer one the
// loss may exceed the error bound; crates/emulator/src/sums.rs describes the generations.
#if __CUDA_ARCH__ >= 900
DEVICE constexpr u32 sum_depth() { return 128; }
#elif __CUDA_ARCH__ >= 800
DEVICE constexpr u32 sum_depth() { return 64; }
#else
DEVICE constexpr u32 sum_depth() { return 32; }
#endif

// D = A B + C on tensor cores. A is 16 x 16 and B 16 x 8, both of the storage type; C and D are
// 16 x 8 in f32. With g = lane / 4 and t = lane % 4, a lane holds
//   A[g][2t, 2t + 1], A[g + 8][2t, 2t + 1], A[g][2t + 8, 2t + 9], A[g + 8][2t + 8, 2t + 9];
//   B[2t, 2t + 1][g], B[2t + 8, 2t + 9][g];
//   C[g][2t], C[g][2t + 1], C[g + 8][2t], C[g + 8][2t + 1].
#if __CUDA_ARCH__ >= 800
DEVICE void multiply_add_16x8x16(
    float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, const float (&c)[4]
) {
#if defined(ELEM_BF16)
#define MMA_16X8X16 "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"
#else
#define MMA_16X8X16 "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
#endif
    asm(MMA_16X8X16 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]),
          "f"(c[2]), "f"(c[3]));
}
#else
// Turing has the instruction for f16 only, and with half the depth: it takes the first two words of
// A and the first word of B.
#define TENSOR_DEPTH_8
DEVICE void multiply_add_16x8x8(
    float (&d)[4], u32 a0, u32 a1, u32 b, const float (&c)[4]
) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a0), "r"(a1), "r"(b), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}
#endif
#endif // FLASHTILE_EMULATED
