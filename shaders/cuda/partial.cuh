// A row's partial result in the workspace, for one chunk: head_dim_v columns of O, then m and l. It
// starts at a multiple of 16 bytes.
DEVICE float* partial_row(const Params& params, const Item& item, u32 r, u32 chunk) {
    const u64 rows = params.row_end - params.row_begin;
    const u64 head = item.place + head_of(params, r);
    const u64 row = head * rows + query_of(params, r) - params.row_begin;
    const u64 pitch = (params.head_dim_v + 2 + 3) / 4 * 4;
    return params.scores + (row * params.chunk_stride + chunk) * pitch;
}
