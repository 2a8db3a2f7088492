// The first of the unfused kernels: scores of BR queries by BC keys, masks applied, stored as f32. Masked ones are -inf.
var<workgroup> q_tile: array<vec4<f32>, BR * (KC / 4u)>;

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
            let at = score_row(head, i) + j;
            for (var c = 0u; c < 4u; c++) {
                if (j + c < params.seq_kv) {
                    let x = score(s[r][c] * params.scale, bias[c]);
                    scores[at + c] = select(NEG_INF, bitcast<u32>(x), allowed(item, i, j + c, bias[c]));
                }
            }
        }
    }
}
