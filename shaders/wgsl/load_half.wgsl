// Reads of tensor TENSOR, stored as 16-bit numbers, two to a word.
fn load_TENSOR(index: u32) -> f32 {
    return HALF_value(TENSOR[index / 2u] >> (index % 2u * 16u));
}
