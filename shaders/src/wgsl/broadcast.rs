//! Unrolls flash_forward_broadcast.wgsl.

use super::unroll::{Words, fill};
use crate::{BroadcastTiles, Operation, Variant};

const SOURCE: &str = include_str!("../../wgsl/flash_forward_broadcast.wgsl");

/// The kernel with its unrolled parts.
pub(super) fn kernel(variant: &Variant, tiles: &BroadcastTiles) -> String {
    let code = Unroll {
        words: Words::new(variant.dtype),
        tiles: *tiles,
        whole: variant.operation == Operation::FlashForward,
    };
    fill(
        SOURCE,
        &[
            ("ROWS", code.rows()),
            ("LOAD_Q", code.load_q()),
            ("FULL_TILE", code.tile(false)),
            ("EDGE_TILE", code.tile(true)),
            ("STORE", code.store()),
        ],
    )
}

struct Unroll {
    words: Words,
    tiles: BroadcastTiles,
    /// Whether the keys are not split, so that rows are stored as they will be.
    whole: bool,
}

impl Unroll {
    /// `f` of every row of a thread.
    fn each_row(&self, f: impl Fn(u32) -> String) -> String {
        (0..self.tiles.rows).map(f).collect()
    }

    /// Blocks of four columns per word.
    fn fours(&self) -> u32 {
        self.words.len() / 4
    }

    /// The element of a private array with the block `four` of word `w`.
    fn element(&self, array: &str, four: u32) -> String {
        format!("{array}[zero + {}u * w + {four}u]", self.fours())
    }

    fn rows(&self) -> String {
        let (lanes, blocks) = (self.tiles.lanes, self.tiles.width / 4);
        self.each_row(|r| {
            format!(
                "let r{r} = item.row_begin + {}u + lane;\n\
                 let visible{r} = visible_keys(item, r{r});\n\
                 let q{r}_at = q_row(item, min(r{r}, row_end - 1u)) / STEP;\n\
                 var q{r}: array<vec4<f32>, {blocks}>;\n\
                 var o{r}: array<vec4<f32>, {blocks}>;\n\
                 var m{r} = LOWEST;\n\
                 var l{r} = 0.0;\n",
                r * lanes
            )
        })
    }

    fn load_q(&self) -> String {
        self.each_row(|r| {
            let mut code = self.words.unpack(&format!("q[q{r}_at + w]"), &format!("q{r}_"), 0);
            for four in 0..self.fours() {
                code += &format!("{} = q{r}_{four};\n", self.element(&format!("q{r}"), four));
            }
            code
        })
    }

    /// Runs `body` for each word of a row, of which there is at least one.
    fn over_words(words: &str, body: &str) -> String {
        format!(
            "for (var w = 0u;;) {{\n\
             {body}w++;\n\
             if (w >= {words}) {{\n\
             break;\n\
             }}\n\
             }}\n"
        )
    }

    /// Calls `product` for each key of a tile and block of four columns of a word of `tensor`, with
    /// `x` as the key's four numbers.
    fn over_keys(&self, tensor: &str, product: impl Fn(u32, u32) -> String) -> String {
        let lanes = self.tiles.lanes;
        let mut code = String::new();
        for first in (0..self.tiles.keys()).step_by(lanes as usize) {
            code += "{\n";
            let loaded = format!("{tensor}[{tensor}{first}_at + w]");
            code += &self.words.unpack(&loaded, tensor, 0);
            for four in 0..self.fours() {
                for lane in 0..lanes {
                    code += "{\n";
                    code += &format!("let x = subgroupBroadcast({tensor}{four}, {lane}u);\n");
                    code += &product(first + lane, four);
                    code += "}\n";
                }
            }
            code += "}\n";
        }
        code
    }

    /// The word at which this lane's key of each group starts.
    fn addresses(&self, tensor: &str) -> String {
        (0..self.tiles.keys())
            .step_by(self.tiles.lanes as usize)
            .map(|first| {
                format!(
                    "let {tensor}{first}_at = \
                     {tensor}_row(item, min(j_begin + {first}u + lane, last)) / STEP;\n"
                )
            })
            .collect()
    }

