// The parameters of a launch, passed by value. `CudaParams` in Rust has the same fields in the
// same order. Pointers point to the first element of their tensor, or are null where the problem
// has no such tensor. Strides count elements.
struct Params {
    const void* q;
    const void* k;
    const void* v;
    const void* mask;
    const i32* kv_lens;
    void* out;
    float* lse;
    float* scores;         // workspace: scores of the unfused kernels, or parts of a split
    u64 q_strides[4];
    u64 k_strides[4];
    u64 v_strides[4];
    u64 out_strides[4];
    u64 mask_strides[4];
    u64 score_stride;      // unfused: scores from one row of the workspace to the next
    u64 bh_begin;          // the first head of this launch, as b * heads + h
    u32 lse_rows;          // rows of lse per head: the planned capacity of seq_q
    u32 seq_q;             // actual lengths of this call
    u32 seq_kv;
    u32 heads;             // of the whole problem
    u32 group;             // query heads that share a key head
    u32 row_begin;         // the queries of this launch
    u32 row_end;
    u32 tile_count;        // query tiles per head
    u32 across;            // blocks per query tile: along columns of V, or keys (unfused scores)
    u32 longest_first;     // 1: blocks take the query tiles of a head in descending order
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
    // Bits 0 q, 1 k, 2 v, 3 out: the elements of each row are contiguous, and the row starts at a
    // multiple of 16 bytes. Bits 4 to 7: the same tensors, at a multiple of 4 bytes.
    u32 dense;
    // Split and merge.
    u32 fold;              // heads whose rows share tiles: `group`, or 1
    u32 chunk_keys;        // keys per chunk
    u32 chunk_count;       // chunks of this launch
    u32 chunk_stride;      // chunks per row of the workspace
    u32 pad;
};
static_assert(sizeof(Params) == 360, "CudaParams in Rust has another layout");

// The work of one block.
struct Item {
    u32 b;             // of the problem
    u32 h;
    u32 row_begin;     // first row of the tile
    u32 across;        // index of the block among those that share the tile
    u32 kv_len;        // valid keys
    i32 diagonal;
    u32 place;         // index of the (first) head in this launch
    u32 chunk;         // split: index of the chunk of keys
    u64 q_base;        // element index of (b, h, row 0, column 0); likewise the next two
    u64 k_base;
    u64 v_base;
};

// The valid keys of batch entry b. The host cannot check lengths in device memory, so they are
// clamped here.
DEVICE u32 valid_keys(const Params& params, u32 b) {
    if (params.kv_lens == nullptr) {
        return params.seq_kv;
    }
    i32 n = params.kv_lens[b];
    return n < 0 ? 0u : ((u32)n < params.seq_kv ? (u32)n : params.seq_kv);
}

// Block indices run over the blocks of a query tile first, then over query tiles, heads and batch
// entries, so that blocks that run at the same time read the same keys.
DEVICE Item work_item(const Params& params, u32 index, u32 rows) {
    u32 shared = index / params.across;
    u32 tile = shared % params.tile_count;
    if (params.longest_first != 0) {
        tile = params.tile_count - 1 - tile;
    }
    Item item;
    item.place = shared / params.tile_count;
    item.chunk = 0;
    if (SPLIT) {
        item.chunk = item.place % params.chunk_count;
        item.place = item.place / params.chunk_count * params.fold;
    }
    u64 bh = params.bh_begin + item.place;
    item.across = index % params.across;
    item.b = (u32)(bh / params.heads);
    item.h = (u32)(bh % params.heads);
    item.row_begin = params.row_begin * (SPLIT ? params.fold : 1) + tile * rows;
    item.kv_len = valid_keys(params, item.b);
    item.diagonal = params.bottom_right != 0 ? (i32)item.kv_len - (i32)params.seq_q : 0;
    u64 kv_head = item.h / params.group;
    item.q_base = item.b * params.q_strides[0] + item.h * params.q_strides[1];
    item.k_base = item.b * params.k_strides[0] + kv_head * params.k_strides[1];
    item.v_base = item.b * params.v_strides[0] + kv_head * params.v_strides[1];
    return item;
}

// A row is a query of one head. Kernels that split keys let the heads of a group, which see the
// same keys, fill tiles together: row r is query r / fold of head item.h + r % fold.
DEVICE u32 query_of(const Params& params, u32 r) { return SPLIT ? r / params.fold : r; }
DEVICE u32 head_of(const Params& params, u32 r) { return SPLIT ? r % params.fold : 0; }

