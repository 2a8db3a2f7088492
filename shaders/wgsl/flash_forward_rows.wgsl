// The same algorithm as flash_forward.wgsl for software adapters, where indexed loads and long
// programs cost most. A thread holds one query with its Q, O, m and l. Each lane of a subgroup
// loads four columns of one key, and broadcasts share them among the lanes.
//
// Loops that must not be unrolled (compile time is part of the cost here) end at a uniform.
//
// An absent weight is the float -0: fine on software adapters, but a compiler with fast math may
// drop the sign, so a kernel for Metal must keep absence as bits.
var<workgroup> kv_tile: array<vec4<f32>, BC * KC / 4u>; // [column / 4][key]
var<workgroup> v_dirty: atomic<u32>;                    // 1 once an edge tile's V was not finite

// Loads K[j_begin .. j_begin + BC, d_begin .. d_begin + KC], with zeros beyond the valid keys and
// beyond head_dim.
fn load_k_tile(item: Item, j_begin: u32, d_begin: u32, thread: u32) {
    for (var block = thread; block < BC * (KC / 4u); block += THREADS) {
        let j = j_begin + block / (KC / 4u);
        let d4 = block % (KC / 4u);
        var x = vec4<f32>(0.0);
        if (j < item.kv_len) {
            x = load4_k(k_row(item, j), d_begin + 4u * d4);
        }
        kv_tile[d4 * BC + block / (KC / 4u)] = x;
    }
}

// Loads V[j_begin .. j_begin + BC, d_begin .. d_begin + KC]. Returns whether this thread loaded a
// NaN or an infinity.
fn load_v_tile(item: Item, j_begin: u32, d_begin: u32, thread: u32) -> bool {
    var finite = true;
    for (var block = thread; block < BC * (KC / 4u); block += THREADS) {
        let j = j_begin + block / (KC / 4u);
        let d4 = block % (KC / 4u);
        var x = vec4<f32>(0.0);
        if (j < item.kv_len) {
            x = load4_v(v_row(item, j), d_begin + 4u * d4);
        }
        finite = finite && is_finite4(x);
        kv_tile[d4 * BC + block / (KC / 4u)] = x;
    }
    return !finite;
}

@compute @workgroup_size(THREADS)
fn flash_forward(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let index = workgroup.y * params.grid_width + workgroup.x;
    if (index >= params.item_count) {
        return;
    }
    let item = work_item(longest_first(index), BR);
    let row_end = tile_row_end(item, BR);
    let range = kv_range(item, row_end);
    let row = item.row_begin + thread;
    if (thread == 0u) {
        atomicStore(&v_dirty, 0u); // before the first barrier
    }

    // Q is read from its buffer: a copy of the row in registers takes long to compile.
    let q_base = q_row(item, min(row, row_end - 1u));
    let visible = visible_keys(item, row);
    var o: array<vec4<f32>, OT>;
    var m = LOWEST;
    var l = 0.0;

    for (var j_begin = range.x / BC * BC; j_begin < range.y; j_begin += BC) {
        // S = Q K^T
        var s: array<f32, BC>;
        for (var c = 0u; c < BC; c++) {
            s[c] = 0.0;
        }
        for (var d_begin = 0u; d_begin < params.head_dim; d_begin += KC) {
            load_k_tile(item, j_begin, d_begin, thread);
            workgroupBarrier();
            let end = (min(KC, params.head_dim - d_begin) + 3u) / 4u;
            for (var d4 = 0u; d4 < end; d4++) {
                add_scores(&s, load4_q(q_base, d_begin + 4u * d4), d4 * BC + lane);
            }
            workgroupBarrier();
        }

        // Masks, and the largest score of the row.
        let edge = HAS_MASK || DROPOUT || !tile_is_full(item, row_end, j_begin, j_begin + BC);
        let top_before = m;
        var absent = 0u; // one bit per key
        for (var c = 0u; c < params.rolled; c++) {
            var bias = 0u;
            if (HAS_MASK) {
                bias = mask_at(item, row, j_begin + c);
            }
            let x = score(s[c] * params.scale, bias);
            s[c] = x;
            if (edge && !allowed(visible, j_begin + c, bias)) {
                absent |= 1u << c;
            } else {
                m = max(m, x);
            }
        }

        // P = exp(S - m), and the factor that rescales what the row holds so far.
        let alpha = rescale(top_before, m);
        // Summed per tile, like P V, so that rounding errors grow with the number of tiles and not
        // with the number of keys.
        var tile_sum = 0.0;
        var keep = vec4<bool>(true);
        for (var c = 0u; c < params.rolled; c++) {
            if (DROPOUT && c % 4u == 0u) {
                keep = kept(item, row, j_begin + c);
            }
            let p = exp_nonpositive(s[c] - m);
            let missing = ((absent >> c) & 1u) != 0u;
            tile_sum += select(p, 0.0, missing);
            s[c] = select(p, bitcast<f32>(ABSENT), missing || !keep[c % 4u]);
        }
        l = l * alpha + tile_sum;

        // O = alpha O + P V
        for (var d_begin = 0u; d_begin < params.head_dim_v; d_begin += KC) {
            let dirty = load_v_tile(item, j_begin, d_begin, thread);
            if (edge && dirty) {
                atomicStore(&v_dirty, 1u);
            }
            workgroupBarrier();
            let end = (min(KC, params.head_dim_v - d_begin) + 3u) / 4u;
            if (edge && atomicLoad(&v_dirty) != 0u) {
                // Keys that are masked or dropped may hold NaN and contribute nothing. The order of
                // sums is that of weighted_values.
                for (var d4 = 0u; d4 < end; d4++) {
                    var total = vec4<f32>(0.0);
                    var sum = vec4<f32>(0.0);
                    for (var c = 0u; c < params.rolled; c++) {
                        if (bitcast<u32>(s[c]) != ABSENT) {
                            sum = fma(vec4<f32>(s[c]), kv_tile[d4 * BC + c], sum);
                        }
                        if (c % 8u == 7u) {
                            total += sum;
                            sum = vec4<f32>(0.0);
                        }
                    }
                    o[d_begin / 4u + d4] = o[d_begin / 4u + d4] * alpha + total;
                }
            } else {
                for (var d4 = 0u; d4 < end; d4++) {
                    let values = weighted_values(&s, d4 * BC + lane);
                    o[d_begin / 4u + d4] = o[d_begin / 4u + d4] * alpha + values;
                }
            }
            workgroupBarrier();
        }
    }

    // O / l, and lse = m + ln l (of a chunk: O, m and l).
    if (row_is_stored(item, row)) {
        let factor = row_factor(l);
        for (var d4 = 0u; 4u * d4 < params.head_dim_v; d4++) {
            store4_row(item, row, 4u * d4, o[d4] * factor);
        }
        store_sums(item, row, m, l);
    }
}
