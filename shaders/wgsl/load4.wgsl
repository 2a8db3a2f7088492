// Four numbers of a row of TENSOR from column d on, zeros beyond its width.
fn load4_TENSOR(row: u32, d: u32) -> vec4<f32> {
    let step = params.TENSOR_strides.w;
    let at = row + d * step;
    var x = vec4<f32>(0.0);
    if (BY_FOUR) { // known when the pipeline is compiled: one branch remains
        if (d < WIDTH) {
            x = vec4<f32>(
                load_TENSOR(at),
                load_TENSOR(at + step),
                load_TENSOR(at + 2u * step),
                load_TENSOR(at + 3u * step),
            );
        }
    } else {
        // Written out: some compilers reject a component whose index is only known at run time.
        if (d < WIDTH) {
            x.x = load_TENSOR(at);
        }
        if (d + 1u < WIDTH) {
            x.y = load_TENSOR(at + step);
        }
        if (d + 2u < WIDTH) {
            x.z = load_TENSOR(at + 2u * step);
        }
        if (d + 3u < WIDTH) {
            x.w = load_TENSOR(at + 3u * step);
        }
    }
    return x;
}
