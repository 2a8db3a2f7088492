// Both products of attention are (BR rows) x (4 TX columns): S = Q K^T sums over head_dim, O = P V over keys.
// A thread holds 4 rows by 4 columns of the result, and depth goes through workgroup memory KC at a time.
var<workgroup> kv_tile: array<vec4<f32>, KC * TX>; // [depth][4 columns]: K transposed, or V

// a holds four depths of one row, b those depths of four columns.
fn multiply_add(sum: vec4<f32>, a: vec4<f32>, b: mat4x4<f32>) -> vec4<f32> {
    return fma(vec4<f32>(a.w), b[3], fma(vec4<f32>(a.z), b[2], fma(vec4<f32>(a.y), b[1], fma(vec4<f32>(a.x), b[0], sum))));
}

// As multiply_add, for four keys some of which may be masked or dropped and hold NaN: those contribute nothing.
fn add_present(sum: vec4<f32>, p: vec4<u32>, v: mat4x4<f32>) -> vec4<f32> {
    var result = sum;
    for (var c = 0u; c < 4u; c++) {
        if (p[c] != ABSENT) {
            result = fma(vec4<f32>(bitcast<f32>(p[c])), v[c], result);
        }
    }
    return result;
}

// Four depths of this thread's four columns.
fn kv_block(depth4: u32, tx: u32) -> mat4x4<f32> {
    let at = depth4 * 4u * TX + tx;
    return mat4x4<f32>(kv_tile[at], kv_tile[at + TX], kv_tile[at + 2u * TX], kv_tile[at + 3u * TX]);
}
