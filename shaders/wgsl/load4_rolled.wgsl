// Four numbers of a row of TENSOR from column d on, zeros beyond its width. One load in a loop,
// which is quick to compile.
fn load4_TENSOR(row: u32, d: u32) -> vec4<f32> {
    let at = row + d * params.TENSOR_strides.w;
    var x = vec4<f32>(0.0);
    for (var c = 0u; c < min(4u, WIDTH - min(d, WIDTH)); c++) {
        x[c] = load_TENSOR(at + c * params.TENSOR_strides.w);
    }
    return x;
}
