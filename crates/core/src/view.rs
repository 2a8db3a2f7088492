use crate::{Argument, DType, ProblemError};
use std::fmt;

/// An order of axes in memory. Inside flashtile only strides exist; layouts are how users name them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Layout {
    /// (batch, sequence, heads, head_dim), as flash-attn has it.
    #[default]
    Bshd,
    /// (batch, heads, sequence, head_dim), as PyTorch's function has it.
    Bhsd,
    /// (heads, batch, sequence, head_dim).
    Hbsd,
    /// (batch, sequence, heads * head_dim): packed heads, rank 3.
    Bsd,
}

impl Layout {
    /// Every layout.
    pub const ALL: [Layout; 4] = [Layout::Bshd, Layout::Bhsd, Layout::Hbsd, Layout::Bsd];

    /// The rank of a tensor in this layout: 4, or 3 for packed heads.
    pub const fn rank(self) -> usize {
        match self {
            Layout::Bsd => 3,
            _ => 4,
        }
    }

    /// For each of (B, H, S, D), its place among the axes in memory, outermost first (packed heads count as `bshd`).
    pub const fn axes(self) -> [usize; 4] {
        match self {
            Layout::Bshd | Layout::Bsd => [0, 2, 1, 3],
            Layout::Bhsd => [0, 1, 2, 3],
            Layout::Hbsd => [1, 0, 2, 3],
        }
    }

    /// The sizes of a (B, H, S, D) tensor in this layout's own order and rank.
    pub fn dims(self, [b, h, s, d]: [usize; 4]) -> Vec<usize> {
        match self {
            Layout::Bshd => vec![b, s, h, d],
            Layout::Bhsd => vec![b, h, s, d],
            Layout::Hbsd => vec![h, b, s, d],
            Layout::Bsd => vec![b, s, h * d],
        }
    }

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Layout::Bshd => "bshd",
            Layout::Bhsd => "bhsd",
            Layout::Hbsd => "hbsd",
            Layout::Bsd => "bsd",
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Layout {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Layout::ALL
            .into_iter()
            .find(|l| l.name() == s)
            .ok_or_else(|| format!("unknown layout `{s}`: expected bshd, bhsd, hbsd or bsd"))
    }
}

/// The shape and strides of a tensor with axes (batch, heads, sequence, head_dim), whatever their order in memory.
///
/// A stride of 0 repeats an input along that axis. Where in a buffer the tensor begins is not part of the view: it may change with every call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TensorView {
    /// Storage type of the elements.
    pub dtype: DType,
    /// Sizes of (B, H, S, D).
    pub shape: [usize; 4],
    /// Steps, in elements, along (B, H, S, D).
    pub strides: [usize; 4],
}

impl TensorView {
    /// A densely packed tensor of `shape` (B, H, S, D) whose axes lie in memory in `layout`'s order.
    ///
    /// # Errors
    /// [`ProblemError::Overflow`] if the tensor has more elements than memory can address.
    pub fn contiguous(
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

    /// A densely packed tensor whose sizes are given in `layout`'s own order and rank.
    ///
    /// `heads` splits the last axis of the packed layout `bsd`; the others ignore it.
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
        Self::contiguous(dtype, layout, shape).map_err(|_| ProblemError::Overflow { argument })
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

    /// The place of element (b, h, s, d), in elements from the view's begin.
    pub fn index(&self, b: usize, h: usize, s: usize, d: usize) -> usize {
        b * self.strides[0] + h * self.strides[1] + s * self.strides[2] + d * self.strides[3]
    }

    /// True where no two elements share a place, by the sufficient test that each axis steps over all the smaller ones.
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
            let view = TensorView::contiguous(DType::F32, layout, shape).expect("small");
            assert_eq!(view.strides, strides, "{layout}");
            assert!(view.is_dense(), "{layout}");
            let again =
                TensorView::from_dims(Argument::Q, DType::F32, layout, &layout.dims(shape), 3)
                    .expect("small");
            assert_eq!(view, again, "{layout}");
        }
    }

    #[test]
    fn overlap_is_found() {
        let ok = TensorView { dtype: DType::F32, shape: [1, 2, 4, 3], strides: [0, 100, 5, 1] };
        assert!(ok.is_injective() && !ok.is_dense());
        for strides in [[0, 100, 2, 1], [0, 0, 3, 1], [0, 11, 3, 1], [0, 100, 3, 0]] {
            assert!(!TensorView { strides, ..ok }.is_injective(), "{strides:?}");
        }
    }

    #[test]
    fn sizes_beyond_memory_are_errors() {
        let huge = usize::MAX / 8;
        assert!(TensorView::contiguous(DType::F32, Layout::Bhsd, [huge, 4, 4, 4]).is_err());
        assert!(TensorView::contiguous(DType::F32, Layout::Bhsd, [1, 1, huge, 8]).is_err());
        assert!(TensorView::contiguous(DType::F32, Layout::Bhsd, [0, 1, huge, 1]).is_ok());
    }
}
