// The mask's entries for query i and keys j ..= j + 3, each as the bits of an f32; zeros where there is no such score.
fn mask4(item: Item, i: u32, j: u32) -> vec4<u32> {
    var bias = vec4<u32>(0u);
    if (i >= params.row_end) {
        return bias;
    }
    let row = item.mask_base + (i - params.row_begin) * params.mask_strides.z;
    for (var c = 0u; c < 4u; c++) {
        if (j + c < item.kv_len) {
            bias[c] = mask_bits(row + (j + c) * params.mask_strides.w);
        }
    }
    return bias;
}
