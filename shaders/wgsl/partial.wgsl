// The index of a row's partial result in the workspace, for one chunk: head_dim_v columns of O,
// then m and l.
fn partial_at(item: Item, r: u32, chunk: u32) -> u32 {
    let rows = params.row_end - params.row_begin;
    let row = (item.place + head_of(r)) * rows + part_query(r);
    return (row * params.chunk_stride + chunk) * (params.head_dim_v + 2u);
}
