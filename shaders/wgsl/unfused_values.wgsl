// The last unfused kernel: O = P V for BR queries and 4 TX columns of V.
var<workgroup> p_tile: array<vec4<u32>, BR * (KC / 4u)>;
var<workgroup> v_dirty: atomic<u32>;

fn weight(at: u32, j: u32) -> u32 {
    if (j < params.seq_kv) {
        return workspace[at];
    }
    return ABSENT;
}

@compute @workgroup_size(TX, TY)
fn unfused_values(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = workgroup.y * params.grid_width + workgroup.x;
    if (index >= params.item_count) {
        return;
    }
    let column_tiles = (params.head_dim_v + 4u * TX - 1u) / (4u * TX);
    let tile = index % params.tile_count;
    let head = index / params.tile_count;
    let item = work_item(head * params.tile_count + tile / column_tiles, BR);
    let d_begin = tile % column_tiles * 4u * TX;
    let tx = local.x;
    let ty = local.y;

    if (thread == 0u) {
        atomicStore(&v_dirty, 0u);
    }
    workgroupBarrier();
    var o = mat4x4<f32>();
    for (var j_begin = 0u; j_begin < params.seq_kv; j_begin += KC) {
        for (var block = thread; block < BR * (KC / 4u); block += THREADS) {
            let i = item.row_begin + block / (KC / 4u);
            let j = j_begin + 4u * (block % (KC / 4u));
            var p = vec4<u32>(ABSENT);
            if (i < params.row_end) {
                let at = score_row(head, i) + j;
                p = vec4<u32>(
                    weight(at, j),
                    weight(at + 1u, j + 1u),
                    weight(at + 2u, j + 2u),
                    weight(at + 3u, j + 3u),
                );
            }
            p_tile[block] = p;
        }
        if (load_v_chunk(item, j_begin, d_begin, thread)) {
            atomicStore(&v_dirty, 1u);
        }
        workgroupBarrier();
        let select_weights = atomicLoad(&v_dirty) != 0u;
        // Summed per chunk, so that rounding errors grow with the number of chunks and not with the
        // number of keys.
        var part = mat4x4<f32>();
        for (var j4 = 0u; j4 < KC / 4u; j4++) {
            let v = kv_block(j4, tx);
            let at = ty * KC + j4;
            if (select_weights) {
                part[0] = add_present(part[0], p_tile[at], v);
                part[1] = add_present(part[1], p_tile[at + KC / 4u], v);
                part[2] = add_present(part[2], p_tile[at + KC / 2u], v);
                part[3] = add_present(part[3], p_tile[at + 3u * (KC / 4u)], v);
            } else {
                part[0] = multiply_add(part[0], bitcast<vec4<f32>>(p_tile[at]), v);
                part[1] = multiply_add(part[1], bitcast<vec4<f32>>(p_tile[at + KC / 4u]), v);
                part[2] = multiply_add(part[2], bitcast<vec4<f32>>(p_tile[at + KC / 2u]), v);
                part[3] = multiply_add(part[3], bitcast<vec4<f32>>(p_tile[at + 3u * (KC / 4u)]), v);
            }
        }
        o += part;
        workgroupBarrier();
    }

    let d = d_begin + 4u * tx;
    for (var r = 0u; r < 4u; r++) {
        let i = item.row_begin + 4u * ty + r;
        if (i < params.row_end && d < params.head_dim_v) {
            store4_out(out_row(item, i), d, o[r]);
        }
    }
}
