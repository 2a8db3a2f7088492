//! Unrolls flash_forward_lanes.wgsl.

use super::unroll::{Words, fill};
use crate::{LaneTiles, Operation, Variant};
use std::fmt::Write;

const SOURCE: &str = include_str!("../../wgsl/flash_forward_lanes.wgsl");

/// Keys whose scores are summed over the lanes together.
pub(super) const KEYS: u32 = 8;
const COMPONENTS: [&str; 4] = ["x", "y", "z", "w"];

/// The kernel with its unrolled parts.
pub(super) fn kernel(variant: &Variant, tiles: &LaneTiles) -> String {
    let code = Unroll {
        words: Words::new(variant.dtype),
        tiles: *tiles,
        whole: variant.operation == Operation::FlashForward,
    };
    let LaneTiles { prefetch, .. } = *tiles;
    let when = |wanted: bool, code: String| if wanted { code } else { String::new() };
    fill(
        SOURCE,
        &[
            ("LOAD_Q", code.load_q()),
            ("DECLARE_O", code.declare_o()),
            ("FETCH_FIRST", when(prefetch, code.fetch("range.x / BC * BC", true))),
            ("FETCH", when(!prefetch, code.fetch("j_begin", true))),
            ("STORE_TILES", code.store_tiles()),
            ("FETCH_NEXT", when(prefetch, code.fetch("j_begin + BC", false))),
            ("SCORES", code.scores()),
            ("MASKS", code.masks()),
            (
                "LARGEST",
                code.owned()
                    .map(|s| format!("largest = max(largest, bitcast<u32>(s{s}) << 1u);\n"))
                    .collect::<String>(),
            ),
            ("FINITE", code.owned().map(|s| format!("s{s} = finite(s{s});\n")).collect::<String>()),
            ("TOP", code.top()),
            ("RESCALE", code.rescale()),
            ("WEIGHTS", code.weights()),
            ("BROADCAST", code.broadcast()),
            ("CAREFUL_VALUES", code.careful_values()),
            ("VALUES", code.values()),
            ("STORE", code.store()),
        ],
    )
}

/// `join` for iterators.
trait Join {
    fn join(self, separator: &str) -> String;
}

impl<I: Iterator<Item = String>> Join for I {
    fn join(self, separator: &str) -> String {
        self.collect::<Vec<_>>().join(separator)
    }
}

struct Unroll {
    words: Words,
    tiles: LaneTiles,
    /// Whether the keys are not split, so that rows are stored as they will be.
    whole: bool,
}

impl Unroll {
    fn rows(&self) -> std::ops::Range<u32> {
        0..self.tiles.rows
    }

    /// Blocks of four columns that a thread holds of each row.
    fn blocks(&self) -> std::ops::Range<u32> {
        0..self.tiles.width / 4 / self.tiles.lanes
    }

    /// Keys whose scores each lane ends up with. Of 16 lanes, two have the same key.
    fn own_keys(&self) -> std::ops::Range<u32> {
        0..(KEYS / self.tiles.lanes).max(1)
    }

    /// "r_c" of every score that the lane ends up with.
    fn owned(&self) -> impl Iterator<Item = String> + use<> {
        let keys = self.own_keys();
        self.rows().flat_map(move |r| keys.clone().map(move |c| format!("{r}_{c}")))
    }

    /// The value of `x` in the lane whose number differs in the bit number `bit`.
    fn exchanged(bit: u32, x: &str) -> String {
        match bit {
            0 => format!("quadSwapX({x})"),
            1 => format!("quadSwapY({x})"),
            _ => format!("subgroupShuffleXor({x}, {}u)", 1 << bit),
        }
    }

    /// Bits of the lane's number that say which keys it ends up with.
    fn bits(&self) -> std::ops::Range<u32> {
        0..self.tiles.lanes.min(KEYS).trailing_zeros()
    }

    fn load_q(&self) -> String {
        let mut code = String::new();
        for r in self.rows() {
            writeln!(code, "let q{r}_at = q_row(item, min(row + {r}u, row_end - 1u)) / 4u + lane;")
                .expect("a String");
            for n in self.blocks() {
                let loaded = format!("q[q{r}_at + {}u]", n * self.tiles.lanes);
                writeln!(code, "let q{r}_{n} = {};", self.words.four(&loaded)).expect("a String");
            }
        }
        code
    }

