// What a row of FlashSplit stores: O, m and l of the item's chunk. A row that sees no key of the
// chunk by position stores nothing, and the merge does not read it.
fn row_is_stored(item: Item, r: u32) -> bool {
    let visible = visible_keys(item, r);
    return visible.x < visible.y;
}

fn row_factor(l: f32) -> f32 {
    return 1.0;
}

fn store4_row(item: Item, r: u32, d: u32, x: vec4<f32>) {
    let at = partial_at(item, r, item.chunk);
    for (var c = 0u; c < min(4u, params.head_dim_v - d); c++) {
        workspace[at + d + c] = bitcast<u32>(x[c]);
    }
}

fn store_sums(item: Item, r: u32, m: f32, l: f32) {
    let at = partial_at(item, r, item.chunk) + params.head_dim_v;
    workspace[at] = bitcast<u32>(m);
    workspace[at + 1u] = bitcast<u32>(l);
}
