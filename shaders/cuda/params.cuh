// Everything a launch is told, passed by value. `CudaParams` of the Rust side has the same fields in the same order.
// Pointers lead to the first element of their tensor, null where there is none. Strides count elements.
struct Params {
    const void* q;
    const void* k;
    const void* v;
    const void* mask;
    const i32* kv_lens;
    void* out;
    float* lse;
    float* scores;         // workspace of the unfused kernels
    u64 q_strides[4];
    u64 k_strides[4];
    u64 v_strides[4];
    u64 out_strides[4];
    u64 mask_strides[4];
    u64 score_stride;      // unfused: scores from row to row of the workspace
    u64 bh_begin;          // the part of the problem that this launch does: b * heads + h of its first head
    u32 lse_rows;          // rows of lse from head to head: the planned capacity of seq_q
    u32 seq_q;             // actual lengths of this call
    u32 seq_kv;
    u32 heads;             // of the whole problem
    u32 group;             // query heads that share a key head
    u32 row_begin;
    u32 row_end;
    u32 tile_count;        // query tiles a head
    u32 across;            // blocks that share a query tile: over columns of V, or over keys (unfused scores)
    u32 longest_first;     // 1: the last query tile of a head is the first to start
    i32 band_lo;           // query i sees keys i + diagonal + band_lo ..= i + diagonal + band_hi
    i32 band_hi;
    u32 bottom_right;      // 1: the diagonal ends at the last valid key
    u32 mask_kind;         // 0 none, 1 bool, 2 f32, 3 f16, 4 bf16
    u32 dropout_threshold;
    u32 dropout_offset;
    u32 seed[2];
    float scale;
    float softcap;         // 0: none
    float keep_scale;      // 1 without dropout, 0 where everything is dropped
    u32 dropout;           // 1: weights are dropped
    u32 head_dim;
    u32 head_dim_v;
    u32 dense;             // bit 0 q, 1 k, 2 v, 3 out: rows begin at multiples of 16 bytes and their elements lie side by side; 4 to 7: of 4 bytes
    u32 pad;
};
static_assert(sizeof(Params) == 344, "the Rust side has another layout");

// What one block works on.
struct Item {
    u32 b;             // of the problem
    u32 h;
    u32 row_begin;     // first query of the tile
    u32 across;        // which of the blocks that share the tile
    u32 kv_len;        // valid keys
    i32 diagonal;
    u32 place;         // of its head in this launch
    u64 q_base;        // element indices of (b, h, row 0, 0) and so on
    u64 k_base;
    u64 v_base;
};

// Keys that batch entry b holds. Lengths are clamped, for only the device knows them.
DEVICE u32 valid_keys(const Params& params, u32 b) {
    if (params.kv_lens == nullptr) {
        return params.seq_kv;
    }
    i32 n = params.kv_lens[b];
    return n < 0 ? 0u : ((u32)n < params.seq_kv ? (u32)n : params.seq_kv);
}

// Items run over what shares a query tile first, then query tiles, then heads, then batch entries: blocks that run together share keys.
DEVICE Item work_item(const Params& params, u32 index, u32 rows) {
    u32 shared = index / params.across;
    u32 tile = shared % params.tile_count;
    if (params.longest_first != 0) {
        tile = params.tile_count - 1 - tile;
    }
    Item item;
    item.place = shared / params.tile_count;
    u64 bh = params.bh_begin + item.place;
    item.across = index % params.across;
    item.b = (u32)(bh / params.heads);
    item.h = (u32)(bh % params.heads);
    item.row_begin = params.row_begin + tile * rows;
    item.kv_len = valid_keys(params, item.b);
    item.diagonal = params.bottom_right != 0 ? (i32)item.kv_len - (i32)params.seq_q : 0;
    u64 kv_head = item.h / params.group;
    item.q_base = item.b * params.q_strides[0] + item.h * params.q_strides[1];
    item.k_base = item.b * params.k_strides[0] + kv_head * params.k_strides[1];
    item.v_base = item.b * params.v_strides[0] + kv_head * params.v_strides[1];
    return item;
}

// Element indices of the rows of one item.
DEVICE u64 q_row(const Params& params, const Item& item, u32 i) { return item.q_base + i * params.q_strides[2]; }
DEVICE u64 k_row(const Params& params, const Item& item, u32 j) { return item.k_base + j * params.k_strides[2]; }
DEVICE u64 v_row(const Params& params, const Item& item, u32 j) { return item.v_base + j * params.v_strides[2]; }

// These are asked once: what they begin at is not kept in registers.
DEVICE u64 out_row(const Params& params, const Item& item, u32 i) {
    return item.b * params.out_strides[0] + item.h * params.out_strides[1] + i * params.out_strides[2];
}
DEVICE u64 mask_row(const Params& params, const Item& item, u32 i) {
    return item.b * params.mask_strides[0] + item.h * params.mask_strides[1] + i * params.mask_strides[2];
}
DEVICE u64 lse_row(const Params& params, const Item& item, u32 i) { return (params.bh_begin + item.place) * params.lse_rows + i; }

// Where the scores of query i begin in the workspace of the unfused kernels.
DEVICE u64 score_row(const Params& params, const Item& item, u32 i) {
    return ((u64)item.place * (params.row_end - params.row_begin) + (i - params.row_begin)) * params.score_stride;
}

struct Range {
    u32 begin;
    u32 end;
};

DEVICE i32 clamp(i32 x, i32 low, i32 high) { return x < low ? low : (x > high ? high : x); }

// The keys that some query in row_begin..row_end sees: `key_range` of flashtile-core.
DEVICE Range kv_range(const Params& params, const Item& item, u32 row_begin, u32 row_end) {
    i32 first = (i32)row_begin + item.diagonal + params.band_lo;
    i32 last = (i32)row_end - 1 + item.diagonal + params.band_hi;
    i32 end = clamp(last + 1, 0, (i32)item.kv_len);
    i32 begin = clamp(first, 0, (i32)item.kv_len);
    return Range{(u32)(begin < end ? begin : end), (u32)end};
}

// True where every query in row_begin..row_end sees every key in begin..end, as far as the band decides.
DEVICE bool tile_is_full(const Params& params, const Item& item, u32 row_end, u32 begin, u32 end) {
    i32 first_row_last_key = (i32)item.row_begin + item.diagonal + params.band_hi;
    i32 last_row_first_key = (i32)row_end - 1 + item.diagonal + params.band_lo;
    return end <= item.kv_len && (i32)end - 1 <= first_row_last_key && (i32)begin >= last_row_first_key;
}

// Whether query i sees key j. `bias` is the mask's entry, as the bits of an f32.
DEVICE bool allowed(const Params& params, const Item& item, u32 i, u32 j, u32 bias) {
    i32 row = (i32)i + item.diagonal;
    return i < params.row_end && j < item.kv_len && (i32)j >= row + params.band_lo && (i32)j <= row + params.band_hi && bias != NEG_INF;
}

// A scaled q.k with softcap.
DEVICE float capped(const Params& params, float s) { return params.softcap * tanh_accurate(s / params.softcap); }

// The score that softmax sees, of a scaled and capped q.k. It saturates at the largest finite numbers: a finite mask or product that overflows is
// still a number, and only masking makes a key absent.
DEVICE float score(float s, u32 bias) {
    float x = s + bits_float(bias);
    return is_nan(x) ? x : fminf(fmaxf(x, LOWEST), HIGHEST);
}
