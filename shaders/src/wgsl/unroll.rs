//! What the generators of unrolled kernels share.

use flashtile_core::DType;
use std::fmt::Write;

/// Replaces each line `//@ NAME` of `source` by the code of that name, indented as the line is.
///
/// # Panics
/// Where a name has no code: every source and its generator are compiled into this crate.
pub(super) fn fill(source: &str, parts: &[(&str, String)]) -> String {
    let mut filled = String::new();
    for line in source.lines() {
        let code = line.trim_start();
        let Some(name) = code.strip_prefix("//@ ") else {
            filled += line;
            filled += "\n";
            continue;
        };
        let (_, code_of_name) = parts
            .iter()
            .find(|(part, _)| *part == name)
            .unwrap_or_else(|| panic!("no code for {name}"));
        let mut depth = (line.len() - code.len()) / 4;
        for line in code_of_name.lines() {
            depth -= usize::from(line.starts_with('}'));
            writeln!(filled, "{}{line}", "    ".repeat(depth)).expect("a String");
            depth += usize::from(line.ends_with('{'));
        }
    }
    filled
}

/// How 16 bytes of a tensor hold numbers: 4 of f32, 8 of the 16-bit types.
#[derive(Clone, Copy)]
pub(super) struct Words(DType);

impl Words {
    pub(super) const fn new(dtype: DType) -> Self {
        Self(dtype)
    }

    /// Numbers per word.
    pub(super) const fn len(self) -> u32 {
        16 / self.0.size() as u32
    }

    /// Declares `name` and a number, a vec4<f32>, for each four numbers of the loaded `word`.
    pub(super) fn unpack(self, loaded: &str, name: &str, word: u32) -> String {
        match self.0 {
            DType::F32 => format!("let {name}{word} = bitcast<vec4<f32>>({loaded});\n"),
            DType::F16 | DType::BF16 => {
                let half = if self.0 == DType::F16 { "f16" } else { "bf16" };
                let raw = format!("{name}raw{word}");
                let mut code = format!("let {raw} = {loaded};\n");
                for (n, [a, b]) in [["x", "y"], ["z", "w"]].into_iter().enumerate() {
                    let number = 2 * word + n as u32;
                    writeln!(code, "let {name}{number} = {half}_values({raw}.{a}, {raw}.{b});")
                        .expect("a String");
                }
                code
            }
        }
    }

    /// The word number `word` of a row whose numbers 4 n to 4 n + 3 are `four(n)`.
    pub(super) fn pack(self, four: impl Fn(u32) -> String, word: u32) -> String {
        match self.0 {
            DType::F32 => format!("bitcast<vec4<u32>>({})", four(word)),
            DType::F16 | DType::BF16 => {
                let half = if self.0 == DType::F16 { "f16" } else { "bf16" };
                let [a, b] = [four(2 * word), four(2 * word + 1)];
                format!("vec4<u32>({half}_words({a}), {half}_words({b}))")
            }
        }
    }

    /// Four numbers as a vec4<f32>, of an element of 4 numbers.
    pub(super) fn four(self, loaded: &str) -> String {
        match self.0 {
            DType::F32 => format!("bitcast<vec4<f32>>({loaded})"),
            DType::F16 => format!("f16_values({loaded}.x, {loaded}.y)"),
            DType::BF16 => format!("bf16_values({loaded}.x, {loaded}.y)"),
        }
    }

    /// The element of 4 numbers that holds `four`, a vec4<f32>.
    pub(super) fn pack_four(self, four: &str) -> String {
        match self.0 {
            DType::F32 => format!("bitcast<vec4<u32>>({four})"),
            DType::F16 => format!("f16_words({four})"),
            DType::BF16 => format!("bf16_words({four})"),
        }
    }
}
