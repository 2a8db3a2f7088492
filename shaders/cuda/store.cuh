// Stores up to four numbers of a row of out, from column d on. d is a multiple of 4.
DEVICE void store4_out(const Params& params, u64 row, u32 d, const float (&x)[4]) {
    elem* out = (elem*)params.out + row + d * params.out_strides[3];
    if ((params.dense & 8u) != 0 && d + 4 <= params.head_dim_v) {
#if defined(ELEM_F32)
        *(Four*)out = Four{{x[0], x[1], x[2], x[3]}};
#else
        struct alignas(8) Halves {
            elem x[4];
        };
        *(Halves*)out = Halves{{stored(x[0]), stored(x[1]), stored(x[2]), stored(x[3])}};
#endif
        return;
    }
#pragma unroll
    for (u32 c = 0; c < 4; c++) {
        if (d + c < params.head_dim_v) {
            out[c * params.out_strides[3]] = stored(x[c]);
        }
    }
}

DEVICE void store_lse(const Params& params, u64 index, u32 bits) {
    if (params.lse != nullptr) {
        ((u32*)params.lse)[index] = bits;
    }
}

#if !defined(ELEM_F32)
// Stores up to eight numbers of a row of out, from column d on. `x` is in shared memory; d is a
// multiple of 8.
DEVICE void store8_out(const Params& params, u64 row, u32 d, const elem* x) {
    elem* out = (elem*)params.out + row + d * params.out_strides[3];
    if ((params.dense & 8u) != 0 && d + 8 <= params.head_dim_v) {
        *(Four*)out = *(const Four*)x;
        return;
    }
    for (u32 c = 0; c < 8; c++) {
        if (d + c < params.head_dim_v) {
            out[c * params.out_strides[3]] = x[c];
        }
    }
}
#endif
