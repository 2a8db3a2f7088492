// What a row of FlashForward stores: O / l, and lse = m + ln l.
fn row_is_stored(item: Item, r: u32) -> bool {
    return r < part_row_end();
}

// A row that sees any key has l >= 1. The others are 0, with an lse of -inf.
fn row_factor(l: f32) -> f32 {
    return select(params.keep_scale / l, 0.0, l == 0.0);
}

fn store_sums(item: Item, r: u32, m: f32, l: f32) {
    store_lse(lse_row(item, r), select(bitcast<u32>(m + ln(l)), NEG_INF, l == 0.0));
}
