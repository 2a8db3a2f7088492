//! The kernel on matrix units: its tile shapes, and the parts of its source that are repeated.

use crate::Tiles;

/// A tile shape for matrix units: [`STRIPS`](Self::STRIPS) strips of `size` queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatrixTiles {
    /// Rows and columns of a matrix: 8 or 16.
    pub size: u32,
    /// Threads per strip: a multiple of the size of every subgroup that the device may form.
    pub lanes: u32,
    /// The largest head_dim and head_dim_v, a multiple of 32.
    pub width: u32,
}

/// The pairs of a size of matrices and a largest size of subgroups that have kernels.
const SHAPES: [(u32, u32); 4] = [(8, 8), (8, 32), (16, 32), (16, 64)];

/// The widths that have kernels.
const WIDTHS: [u32; 5] = [32, 64, 96, 128, 256];

/// The widths that have kernels for software adapters, where a kernel takes long to compile.
const SOFTWARE_WIDTHS: [u32; 2] = [64, 256];

/// Every tile shape for matrix units.
pub fn matrix_tiles() -> impl Iterator<Item = Tiles> {
    SHAPES.into_iter().flat_map(|(size, lanes)| {
        let shape = |&width| MatrixTiles { size, lanes, width };
        let software = shape(&WIDTHS[0]).is_for_software();
        let widths = if software { &SOFTWARE_WIDTHS[..] } else { &WIDTHS[..] };
        widths.iter().map(shape).map(Tiles::Matrix).collect::<Vec<_>>()
    })
}

impl MatrixTiles {
    /// Strips of queries per workgroup.
    pub const STRIPS: u32 = 4;

    /// Elements that are added to a row of f16 in workgroup memory, against bank conflicts.
    const PAD: u32 = 8;

    /// Br: queries per workgroup.
    pub const fn rows(&self) -> u32 {
        Self::STRIPS * self.size
    }

    /// Bc: keys per tile.
    pub const fn keys(&self) -> u32 {
        if self.is_for_software() { 16 } else { 32 }
    }

    /// Whether the shape is for software adapters: no GPU has such small subgroups.
    pub(crate) const fn is_for_software(&self) -> bool {
        self.lanes == 8
    }

    /// Threads per workgroup.
    pub const fn threads(&self) -> u32 {
        Self::STRIPS * self.lanes
    }

    /// f16 numbers of the tile of K or V, or of the least part of Q, whichever is largest.
    const fn kv_tile(&self) -> u32 {
        let k = self.keys() * (self.width + Self::PAD);
        let v = self.width * (self.keys() + Self::PAD);
        let q = self.rows() * (self.size + Self::PAD);
        let kv = if k > v { k } else { v };
        if q > kv { q } else { kv }
    }

    /// Columns of Q that the tile of K and V holds at once.
    pub(crate) const fn q_columns(&self) -> u32 {
        let mut columns = self.width;
        while self.rows() * (columns + Self::PAD) > self.kv_tile() {
            columns /= 2;
        }
        columns
    }

    /// Bytes of workgroup memory.
    pub(crate) const fn workgroup_bytes(&self) -> u32 {
        let s_tile = 4 * self.rows() * (self.keys() + 4);
        let p_tile = 2 * self.rows() * (self.keys() + Self::PAD);
        // The reductions of rows, the bits of absent keys, and the flags.
        2 * self.kv_tile() + s_tile + p_tile + 8 * self.threads() + 4
    }

    /// The constants of the kernel.
    pub(crate) fn constants(&self) -> Vec<(&'static str, u32)> {
        vec![
            ("M", self.size),
            ("LANES", self.lanes),
            ("TPR", self.lanes / self.size),
            ("W", self.width),
            ("QC", self.q_columns()),
            ("KV_TILE", self.kv_tile()),
            ("Q_PITCH", self.q_columns() + Self::PAD),
            ("K_PITCH", self.width + Self::PAD),
            ("V_PITCH", self.keys() + Self::PAD),
            ("S_PITCH", self.keys() + 4),
            ("P_PITCH", self.keys() + Self::PAD),
        ]
    }

    /// The names of the types of matrices, and how often a loop that loads a tile runs. A software
    /// adapter would take long to compile unrolled loops: there it ends at a uniform.
    pub(crate) fn prelude(&self) -> String {
        let matrix = format!("coop_mat{0}x{0}", self.size);
        let many = if self.is_for_software() { "n * params.rolled / BC" } else { "n" };
        format!(
            "alias Left = {matrix}<f16, A>;
alias Right = {matrix}<f16, B>;
alias Sum = {matrix}<f32, C>;

fn many(n: u32) -> u32 {{
    return {many};
}}
"
        )
    }
}

/// Repeats the blocks of `source` between `//for NAME in RANGE` and `//end`. RANGE is a number of
/// times, or `FROM..TO`. `$[...]` becomes its value as a u32, `${...}` as part of a name. Values
/// are sums of products and quotients of integers, of `constants` and of the names of the blocks.
///
/// A block that starts with `//roll` is repeated as well, or becomes a loop of the kernel that ends
/// at a uniform if `rolled`.
pub(crate) fn unroll(source: &str, constants: &[(&str, u32)], rolled: bool) -> String {
    let lines: Vec<_> = source.lines().collect();
    let mut names: Vec<_> =
        constants.iter().map(|&(name, n)| (name.to_owned(), n.to_string())).collect();
    let mut out = String::new();
    block(&lines, &mut names, rolled, &mut out);
    out
}

