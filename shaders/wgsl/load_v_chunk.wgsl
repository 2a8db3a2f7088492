// Loads V[j_begin .. j_begin + KC, d_begin .. d_begin + 4 TX]. Returns whether this thread loaded a
// NaN or an infinity.
fn load_v_chunk(item: Item, j_begin: u32, d_begin: u32, thread: u32) -> bool {
    var finite = true;
    for (var block = thread; block < KC * TX; block += THREADS) {
        let d = d_begin + 4u * (block % TX);
        let j = j_begin + block / TX;
        var x = vec4<f32>(0.0);
        if (j < item.kv_len) {
            x = load4_v(v_row(item, j), d);
        }
        finite = finite && is_finite4(x);
        kv_tile[block] = x;
    }
    return !finite;
}
