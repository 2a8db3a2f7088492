// The application's own kernels around attention: simple rather than fast. Tensors are row-major,
// one row per token.

struct Sizes {
    rows: u32,
    inner: u32,   // numbers in a row of x
    columns: u32, // numbers in a row of y
}

@group(0) @binding(0) var<uniform> sizes: Sizes;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> residual: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;

// y = (x - mean) / sqrt(variance + epsilon) * weight + bias, one thread a row.
@compute @workgroup_size(64)
fn layer_norm(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.x;
    if row >= sizes.rows {
        return;
    }
    let begin = row * sizes.inner;
    let count = f32(sizes.inner);
    var mean = 0.0;
    for (var c = 0u; c < sizes.inner; c++) {
        mean += x[begin + c] / count;
    }
    var variance = 0.0;
    for (var c = 0u; c < sizes.inner; c++) {
        let apart = x[begin + c] - mean;
        variance += apart * apart / count;
    }
    let factor = inverseSqrt(variance + 1e-5);
    for (var c = 0u; c < sizes.inner; c++) {
        y[begin + c] = (x[begin + c] - mean) * factor * weight[c] + bias[c];
    }
}

// One number of x weight + bias.
fn product(index: u32) -> f32 {
    let row = index / sizes.columns;
    let column = index % sizes.columns;
    var sum = bias[column];
    for (var n = 0u; n < sizes.inner; n++) {
        sum += x[row * sizes.inner + n] * weight[n * sizes.columns + column];
    }
    return sum;
}

// y = x weight + bias, one thread a number; so are the two below.
@compute @workgroup_size(64)
fn linear(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x < sizes.rows * sizes.columns {
        y[id.x] = product(id.x);
    }
}

// y = residual + x weight + bias
@compute @workgroup_size(64)
fn linear_residual(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x < sizes.rows * sizes.columns {
        y[id.x] = residual[id.x] + product(id.x);
    }
}

// y = gelu(x weight + bias), by the formula with tanh that GPT-2 uses.
@compute @workgroup_size(64)
fn linear_gelu(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x < sizes.rows * sizes.columns {
        let z = product(id.x);
        y[id.x] = 0.5 * z * (1.0 + tanh(0.7978845608 * (z + 0.044715 * z * z * z)));
    }
}
