// What a row of flash_forward stores: O / l, and lse = m + ln l.
DEVICE bool row_is_stored(const Params& params, const Item& item, u32 r) {
    return r < launch_row_end(params);
}

// A row that sees any key has l >= 1. The others are 0, with an lse of -inf.
DEVICE float row_factor(const Params& params, float l) {
    return l == 0.0f ? 0.0f : params.keep_scale / l;
}

DEVICE void store4_row(
    const Params& params, const Item& item, u32 r, u32 d, const float (&x)[4]
) {
    store4_out(params, out_row(params, item, r), d, x);
}

DEVICE void store_sums(const Params& params, const Item& item, u32 r, float m, float l) {
    const u32 lse = l == 0.0f ? NEG_INF : float_bits(m + ln(l));
    store_lse(params, lse_row(params, item, r), lse);
}