    fn declare_o(&self) -> String {
        let mut code = String::new();
        for r in self.rows() {
            writeln!(code, "var m{r} = LOWEST;\nvar l{r} = 0.0; // of the lane's own keys")
                .expect("a String");
            for n in self.blocks() {
                writeln!(code, "var o{r}_{n} = vec4<f32>(0.0);").expect("a String");
            }
        }
        code
    }

    /// Words of a tile of K or V.
    fn tile_words(&self) -> u32 {
        LaneTiles::KEYS * self.tiles.width / self.words.len()
    }

    /// Words of each tile that a thread loads.
    fn loads(&self) -> std::ops::Range<u32> {
        0..self.tile_words().div_ceil(LaneTiles::THREADS)
    }

    /// Loads this thread's words of K and V from the tile that starts at `j_begin`.
    fn fetch(&self, j_begin: &str, declare: bool) -> String {
        let per_row = self.tiles.width / self.words.len();
        let var = match (declare, self.tiles.prefetch) {
            (true, true) => "var ",
            (true, false) => "let ",
            (false, _) => "",
        };
        let mut code = String::new();
        for n in self.loads() {
            let suffix = if declare { "" } else { "_next" };
            writeln!(
                code,
                "let word{n}{suffix} = min(thread + {}u, {}u);\n\
                 let j{n}{suffix} = min({j_begin} + word{n}{suffix} / {per_row}u, last);\n\
                 {var}k_word{n} = \
                 k[k_row(item, j{n}{suffix}) / STEP + word{n}{suffix} % {per_row}u];\n\
                 {var}v_word{n} = \
                 v[v_row(item, j{n}{suffix}) / STEP + word{n}{suffix} % {per_row}u];",
                n * LaneTiles::THREADS,
                self.tile_words() - 1,
            )
            .expect("a String");
        }
        code
    }

    fn store_tiles(&self) -> String {
        let mut code = String::new();
        let fours = self.words.len() / 4;
        for n in self.loads() {
            // The last threads may have no word of a small tile.
            let some = (n + 1) * LaneTiles::THREADS > self.tile_words();
            if some {
                let left = self.tile_words() - n * LaneTiles::THREADS;
                writeln!(code, "if (thread < {left}u) {{").expect("a String");
            }
            for tensor in ["k", "v"] {
                code +=
                    &self.words.unpack(&format!("{tensor}_word{n}"), &format!("{tensor}{n}_"), 0);
                for four in 0..fours {
                    writeln!(
                        code,
                        "{tensor}_tile[{fours}u * (thread + {}u) + {four}u] = {tensor}{n}_{four};",
                        n * LaneTiles::THREADS
                    )
                    .expect("a String");
                }
            }
            if some {
                code += "}\n";
            }
        }
        let finite = self.loads().map(|n| format!("is_finite_word(v_word{n})")).join(" && ");
        code + &format!("if (edge && !({finite})) {{\natomicStore(&v_dirty, 1u);\n}}")
    }

    fn scores(&self) -> String {
        let mut code = String::new();
        for r in self.rows() {
            for c in 0..KEYS {
                writeln!(code, "var d{r}_{c} = 0.0;").expect("a String");
            }
        }
        for n in self.blocks() {
            for c in 0..KEYS {
                let at = c * self.tiles.width / 4 + n * self.tiles.lanes;
                writeln!(code, "let k{n}_{c} = k_tile[at + {at}u];").expect("a String");
                for x in COMPONENTS {
                    for r in self.rows() {
                        writeln!(code, "d{r}_{c} = fma(q{r}_{n}.{x}, k{n}_{c}.{x}, d{r}_{c});")
                            .expect("a String");
                    }
                }
            }
        }
        // Each exchange halves the keys: a lane keeps those of its side and gets the other's parts.
        for r in self.rows() {
            let mut parts: Vec<_> = (0..KEYS).map(|c| format!("d{r}_{c}")).collect();
            for bit in self.bits() {
                let half = parts.len() / 2;
                let (low, high) = parts.split_at(half);
                let mut sums = Vec::new();
                for (c, (low, high)) in low.iter().zip(high).enumerate() {
                    let name = format!("d{r}_{bit}_{c}");
                    let given = format!("select({high}, {low}, bit{bit})");
                    writeln!(
                        code,
                        "let {name} = select({low}, {high}, bit{bit}) + {};",
                        Self::exchanged(bit, &given)
                    )
                    .expect("a String");
                    sums.push(name);
                }
                parts = sums;
            }
            for (c, part) in parts.iter().enumerate() {
                let sum = match self.tiles.lanes {
                    16 => format!("({part} + {})", Self::exchanged(3, part)),
                    _ => part.clone(),
                };
                writeln!(code, "var s{r}_{c} = {sum} * params.scale;").expect("a String");
            }
        }
        let first = self.bits().map(|bit| format!("select(0u, {}u, bit{bit})", KEYS >> (bit + 1)));
        code + &format!("let first_key = {};", first.join(" + "))
    }