    /// One tile of keys. At an `edge`, rows do not see all of them.
    fn tile(&self, edge: bool) -> String {
        let keys = || 0..self.tiles.keys();
        let mut code = self.addresses("k") + &self.addresses("v");

        // S = Q K^T
        for c in keys() {
            code += &self.each_row(|r| format!("var s{r}_{c} = 0.0;\n"));
        }
        let mut body = String::new();
        for four in 0..self.fours() {
            body += &self.each_row(|r| {
                format!("let q{r}_{four} = {};\n", self.element(&format!("q{r}"), four))
            });
        }
        body += &self.over_keys("k", |c, four| {
            self.each_row(|r| format!("s{r}_{c} = dot_add(s{r}_{c}, q{r}_{four}, x);\n"))
        });
        code += &Self::over_words("words", &body);

        // P = exp(S - m), and the factor that rescales what the row holds so far.
        code += &self.each_row(|r| {
            let mut code = String::new();
            for c in keys() {
                let s = format!("score(s{r}_{c} * params.scale, 0u)");
                code += &if edge {
                    format!(
                        "let seen{r}_{c} = allowed(visible{r}, j_begin + {c}u, 0u);\n\
                         s{r}_{c} = select(LOWEST, {s}, seen{r}_{c});\n"
                    )
                } else {
                    format!("s{r}_{c} = {s};\n")
                };
            }
            let largest = keys().fold(format!("m{r}"), |x, c| format!("max({x}, s{r}_{c})"));
            code += &format!(
                "let top{r} = {largest};\n\
                 let alpha{r} = rescale(m{r}, top{r});\n\
                 m{r} = top{r};\n"
            );
            for c in keys() {
                let p = format!("exp_nonpositive(s{r}_{c} - top{r})");
                code += &if edge {
                    format!("s{r}_{c} = select(0.0, {p}, seen{r}_{c});\n")
                } else {
                    format!("s{r}_{c} = {p};\n")
                };
            }
            let sum = keys().map(|c| format!("s{r}_{c}")).collect::<Vec<_>>().join(" + ");
            code + &format!("l{r} = l{r} * alpha{r} + ({sum});\n")
        });

        // O = alpha O + P V. Each tile is summed by itself, so that rounding errors grow with the
        // number of tiles and not with the number of keys.
        let mut body = String::new();
        for four in 0..self.fours() {
            body += &self.each_row(|r| format!("var t{r}_{four} = vec4<f32>(0.0);\n"));
        }
        body += &self.over_keys("v", |c, four| {
            self.each_row(|r| {
                // Keys that a row does not see may hold NaN and contribute nothing.
                let x = if edge {
                    format!("select(vec4<f32>(0.0), x, seen{r}_{c})")
                } else {
                    "x".into()
                };
                format!("t{r}_{four} = fma(vec4<f32>(s{r}_{c}), {x}, t{r}_{four});\n")
            })
        });
        for four in 0..self.fours() {
            body += &self.each_row(|r| {
                let o = self.element(&format!("o{r}"), four);
                format!("{o} = fma({o}, vec4<f32>(alpha{r}), t{r}_{four});\n")
            });
        }
        code + &Self::over_words("words_v", &body)
    }

    /// O / l, and lse = m + ln l (of a chunk: O, m and l).
    fn store(&self) -> String {
        self.each_row(|r| {
            let number = |four| format!("{} * factor", self.element(&format!("o{r}"), four));
            let word = if self.whole {
                format!("out[out_at + w] = {};\n", self.words.pack(number, 0))
            } else {
                (0..self.fours())
                    .map(|four| {
                        let column = format!("STEP * w + {}u", 4 * four);
                        format!("store4_row(item, r{r}, {column}, {});\n", number(four))
                    })
                    .collect()
            };
            let at = if self.whole {
                format!("let out_at = out_row(item, r{r}) / STEP;\n")
            } else {
                String::new()
            };
            format!(
                "if (row_is_stored(item, r{r})) {{\n\
                 let factor = row_factor(l{r});\n\
                 {at}\
                 for (var w = 0u; w < words_v; w++) {{\n\
                 {word}\
                 }}\n\
                 store_sums(item, r{r}, m{r}, l{r});\n\
                 }}\n"
            )
        })
    }
}
