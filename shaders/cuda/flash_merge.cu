// Merges what flash_split stored for one row, chunk by chunk in ascending order. With M the largest
// m: O = sum of exp(m - M) O over the chunks, and likewise l. Then O / l and lse = M + ln l, as for
// a row that was not split.
KERNEL(flash_merge) {
    const Item item = work_item(params, block_index(), 1);
    const u32 row = item.row_begin;
    const Range visible = kv_range(params, item, row, row + 1); // of all chunks
    const u32 begin = (u32)visible.begin / params.chunk_keys;
    const bool any = visible.begin < visible.end;
    const u32 end = any ? (u32)(visible.end - 1) / params.chunk_keys + 1 : begin;
    const u32 width = params.head_dim_v;

    float m = LOWEST;
    for (u32 chunk = begin; chunk < end; chunk++) {
        m = fmaxf(m, partial_row(params, item, row, chunk)[width]);
    }
    float l = 0.0f;
    for (u32 chunk = begin; chunk < end; chunk++) {
        const float* part = partial_row(params, item, row, chunk);
        l = fmaf(part[width + 1], rescale(part[width], m), l);
    }
    const float factor = row_factor(params, l);
    for (u32 d = 4 * thread_x(); d < width; d += 4 * TX) {
        float o[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        for (u32 chunk = begin; chunk < end; chunk++) {
            const float* part = partial_row(params, item, row, chunk);
            const float alpha = rescale(part[width], m);
            const Four x = *(const Four*)(part + d); // reads m and l beyond the last column
#pragma unroll
            for (u32 c = 0; c < 4; c++) {
                o[c] = d + c < width ? fmaf(x.x[c], alpha, o[c]) : 0.0f;
            }
        }
#pragma unroll
        for (u32 c = 0; c < 4; c++) {
            o[c] *= factor;
        }
        store4_row(params, item, row, d, o);
    }
    if (thread_x() == 0) {
        store_sums(params, item, row, m, l);
    }
}
