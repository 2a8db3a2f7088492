// Merges what FlashSplit stored for one row, chunk by chunk in ascending order. With M the largest
// m: O = sum of exp(m - M) O over the chunks, and likewise l. Then O / l and lse = M + ln l, as for
// a row that was not split.
fn partial(at: u32) -> f32 {
    return bitcast<f32>(workspace[at]);
}

// Four columns of O of a chunk, zeros beyond head_dim_v.
fn partial4(at: u32, d: u32) -> vec4<f32> {
    var x = vec4<f32>(partial(at + d), 0.0, 0.0, 0.0);
    if (d + 1u < params.head_dim_v) {
        x.y = partial(at + d + 1u);
    }
    if (d + 2u < params.head_dim_v) {
        x.z = partial(at + d + 2u);
    }
    if (d + 3u < params.head_dim_v) {
        x.w = partial(at + d + 3u);
    }
    return x;
}

@compute @workgroup_size(TX, TY)
fn flash_merge(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = workgroup.y * params.grid_width + workgroup.x;
    if (index >= params.item_count) {
        return;
    }
    var item = work_item(index, 1u);
    item.keys = vec2<u32>(0u, item.kv_len); // those of all chunks
    let row = item.row_begin;
    let visible = visible_keys(item, row);
    let begin = visible.x / params.chunk_keys;
    let any = visible.x < visible.y;
    let end = select(begin, (visible.y - 1u) / params.chunk_keys + 1u, any);

    var m = LOWEST;
    for (var chunk = begin; chunk < end; chunk++) {
        m = max(m, partial(partial_at(item, row, chunk) + params.head_dim_v));
    }
    var l = 0.0;
    for (var chunk = begin; chunk < end; chunk++) {
        let at = partial_at(item, row, chunk) + params.head_dim_v;
        l = fma(partial(at + 1u), rescale(partial(at), m), l);
    }
    let factor = row_factor(l);
    for (var d = 4u * thread; d < params.head_dim_v; d += 4u * THREADS) {
        var o = vec4<f32>(0.0);
        for (var chunk = begin; chunk < end; chunk++) {
            let at = partial_at(item, row, chunk);
            let alpha = rescale(partial(at + params.head_dim_v), m);
            o = fma(partial4(at, d), vec4<f32>(alpha), o);
        }
        store4_row(item, row, d, o * factor);
    }
    if (thread == 0u) {
        store_sums(item, row, m, l);
    }
}
