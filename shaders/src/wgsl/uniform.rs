//! Unrolls flash_forward_uniform.wgsl.

use super::unroll::{Words, fill};
use crate::{Operation, UniformTiles, Variant};
use std::fmt::Write;

const SOURCE: &str = include_str!("../../wgsl/flash_forward_uniform.wgsl");

/// Columns that are multiplied at a time: those of four keys fill the scalar registers.
const SEGMENT: u32 = 16;

/// The kernel with its unrolled parts.
pub(super) fn kernel(variant: &Variant, tiles: &UniformTiles) -> String {
    let code = Unroll {
        words: Words::new(variant.dtype),
        tiles: *tiles,
        whole: variant.operation == Operation::FlashForward,
    };
    let bit = |c: u32| format!("{}u", 1u32 << c);
    let seen = |c: u32| format!("(absent & {}) == 0u", bit(c));
    let keys = || 0..UniformTiles::KEYS;
    let each = |f: &dyn Fn(u32) -> String| keys().map(f).collect::<Vec<_>>().join("\n");
    let sum = |first: String, rest: &dyn Fn(u32) -> String| {
        keys().skip(1).fold(first, |all, c| format!("{all} + {}", rest(c)))
    };
    fill(
        SOURCE,
        &[
            ("LOAD_Q", code.load_q()),
            ("DECLARE_O", code.each_o(|n| format!("var o{n} = vec4<f32>(0.0);"))),
            ("SCORES", code.scores()),
            (
                "MASKS",
                each(&|c| {
                    let (bit, j) = (bit(c), format!("j_begin + {c}u"));
                    format!(
                        "let bias{c} = mask_at(item, r, {j});\n\
                         let seen{c} = allowed(visible, {j}, bias{c});\n\
                         s{c} = select(LOWEST, score(s{c}, bias{c}), seen{c});\n\
                         absent |= select({bit}, 0u, seen{c});"
                    )
                }),
            ),
            ("SOFTCAP", each(&|c| format!("s{c} = score(s{c}, 0u);"))),
            ("LARGEST", each(&|c| format!("largest = max(largest, bitcast<u32>(s{c}) << 1u);"))),
            ("FINITE", each(&|c| format!("s{c} = finite(s{c});"))),
            ("TOP", each(&|c| format!("top = max(top, s{c});"))),
            ("RESCALE", code.each_o(|n| format!("o{n} *= alpha;"))),
            ("WEIGHTS", each(&|c| format!("var p{c} = exp_number(s{c} - m);"))),
            ("NAN", each(&|c| format!("p{c} = select(p{c}, s{c}, is_nan(s{c}));"))),
            ("SEEN_WEIGHTS", each(&|c| format!("p{c} = select(0.0, p{c}, {});", seen(c)))),
            ("TILE_SUM", format!("let tile_sum = {};", sum("p0".into(), &|c| format!("p{c}")))),
            ("DROPOUT", code.dropout()),
            (
                "STORE_WEIGHTS",
                each(&|c| {
                    let seen = seen(c);
                    format!(
                        "p_tile[{c}u * THREADS + thread] = \
                         select(ABSENT, bitcast<u32>(p{c}), {seen});"
                    )
                }),
            ),
            ("CAREFUL_VALUES", code.careful_values()),
            ("VALUES", code.values()),
            ("STORE", code.store()),
        ],
    )
}

struct Unroll {
    words: Words,
    tiles: UniformTiles,
    /// Whether the keys are not split, so that rows are stored as they will be.
    whole: bool,
}

impl Unroll {
    /// Words of 16 bytes per segment.
    fn words_per_segment(&self) -> u32 {
        SEGMENT / self.words.len()
    }

    fn each_o(&self, f: impl Fn(u32) -> String) -> String {
        (0..self.tiles.width / 4).map(f).collect::<Vec<_>>().join("\n")
    }

    fn load_q(&self) -> String {
        if self.tiles.q_in_memory {
            return String::new();
        }
        let mut code = String::new();
        for word in 0..self.tiles.width / self.words.len() {
            let loaded = format!("q[q_at + {word}u]");
            code += &self.words.unpack(&loaded, "q", word);
        }
        code
    }

    /// The dot products of the query with `keys` over one segment; `at` is the segment's first
    /// word, and `q` the number of its first four columns.
    fn segment(&self, code: &mut String, keys: std::ops::Range<u32>, at: &str, q: u32) {
        for c in keys.clone() {
            for word in 0..self.words_per_segment() {
                let name = format!("k{c}_");
                *code += &self.words.unpack(&format!("k[k{c}_at + {at}{word}u]"), &name, word);
            }
        }
        for d4 in 0..SEGMENT / 4 {
            for x in ["x", "y", "z", "w"] {
                for c in keys.clone() {
                    let q = q + d4;
                    writeln!(code, "s{c} = fma(k{c}_{d4}.{x}, q{q}.{x}, s{c});").expect("a String");
                }
            }
        }
    }

    fn address(tensor: &str, c: u32) -> String {
        format!("let {tensor}{c}_at = {tensor}_row(item, min(j_begin + {c}u, last)) / STEP;\n")
    }

