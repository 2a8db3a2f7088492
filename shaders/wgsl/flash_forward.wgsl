// FlashAttention-2, forward. A workgroup holds BR rows (queries) and visits the keys that they see
// in its chunk, BC at a time. The score matrix never exists in memory. FlashForward has one chunk
// and stores the output; FlashSplit stores O, m and l for flash_merge.wgsl.
//
// Each row keeps m, its largest score so far, and l, the sum of exp(s - m). O is rescaled when m
// grows and divided by l at the end. The threads form TX columns by TY rows. Each holds 4 queries
// (from 4 ty) and 4 keys of S, then 4 columns (of every TX-th block of 4) of O.
//
// Reductions along a row loop over its TX columns of threads up to a uniform, BC / 4: unrolled,
// they would be most of the compiled code.
const NO_BIAS: u32 = 0u;
const KEY_BITS: vec4<u32> = vec4<u32>(1u, 2u, 4u, 8u);

var<workgroup> q_tile: array<vec4<f32>, BR * QW4>;   // [query][head_dim / 4]
var<workgroup> p_tile: array<vec4<u32>, BR * TX>;    // [query][key / 4], the bits of the weights
var<workgroup> row_part: array<f32, BR * TX>;        // [query][thread column], to reduce rows
var<workgroup> v_dirty: atomic<u32>;                 // 1 once an edge tile's V was not finite

fn load_q_chunk(item: Item, d_begin: u32, thread: u32) {
    for (var block = thread; block < BR * (KC / 4u); block += THREADS) {
        let d4 = block % (KC / 4u);
        let r = block / (KC / 4u);
        let row = item.row_begin + r;
        var x = vec4<f32>(0.0);
        if (row < part_row_end()) {
            x = load4_q(q_row(item, row), d_begin + 4u * d4);
        }
        q_tile[r * QW4 + q_place(d_begin) + d4] = x;
    }
}

// The offset of a chunk of Q in its row of q_tile: after the chunks before it if all of Q stays,
// else 0.
fn q_place(d_begin: u32) -> u32 {
    return select(0u, d_begin / 4u, params.head_dim <= 4u * QW4);
}

// Row r of x, and x with another row r. Compilers that do not unroll a loop over rows would keep a
// matrix with an index in memory.
fn row_of(x: mat4x4<f32>, r: u32) -> vec4<f32> {
    return select(select(x[0], x[1], r == 1u), select(x[2], x[3], r == 3u), r >= 2u);
}

fn with_row(x: mat4x4<f32>, r: u32, row: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(
        select(x[0], row, r == 0u),
        select(x[1], row, r == 1u),
        select(x[2], row, r == 2u),
        select(x[3], row, r == 3u),
    );
}

fn absent_keys(absent: u32, r: u32) -> vec4<bool> {
    return (vec4<u32>(absent >> (4u * r)) & KEY_BITS) != vec4<u32>(0u);
}

fn weights_at(at: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(p_tile[at]);
}

