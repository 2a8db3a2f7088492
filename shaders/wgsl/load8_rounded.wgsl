// Whether rows of TENSOR, stored as f32 or bf16, are dense makes no difference here.
fn TENSOR_is_dense(base: u32) -> bool {
    return false;
}

// Eight numbers of a row of TENSOR from column d on, rounded to f16; zeros beyond its width.
fn load8_TENSOR(row: u32, d: u32, dense: bool) -> Eight {
    return Eight(to_f16(load4_TENSOR(row, d)), to_f16(load4_TENSOR(row, d + 4u)));
}
