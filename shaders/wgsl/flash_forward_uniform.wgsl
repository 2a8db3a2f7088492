// The same algorithm as flash_forward.wgsl for GPUs with scalar loads (AMD): a value that is the
// same for all threads of a subgroup is loaded once, into scalar registers, and costs the vector
// units nothing. A thread holds one query. All threads of a workgroup visit the same keys at the
// same time, so every element of K and V is such a value.
//
// Heads, keys and their addresses must therefore depend on workgroup_id and uniforms alone.
//
// Rows of q, k, v and out are dense and start at multiples of 16 bytes, so they are read and
// written as vec4<u32>. `//@ NAME` stands for code that is unrolled by uniform.rs, because
// registers have no indices.
var<workgroup> p_tile: array<u32, BC * THREADS>; // [key][query], the bits of the weights
var<workgroup> v_dirty: atomic<u32>;             // 1 once an edge tile's V was not finite

// Whether the part of V[j_begin .. j_begin + BC] that this thread tests has a NaN or an infinity.
fn v_is_dirty(item: Item, j_begin: u32, thread: u32) -> bool {
    var finite = true;
    for (var at = thread; at < params.rolled * WORDS_V; at += THREADS) {
        let j = min(j_begin + at / WORDS_V, item.keys.y - 1u);
        finite = finite && is_finite_word(v[v_row(item, j) / STEP + at % WORDS_V]);
    }
    return !finite;
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
    let r = item.row_begin + thread;
    let visible = visible_keys(item, r);
    if (thread == 0u) {
        atomicStore(&v_dirty, 0u); // before the first barrier
    }

    let q_at = q_row(item, min(r, row_end - 1u)) / STEP;
    //@ LOAD_Q
    //@ DECLARE_O
    var m = LOWEST;
    var l = 0.0;
    for (var j_begin = range.x / BC * BC; j_begin < range.y; j_begin += BC) {
        // S = Q K^T. Keys beyond the last valid one repeat it; they are absent below.
        let last = item.keys.y - 1u;
        //@ SCORES

        // Scores that are not finite are rare. All others need no test.
        var largest = 0u; // by magnitude, as bits
        //@ LARGEST
        let careful = largest >= NOT_FINITE;

        // Masks, and the largest score of the row.
        let edge = HAS_MASK || DROPOUT || !tile_is_full(item, row_end, j_begin, j_begin + BC);
        var absent = 0u; // one bit per key
        if (edge) {
            //@ MASKS
        } else if (SOFTCAP) {
            //@ SOFTCAP
        }
        if (careful) {
            //@ FINITE
        }
        var top = m;
        //@ TOP

        // P = exp(S - m). O and l are rescaled only where m grew.
        if (top != m) {
            let alpha = rescale(m, top);
            l *= alpha;
            //@ RESCALE
            m = top;
        }
        //@ WEIGHTS
        if (careful || HAS_BIAS) {
            //@ NAN
        }
        if (edge) {
            //@ SEEN_WEIGHTS
        }
        //@ TILE_SUM
        l += tile_sum;
        if (DROPOUT) {
            //@ DROPOUT
        }

        // O = O + P V. Each tile is summed by itself, so that rounding errors grow with the number
        // of tiles and not with the number of keys.
        var select_weights = false;
        if (edge) {
            if (v_is_dirty(item, j_begin, thread)) {
                atomicStore(&v_dirty, 1u);
            }
            workgroupBarrier();
            select_weights = atomicLoad(&v_dirty) != 0u;
        }
        if (select_weights) {
            // Keys that are masked or dropped may hold NaN and contribute nothing.
            //@ STORE_WEIGHTS
            //@ CAREFUL_VALUES
        } else {
            //@ VALUES
        }
    }

    // O / l, and lse = m + ln l.
    if (row_is_stored(item, r)) {
        let factor = row_factor(l);
        //@ STORE
        store_sums(item, r, m, l);
    }
}
