fn is_finite_word(word: vec4<u32>) -> bool {
    return all((word & vec4<u32>(0x7f800000u)) != vec4<u32>(0x7f800000u));
}
