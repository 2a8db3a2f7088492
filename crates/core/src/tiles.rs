use crate::Band;
use std::ops::Range;

/// How a kernel treats a tile of scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TileKind {
    /// Every query may see every key: no masking is needed.
    Full,
    /// Some pairs are not allowed, or an attention mask decides: every score is tested.
    Edge,
}

/// A tile of keys that a query tile visits.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tile {
    /// The keys, cut off after the last valid one.
    pub keys: Range<usize>,
    /// Whether masking is needed.
    pub kind: TileKind,
}

/// The range of keys that at least one query of `rows` sees. No other key is visited.
///
/// The kernels' `kv_range` is this function in i32.
pub fn key_range(band: &Band, rows: &Range<usize>, seq_q: usize, kv_len: usize) -> Range<usize> {
    if rows.is_empty() {
        return 0..0;
    }
    let end = band.visible(rows.end - 1, seq_q, kv_len).end;
    band.visible(rows.start, seq_q, kv_len).start.min(end)..end
}

/// The tiles of `width` keys that a tile of queries visits, in order. Kernels and
/// [`Cost`](crate::Cost) follow this one visitor.
///
/// Tiles start at multiples of `width`, so that a row's arithmetic does not depend on its
/// neighbours.
#[derive(Clone, Debug)]
pub struct KeyTiles {
    band: Band,
    rows: Range<usize>,
    diagonal: i64,
    keys: Range<usize>,
    kv_len: usize,
    width: usize,
    masked: bool,
    next: usize,
}

impl KeyTiles {
    /// Visits the keys of `rows` (cut off at `seq_q`). If `masked`, an attention mask makes every
    /// tile an edge tile.
    pub fn new(
        band: Band,
        masked: bool,
        rows: Range<usize>,
        width: usize,
        seq_q: usize,
        kv_len: usize,
    ) -> Self {
        let rows = rows.start.min(seq_q)..rows.end.min(seq_q);
        let keys = key_range(&band, &rows, seq_q, kv_len);
        let next = keys.start / width * width;
        Self {
            diagonal: band.diagonal(seq_q, kv_len),
            band,
            rows,
            keys,
            kv_len,
            width,
            masked,
            next,
        }
    }
}

impl Iterator for KeyTiles {
    type Item = Tile;

    fn next(&mut self) -> Option<Tile> {
        if self.next >= self.keys.end {
            return None;
        }
        let start = self.next;
        self.next += self.width;
        let first_row_last_key = self.rows.start as i64 + self.diagonal + i64::from(self.band.hi);
        let last_row_first_key = self.rows.end as i64 - 1 + self.diagonal + i64::from(self.band.lo);
        let full = !self.masked
            && self.next <= self.kv_len
            && self.next as i64 - 1 <= first_row_last_key
            && start as i64 >= last_row_first_key;
        let kind = if full { TileKind::Full } else { TileKind::Edge };
        Some(Tile { keys: start..self.next.min(self.kv_len), kind })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.keys.end.saturating_sub(self.next).div_ceil(self.width);
        (left, Some(left))
    }
}

impl ExactSizeIterator for KeyTiles {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Align;

    /// Every allowed key lies in a visited tile, full tiles hold only allowed keys, and every
    /// visited tile of a non-empty range holds an allowed key.
    #[test]
    fn tiles_agree_with_the_band() {
        let aligns = [Align::TopLeft, Align::BottomRight, Align::Offset(-3), Align::Offset(5)];
        let windows = [None, Some(0), Some(3), Some(9)];
        let mut visited = 0;
        for align in aligns {
            for (left, right) in windows.into_iter().flat_map(|l| windows.map(|r| (l, r))) {
                for causal in [false, true] {
                    let band = Band::new(align, causal, left, right);
                    for (seq_q, kv_len) in [(1, 1), (7, 13), (13, 7), (16, 16), (5, 0)] {
                        for start in (0..seq_q).step_by(4) {
                            let rows = start..(start + 4).min(seq_q);
                            let mut covered = vec![false; kv_len];
                            let tiles =
                                KeyTiles::new(band, false, start..start + 4, 4, seq_q, kv_len);
                            assert_eq!(tiles.len(), tiles.clone().count());
                            for tile in tiles {
                                let mut any = false;
                                for j in tile.keys.clone() {
                                    covered[j] = true;
                                    for i in rows.clone() {
                                        let allowed = band.allows(i, j, seq_q, kv_len);
                                        any |= allowed;
                                        assert!(allowed || tile.kind == TileKind::Edge);
                                    }
                                }
                                visited += 1;
                                // An empty range that starts inside a tile still visits that tile.
                                let range = key_range(&band, &rows, seq_q, kv_len);
                                assert!(any || range.is_empty(), "{band:?} {rows:?} {tile:?}");
                            }
                            for i in rows {
                                for (j, &covered) in covered.iter().enumerate() {
                                    assert!(covered || !band.allows(i, j, seq_q, kv_len));
                                }
                            }
                        }
                    }
                }
            }
        }
        assert!(visited > 500);
    }

    #[test]
    fn causal_tiles_are_skipped_full_or_edge() {
        let causal = Band::new(Align::TopLeft, true, None, None);
        let kinds: Vec<_> =
            KeyTiles::new(causal, false, 8..12, 4, 16, 16).map(|t| (t.keys, t.kind)).collect();
        assert_eq!(
            kinds,
            [(0..4, TileKind::Full), (4..8, TileKind::Full), (8..12, TileKind::Edge)]
        );
    }
}
