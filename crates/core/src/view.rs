use crate::{Argument, DType, Layout, ProblemError};

/// The shape and strides of a tensor, with axes (batch, heads, sequence, head_dim).
///
/// Each constructor takes the sizes in its layout's own order: [`bshd`](Self::bshd) takes
/// `[batch, sequence, heads, head_dim]`. [`strided`](Self::strided) describes any other placement.
/// A stride of 0 repeats an input along that axis. The offset of the tensor within its buffer is
/// not part of the view, because it may change with every call.
///
/// ```
/// use flashtile_core::{DType, TensorView};
///
/// # fn main() -> Result<(), flashtile_core::ProblemError> {
/// let view = TensorView::bshd(DType::F16, [2, 128, 8, 64])?; // 2 entries, 128 positions, 8 heads
/// assert_eq!(view.shape, [2, 8, 128, 64]); // always (B, H, S, D)
/// assert_eq!(view.strides, [65536, 64, 512, 1]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct TensorView {
    /// Storage type of the elements.
    pub dtype: DType,
    /// Sizes of (B, H, S, D), whatever the order in memory.
    pub shape: [usize; 4],
    /// Strides along (B, H, S, D), in elements.
    pub strides: [usize; 4],
}

impl TensorView {
    /// A densely packed (batch, sequence, heads, head_dim) tensor, as flash-attn has it.
    ///
    /// # Errors
    /// [`ProblemError::Overflow`] if the tensor has more elements than memory can address. The same
    /// holds for the other constructors.
    pub fn bshd(dtype: DType, [b, s, h, d]: [usize; 4]) -> Result<Self, ProblemError> {
        Self::from_bhsd_sizes(dtype, Layout::Bshd, [b, h, s, d])
    }

    /// A densely packed (batch, heads, sequence, head_dim) tensor, as PyTorch has it.
    ///
    /// # Errors
    /// As [`bshd`](Self::bshd).
    pub fn bhsd(dtype: DType, [b, h, s, d]: [usize; 4]) -> Result<Self, ProblemError> {
        Self::from_bhsd_sizes(dtype, Layout::Bhsd, [b, h, s, d])
    }

    /// A densely packed (heads, batch, sequence, head_dim) tensor.
    ///
    /// # Errors
    /// As [`bshd`](Self::bshd).
    pub fn hbsd(dtype: DType, [h, b, s, d]: [usize; 4]) -> Result<Self, ProblemError> {
        Self::from_bhsd_sizes(dtype, Layout::Hbsd, [b, h, s, d])
    }

    /// A densely packed (batch, sequence, width) tensor whose last axis holds `heads` heads of
    /// `width / heads` elements side by side.
    ///
    /// # Errors
    /// [`ProblemError::PackedHeads`] if `heads` does not divide `width`; else as
    /// [`bshd`](Self::bshd).
    pub fn packed(dtype: DType, sizes: [usize; 3], heads: usize) -> Result<Self, ProblemError> {
        Self::from_dims(Argument::View, dtype, Layout::Bsd, &sizes, heads)
    }

    /// A tensor with any strides. `shape` and `strides` (in elements) are in the order
    /// (B, H, S, D).
    ///
    /// [`ProblemBuilder::build`](crate::ProblemBuilder::build) checks that the extent is
    /// addressable and that an output does not overlap itself.
    pub const fn strided(dtype: DType, shape: [usize; 4], strides: [usize; 4]) -> Self {
        Self { dtype, shape, strides }
    }

    /// A densely packed tensor whose axes lie in memory in `layout`'s order, from sizes in the
    /// order (B, H, S, D). For code that handles several layouts; [`bshd`](Self::bshd) and its
    /// siblings take sizes in the layout's own order.
    ///
    /// # Errors
    /// As [`bshd`](Self::bshd).
    pub fn from_bhsd_sizes(
        dtype: DType,
        layout: Layout,
        shape: [usize; 4],
    ) -> Result<Self, ProblemError> {
        let mut order = [0; 4];
        for (axis, place) in layout.axes().into_iter().enumerate() {
            order[place] = axis;
        }
        let mut strides = [0; 4];
        let mut step = 1usize;
        for axis in order.into_iter().rev() {
            strides[axis] = step;
            step = step
                .checked_mul(shape[axis].max(1))
                .ok_or(ProblemError::Overflow { argument: Argument::View })?;
        }
        let view = Self { dtype, shape, strides };
        view.byte_span().ok_or(ProblemError::Overflow { argument: Argument::View })?;
        Ok(view)
    }