    fn masks(&self) -> String {
        let mut code = String::from("var absent = 0u; // one bit per score\nif (edge) {\n");
        for r in self.rows() {
            writeln!(code, "let visible{r} = visible_keys(item, row + {r}u);").expect("a String");
        }
        for (n, s) in self.owned().enumerate() {
            let (r, c) = s.split_once('_').expect("r_c");
            writeln!(
                code,
                "let bias{s} = mask_at(item, row + {r}u, j + {c}u);\n\
                 s{s} = score(s{s}, bias{s});\n\
                 absent |= select({}u, 0u, allowed(visible{r}, j + {c}u, bias{s}));",
                1u32 << n
            )
            .expect("a String");
        }
        code += "} else if (SOFTCAP) {\n";
        for s in self.owned() {
            writeln!(code, "s{s} = score(s{s}, 0u);").expect("a String");
        }
        code + "}"
    }

    fn top(&self) -> String {
        let mut code = String::new();
        for r in self.rows() {
            let first = r * self.own_keys().end;
            let own: Vec<_> = self.own_keys().map(|c| format!("s{r}_{c}")).collect();
            let largest = own.iter().skip(1).fold(own[0].clone(), |a, b| format!("max({a}, {b})"));
            writeln!(code, "var top{r} = {largest};").expect("a String");
            writeln!(code, "if (edge || careful) {{\ntop{r} = LOWEST;").expect("a String");
            for (n, s) in (first..).zip(&own) {
                writeln!(
                    code,
                    "top{r} = max(top{r}, select(LOWEST, number({s}), (absent & {}u) == 0u));",
                    1u32 << n
                )
                .expect("a String");
            }
            code += "}\n";
            for bit in self.bits() {
                let other = Self::exchanged(bit, &format!("top{r}"));
                writeln!(code, "top{r} = max(top{r}, {other});").expect("a String");
            }
            writeln!(code, "top{r} = max(top{r}, m{r});").expect("a String");
        }
        code
    }

    fn rescale(&self) -> String {
        let grew = self.rows().map(|r| format!("top{r} != m{r}")).join(" || ");
        let mut code = format!("if ({grew}) {{\n");
        for r in self.rows() {
            writeln!(
                code,
                "let alpha{r} = rescale(m{r}, top{r});\nl{r} *= alpha{r};\nm{r} = top{r};"
            )
            .expect("a String");
            for n in self.blocks() {
                writeln!(code, "o{r}_{n} *= alpha{r};").expect("a String");
            }
        }
        code + "}"
    }

    fn weights(&self) -> String {
        let mut code = String::new();
        for s in self.owned() {
            let (r, _) = s.split_once('_').expect("r_c");
            writeln!(code, "var e{s} = exp_number(s{s} - m{r});").expect("a String");
        }
        code += "if (careful) {\n";
        for s in self.owned() {
            writeln!(code, "e{s} = select(e{s}, s{s}, is_nan(s{s}));").expect("a String");
        }
        code += "}\nif (edge) {\n";
        for (n, s) in self.owned().enumerate() {
            writeln!(code, "e{s} = select(0.0, e{s}, (absent & {}u) == 0u);", 1u32 << n)
                .expect("a String");
        }
        code += "}\n";
        for r in self.rows() {
            let sum = self.own_keys().map(|c| format!("e{r}_{c}")).join(" + ");
            writeln!(code, "l{r} += {sum};").expect("a String");
        }
        code += "if (DROPOUT) {\n";
        for r in self.rows() {
            // The lane's keys lie in one group of four.
            writeln!(code, "let keep{r} = kept(item, row + {r}u, j / 4u * 4u);").expect("a String");
            for c in self.own_keys() {
                let n = r * self.own_keys().end + c;
                writeln!(
                    code,
                    "let kept{r}_{c} = component(keep{r}, j + {c}u);\n\
                     e{r}_{c} = select(0.0, e{r}_{c}, kept{r}_{c});\n\
                     absent |= select({}u, 0u, kept{r}_{c});",
                    1u32 << n
                )
                .expect("a String");
            }
        }
        code + "}"
    }

