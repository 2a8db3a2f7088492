// What the kernels on TF32 need beyond device.cuh. The emulator replaces this file too.
#ifndef FLASHTILE_EMULATED
// D = A B + C on tensor cores. A is 16 x 8 and B 8 x 8, both in TF32; C and D are 16 x 8 in f32.
// With g = lane / 4 and t = lane % 4, a lane holds
//   A[g][t], A[g + 8][t], A[g][t + 4], A[g + 8][t + 4];
//   B[t][g], B[t + 4][g];
//   C[g][2t], C[g][2t + 1], C[g + 8][2t], C[g + 8][2t + 1].
DEVICE void multiply_add_tf32(
    float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], const float (&c)[4]
) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]),
          "f"(c[2]), "f"(c[3]));
}

// A barrier for the lanes of a warp, which no load passes.
DEVICE void warp_barrier() { asm volatile("bar.warp.sync 0xffffffff;" ::: "memory"); }
#endif // FLASHTILE_EMULATED
