// Four numbers of a row of TENSOR from column d on, zeros beyond its width.
fn load4_TENSOR(row: u32, d: u32) -> vec4<f32> {
    let step = params.TENSOR_strides.w;
    let at = row + d * step;
    var x = vec4<f32>(0.0);
    if (BY_FOUR) { // known when the pipeline is made: only one branch is ever compiled
        if (d < WIDTH) {
            x = vec4<f32>(load_TENSOR(at), load_TENSOR(at + step), load_TENSOR(at + 2u * step), load_TENSOR(at + 3u * step));
        }
    } else {
        for (var c = 0u; c < 4u; c++) {
            if (d + c < WIDTH) {
                x[c] = load_TENSOR(at + c * step);
            }
        }
    }
    return x;
}
