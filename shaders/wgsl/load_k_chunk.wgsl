// Loads K[j_begin .. j_begin + BC, d_begin .. d_begin + KC], transposed, with zeros beyond the
// valid keys and beyond head_dim.
fn load_k_chunk(item: Item, j_begin: u32, d_begin: u32, thread: u32) {
    for (var block = thread; block < TX * (KC / 4u); block += THREADS) {
        let d4 = block % (KC / 4u);
        let j4 = block / (KC / 4u);
        let d = d_begin + 4u * d4;
        var rows: mat4x4<f32>;
        for (var r = 0u; r < 4u; r++) {
            let j = j_begin + 4u * j4 + r;
            if (j < item.kv_len) {
                rows[r] = load4_k(k_row(item, j), d);
            }
        }
        let columns = transpose(rows);
        let at = 4u * d4 * TX + j4;
        kv_tile[at] = columns[0];
        kv_tile[at + TX] = columns[1];
        kv_tile[at + 2u * TX] = columns[2];
        kv_tile[at + 3u * TX] = columns[3];
    }
}
