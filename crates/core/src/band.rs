use std::{fmt, ops::Range};

/// The longest sequence: positions, offsets and windows then add up without overflow in i32.
pub const MAX_SEQ: usize = (1 << 29) - 1;

/// The position of query `i` among the keys. Causal masks and windows are relative to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Align {
    /// At key `i`: the first query is aligned with the first key (PyTorch's `is_causal`).
    #[default]
    TopLeft,
    /// At key `i + valid keys - seq_q`: the last query is aligned with the last valid key (as in
    /// flash-attn).
    BottomRight,
    /// At key `i + offset`.
    Offset(i64),
}

impl fmt::Display for Align {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Align::TopLeft => f.write_str("top-left"),
            Align::BottomRight => f.write_str("bottom-right"),
            Align::Offset(n) => write!(f, "{n}"),
        }
    }
}

impl std::str::FromStr for Align {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "top-left" => Ok(Align::TopLeft),
            "bottom-right" => Ok(Align::BottomRight),
            _ => s.parse().map(Align::Offset).map_err(|_| {
                format!("unknown alignment `{s}`: expected top-left, bottom-right or an integer")
            }),
        }
    }
}

/// The diagonal band of keys that causal, window and align allow: query `i` sees keys
/// `i + diagonal + lo ..= i + diagonal + hi`. The diagonal is 0, or valid keys - seq_q for
/// bottom-right.
///
/// Both ends are clamped to ±2^30, beyond any sequence, so that kernels can add them in i32 without
/// overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Band {
    /// Lowest key, relative to the diagonal.
    pub lo: i32,
    /// Highest key, relative to the diagonal.
    pub hi: i32,
    /// Whether the diagonal ends at the last valid key.
    pub bottom_right: bool,
}

impl Band {
    /// An end that lies beyond any sequence.
    pub const UNBOUNDED: i32 = 1 << 30;

    /// The band of an alignment, `causal` and window widths.
    pub fn new(
        align: Align,
        causal: bool,
        window_left: Option<usize>,
        window_right: Option<usize>,
    ) -> Self {
        let offset = match align {
            Align::Offset(n) => i128::from(n),
            Align::TopLeft | Align::BottomRight => 0,
        };
        let right = if causal { Some(0) } else { window_right };
        let limit = i128::from(Self::UNBOUNDED);
        let end = |width: Option<usize>, sign: i128| {
            let end = match width {
                Some(w) => offset + sign * w as i128,
                None => sign * limit,
            };
            end.clamp(-limit, limit) as i32
        };
        Self {
            lo: end(window_left, -1),
            hi: end(right, 1),
            bottom_right: align == Align::BottomRight,
        }
    }

    /// True if every query sees every valid key.
    pub fn is_unbounded(&self) -> bool {
        self.lo == -Self::UNBOUNDED && self.hi == Self::UNBOUNDED
    }

    /// The position of query 0 among the keys. `lo` and `hi` already include an explicit offset.
    pub fn diagonal(&self, seq_q: usize, kv_len: usize) -> i64 {
        if self.bottom_right { kv_len as i64 - seq_q as i64 } else { 0 }
    }

    /// The keys that query `i` sees, out of `kv_len` valid keys. This is the only rule of
    /// visibility.
    ///
    /// Neither end decreases from one query to the next, so the keys of a tile of queries reach
    /// from the first query's start to the last query's end. The kernels' `visible_keys` is this
    /// function.
    pub fn visible(&self, i: usize, seq_q: usize, kv_len: usize) -> Range<usize> {
        let row = i as i64 + self.diagonal(seq_q, kv_len);
        let clamp = |key: i64| key.clamp(0, kv_len as i64) as usize;
        let end = clamp(row + i64::from(self.hi) + 1);
        clamp(row + i64::from(self.lo)).min(end)..end
    }

    /// Whether query `i` sees key `j`, out of `kv_len` valid keys.
    pub fn allows(&self, i: usize, j: usize, seq_q: usize, kv_len: usize) -> bool {
        self.visible(i, seq_q, kv_len).contains(&j)
    }

