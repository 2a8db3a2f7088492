// Philox4x32 with ten rounds: `philox4x32_10` in flashtile-core.
struct Words {
    u32 word[4];
};

DEVICE Words philox(u32 c0, u32 c1, u32 c2, u32 c3, u32 k0, u32 k1) {
#pragma unroll
    for (u32 round = 0; round < 10; round++) {
        u32 a_low = c0 * 0xD2511F53u;
        u32 a_high = multiply_high(c0, 0xD2511F53u);
        u32 b_low = c2 * 0xCD9E8D57u;
        u32 b_high = multiply_high(c2, 0xCD9E8D57u);
        c0 = b_high ^ c1 ^ k0;
        c1 = b_low;
        c2 = a_high ^ c3 ^ k1;
        c3 = a_low;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return Words{{c0, c1, c2, c3}};
}

// The random words of row r and keys j ..= j + 3. j is a multiple of 4.
DEVICE Words dropout_words(const Params& params, const Item& item, u32 r, u32 j) {
    u32 bh = item.b * params.heads + item.h + head_of(params, r);
    u32 i = query_of(params, r);
    return philox(j / 4, i, bh, params.dropout_offset, params.seed[0], params.seed[1]);
}

// The random word of one key. Conditions select it, because registers cannot be indexed.
DEVICE u32 dropout_word(const Params& params, const Item& item, u32 i, u32 j) {
    Words words = dropout_words(params, item, i, j / 4 * 4);
    u32 low = j % 2 == 0 ? words.word[0] : words.word[1];
    u32 high = j % 2 == 0 ? words.word[2] : words.word[3];
    return j % 4 < 2 ? low : high;
}

// Whether the weight with this random word is kept.
DEVICE bool kept(const Params& params, u32 word) {
    return word >= params.dropout_threshold && params.keep_scale > 0.0f;
}
