// Everything a dispatch is told, in one uniform of 256 bytes. `Params` of the Rust side has the same fields in the same order.
// Strides and offsets count elements. Offsets lead from the begin of a binding to the first element of this dispatch's part.
struct Params {
    q_strides: vec4<u32>,
    k_strides: vec4<u32>,
    v_strides: vec4<u32>,
    out_strides: vec4<u32>,
    mask_strides: vec4<u32>,
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
    batch_begin: u32,   // the part of the problem that this dispatch does
    head_begin: u32,
    row_begin: u32,
    row_end: u32,
    head_count: u32,
    tile_count: u32,    // query tiles a head
    item_count: u32,    // batch entries * head_count * tile_count
    grid_width: u32,    // workgroups along x; further ones continue along y
    band_lo: i32,       // query i sees keys i + diagonal + band_lo ..= i + diagonal + band_hi
    band_hi: i32,
    bottom_right: u32,  // 1: the diagonal ends at the last valid key
    dropout_threshold: u32,
    scale: f32,
    softcap: f32,
    keep_scale: f32,    // 0 where everything is dropped
    dropout_offset: u32,
    seed: vec2<u32>,
    score_stride: u32,  // unfused: scores from row to row of the workspace
    rolled: u32,        // keys of a tile, for loops that must stay loops
    head_dim: u32,
    head_dim_v: u32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: Params;

override SOFTCAP: bool = false;
override DROPOUT: bool = false;
override BY_FOUR: bool = false; // head_dim and head_dim_v are multiples of 4

// What one workgroup works on.
struct Item {
    b: u32,        // of the problem
    h: u32,
    row_begin: u32, // first query of the tile
    kv_len: u32,    // valid keys
    diagonal: i32,
    q_base: u32,    // element indices of (b, h, row 0 of the part, 0) and so on
    k_base: u32,
    v_base: u32,
    out_base: u32,
    mask_base: u32,
    lse_base: u32,
}

// Items run over query tiles first, then heads, then batch entries: workgroups that run together share keys.
fn work_item(index: u32, rows: u32) -> Item {
    let tile = index % params.tile_count;
    let head = index / params.tile_count % params.head_count;
    let entry = index / params.tile_count / params.head_count;
    var item: Item;
    item.b = params.batch_begin + entry;
    item.h = params.head_begin + head;
    item.row_begin = params.row_begin + tile * rows;
    item.kv_len = valid_keys(item.b);
    item.diagonal = select(0, i32(item.kv_len) - i32(params.seq_q), params.bottom_right != 0u);
    let kv_head = item.h / params.group - params.head_begin / params.group;
    item.q_base = params.q_offset + entry * params.q_strides.x + head * params.q_strides.y;
    item.k_base = params.k_offset + entry * params.k_strides.x + kv_head * params.k_strides.y;
    item.v_base = params.v_offset + entry * params.v_strides.x + kv_head * params.v_strides.y;
    item.out_base = params.out_offset + entry * params.out_strides.x + head * params.out_strides.y;
    item.mask_base = params.mask_offset + entry * params.mask_strides.x + head * params.mask_strides.y;
    item.lse_base = params.lse_offset + (entry * params.heads + head) * params.lse_rows;
    return item;
}

// Element indices of the rows of one item. Rows of q, out and mask count from the begin of the dispatch's part.
fn q_row(item: Item, i: u32) -> u32 {
    return item.q_base + (i - params.row_begin) * params.q_strides.z;
}

fn k_row(item: Item, j: u32) -> u32 {
    return item.k_base + j * params.k_strides.z;
}

fn v_row(item: Item, j: u32) -> u32 {
    return item.v_base + j * params.v_strides.z;
}

fn out_row(item: Item, i: u32) -> u32 {
    return item.out_base + (i - params.row_begin) * params.out_strides.z;
}

// The keys that some query in row_begin..row_end sees: `key_range` of flashtile-core.
fn kv_range(item: Item, row_end: u32) -> vec2<u32> {
    let first = i32(item.row_begin) + item.diagonal + params.band_lo;
    let last = i32(row_end) - 1 + item.diagonal + params.band_hi;
    let end = clamp(last + 1, 0, i32(item.kv_len));
    let begin = min(clamp(first, 0, i32(item.kv_len)), end);
    return vec2<u32>(u32(begin), u32(end));
}

// True where every query in row_begin..row_end sees every key in begin..end, as far as the band decides.
fn tile_is_full(item: Item, row_end: u32, begin: u32, end: u32) -> bool {
    let first_row_last_key = i32(item.row_begin) + item.diagonal + params.band_hi;
    let last_row_first_key = i32(row_end) - 1 + item.diagonal + params.band_lo;
    return end <= item.kv_len && i32(end) - 1 <= first_row_last_key && i32(begin) >= last_row_first_key;
}

// Whether query i sees key j. `bias` is the mask's entry, as the bits of an f32.
fn allowed(item: Item, i: u32, j: u32, bias: u32) -> bool {
    let row = i32(i) + item.diagonal;
    return i < params.row_end && j < item.kv_len
        && i32(j) >= row + params.band_lo && i32(j) <= row + params.band_hi
        && bias != NEG_INF;
}

// The score that softmax sees, of a scaled q.k. It saturates at the largest finite numbers: a finite mask or product that overflows is
// still a number, and only masking makes a key absent.
fn score(s: f32, bias: u32) -> f32 {
    var x = s;
    if (SOFTCAP) {
        x = params.softcap * tanh_accurate(x / params.softcap);
    }
    if (HAS_BIAS) {
        x += bitcast<f32>(bias);
    }
    return select(clamp(x, LOWEST, HIGHEST), x, is_nan(x));
}
