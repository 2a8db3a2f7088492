// The second unfused kernel: softmax of one row of scores in place, and dropout. Keys without a
// weight are marked ABSENT.
var<workgroup> row_part: array<f32, THREADS>;

@compute @workgroup_size(TX, TY)
fn unfused_softmax(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = workgroup.y * params.grid_width + workgroup.x;
    if (index >= params.item_count) {
        return;
    }
    let item = work_item(index, 1u);
    let i = item.row_begin;
    let row = score_row(index / params.tile_count, i);

    var m = LOWEST;
    for (var j = thread; j < params.seq_kv; j += THREADS) {
        let bits = workspace[row + j];
        if (bits != NEG_INF) {
            m = max(m, bitcast<f32>(bits));
        }
    }
    row_part[thread] = m;
    workgroupBarrier();
    for (var t = 0u; t < THREADS; t++) {
        m = max(m, row_part[t]);
    }
    workgroupBarrier();

    var l = 0.0;
    for (var j = thread; j < params.seq_kv; j += THREADS) {
        let bits = workspace[row + j];
        if (bits != NEG_INF) {
            l += exp_nonpositive(bitcast<f32>(bits) - m);
        }
    }
    row_part[thread] = l;
    workgroupBarrier();
    var sum = 0.0;
    for (var t = 0u; t < THREADS; t++) {
        sum += row_part[t];
    }

    for (var j = thread; j < params.seq_kv; j += THREADS) {
        let bits = workspace[row + j];
        var present = bits != NEG_INF;
        if (DROPOUT) {
            present = present && kept(item, i, j / 4u * 4u)[j % 4u];
        }
        let p = exp_nonpositive(bitcast<f32>(bits) - m) / sum * params.keep_scale;
        workspace[row + j] = select(ABSENT, bitcast<u32>(p), present);
    }
    if (thread == 0u) {
        let bits = select(bitcast<u32>(m + ln(sum)), NEG_INF, sum == 0.0);
        store_lse(lse_row(item, i), bits);
    }
}
