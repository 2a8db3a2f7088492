// Reads of tensor TENSOR, stored as f32.
fn load_TENSOR(index: u32) -> f32 {
    return bitcast<f32>(TENSOR[index]);
}
