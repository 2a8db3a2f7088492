fn is_finite_word(word: vec4<u32>) -> bool {
    let low = vec4<u32>(EXPONENT);
    let high = vec4<u32>(EXPONENT << 16u);
    return all((word & low) != low) && all((word & high) != high);
}
