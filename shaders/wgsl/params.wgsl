// The parameters of one dispatch, one uniform of 240 bytes. `Params` on the Rust side has the same
// fields in the same order. Strides and offsets count elements. An offset is the distance from the
// start of a binding to the first element of this dispatch's part.
struct Params {
    q_strides: vec4<u32>,
    k_strides: vec4<u32>,
    v_strides: vec4<u32>,
    out_strides: vec4<u32>,
    mask_strides: vec4<u32>,
    seed: vec2<u32>,    // of dropout
    q_offset: u32,
    k_offset: u32,
    v_offset: u32,
    out_offset: u32,
    mask_offset: u32,
    lse_offset: u32,
    kv_lens_offset: u32,
    lse_rows: u32,      // rows of lse from head to head: the planned capacity of seq_q
    seq_q: u32,         // actual lengths of this call
    seq_kv: u32,
    heads: u32,         // of the whole problem
    group: u32,         // query heads that share a key head
    batch_begin: u32,   // the part of the problem that this dispatch computes
    head_begin: u32,
    row_begin: u32,
    row_end: u32,
    key_begin: u32,     // the first key of the part, and of the bindings of k, v and mask
    head_count: u32,
    fold: u32,          // heads whose rows share tiles: `group` where FOLDED, else 1
    tile_count: u32,    // tiles of rows per head, or per `fold` heads
    chunk_count: u32,   // chunks of keys in the part; 1 where keys are not split
    chunk_keys: u32,    // keys per chunk; more than any sequence has where keys are not split
    chunk_stride: u32,  // split and merge: chunks per row of the workspace
    item_count: u32,    // batch entries * head_count / fold * chunk_count * tile_count
    grid_width: u32,    // workgroups along x; further ones continue along y
    band_lo: i32,       // query i sees keys i + diagonal + band_lo ..= i + diagonal + band_hi
    band_hi: i32,
    bottom_right: u32,  // 1: the diagonal ends at the last valid key
    dropout_threshold: u32,
    scale: f32,
    softcap: f32,
    keep_scale: f32,    // 0 where everything is dropped
    dropout_offset: u32,
    score_stride: u32,  // unfused: scores from row to row of the workspace
    rolled: u32,        // keys per tile, as a uniform: a loop that ends here is not unrolled
    head_dim: u32,
    head_dim_v: u32,
}

@group(0) @binding(0) var<uniform> params: Params;

override SOFTCAP: bool = false;
override DROPOUT: bool = false;
override BY_FOUR: bool = false; // head_dim and head_dim_v are multiples of 4
override FOLDED: bool = false;  // the heads of a group share tiles

// The work of one workgroup.
struct Item {
    b: u32,         // batch entry and (first) head, of the whole problem
    h: u32,
    place: u32,     // index of that head in the part
    row_begin: u32, // first row of the tile
    kv_len: u32,    // valid keys
    chunk: u32,     // index of the chunk among all of a row
    keys: vec2<u32>, // start and end of the valid keys of the chunk
    diagonal: i32,  // position of query 0 among the keys
    q_base: u32,    // element index of (b, h, row 0 of the part, 0), and so on
    k_base: u32,
    v_base: u32,
    out_base: u32,
    mask_base: u32,
    lse_base: u32,
}

// The index of a workgroup's work: the last tile of each head comes first. Where a causal mask cuts
// keys it has the most, and work that starts last should be short.
fn longest_first(index: u32) -> u32 {
    return index + params.tile_count - 1u - 2u * (index % params.tile_count);
}

// Tiles vary fastest, then chunks, then heads, then batch entries, so that workgroups which run at
// the same time share keys.
fn work_item(index: u32, rows: u32) -> Item {
    let tile = index % params.tile_count;
    let chunk = index / params.tile_count % params.chunk_count;
    let heads = index / params.tile_count / params.chunk_count;
    let head_count = params.head_count / params.fold;
    let head = heads % head_count * params.fold;
    let entry = heads / head_count;
    var item: Item;
    item.b = params.batch_begin + entry;
    item.h = params.head_begin + head;
    item.place = entry * params.head_count + head;
    item.row_begin = params.row_begin * params.fold + tile * rows;
    item.kv_len = valid_keys(item.b);
    let begin = params.key_begin + chunk * params.chunk_keys;
    item.chunk = begin / params.chunk_keys;
    item.keys = vec2<u32>(begin, clamp(item.kv_len, begin, begin + params.chunk_keys));
    item.diagonal = select(0, i32(item.kv_len) - i32(params.seq_q), params.bottom_right != 0u);
    let kv_head = item.h / params.group - params.head_begin / params.group;
    item.q_base = params.q_offset + entry * params.q_strides.x + head * params.q_strides.y;
    item.k_base = params.k_offset + entry * params.k_strides.x + kv_head * params.k_strides.y;
    item.v_base = params.v_offset + entry * params.v_strides.x + kv_head * params.v_strides.y;
    item.out_base = params.out_offset + entry * params.out_strides.x + head * params.out_strides.y;
    item.mask_base = params.mask_offset + entry * params.mask_strides.x
        + head * params.mask_strides.y;
    item.lse_base = params.lse_offset + (entry * params.heads + head) * params.lse_rows;
    return item;
}

