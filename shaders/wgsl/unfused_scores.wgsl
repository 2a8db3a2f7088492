// The first unfused kernel: scores of BR queries by BC keys with masks applied, stored as f32.
// Masked scores are -inf.
var<workgroup> q_tile: array<vec4<f32>, BR * (KC / 4u)>;

fn store_score(at: u32, j: u32, x: f32, seen: bool) {
    if (j < params.seq_kv) {
        workspace[at] = select(NEG_INF, bitcast<u32>(x), seen);
    }
}

@compute @workgroup_size(TX, TY)
fn unfused_scores(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = workgroup.y * params.grid_width + workgroup.x;
    if (index >= params.item_count) {
        return;
    }
    let key_tiles = (params.seq_kv + BC - 1u) / BC;
    let query_tiles = params.tile_count / key_tiles;
    let tile = index % params.tile_count;
    let head = index / params.tile_count;
    let item = work_item(head * params.tile_count + tile / key_tiles, BR);
    let j_begin = tile % key_tiles * BC;
    let tx = local.x;
    let ty = local.y;

    var s = mat4x4<f32>();
    for (var d_begin = 0u; d_begin < params.head_dim; d_begin += KC) {
        for (var block = thread; block < BR * (KC / 4u); block += THREADS) {
            let i = item.row_begin + block / (KC / 4u);
            var x = vec4<f32>(0.0);
            if (i < params.row_end) {
                x = load4_q(q_row(item, i), d_begin + 4u * (block % (KC / 4u)));
            }
            q_tile[block] = x;
        }
        load_k_chunk(item, j_begin, d_begin, thread);
        workgroupBarrier();
        for (var d4 = 0u; d4 < KC / 4u; d4++) {
            let k = kv_block(d4, tx);
            let at = ty * KC + d4; // 4 ty rows of KC / 4
            s[0] = multiply_add(s[0], q_tile[at], k);
            s[1] = multiply_add(s[1], q_tile[at + KC / 4u], k);
            s[2] = multiply_add(s[2], q_tile[at + KC / 2u], k);
            s[3] = multiply_add(s[3], q_tile[at + 3u * (KC / 4u)], k);
        }
        workgroupBarrier();
    }

    let j = j_begin + 4u * tx;
    for (var r = 0u; r < 4u; r++) {
        let i = item.row_begin + 4u * ty + r;
        if (i < params.row_end) {
            let bias = mask4(item, i, j);
            let seen = allowed4(visible_keys(item, i), j, bias);
            let x = score4(s[r] * params.scale, bias);
            let at = score_row(head, i) + j;
            store_score(at, j, x.x, seen.x);
            store_score(at + 1u, j + 1u, x.y, seen.y);
            store_score(at + 2u, j + 2u, x.z, seen.z);
            store_score(at + 3u, j + 3u, x.w, seen.w);
        }
    }
}
