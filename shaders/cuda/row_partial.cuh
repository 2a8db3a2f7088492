// What a row of flash_split stores: O, m and l of the item's chunk. A row that sees no key of the
// chunk by position stores nothing, and the merge does not read it.
DEVICE bool row_is_stored(const Params& params, const Item& item, u32 r) {
    const Range visible = visible_keys(params, item, r);
    return visible.begin < visible.end;
}

DEVICE float row_factor(const Params& params, float l) { return 1.0f; }

DEVICE void store4_row(
    const Params& params, const Item& item, u32 r, u32 d, const float (&x)[4]
) {
    float* to = partial_row(params, item, r, item.chunk) + d;
    if (d + 4 <= params.head_dim_v) {
        *(Four*)to = Four{{x[0], x[1], x[2], x[3]}};
        return;
    }
#pragma unroll
    for (u32 c = 0; c < 3; c++) {
        if (d + c < params.head_dim_v) {
            to[c] = x[c];
        }
    }
}

DEVICE void store_sums(const Params& params, const Item& item, u32 r, float m, float l) {
    float* to = partial_row(params, item, r, item.chunk) + params.head_dim_v;
    to[0] = m;
    to[1] = l;
}
