// Philox4x32 with ten rounds, as `philox4x32_10` of flashtile-core.
fn mul_wide(a: u32, b: u32) -> vec2<u32> { // low word, high word
    let a0 = a & 0xffffu;
    let a1 = a >> 16u;
    let b0 = b & 0xffffu;
    let b1 = b >> 16u;
    let middle = a1 * b0 + ((a0 * b0) >> 16u);
    let middle2 = a0 * b1 + (middle & 0xffffu);
    return vec2<u32>(a * b, a1 * b1 + (middle >> 16u) + (middle2 >> 16u));
}

fn philox(start: vec4<u32>, seed: vec2<u32>) -> vec4<u32> {
    var counter = start;
    var key = seed;
    for (var round = 0u; round < 10u; round++) {
        let a = mul_wide(counter.x, 0xD2511F53u);
        let b = mul_wide(counter.z, 0xCD9E8D57u);
        counter = vec4<u32>(b.y ^ counter.y ^ key.x, b.x, a.y ^ counter.w ^ key.y, a.x);
        key += vec2<u32>(0x9E3779B9u, 0xBB67AE85u);
    }
    return counter;
}

// Which weights of row r and keys j ..= j + 3 are kept; j is a multiple of 4.
fn kept(item: Item, r: u32, j: u32) -> vec4<bool> {
    let head = item.b * params.heads + item.h + head_of(r);
    let counter = vec4<u32>(j / 4u, query_of(r), head, params.dropout_offset);
    let words = philox(counter, params.seed);
    return (words >= vec4<u32>(params.dropout_threshold)) & vec4<bool>(params.keep_scale > 0.0);
}