/// What follows the keyword of a line that starts a block, and whether the block may be a loop.
fn head(line: &str) -> Option<(&str, bool)> {
    let line = line.trim();
    let unrolled = line.strip_prefix("//for ").map(|rest| (rest, false));
    unrolled.or_else(|| line.strip_prefix("//roll ").map(|rest| (rest, true)))
}

fn block(lines: &[&str], names: &mut Vec<(String, String)>, rolled: bool, out: &mut String) {
    let mut at = 0;
    while at < lines.len() {
        let Some((rest, may_roll)) = head(lines[at]) else {
            *out += &substitute(lines[at], names);
            out.push('\n');
            at += 1;
            continue;
        };
        let (name, range) = rest.split_once(" in ").expect("a name and a range");
        let (from, to) = range.split_once("..").unwrap_or(("0", range));
        let number = |text| value(text, names).parse::<u32>().expect("ranges are known");
        let (from, to) = (number(from), number(to));
        let end = at + 1 + matching_end(&lines[at + 1..]);
        let body = &lines[at + 1..end];
        if may_roll && rolled {
            *out += &format!("for (var {name} = {from}u; {name} < many({to}u); {name}++) {{\n");
            names.push((name.to_owned(), name.to_owned()));
            block(body, names, rolled, out);
            names.pop();
            *out += "}\n";
        } else {
            for n in from..to {
                names.push((name.to_owned(), n.to_string()));
                block(body, names, rolled, out);
                names.pop();
            }
        }
        at = end + 1;
    }
}

/// The index of the `//end` of a block that starts before `lines`.
fn matching_end(lines: &[&str]) -> usize {
    let mut depth = 0;
    for (n, line) in lines.iter().enumerate() {
        if head(line).is_some() {
            depth += 1;
        } else if line.trim() == "//end" {
            if depth == 0 {
                return n;
            }
            depth -= 1;
        }
    }
    panic!("a block has no end");
}

fn substitute(line: &str, names: &[(String, String)]) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('$') {
        let (close, suffix) = if after.starts_with('[') { (']', "u") } else { ('}', "") };
        let (expression, after) = after[1..].split_once(close).expect("a closing bracket");
        out += before;
        let value = value(expression, names);
        out += &value;
        if value.bytes().all(|byte| byte.is_ascii_digit()) {
            out += suffix;
        }
        rest = after;
    }
    out + rest
}

/// The value of a sum of products and quotients, which are taken from left to right: a number, or
/// an expression in WGSL if it has a name whose value is not known.
fn value(expression: &str, names: &[(String, String)]) -> String {
    let atom = |text: &str| {
        let named = names.iter().rev().find(|(name, _)| name == text);
        named.map_or_else(|| text.to_owned(), |(_, value)| value.clone())
    };
    let mut sum = 0;
    let mut unknown = String::new();
    for term in expression.split('+') {
        let mut known = Some(1u32);
        let mut text = String::new();
        let mut operator = '*';
        let mut rest = term;
        loop {
            let end = rest.find(['*', '/']).unwrap_or(rest.len());
            let atom = atom(&rest[..end]);
            let number = atom.parse::<u32>().ok();
            known = known.zip(number).map(|(a, b)| if operator == '/' { a / b } else { a * b });
            if !text.is_empty() {
                text.push(operator);
            }
            text += &number.map_or(atom, |n| format!("{n}u"));
            let Some(next) = rest[end..].chars().next() else { break };
            operator = next;
            rest = &rest[end + 1..];
        }
        match known {
            Some(n) => sum += n,
            None => unknown += &format!("{text} + "),
        }
    }
    if unknown.is_empty() { sum.to_string() } else { format!("({unknown}{sum}u)") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_repeated_and_values_replaced() {
        let source = "\
a
    //for c in N/2
    x${c} = $[2*c+1];
    //for d in 1..c+2
    y${c*N+d};
    //end
    //end
b";
        let expected = "\
a
    x0 = 1u;
    y1;
    x1 = 3u;
    y5;
    y6;
b
";
        assert_eq!(unroll(source, &[("N", 4)], false), expected);
    }

    #[test]
    fn loops_stay_loops_where_they_should() {
        let source = "\
//roll d in N
//for c in 2
o[$[d*N/2+c+1]] = x${c};
//end
//end
";
        let unrolled = "o[1u] = x0;\no[2u] = x1;\no[2u] = x0;\no[3u] = x1;\n";
        assert_eq!(unroll(source, &[("N", 2)], false), unrolled);
        let rolled = "\
for (var d = 0u; d < many(4u); d++) {
o[(d*4u/2u + 1u)] = x0;
o[(d*4u/2u + 2u)] = x1;
}
";
        assert_eq!(unroll(source, &[("N", 4)], true), rolled);
    }

    /// What the kernel divides without a remainder.
    #[test]
    fn shapes_divide() {
        for tiles in matrix_tiles() {
            let Tiles::Matrix(t) = tiles else { panic!("{tiles:?} is not for matrix units") };
            assert!(t.lanes.is_multiple_of(t.size), "{t:?}: threads per row");
            let keys = t.keys();
            assert!(keys.is_multiple_of(t.size) && t.width.is_multiple_of(keys), "{t:?}: keys");
            let per_thread = keys / (t.lanes / t.size);
            assert!(per_thread.is_multiple_of(4) && per_thread <= 32, "{t:?}: scores per thread");
            let columns = t.q_columns();
            assert!(columns.is_multiple_of(t.size) && t.width.is_multiple_of(columns), "{t:?}: Q");
            assert!(columns.is_multiple_of(8) && (t.width / t.size).is_multiple_of(2), "{t:?}");
        }
    }
}