@compute @workgroup_size(TX, TY)
fn flash_forward(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = workgroup.y * params.grid_width + workgroup.x;
    if (index >= params.item_count) {
        return;
    }
    let item = work_item(longest_first(index), BR);
    let row_end = tile_row_end(item, BR);
    let range = kv_range(item, row_end);
    let tx = local.x;
    let ty = local.y;
    let q_stays = params.head_dim <= 4u * QW4;

    var m = vec4<f32>(LOWEST); // of the thread's 4 queries
    var l = vec4<f32>(0.0);    // of the thread's own columns; summed along the row at the end
    var o: array<mat4x4<f32>, OT>; // o[t][r]: query r, columns 4 (t TX + tx) ..
    for (var t = 0u; t < OT; t++) {
        o[t] = mat4x4<f32>();
    }

    if (thread == 0u) {
        atomicStore(&v_dirty, 0u); // before the first barrier
    }
    var first = true;
    for (var j_begin = range.x / BC * BC; j_begin < range.y; j_begin += BC) {
        // S = Q K^T
        var s = mat4x4<f32>(); // s[r]: query r, keys j_begin + 4 tx ..
        for (var d_begin = 0u; d_begin < params.head_dim; d_begin += KC) {
            if (first || !q_stays) {
                load_q_chunk(item, d_begin, thread);
            }
            load_k_chunk(item, j_begin, d_begin, thread);
            workgroupBarrier();
            let place = q_place(d_begin);
            for (var d4 = 0u; d4 < KC / 4u; d4++) {
                let k = kv_block(d4, tx);
                let at = 4u * ty * QW4 + place + d4;
                s[0] = multiply_add(s[0], q_tile[at], k);
                s[1] = multiply_add(s[1], q_tile[at + QW4], k);
                s[2] = multiply_add(s[2], q_tile[at + 2u * QW4], k);
                s[3] = multiply_add(s[3], q_tile[at + 3u * QW4], k);
            }
            workgroupBarrier();
        }
        first = false;

        // Masks, and the largest score of each row.
        let edge = HAS_MASK || DROPOUT || !tile_is_full(item, row_end, j_begin, j_begin + BC);
        let j = j_begin + 4u * tx;
        var absent = 0u; // one bit per query and key
        for (var r = 0u; r < 4u; r++) {
            let row = item.row_begin + 4u * ty + r;
            var bias = vec4<u32>(NO_BIAS);
            if (edge) {
                bias = mask4(item, row, j);
                let seen = allowed4(visible_keys(item, row), j, bias);
                absent |= dot(KEY_BITS, vec4<u32>(!seen)) << (4u * r);
            }
            let x = score4(row_of(s, r) * params.scale, bias);
            s = with_row(s, r, x);
            let seen = select(x, vec4<f32>(LOWEST), absent_keys(absent, r));
            row_part[(4u * ty + r) * TX + tx] = max(max(seen.x, seen.y), max(seen.z, seen.w));
        }
        workgroupBarrier();

        // P = exp(S - m), and the factor that rescales what the rows hold so far.
        var alpha = vec4<f32>(0.0);
        for (var r = 0u; r < 4u; r++) {
            var top = m[r];
            for (var c = 0u; c < params.rolled / 4u; c++) {
                top = max(top, row_part[(4u * ty + r) * TX + c]);
            }
            alpha[r] = rescale(m[r], top);
            m[r] = top;
            let weight = bitcast<vec4<u32>>(exp4(row_of(s, r) - top));
            var p = select(weight, vec4<u32>(ABSENT), absent_keys(absent, r));
            let weights = bitcast<vec4<f32>>(p);
            l[r] = l[r] * alpha[r] + ((weights.x + weights.y) + (weights.z + weights.w));
            if (DROPOUT) {
                p = select(vec4<u32>(ABSENT), p, kept(item, item.row_begin + 4u * ty + r, j));
            }
            p_tile[(4u * ty + r) * TX + tx] = p;
        }

        // O = alpha O + P V
        for (var t = 0u; t < OT; t++) {
            // Each chunk is summed by itself, so that rounding errors grow with the number of
            // chunks and not with the number of keys.
            var sum = o[t];
            sum[0] *= alpha.x;
            sum[1] *= alpha.y;
            sum[2] *= alpha.z;
            sum[3] *= alpha.w;
            for (var depth = 0u; depth < BC; depth += KC) {
                let dirty = load_v_chunk(item, j_begin + depth, 4u * t * TX, thread);
                if (edge && dirty) {
                    atomicStore(&v_dirty, 1u);
                }
                workgroupBarrier();
                let select_weights = edge && atomicLoad(&v_dirty) != 0u;
                var part = mat4x4<f32>();
                for (var j4 = 0u; j4 < KC / 4u; j4++) {
                    let v = kv_block(j4, tx);
                    let at = 4u * ty * TX + depth / 4u + j4;
                    if (select_weights) {
                        part[0] = add_present(part[0], p_tile[at], v);
                        part[1] = add_present(part[1], p_tile[at + TX], v);
                        part[2] = add_present(part[2], p_tile[at + 2u * TX], v);
                        part[3] = add_present(part[3], p_tile[at + 3u * TX], v);
                    } else {
                        part[0] = multiply_add(part[0], weights_at(at), v);
                        part[1] = multiply_add(part[1], weights_at(at + TX), v);
                        part[2] = multiply_add(part[2], weights_at(at + 2u * TX), v);
                        part[3] = multiply_add(part[3], weights_at(at + 3u * TX), v);
                    }
                }
                sum += part;
                workgroupBarrier();
            }
            o[t] = sum;
        }
    }

    // O / l, and lse = m + ln l (of a chunk: O, m and l).
    for (var r = 0u; r < 4u; r++) {
        row_part[(4u * ty + r) * TX + tx] = l[r];
    }
    workgroupBarrier();
    for (var r = 0u; r < 4u; r++) {
        let row = item.row_begin + 4u * ty + r;
        if (!row_is_stored(item, row)) {
            continue;
        }
        var sum = 0.0;
        for (var c = 0u; c < params.rolled / 4u; c++) {
            sum += row_part[(4u * ty + r) * TX + c];
        }
        let factor = row_factor(sum);
        for (var t = 0u; t < OT; t++) {
            let d = 4u * (t * TX + tx);
            if (d < params.head_dim_v) {
                store4_row(item, row, d, row_of(o[t], r) * factor);
            }
        }
        if (tx == 0u) {
            store_sums(item, row, m[r], sum);
        }
    }
}
