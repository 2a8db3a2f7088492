// The mask's entry for query i and key j as the bits of an f32; 0 outside the score matrix.
fn mask_at(item: Item, i: u32, j: u32) -> u32 {
    if (i >= params.row_end || j >= item.kv_len) {
        return 0u;
    }
    let row = item.mask_base + (i - params.row_begin) * params.mask_strides.z;
    return mask_bits(row + j * params.mask_strides.w);
}

// The entries for keys j ..= j + 3.
fn mask4(item: Item, i: u32, j: u32) -> vec4<u32> {
    return vec4<u32>(
        mask_at(item, i, j),
        mask_at(item, i, j + 1u),
        mask_at(item, i, j + 2u),
        mask_at(item, i, j + 3u),
    );
}
