// Reads of tensor TENSOR, stored as f16, two to a word.
fn load_TENSOR(index: u32) -> f16 {
    let word = TENSOR[index / 2u];
    return select(word.x, word.y, index % 2u == 1u);
}

// Whether rows consist of whole words, and of blocks of eight numbers. `base` is the element index
// of the head's first row.
fn TENSOR_is_dense(base: u32) -> bool {
    return params.TENSOR_strides.w == 1u
        && (base | params.TENSOR_strides.z) % 2u == 0u
        && WIDTH % 8u == 0u;
}

// Eight numbers of a row of TENSOR from column d on, zeros beyond its width.
fn load8_TENSOR(row: u32, d: u32, dense: bool) -> Eight {
    var x = Eight();
    if (dense) {
        if (d < WIDTH) {
            let at = (row + d) / 2u;
            x.low = vec4<f16>(TENSOR[at], TENSOR[at + 1u]);
            x.high = vec4<f16>(TENSOR[at + 2u], TENSOR[at + 3u]);
        }
        return x;
    }
    let step = params.TENSOR_strides.w;
    let at = row + d * step;
    if (d < WIDTH) {
        x.low.x = load_TENSOR(at);
    }
    if (d + 1u < WIDTH) {
        x.low.y = load_TENSOR(at + step);
    }
    if (d + 2u < WIDTH) {
        x.low.z = load_TENSOR(at + 2u * step);
    }
    if (d + 3u < WIDTH) {
        x.low.w = load_TENSOR(at + 3u * step);
    }
    if (d + 4u < WIDTH) {
        x.high.x = load_TENSOR(at + 4u * step);
    }
    if (d + 5u < WIDTH) {
        x.high.y = load_TENSOR(at + 5u * step);
    }
    if (d + 6u < WIDTH) {
        x.high.z = load_TENSOR(at + 6u * step);
    }
    if (d + 7u < WIDTH) {
        x.high.w = load_TENSOR(at + 7u * step);
    }
    return x;
}
