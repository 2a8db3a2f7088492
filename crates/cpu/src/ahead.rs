//! Asks memory for what a decode step reads next.
//!
//! With few queries, a row of K or V takes more time to arrive than to multiply. Processors fetch
//! ahead of reads in order, but only within a page, and a page holds few rows. So kernels ask for
//! the rows that come [`AHEAD`] keys later.

/// How many keys lie between the row that is read and the row that is asked for: some hundred
/// nanoseconds.
pub(crate) const AHEAD: usize = 8;

/// Bytes that memory delivers at once.
const LINE: usize = 64;

/// Rows that are read soon: row `n` is `bytes[n * stride..][..row]`. None lie beyond the end.
#[derive(Clone, Copy)]
pub(crate) struct Ahead<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) row: usize,
    pub(crate) stride: usize,
}

impl Ahead<'_> {
    /// Where there is nothing to ask for.
    pub(crate) const NONE: Self = Self { bytes: &[], row: 0, stride: 0 };

    /// Asks for row `n`, if there is one.
    #[inline(always)]
    pub(crate) fn ask(&self, n: usize) {
        let start = n * self.stride;
        if let Some(row) = self.bytes.get(start..start + self.row) {
            for line in row.chunks(LINE) {
                prefetch(&line[0]);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn prefetch(byte: &u8) {
    safe_arch::prefetch_t0(byte);
}

/// No library offers this for other processors.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn prefetch(_: &u8) {}
