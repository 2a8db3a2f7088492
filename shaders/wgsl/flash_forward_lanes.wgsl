// The same algorithm as flash_forward.wgsl with Q and O in registers, for GPUs with subgroups.
// LANES neighbouring threads hold ROWS queries together: each has every LANES-th block of four
// columns. Only K and V pass through workgroup memory, where each word that a thread reads serves
// ROWS FMAs per number.
//
// The lanes of a group sum their parts of a score, KEYS keys at a time: each lane ends up with the
// whole scores of KEYS / LANES keys, computes their weights, and broadcasts them to the group.
//
// Rows of q, k, v and out are dense and start at multiples of 16 bytes. `//@ NAME` stands for code
// that is unrolled by lanes.rs, because registers have no indices.
var<workgroup> k_tile: array<vec4<f32>, BC * WIDTH4>; // [key][column / 4]
var<workgroup> v_tile: array<vec4<f32>, BC * WIDTH4>;
var<workgroup> v_dirty: atomic<u32>;                  // 1 once an edge tile's V was not finite

// A score as a maximum sees it: NaN is not the largest.
fn number(x: f32) -> f32 {
    return select(x, LOWEST, is_nan(x));
}

fn component(x: vec4<bool>, n: u32) -> bool {
    let odd = (n & 1u) != 0u;
    return select(select(x.x, x.y, odd), select(x.z, x.w, odd), (n & 2u) != 0u);
}

@compute @workgroup_size(THREADS)
fn flash_forward(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = workgroup.y * params.grid_width + workgroup.x;
    if (index >= params.item_count) {
        return;
    }
    let item = work_item(longest_first(index), BR);
    let row_end = tile_row_end(item, BR);
    let range = kv_range(item, row_end);
    if (thread == 0u) {
        atomicStore(&v_dirty, 0u); // before the first barrier
    }

    let lane = thread % LANES;
    let bit0 = (lane & 1u) != 0u;
    let bit1 = (lane & 2u) != 0u;
    let bit2 = (lane & 4u) != 0u;
    let row = item.row_begin + thread / LANES * ROWS; // the first of the group
    //@ LOAD_Q
    //@ DECLARE_O
    let last = max(item.keys.y, item.keys.x + 1u) - 1u;
    //@ FETCH_FIRST
    for (var j_begin = range.x / BC * BC; j_begin < range.y; j_begin += BC) {
        let edge = HAS_MASK || DROPOUT || !tile_is_full(item, row_end, j_begin, j_begin + BC);
        // Keys beyond the last valid one repeat it; they are absent below.
        //@ FETCH
        workgroupBarrier(); // no thread reads the tiles any more
        //@ STORE_TILES
        workgroupBarrier();
        //@ FETCH_NEXT
        let select_weights = edge && atomicLoad(&v_dirty) != 0u;
        for (var block = 0u; block < params.rolled; block += KEYS) {
            let at = block * WIDTH4 + lane;
            // S = Q K^T: this thread's columns, then the sum over the lanes.
            //@ SCORES

            // Masks, and the largest score of each row.
            let j = j_begin + block + first_key;
            //@ MASKS
            // Scores that are not finite are rare. All others need no test.
            var largest = 0u; // by magnitude, as bits
            //@ LARGEST
            let careful = largest >= NOT_FINITE;
            if (careful) {
                //@ FINITE
            }
            //@ TOP

            // P = exp(S - m). O and l are rescaled only where m grew.
            //@ RESCALE
            //@ WEIGHTS
            //@ BROADCAST

            // O = O + P V. Each block is summed by itself, so that rounding errors grow with the
            // number of blocks and not with the number of keys.
            if (select_weights) {
                // Keys that are masked or dropped may hold NaN and contribute nothing.
                //@ CAREFUL_VALUES
            } else {
                //@ VALUES
            }
        }
    }

    // O / l, and lse = m + ln l.
    //@ STORE
}
