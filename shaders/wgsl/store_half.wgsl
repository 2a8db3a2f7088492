// Stores up to four numbers of a row of out from column d on, as 16-bit numbers, two per word.
// Where rows or strides are odd, the other half of a word may belong to another workgroup or to
// memory that must not change, so only the bits of this half are changed, atomically.
fn store4_out(row: u32, d: u32, x: vec4<f32>) {
    let step = params.out_strides.w;
    let at = row + d * step;
    let count = min(4u, params.head_dim_v - d);
    if (count == 4u && step == 1u && at % 2u == 0u) {
        atomicStore(&out[at / 2u], HALF_bits(x.x) | (HALF_bits(x.y) << 16u));
        atomicStore(&out[at / 2u + 1u], HALF_bits(x.z) | (HALF_bits(x.w) << 16u));
        return;
    }
    for (var c = 0u; c < count; c++) {
        let index = at + c * step;
        let shift = index % 2u * 16u;
        atomicAnd(&out[index / 2u], ~(0xffffu << shift));
        atomicOr(&out[index / 2u], HALF_bits(x[c]) << shift);
    }
}
