//! Divides a problem into parts if it exceeds the limits of a grid, of the workspace or of a
//! display's watchdog.

use flashtile_core::Reason;
use std::ops::Range;

/// The part of a problem that one dispatch computes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Part {
    /// Heads of all batch entries, numbered b * heads + h.
    pub heads: Range<u64>,
    /// Queries.
    pub rows: Range<u32>,
}

/// The most parts that a plan has.
const MAX_PARTS: u64 = 1 << 17;

/// A resource that each row uses, and of which a part may use a limited amount.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    pub(crate) per_row: u64,
    pub(crate) limit: u64,
}

impl Budget {
    /// The most rows that a part may have.
    fn rows(&self) -> u64 {
        self.limit.checked_div(self.per_row).unwrap_or(u64::MAX)
    }
}

/// Divides `heads` heads with `rows` queries each into parts within every budget and within the
/// grid's limit, with `blocks_per_tile` blocks per tile of `tile_rows` queries. A head is divided
/// only if it exceeds a limit, and then between tiles unless one tile exceeds it. The arithmetic of
/// a row is the same in all parts.
pub(crate) fn split(
    heads: u64,
    rows: u32,
    tile_rows: u32,
    blocks_per_tile: u64,
    budgets: &[Budget],
) -> Result<Vec<Part>, Reason> {
    if heads == 0 || rows == 0 {
        return Ok(Vec::new());
    }
    const GRID: u64 = i32::MAX as u64;
    let tiles = |rows: u64| rows.div_ceil(tile_rows.into()).saturating_mul(blocks_per_tile);
    let most_rows = budgets.iter().map(Budget::rows).min().unwrap_or(u64::MAX);
    let most_rows = most_rows.min((GRID / blocks_per_tile.max(1)).saturating_mul(tile_rows.into()));
    let all_rows = u64::from(rows);
    let (heads_step, rows_step) = if most_rows >= all_rows {
        ((most_rows / all_rows).min(GRID / tiles(all_rows).max(1)).clamp(1, heads), all_rows)
    } else {
        let tile_rows = u64::from(tile_rows);
        (
            1,
            if most_rows >= tile_rows {
                most_rows / tile_rows * tile_rows
            } else {
                most_rows.max(1)
            },
        )
    };
    let count = heads.div_ceil(heads_step).saturating_mul(all_rows.div_ceil(rows_step));
    if count > MAX_PARTS {
        return Err(Reason::TooManyDispatches { limit: MAX_PARTS });
    }
    let ranges = |end: u64, step: u64| {
        (0..end.div_ceil(step)).map(move |n| n * step..(n + 1).saturating_mul(step).min(end))
    };
    let parts = ranges(heads, heads_step).flat_map(|heads| {
        ranges(all_rows, rows_step).map(move |rows| Part {
            heads: heads.clone(),
            rows: rows.start as u32..rows.end as u32,
        })
    });
    Ok(parts.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: &[Budget] = &[];

    /// Every head and row is in exactly one part.
    fn assert_partition(heads: u64, rows: u32, parts: &[Part]) {
        let mut seen = vec![0; heads as usize * rows as usize];
        for part in parts {
            for head in part.heads.clone() {
                for row in part.rows.clone() {
                    seen[head as usize * rows as usize + row as usize] += 1;
                }
            }
        }
        assert!(seen.iter().all(|&n| n == 1), "{parts:?}");
    }

    #[test]
    fn a_problem_within_all_limits_is_one_part() {
        assert_eq!(split(6, 100, 64, 2, NONE), Ok(vec![Part { heads: 0..6, rows: 0..100 }]));
        assert_eq!(split(6, 100, 64, 0, NONE), Ok(vec![Part { heads: 0..6, rows: 0..100 }]));
        assert_eq!(split(0, 100, 64, 2, NONE), Ok(vec![]));
    }

    #[test]
    fn budgets_divide_heads_before_rows_and_rows_between_tiles() {
        for limit in [1, 10, 63, 64, 65, 100, 128, 199, 200, 401, 700] {
            let parts = split(6, 200, 64, 1, &[Budget { per_row: 1, limit }]).expect("few parts");
            assert_partition(6, 200, &parts);
            for Part { heads, rows } in &parts {
                assert!((heads.end - heads.start) * u64::from(rows.end - rows.start) <= limit);
                assert!(limit < 64 || rows.start % 64 == 0);
                assert!(limit < 200 || *rows == (0..200));
            }
        }
    }

    #[test]
    fn grids_stay_within_their_limit() {
        let parts = split(1 << 20, 1 << 16, 64, 16, NONE).expect("few parts");
        let blocks = |part: &Part| (part.heads.end - part.heads.start) * (1 << 10) * 16;
        assert!(parts.iter().all(|part| blocks(part) <= i32::MAX as u64));
        assert_eq!(
            parts.iter().map(|part| part.heads.end - part.heads.start).sum::<u64>(),
            1 << 20
        );
    }

    #[test]
    fn too_many_parts_are_refused_at_once() {
        let refused = split(1 << 60, 1 << 20, 64, 1, NONE);
        assert!(
            matches!(refused, Err(Reason::TooManyDispatches { limit: MAX_PARTS })),
            "{refused:?}"
        );
        assert!(
            split(u64::MAX, u32::MAX, 1, u64::MAX, &[Budget { per_row: u64::MAX, limit: 1 }])
                .is_err()
        );
    }
}
