// The same algorithm as flash_forward.wgsl for software adapters. Loads at an index of each lane
// cost most there, so what is loaded serves as many products as possible: each lane loads a word of
// one key, broadcasts share it among the lanes, and a thread has several queries if there are many.
// A workgroup is one subgroup, so there are no barriers.
//
// Masks, softcap and dropout are left to flash_forward_rows.wgsl, whose loops are short to compile.
//
// `//@ NAME` stands for code that is unrolled by broadcast.rs. Private arrays are indexed from
// `zero`, which compilers do not know: where an index begins at 0 and the array has a known length,
// Mesa takes the length for the number of iterations and unrolls the loop.
@compute @workgroup_size(THREADS)
fn flash_forward(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let index = workgroup.y * params.grid_width + workgroup.x;
    if (index >= params.item_count) {
        return;
    }
    let item = work_item(longest_first(index), BR);
    let row_end = tile_row_end(item, BR);
    let range = kv_range(item, row_end);
    let zero = params.rolled - BC;
    let words = params.head_dim / STEP;
    let words_v = params.head_dim_v / STEP;
    let last = item.keys.y - 1u;
    //@ ROWS

    for (var w = 0u; w < words; w++) {
        //@ LOAD_Q
    }

    // Every row sees all keys of full tiles. Tiles at both ends may have keys that some do not see.
    let begin = range.x / BC * BC;
    let seen_from = visible_keys(item, row_end - 1u).x;
    let full_end = max(visible_keys(item, item.row_begin).y / BC * BC, begin);
    let full_begin = clamp((seen_from + BC - 1u) / BC * BC, begin, full_end);
    var j_begin = begin;
    for (var part = zero; part < 2u; part++) {
        let full_until = select(j_begin, full_end, part == 1u);
        let edge_until = select(full_begin, range.y, part == 1u);
        for (; j_begin < full_until; j_begin += BC) {
            //@ FULL_TILE
        }
        for (; j_begin < edge_until; j_begin += BC) {
            //@ EDGE_TILE
        }
    }

    //@ STORE
}