    fn scores(&self) -> String {
        let keys = UniformTiles::KEYS;
        let mut code = String::new();
        for c in 0..keys {
            writeln!(code, "var s{c} = 0.0;").expect("a String");
        }
        let group = UniformTiles::GROUP;
        if self.tiles.q_in_memory {
            code += "for (var d = 0u; d < params.head_dim; d += 16u) {\n";
            code += "let d_at = d / STEP;\n";
            for word in 0..self.words_per_segment() {
                code += &self.words.unpack(&format!("q[q_at + d_at + {word}u]"), "q", word);
            }
            for first in (0..keys).step_by(group) {
                code += "{\n";
                let keys = first..first + group as u32;
                keys.clone().for_each(|c| code += &Self::address("k", c));
                self.segment(&mut code, keys, "d_at + ", 0);
                code += "}\n";
            }
            code += "}\n";
        } else {
            for first in (0..keys).step_by(group) {
                code += "{\n";
                let keys = first..first + group as u32;
                keys.clone().for_each(|c| code += &Self::address("k", c));
                for segment in 0..self.tiles.width / SEGMENT {
                    code += "{\n";
                    let at = format!("{}u + ", segment * self.words_per_segment());
                    self.segment(&mut code, keys.clone(), &at, segment * SEGMENT / 4);
                    code += "}\n";
                }
                code += "}\n";
            }
        }
        for c in 0..keys {
            writeln!(code, "s{c} *= params.scale;").expect("a String");
        }
        code
    }

    fn values(&self) -> String {
        let mut code = String::new();
        for segment in 0..self.tiles.width / SEGMENT {
            code += "{\n";
            for first in (0..UniformTiles::KEYS).step_by(UniformTiles::GROUP) {
                let keys = first..first + UniformTiles::GROUP as u32;
                for c in keys.clone() {
                    code += &Self::address("v", c);
                    for word in 0..self.words_per_segment() {
                        let at = segment * self.words_per_segment() + word;
                        let loaded = format!("v[v{c}_at + {at}u]");
                        code += &self.words.unpack(&loaded, &format!("v{c}_"), word);
                    }
                }
                for c in keys {
                    for d4 in 0..SEGMENT / 4 {
                        let line = if c == 0 {
                            format!("var t{d4} = v{c}_{d4} * p{c};")
                        } else {
                            format!("t{d4} = fma(v{c}_{d4}, vec4<f32>(p{c}), t{d4});")
                        };
                        writeln!(code, "{line}").expect("a String");
                    }
                }
            }
            for d4 in 0..SEGMENT / 4 {
                writeln!(code, "o{} += t{d4};", segment * SEGMENT / 4 + d4).expect("a String");
            }
            code += "}\n";
        }
        code
    }

    fn careful_values(&self) -> String {
        let mut code = String::new();
        for segment in 0..self.tiles.width / SEGMENT {
            code += "{\n";
            for d4 in 0..SEGMENT / 4 {
                writeln!(code, "var t{d4} = vec4<f32>(0.0);").expect("a String");
            }
            code += "for (var c = 0u; c < params.rolled; c++) {\n\
                     let p = p_tile[c * THREADS + thread];\n\
                     if (p != ABSENT) {\n\
                     let at = v_row(item, min(j_begin + c, last)) / STEP;\n";
            for word in 0..self.words_per_segment() {
                let at = segment * self.words_per_segment() + word;
                code += &self.words.unpack(&format!("v[at + {at}u]"), "v_", word);
            }
            for d4 in 0..SEGMENT / 4 {
                writeln!(code, "t{d4} = fma(v_{d4}, vec4<f32>(bitcast<f32>(p)), t{d4});")
                    .expect("a String");
            }
            code += "}\n}\n";
            for d4 in 0..SEGMENT / 4 {
                writeln!(code, "o{} += t{d4};", segment * SEGMENT / 4 + d4).expect("a String");
            }
            code += "}\n";
        }
        code
    }

    fn dropout(&self) -> String {
        let mut code = String::new();
        for first in (0..UniformTiles::KEYS).step_by(4) {
            writeln!(code, "let keep{first} = kept(item, r, j_begin + {first}u);")
                .expect("a String");
            for (x, c) in ["x", "y", "z", "w"].iter().zip(first..) {
                let bit = 1u32 << c;
                writeln!(
                    code,
                    "p{c} = select(0.0, p{c}, keep{first}.{x});\n\
                     absent |= select({bit}u, 0u, keep{first}.{x});"
                )
                .expect("a String");
            }
        }
        code
    }

    fn store(&self) -> String {
        if !self.whole {
            return self.each_o(|n| format!("store4_row(item, r, {}u, o{n} * factor);", 4 * n));
        }
        let mut code = String::from("let out_at = out_row(item, r) / STEP;\n");
        for word in 0..self.tiles.width / self.words.len() {
            let packed = self.words.pack(|d4| format!("o{d4} * factor"), word);
            writeln!(code, "out[out_at + {word}u] = {packed};").expect("a String");
        }
        code
    }
}