    /// A densely packed tensor from sizes in `layout`'s own order and rank, for sizes that are only
    /// known at run time. `heads` splits the last axis of the packed layout `bsd`; the other
    /// layouts ignore it.
    ///
    /// # Errors
    /// [`ProblemError::Rank`] and [`ProblemError::PackedHeads`] name `argument`.
    pub fn from_dims(
        argument: Argument,
        dtype: DType,
        layout: Layout,
        dims: &[usize],
        heads: usize,
    ) -> Result<Self, ProblemError> {
        if dims.len() != layout.rank() {
            return Err(ProblemError::Rank {
                argument,
                layout,
                expected: layout.rank(),
                given: dims.to_vec(),
            });
        }
        let shape = match layout {
            Layout::Bshd => [dims[0], dims[2], dims[1], dims[3]],
            Layout::Bhsd => [dims[0], dims[1], dims[2], dims[3]],
            Layout::Hbsd => [dims[1], dims[0], dims[2], dims[3]],
            Layout::Bsd => {
                if heads == 0 || !dims[2].is_multiple_of(heads) {
                    return Err(ProblemError::PackedHeads { argument, width: dims[2], heads });
                }
                [dims[0], heads, dims[1], dims[2] / heads]
            }
        };
        Self::from_bhsd_sizes(dtype, layout, shape).map_err(|_| ProblemError::Overflow { argument })
    }

    /// True where the tensor has no elements.
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// Elements from the first to one past the last, gaps included; `None` if that overflows.
    pub fn span(&self) -> Option<usize> {
        span(&self.shape, &self.strides)
    }

    /// As [`span`](Self::span), in bytes.
    pub fn byte_span(&self) -> Option<usize> {
        self.span()?.checked_mul(self.dtype.size()).filter(|&bytes| bytes <= isize::MAX as usize)
    }

    /// The index of element (b, h, s, d), in elements from the start of the view.
    pub fn index(&self, b: usize, h: usize, s: usize, d: usize) -> usize {
        b * self.strides[0] + h * self.strides[1] + s * self.strides[2] + d * self.strides[3]
    }

    /// True where no two elements share an index, by the sufficient test that each axis steps over
    /// all the smaller ones.
    pub fn is_injective(&self) -> bool {
        let mut axes: Vec<_> = (0..4).filter(|&a| self.shape[a] > 1).collect();
        axes.sort_by_key(|&a| self.strides[a]);
        let mut reach = 0usize;
        for a in axes {
            if self.strides[a] <= reach {
                return false;
            }
            reach = reach.saturating_add((self.shape[a] - 1).saturating_mul(self.strides[a]));
        }
        true
    }

    /// True where the tensor fills its span: no memory lies between its elements.
    pub fn is_dense(&self) -> bool {
        self.is_injective() && self.span() == Some(self.shape.iter().product())
    }
}

/// Elements from the first to one past the last of a strided array.
pub(crate) fn span(shape: &[usize; 4], strides: &[usize; 4]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    let mut last = 0usize;
    for (n, stride) in shape.iter().zip(strides) {
        last = last.checked_add((n - 1).checked_mul(*stride)?)?;
    }
    last.checked_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_strides() {
        let shape = [2, 3, 5, 7];
        for (layout, strides) in [
            (Layout::Bshd, [105, 7, 21, 1]),
            (Layout::Bsd, [105, 7, 21, 1]),
            (Layout::Bhsd, [105, 35, 7, 1]),
            (Layout::Hbsd, [35, 70, 7, 1]),
        ] {
            let view = TensorView::from_bhsd_sizes(DType::F32, layout, shape).expect("small");
            assert_eq!(view.strides, strides, "{layout}");
            assert!(view.is_dense(), "{layout}");
            let again =
                TensorView::from_dims(Argument::Q, DType::F32, layout, &layout.dims(shape), 3)
                    .expect("small");
            assert_eq!(view, again, "{layout}");
        }
    }

    #[test]
    fn constructors_take_sizes_in_their_own_order() {
        let [b, h, s, d] = [2, 3, 5, 7];
        let of = |layout| TensorView::from_bhsd_sizes(DType::F16, layout, [b, h, s, d]);
        assert_eq!(TensorView::bshd(DType::F16, [b, s, h, d]), of(Layout::Bshd));
        assert_eq!(TensorView::bhsd(DType::F16, [b, h, s, d]), of(Layout::Bhsd));
        assert_eq!(TensorView::hbsd(DType::F16, [h, b, s, d]), of(Layout::Hbsd));
        assert_eq!(TensorView::packed(DType::F16, [b, s, h * d], h), of(Layout::Bsd));
        assert!(TensorView::packed(DType::F16, [b, s, h * d + 1], h).is_err());
    }

    #[test]
    fn overlap_is_found() {
        let ok = TensorView::strided(DType::F32, [1, 2, 4, 3], [0, 100, 5, 1]);
        assert!(ok.is_injective() && !ok.is_dense());
        for strides in [[0, 100, 2, 1], [0, 0, 3, 1], [0, 11, 3, 1], [0, 100, 3, 0]] {
            assert!(
                !TensorView::strided(ok.dtype, ok.shape, strides).is_injective(),
                "{strides:?}"
            );
        }
    }

    #[test]
    fn sizes_beyond_memory_are_errors() {
        let huge = usize::MAX / 8;
        assert!(TensorView::from_bhsd_sizes(DType::F32, Layout::Bhsd, [huge, 4, 4, 4]).is_err());
        assert!(TensorView::from_bhsd_sizes(DType::F32, Layout::Bhsd, [1, 1, huge, 8]).is_err());
        assert!(TensorView::from_bhsd_sizes(DType::F32, Layout::Bhsd, [0, 1, huge, 1]).is_ok());
    }
}
