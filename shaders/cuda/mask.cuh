// Entry `index` of the mask as the bits of an f32; a false is -inf.
DEVICE u32 mask_bits(const Params& params, u64 index) {
    switch (params.mask_kind) {
    case 1:
        return ((const u8*)params.mask)[index] != 0 ? 0u : NEG_INF;
    case 2:
        return ((const u32*)params.mask)[index];
    case 3:
        return float_bits(f16_value(((const u16*)params.mask)[index]));
    default:
        return (u32)((const u16*)params.mask)[index] << 16;
    }
}

// The mask's entry for query i and key j as the bits of an f32; zero where there is no such score.
DEVICE u32 mask_at(const Params& params, const Item& item, u32 i, u32 j) {
    if (!GENERAL || params.mask_kind == 0 || i >= params.row_end || j >= item.kv_len) {
        return 0u;
    }
    return mask_bits(params, mask_row(params, item, i) + j * params.mask_strides[3]);
}

// Whether key j contributes to query i: neither masked nor dropped.
DEVICE bool contributes(const Params& params, const Item& item, u32 i, u32 j) {
    if (!allowed(params, item, i, j, mask_at(params, item, i, j))) {
        return false;
    }
    return !GENERAL || params.dropout == 0 || kept(params, dropout_word(params, item, i, j));
}