    /// The number of pairs of a query of `rows` and a key it sees, out of `kv_len` valid keys.
    pub fn pairs(&self, rows: Range<usize>, seq_q: usize, kv_len: usize) -> u64 {
        let diagonal = self.diagonal(seq_q, kv_len);
        let sum = |end: i32| clamped_sum(&rows, diagonal + i64::from(end), kv_len as i64);
        (sum(self.hi.saturating_add(1)) - sum(self.lo)).max(0) as u64
    }
}

/// The sum of `clamp(i + shift, 0, limit)` over `rows`, in constant time.
fn clamped_sum(rows: &Range<usize>, shift: i64, limit: i64) -> i128 {
    let (start, end) = (rows.start as i64, rows.end.max(rows.start) as i64);
    // Terms before `rising` are 0; terms from `full` on are `limit`.
    let rising = (-shift).clamp(start, end);
    let full = (limit - shift).clamp(rising, end);
    let [first, count, shift] = [rising, full - rising, shift].map(i128::from);
    let ramp = count * (first + shift) + count * (count - 1) / 2;
    ramp + i128::from(end - full) * i128::from(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(band: Band, seq_q: usize, kv_len: usize) -> Vec<String> {
        let row = |i| {
            (0..kv_len).map(|j| if band.allows(i, j, seq_q, kv_len) { 'x' } else { '.' }).collect()
        };
        (0..seq_q).map(row).collect()
    }

    #[test]
    fn causal_by_alignment() {
        let causal = |align| Band::new(align, true, None, None);
        assert_eq!(picture(causal(Align::TopLeft), 2, 4), ["x...", "xx.."]);
        assert_eq!(picture(causal(Align::BottomRight), 2, 4), ["xxx.", "xxxx"]);
        assert_eq!(picture(causal(Align::Offset(1)), 2, 4), ["xx..", "xxx."]);
        assert_eq!(picture(causal(Align::Offset(-1)), 3, 2), ["..", "x.", "xx"]);
        assert_eq!(picture(causal(Align::BottomRight), 3, 2), ["..", "x.", "xx"]);
    }

    #[test]
    fn windows_and_causal_together() {
        assert_eq!(
            picture(Band::new(Align::TopLeft, false, Some(1), Some(0)), 3, 4),
            ["x...", "xx..", ".xx."]
        );
        assert_eq!(
            picture(Band::new(Align::TopLeft, true, Some(1), Some(2)), 3, 4),
            ["x...", "xx..", ".xx."]
        );
        assert_eq!(
            picture(Band::new(Align::TopLeft, false, None, Some(1)), 2, 4),
            ["xx..", "xxx."]
        );
        assert!(Band::new(Align::TopLeft, false, None, None).is_unbounded());
        assert!(
            Band::new(Align::TopLeft, false, Some(usize::MAX), Some(usize::MAX)).is_unbounded()
        );
    }

    #[test]
    fn pairs_match_a_count_of_single_keys() {
        let widths = [None, Some(0), Some(2), Some(50)];
        for align in [Align::TopLeft, Align::BottomRight, Align::Offset(-4), Align::Offset(9)] {
            for (left, right) in widths.into_iter().flat_map(|l| widths.map(|r| (l, r))) {
                let band = Band::new(align, false, left, right);
                for (rows, seq_q, kv_len) in
                    [(0..7, 7, 9), (2..11, 13, 5), (3..3, 9, 9), (0..9, 9, 0)]
                {
                    let one_by_one: usize =
                        rows.clone().map(|i| band.visible(i, seq_q, kv_len).len()).sum();
                    let pairs = band.pairs(rows.clone(), seq_q, kv_len);
                    assert_eq!(pairs, one_by_one as u64, "{band:?} {rows:?} {kv_len}");
                }
            }
        }
    }

    #[test]
    fn extreme_offsets_do_not_overflow() {
        assert_eq!(picture(Band::new(Align::Offset(i64::MIN), true, None, None), 1, 2), [".."]);
        assert_eq!(picture(Band::new(Align::Offset(i64::MAX), true, None, None), 1, 2), ["xx"]);
        assert_eq!(picture(Band::new(Align::Offset(i64::MAX), true, Some(0), None), 1, 2), [".."]);
    }
}
