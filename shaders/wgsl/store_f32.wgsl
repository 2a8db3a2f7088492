// Stores up to four numbers of a row of out from column d on, as f32.
fn store4_out(row: u32, d: u32, x: vec4<f32>) {
    let at = row + d * params.out_strides.w;
    for (var c = 0u; c < min(4u, params.head_dim_v - d); c++) {
        out[at + c * params.out_strides.w] = bitcast<u32>(x[c]);
    }
}