// A row is a query of one head. The heads of a group see the same keys. Where FOLDED they fill
// tiles together: row r is query r / fold of head item.h + r % fold.
fn query_of(r: u32) -> u32 {
    if (FOLDED) {
        return r / params.fold;
    }
    return r;
}

fn head_of(r: u32) -> u32 {
    if (FOLDED) {
        return r % params.fold;
    }
    return 0u;
}

// The end of the rows of the part, and of those of a tile of `rows` rows.
fn part_row_end() -> u32 {
    return params.row_end * params.fold;
}

fn tile_row_end(item: Item, rows: u32) -> u32 {
    return min(item.row_begin + rows, part_row_end());
}

// The query of a row, and the key, counted from the start of the dispatch's part.
fn part_query(r: u32) -> u32 {
    return query_of(r) - params.row_begin;
}

fn part_key(j: u32) -> u32 {
    return j - params.key_begin;
}

// Element indices of rows.
fn q_row(item: Item, r: u32) -> u32 {
    return item.q_base + head_of(r) * params.q_strides.y + part_query(r) * params.q_strides.z;
}

fn k_row(item: Item, j: u32) -> u32 {
    return item.k_base + part_key(j) * params.k_strides.z;
}

fn v_row(item: Item, j: u32) -> u32 {
    return item.v_base + part_key(j) * params.v_strides.z;
}

fn out_row(item: Item, r: u32) -> u32 {
    return item.out_base + head_of(r) * params.out_strides.y + part_query(r) * params.out_strides.z;
}

fn mask_row(item: Item, r: u32) -> u32 {
    return item.mask_base + head_of(r) * params.mask_strides.y
        + part_query(r) * params.mask_strides.z;
}

fn lse_row(item: Item, r: u32) -> u32 {
    return item.lse_base + head_of(r) * params.lse_rows + part_query(r);
}

// The keys of the item's chunk that row r may see, as start and end: the one rule of visibility,
// `Band::visible` of flashtile-core. Neither end decreases from one query to the next.
fn visible_keys(item: Item, r: u32) -> vec2<u32> {
    let position = i32(query_of(r)) + item.diagonal;
    let first = i32(item.keys.x);
    let last = i32(item.keys.y);
    let in_band = clamp(position + params.band_hi + 1, first, last);
    let end = select(first, in_band, r < part_row_end());
    let start = min(clamp(position + params.band_lo, first, last), end);
    return vec2<u32>(u32(start), u32(end));
}

// The keys that some row in row_begin..row_end may see: `key_range` of flashtile-core.
fn kv_range(item: Item, row_end: u32) -> vec2<u32> {
    let end = visible_keys(item, row_end - 1u).y;
    return vec2<u32>(min(visible_keys(item, item.row_begin).x, end), end);
}

// Whether every row in row_begin..row_end may see every key in begin..end.
fn tile_is_full(item: Item, row_end: u32, begin: u32, end: u32) -> bool {
    return begin >= visible_keys(item, row_end - 1u).x
        && end <= visible_keys(item, item.row_begin).y;
}

// Whether a row with these visible keys sees key j. `bias` is the mask's entry, as the bits of an
// f32.
fn allowed(visible: vec2<u32>, j: u32, bias: u32) -> bool {
    return j >= visible.x && j < visible.y && bias != NEG_INF;
}

// As `allowed`, for keys j ..= j + 3.
fn allowed4(visible: vec2<u32>, j: u32, bias: vec4<u32>) -> vec4<bool> {
    return vec4<bool>(
        allowed(visible, j, bias.x),
        allowed(visible, j + 1u, bias.y),
        allowed(visible, j + 2u, bias.z),
        allowed(visible, j + 3u, bias.w),
    );
}

// The score that softmax sees, of scale * q.k. Scores saturate at the largest finite numbers: one
// that overflows is still a number, and only masking makes a key absent.
fn score(s: f32, bias: u32) -> f32 {
    var x = finite(s);
    if (SOFTCAP) {
        x = params.softcap * tanh_accurate(x / params.softcap);
    }
    if (HAS_BIAS) {
        x = finite(x + bitcast<f32>(bias));
    }
    return x;
}

// As `score`, for keys j ..= j + 3.
fn score4(s: vec4<f32>, bias: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(
        score(s.x, bias.x),
        score(s.y, bias.y),
        score(s.z, bias.z),
        score(s.w, bias.w),
    );
}
