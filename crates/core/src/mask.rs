use crate::{DType, ProblemError, view::span};
use std::fmt;

/// What the numbers of a mask mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MaskKind {
    /// One byte per element; non-zero means that the key is allowed.
    Bool,
    /// Added to the score. -inf masks the key; every other value is a number.
    Additive(DType),
}

impl MaskKind {
    /// Every kind.
    pub const ALL: &[MaskKind] = &[
        MaskKind::Bool,
        MaskKind::Additive(DType::F32),
        MaskKind::Additive(DType::F16),
        MaskKind::Additive(DType::BF16),
    ];

    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            MaskKind::Bool => 1,
            MaskKind::Additive(dtype) => dtype.size(),
        }
    }
}

impl fmt::Display for MaskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MaskKind::Bool => f.write_str("bool"),
            MaskKind::Additive(dtype) => write!(f, "additive {dtype}"),
        }
    }
}

/// An attention mask: its kind, and its shape and strides as broadcast against (B, H, Sq, Skv).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Mask {
    /// What its numbers mean.
    pub kind: MaskKind,
    /// Sizes of its axes; 1 where it is broadcast. Missing leading axes are 1.
    pub shape: [usize; 4],
    /// Strides along (B, H, Sq, Skv), in elements; 0 along axes of size 1.
    pub strides: [usize; 4],
}

impl Mask {
    /// A densely packed row-major mask of rank 1 to 4: (Skv), (Sq, Skv), (H, Sq, Skv) or
    /// (B, H, Sq, Skv), by NumPy's rules.
    ///
    /// # Errors
    /// [`ProblemError::MaskRank`], [`ProblemError::Overflow`](crate::ProblemError::Overflow).
    pub fn contiguous(kind: MaskKind, dims: &[usize]) -> Result<Self, ProblemError> {
        let mut strides = vec![0; dims.len()];
        let mut step = 1usize;
        for (stride, &n) in strides.iter_mut().zip(dims).rev() {
            *stride = step;
            step = step
                .checked_mul(n.max(1))
                .ok_or(ProblemError::Overflow { argument: crate::Argument::AttnMask })?;
        }
        Self::strided(kind, dims, &strides)
    }

    /// A mask of rank 1 to 4 with explicit strides (in elements), outermost axis first.
    ///
    /// # Errors
    /// [`ProblemError::MaskRank`] if there are no axes, more than four, or a different number of
    /// strides.
    pub fn strided(
        kind: MaskKind,
        dims: &[usize],
        strides: &[usize],
    ) -> Result<Self, ProblemError> {
        if dims.is_empty() || dims.len() > 4 || strides.len() != dims.len() {
            return Err(ProblemError::MaskRank { given: dims.to_vec() });
        }
        let lead = 4 - dims.len();
        let mut mask = Self { kind, shape: [1; 4], strides: [0; 4] };
        mask.shape[lead..].copy_from_slice(dims);
        mask.strides[lead..].copy_from_slice(strides);
        Ok(mask.with_broadcast_strides())
    }

    /// Sets the strides of axes of size 1 to 0, because kernels broadcast by multiplying every
    /// index by its stride.
    pub(crate) fn with_broadcast_strides(mut self) -> Self {
        for (stride, _) in self.strides.iter_mut().zip(self.shape).filter(|(_, n)| *n == 1) {
            *stride = 0;
        }
        self
    }

    /// The index of the mask's entry for score (b, h, i, j), in elements.
    pub fn index(&self, b: usize, h: usize, i: usize, j: usize) -> usize {
        b * self.strides[0] + h * self.strides[1] + i * self.strides[2] + j * self.strides[3]
    }

    /// Bytes from the first element to one past the last; `None` if that overflows.
    pub fn byte_span(&self) -> Option<usize> {
        span(&self.shape, &self.strides)?
            .checked_mul(self.kind.size())
            .filter(|&n| n <= isize::MAX as usize)
    }

    pub(crate) fn check(&self, scores: [usize; 4]) -> Result<(), ProblemError> {
        if self.shape.iter().zip(scores).any(|(&n, s)| n != s && n != 1) {
            return Err(ProblemError::MaskBroadcast { given: self.shape.to_vec(), scores });
        }
        self.byte_span().ok_or(ProblemError::Overflow { argument: crate::Argument::AttnMask })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lower_ranks_broadcast_from_the_right() {
        let m = Mask::contiguous(MaskKind::Bool, &[3, 5, 7]).expect("rank 3");
        assert_eq!((m.shape, m.strides), ([1, 3, 5, 7], [0, 35, 7, 1]));
        let m = Mask::contiguous(MaskKind::Bool, &[2, 1, 1, 7]).expect("rank 4");
        assert_eq!(m.strides, [7, 0, 0, 1]);
        assert_eq!(m.index(1, 9, 9, 3), 10);
        assert!(m.check([2, 4, 6, 7]).is_ok());
        assert!(m.check([3, 4, 6, 7]).is_err());
        let m = Mask::strided(MaskKind::Bool, &[1, 1, 5, 7], &[99, 35, 7, 1]).expect("rank 4");
        assert_eq!(m.strides, [0, 0, 7, 1], "axes of size 1 have no stride");
        assert!(Mask::contiguous(MaskKind::Bool, &[]).is_err());
        assert!(Mask::contiguous(MaskKind::Bool, &[1, 1, 1, 1, 1]).is_err());
    }
}
