// Both products of attention are (BR rows) x (4 TX columns): S = Q K^T sums over head_dim, O = P V
// over keys. A thread computes 4 rows by 4 columns. Depth passes through workgroup memory in chunks
// of KC.
var<workgroup> kv_tile: array<vec4<f32>, KC * TX>; // [depth][4 columns]: K transposed, or V

// a holds four depths of one row, b those depths of four columns.
fn multiply_add(sum: vec4<f32>, a: vec4<f32>, b: mat4x4<f32>) -> vec4<f32> {
    let half = fma(vec4<f32>(a.y), b[1], fma(vec4<f32>(a.x), b[0], sum));
    return fma(vec4<f32>(a.w), b[3], fma(vec4<f32>(a.z), b[2], half));
}

fn add_if_present(sum: vec4<f32>, p: u32, v: vec4<f32>) -> vec4<f32> {
    if (p == ABSENT) {
        return sum;
    }
    return fma(vec4<f32>(bitcast<f32>(p)), v, sum);
}

// As multiply_add, for four keys of which some may be masked or dropped and may hold NaN: those
// contribute nothing.
fn add_present(sum: vec4<f32>, p: vec4<u32>, v: mat4x4<f32>) -> vec4<f32> {
    let first = add_if_present(add_if_present(sum, p.x, v[0]), p.y, v[1]);
    return add_if_present(add_if_present(first, p.z, v[2]), p.w, v[3]);
}

// Four depths of this thread's four columns.
fn kv_block(depth4: u32, tx: u32) -> mat4x4<f32> {
    let at = depth4 * 4u * TX + tx;
    return mat4x4<f32>(kv_tile[at], kv_tile[at + TX], kv_tile[at + 2u * TX], kv_tile[at + 3u * TX]);
}
