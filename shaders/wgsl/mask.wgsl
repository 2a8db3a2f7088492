// The mask's entry for row r and key j as the bits of an f32; 0 outside the score matrix.
fn mask_at(item: Item, r: u32, j: u32) -> u32 {
    if (r >= part_row_end() || j >= item.kv_len) {
        return 0u;
    }
    return mask_bits(mask_row(item, r) + part_key(j) * params.mask_strides.w);
}

// The entries for keys j ..= j + 3.
fn mask4(item: Item, r: u32, j: u32) -> vec4<u32> {
    return vec4<u32>(
        mask_at(item, r, j),
        mask_at(item, r, j + 1u),
        mask_at(item, r, j + 2u),
        mask_at(item, r, j + 3u),
    );
}