    /// The lane that has the score of key `c` of the block, and the number of that score there.
    fn owner(&self, c: u32) -> (u32, u32) {
        let lane = self.bits().map(|bit| ((c / (KEYS >> (bit + 1))) & 1) << bit).sum();
        (lane, c % self.own_keys().end)
    }

    fn broadcast(&self) -> String {
        let mut code = String::new();
        for r in self.rows() {
            if self.tiles.lanes >= 8 {
                // Halves of the group exchange once; quads broadcast.
                writeln!(
                    code,
                    "let other{r} = subgroupShuffleXor(e{r}_0, 4u);\n\
                     let low{r} = select(e{r}_0, other{r}, bit2);\n\
                     let high{r} = select(other{r}, e{r}_0, bit2);"
                )
                .expect("a String");
            }
            for c in 0..KEYS {
                let (lane, own) = self.owner(c);
                let from = match (self.tiles.lanes, lane < 4) {
                    (4, _) => format!("e{r}_{own}"),
                    (_, true) => format!("low{r}"),
                    (_, false) => format!("high{r}"),
                };
                writeln!(code, "let p{r}_{c} = quadBroadcast({from}, {}u);", lane % 4)
                    .expect("a String");
            }
        }
        code
    }

    /// Adds P V of the block to O; `first` and `next` are the first sum and the others of key `c`
    /// and row `r`.
    fn weighted_sums(
        &self,
        first: impl Fn(u32, u32) -> String,
        next: impl Fn(u32, u32) -> String,
    ) -> String {
        let mut code = String::new();
        for n in self.blocks() {
            code += "{\n";
            for c in 0..KEYS {
                let at = c * self.tiles.width / 4 + n * self.tiles.lanes;
                writeln!(code, "let v{c} = v_tile[at + {at}u];").expect("a String");
                for r in self.rows() {
                    let line = if c == 0 {
                        format!("var t{r} = {};", first(r, c))
                    } else {
                        format!("t{r} = {};", next(r, c))
                    };
                    writeln!(code, "{line}").expect("a String");
                }
            }
            for r in self.rows() {
                writeln!(code, "o{r}_{n} += t{r};").expect("a String");
            }
            code += "}\n";
        }
        code
    }

    fn values(&self) -> String {
        self.weighted_sums(
            |r, c| format!("v{c} * p{r}_{c}"),
            |r, c| format!("fma(v{c}, vec4<f32>(p{r}_{c}), t{r})"),
        )
    }

    fn careful_values(&self) -> String {
        let mut code = String::new();
        for r in self.rows() {
            let own = self.own_keys().end;
            let mask = (1u32 << own) - 1;
            writeln!(code, "var absent{r} = ((absent >> {}u) & {mask}u) << first_key;", r * own)
                .expect("a String");
        }
        for r in self.rows() {
            for bit in self.bits() {
                let other = Self::exchanged(bit, &format!("absent{r}"));
                writeln!(code, "absent{r} |= {other};").expect("a String");
            }
        }
        let seen = |r: u32, c: u32| format!("(absent{r} & {}u) == 0u", 1u32 << c);
        code + &self.weighted_sums(
            |r, c| format!("select(vec4<f32>(0.0), v{c} * p{r}_{c}, {})", seen(r, c)),
            |r, c| format!("select(t{r}, fma(v{c}, vec4<f32>(p{r}_{c}), t{r}), {})", seen(r, c)),
        )
    }

    fn store(&self) -> String {
        let mut code = String::new();
        for r in self.rows() {
            for bit in self.bits() {
                let other = Self::exchanged(bit, &format!("l{r}"));
                writeln!(code, "l{r} += {other};").expect("a String");
            }
        }
        for r in self.rows() {
            writeln!(
                code,
                "if (row_is_stored(item, row + {r}u)) {{\nlet factor = row_factor(l{r});"
            )
            .expect("a String");
            if self.whole {
                writeln!(code, "let out_at = out_row(item, row + {r}u) / 4u + lane;")
                    .expect("a String");
            }
            for n in self.blocks() {
                let block = n * self.tiles.lanes;
                let line = if self.whole {
                    let packed = self.words.pack_four(&format!("o{r}_{n} * factor"));
                    format!("out[out_at + {block}u] = {packed};")
                } else {
                    let d = format!("4u * (lane + {block}u)");
                    format!("store4_row(item, row + {r}u, {d}, o{r}_{n} * factor);")
                };
                writeln!(code, "{line}").expect("a String");
            }
            writeln!(code, "if (lane == 0u) {{\nstore_sums(item, row + {r}u, m{r}, l{r});\n}}\n}}")
                .expect("a String");
        }
        code
    }
}
