//! The caller's output, shared by threads that write different rows.

use crate::tensors::encode;
use flashtile_core::Problem;
use std::sync::{Mutex, PoisonError};

/// The output in pieces along the axis with the largest stride. No element of one index of that
/// axis lies beyond the start of the next, so a row lies in one piece. A thread holds a piece's
/// lock while it copies a row.
pub(crate) struct Output<'a> {
    problem: &'a Problem,
    /// The axis, and its indices per piece.
    axis: usize,
    per_piece: usize,
    out: Vec<Mutex<&'a mut [u8]>>,
    /// One piece per head.
    lse: Option<Vec<Mutex<&'a mut [f32]>>>,
}

/// The most pieces of an output. Threads that write to the same piece wait for each other.
const MAX_PIECES: usize = 1024;

impl<'a> Output<'a> {
    /// `out` and `lse` are as long as the problem says.
    pub(crate) fn new(problem: &'a Problem, out: &'a mut [u8], lse: Option<&'a mut [f32]>) -> Self {
        let view = problem.out();
        // Rows are not cut, so the last axis does not count, unless columns lie farthest apart.
        let axis = (0..4)
            .filter(|&axis| view.shape[axis] > 1)
            .max_by_key(|&axis| view.strides[axis])
            .filter(|&axis| axis < 3);
        let (axis, count, stride) =
            axis.map_or((0, 1, 0), |axis| (axis, view.shape[axis], view.strides[axis]));
        let per_piece = count.div_ceil(MAX_PIECES);
        let bytes = view.byte_span().unwrap_or(0);
        let out = &mut out[..bytes];
        let out = match stride * view.dtype.size() * per_piece {
            0 => vec![Mutex::new(out)],
            step => out.chunks_mut(step).map(Mutex::new).collect(),
        };
        let lse = lse.map(|lse| {
            let [batch, heads, seq_q] = problem.lse_shape();
            lse[..batch * heads * seq_q].chunks_mut(seq_q).map(Mutex::new).collect()
        });
        Self { problem, axis, per_piece, out, lse }
    }

    /// Writes `row` as query `i` of head `h` of batch entry `b`, and its lse. `encoded` is memory
    /// to use.
    pub(crate) fn write(
        &self,
        [b, h, i]: [usize; 3],
        row: &[f32],
        lse: f32,
        encoded: &mut Vec<u8>,
    ) {
        let view = self.problem.out();
        let size = view.dtype.size();
        encoded.resize(row.len() * size, 0);
        encode(view.dtype, row, encoded);
        // With one piece, the axis may have one index only, or be no axis of rows.
        let piece = if self.out.len() > 1 { [b, h, i][self.axis] / self.per_piece } else { 0 };
        let skipped = piece * self.per_piece * view.strides[self.axis];
        let start = (view.index(b, h, i, 0) - skipped) * size;
        {
            let mut out = self.out[piece].lock().unwrap_or_else(PoisonError::into_inner);
            let step = view.strides[3] * size;
            if view.strides[3] == 1 || row.len() == 1 {
                out[start..start + encoded.len()].copy_from_slice(encoded);
            } else {
                for (column, x) in encoded.chunks_exact(size).enumerate() {
                    out[start + column * step..][..size].copy_from_slice(x);
                }
            }
        }
        if let Some(all) = &self.lse {
            let piece = &all[b * self.problem.heads() + h];
            piece.lock().unwrap_or_else(PoisonError::into_inner)[i] = lse;
        }
    }
}
