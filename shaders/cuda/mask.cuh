// The values of params.mask_kind.
enum MaskKind { NO_MASK, BOOL_MASK, F32_MASK, F16_MASK, BF16_MASK };

// Whether masks of this kind are added to scores.
constexpr bool has_bias(u32 kind) { return kind != NO_MASK && kind != BOOL_MASK; }

// Entry `index` of a mask as the bits of an f32. A false entry is -inf.
template <u32 KIND> DEVICE u32 mask_bits(const void* mask, u64 index) {
    switch (KIND) {
    case BOOL_MASK:
        return ((const u8*)mask)[index] != 0 ? 0u : NEG_INF;
    case F32_MASK:
        return ((const u32*)mask)[index];
    case F16_MASK:
        return float_bits(f16_value(((const u16*)mask)[index]));
    case BF16_MASK:
        return (u32)((const u16*)mask)[index] << 16;
    default:
        return 0u;
    }
}

// The mask's entry for row r and key j as the bits of an f32. Zero beyond the mask's bounds.
template <u32 KIND> DEVICE u32 mask_at(const Params& params, const Item& item, u32 r, u32 j) {
    if (KIND == NO_MASK || r >= launch_row_end(params) || j >= item.kv_len) {
        return 0u;
    }
    return mask_bits<KIND>(params.mask, mask_row(params, item, r) + j * params.mask_strides[3]);
}

// Calls `f` with the mask's kind as a compile-time constant, so that a loop inside `f` does not
// branch on it for every score.
template <typename F> DEVICE void with_mask_kind(const Params& params, F f) {
    switch (GENERAL ? params.mask_kind : NO_MASK) {
    case BOOL_MASK:
        return f(Constant<BOOL_MASK>());
    case F32_MASK:
        return f(Constant<F32_MASK>());
    case F16_MASK:
        return f(Constant<F16_MASK>());
    case BF16_MASK:
        return f(Constant<BF16_MASK>());
    default:
        return f(Constant<NO_MASK>());
    }
}

// Whether key j contributes to query i: it is visible, not masked and not dropped.
DEVICE bool contributes(const Params& params, const Item& item, u32 i, u32 j) {
    u32 bias = 0;
    with_mask_kind(params, [&](auto kind) { bias = mask_at<kind.VALUE>(params, item, i, j); });
    if (!allowed(visible_keys(params, item, i), j, bias)) {
        return false;
    }
    return !GENERAL || params.dropout == 0 || kept(params, dropout_word(params, item, i, j));
}
