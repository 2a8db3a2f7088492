// Reads of tensor TENSOR, stored as f32 or bf16, for matrix units, which multiply f16.
fn TENSOR_is_dense(base: u32) -> bool {
    return params.TENSOR_strides.w == 1u && WIDTH % 8u == 0u;
}

// Eight numbers of a row of TENSOR from column d on, rounded; zeros beyond its width.
fn load8_TENSOR(row: u32, d: u32, dense: bool) -> Eight {
    var low = vec4<f32>();
    var high = vec4<f32>();
    let step = params.TENSOR_strides.w;
    let at = row + d * step;
    if (dense) {
        if (d < WIDTH) {
            low.x = load_TENSOR(at);
            low.y = load_TENSOR(at + 1u);
            low.z = load_TENSOR(at + 2u);
            low.w = load_TENSOR(at + 3u);
            high.x = load_TENSOR(at + 4u);
            high.y = load_TENSOR(at + 5u);
            high.z = load_TENSOR(at + 6u);
            high.w = load_TENSOR(at + 7u);
        }
        return Eight(to_f16(low), to_f16(high));
    }
    if (d < WIDTH) {
        low.x = load_TENSOR(at);
    }
    if (d + 1u < WIDTH) {
        low.y = load_TENSOR(at + step);
    }
    if (d + 2u < WIDTH) {
        low.z = load_TENSOR(at + 2u * step);
    }
    if (d + 3u < WIDTH) {
        low.w = load_TENSOR(at + 3u * step);
    }
    if (d + 4u < WIDTH) {
        high.x = load_TENSOR(at + 4u * step);
    }
    if (d + 5u < WIDTH) {
        high.y = load_TENSOR(at + 5u * step);
    }
    if (d + 6u < WIDTH) {
        high.z = load_TENSOR(at + 6u * step);
    }
    if (d + 7u < WIDTH) {
        high.w = load_TENSOR(at + 7u * step);
    }
    return Eight(to_f16(low), to_f16(high));
}