// The end of the rows of this launch, and of those of a tile of `rows` rows.
DEVICE u32 launch_row_end(const Params& params) {
    return SPLIT ? params.row_end * params.fold : params.row_end;
}
DEVICE u32 tile_row_end(const Params& params, const Item& item, u32 rows) {
    const u32 tile_end = item.row_begin + rows;
    const u32 row_end = launch_row_end(params);
    return tile_end < row_end ? tile_end : row_end;
}

// Element indices at which the rows of an item start.
DEVICE u64 q_row(const Params& params, const Item& item, u32 r) {
    u64 head = head_of(params, r) * params.q_strides[1];
    return item.q_base + head + query_of(params, r) * params.q_strides[2];
}
DEVICE u64 k_row(const Params& params, const Item& item, u32 j) {
    return item.k_base + j * params.k_strides[2];
}
DEVICE u64 v_row(const Params& params, const Item& item, u32 j) {
    return item.v_base + j * params.v_strides[2];
}

// These are needed once, so their bases are not kept in registers.
DEVICE u64 out_row(const Params& params, const Item& item, u32 i) {
    const u64* strides = params.out_strides;
    return item.b * strides[0] + item.h * strides[1] + i * strides[2];
}
DEVICE u64 mask_row(const Params& params, const Item& item, u32 r) {
    const u64* strides = params.mask_strides;
    u64 head = item.h + head_of(params, r);
    return item.b * strides[0] + head * strides[1] + query_of(params, r) * strides[2];
}
DEVICE u64 lse_row(const Params& params, const Item& item, u32 i) {
    return (params.bh_begin + item.place) * params.lse_rows + i;
}

// The index of query i's first score in the workspace of the unfused kernels.
DEVICE u64 score_row(const Params& params, const Item& item, u32 i) {
    u64 rows = params.row_end - params.row_begin;
    return (item.place * rows + (i - params.row_begin)) * params.score_stride;
}

// begin <= x < end. Empty if there is no such x >= 0.
struct Range {
    i32 begin;
    i32 end;
};

DEVICE i32 clamp(i32 x, i32 low, i32 high) { return x < low ? low : (x > high ? high : x); }

// The keys that row r sees by position, from valid lengths, causal masks and windows: the one
// rule of visibility, `Band::visible` in flashtile-core. Neither end of the range decreases from
// one query to the next. A row at or beyond launch_row_end sees no key. Either end may be negative:
// clamping both to 0 would cost instructions and registers in the loop over keys. Kernels that
// split keys see those of the item's chunk only.
DEVICE Range visible_keys(const Params& params, const Item& item, u32 r) {
    i32 position = (i32)query_of(params, r) + item.diagonal;
    i32 valid = r < launch_row_end(params) ? (i32)item.kv_len : 0;
    i32 end = position + params.band_hi + 1;
    i32 begin = position + params.band_lo;
    end = end < valid ? end : valid;
    if (SPLIT) {
        i32 first = (i32)(item.chunk * params.chunk_keys);
        i32 last = first + (i32)params.chunk_keys;
        begin = begin < first ? first : begin;
        end = end < last ? end : last;
    }
    return Range{begin, end};
}

// The keys that some query in row_begin..row_end sees: `key_range` in flashtile-core. Neither end
// is negative.
DEVICE Range kv_range(const Params& params, const Item& item, u32 row_begin, u32 row_end) {
    i32 begin = visible_keys(params, item, row_begin).begin;
    i32 end = visible_keys(params, item, row_end - 1).end;
    end = end < 0 ? 0 : end;
    return Range{clamp(begin, 0, end), end};
}

// Whether every query in item.row_begin..row_end sees every key in begin..end by position.
DEVICE bool tile_is_full(const Params& params, const Item& item, u32 row_end, u32 begin, u32 end) {
    Range first = visible_keys(params, item, item.row_begin);
    Range last = visible_keys(params, item, row_end - 1);
    return last.begin <= (i32)begin && (i32)end <= first.end;
}

// Whether a query with these visible keys sees key j. `bias` is the mask's entry, as the bits of
// an f32.
DEVICE bool allowed(const Range& visible, u32 j, u32 bias) {
    return (i32)j >= visible.begin && (i32)j < visible.end && bias != NEG_INF;
}

// The three steps from a scaled q.k to the score that softmax sees: saturation, softcap (`capped`)
// and mask (`score`). A score or a sum that overflows saturates at the largest finite number,
// because only masking makes a key absent. NaN stays NaN.
DEVICE float capped(const Params& params, float s) {
    return params.softcap * tanh_accurate(finite(s) / params.softcap);
}

template <bool HAS_BIAS> DEVICE float score(float s, u32 bias) {
    float x = finite(s);
    if (HAS_BIAS) {
        x = finite(x + bits_float(bias));
    }
    return x;
}
