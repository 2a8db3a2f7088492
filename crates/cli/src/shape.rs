//! The sizes of a problem in one word.

use flashtile::{Align, DType, Problem, ProblemError, TensorView};
use std::{fmt, str::FromStr};

/// `BxHxSxD`. Where k and v have other heads or another length than q, H is `H/Hkv` and S is
/// `Sq/Skv`: `1x32/8x1/4096x128` is a decode step of 32 heads over 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) seq_q: usize,
    pub(crate) seq_kv: usize,
    pub(crate) head_dim: usize,
}

impl Shape {
    /// Of self-attention with as many heads of k and v as of q: (B, H, S, D).
    pub(crate) const fn of_self([batch, heads, seq, head_dim]: [usize; 4]) -> Self {
        Self { batch, heads, kv_heads: heads, seq_q: seq, seq_kv: seq, head_dim }
    }

    /// Whether q, k and v have the same sizes.
    pub(crate) fn is_of_self(&self) -> bool {
        self.kv_heads == self.heads && self.seq_kv == self.seq_q
    }

    /// The products that take most of the time: B * H * Sq * Skv * D.
    pub(crate) fn work(&self) -> usize {
        self.batch * self.heads * self.seq_q * self.seq_kv * self.head_dim
    }

    /// Elements of q, and of k or v.
    pub(crate) fn elements(&self) -> [usize; 2] {
        let Self { batch, heads, kv_heads, seq_q, seq_kv, head_dim } = *self;
        [batch * heads * seq_q * head_dim, batch * kv_heads * seq_kv * head_dim]
    }

    /// Dense tensors of these sizes in layout bhsd. With a causal mask, the last query is at the
    /// last key.
    pub(crate) fn problem(&self, dtype: DType, causal: bool) -> Result<Problem, ProblemError> {
        let Self { batch, heads, kv_heads, seq_q, seq_kv, head_dim } = *self;
        let q = TensorView::bhsd(dtype, [batch, heads, seq_q, head_dim])?;
        let kv = TensorView::bhsd(dtype, [batch, kv_heads, seq_kv, head_dim])?;
        Problem::builder(q, kv, kv).causal(causal).align(Align::BottomRight).build()
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { batch, heads, kv_heads, seq_q, seq_kv, head_dim } = self;
        write!(f, "{batch}x{heads}")?;
        if kv_heads != heads {
            write!(f, "/{kv_heads}")?;
        }
        write!(f, "x{seq_q}")?;
        if seq_kv != seq_q {
            write!(f, "/{seq_kv}")?;
        }
        write!(f, "x{head_dim}")
    }
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size = |text: &str| text.parse().ok().filter(|&n: &usize| n > 0);
        // One size, or two with a slash between them.
        let both = |text: &str| match text.split_once('/') {
            Some((q, kv)) => Some([size(q)?, size(kv)?]),
            None => size(text).map(|n| [n, n]),
        };
        let read = || {
            let [batch, heads, seq, head_dim] = text.split('x').collect::<Vec<_>>()[..] else {
                return None;
            };
            let ([heads, kv_heads], [seq_q, seq_kv]) = (both(heads)?, both(seq)?);
            let (batch, head_dim) = (size(batch)?, size(head_dim)?);
            Some(Self { batch, heads, kv_heads, seq_q, seq_kv, head_dim })
        };
        read().ok_or_else(|| {
            "expected BxHxSxD, four positive sizes such as 1x8x1024x64, where H may be H/Hkv and \
             S may be Sq/Skv"
                .to_owned()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_read_and_written() {
        let decode =
            Shape { batch: 1, heads: 32, kv_heads: 8, seq_q: 1, seq_kv: 32_768, head_dim: 128 };
        for (text, shape) in [
            ("1x2x3x4", Shape::of_self([1, 2, 3, 4])),
            ("1x32/8x1/32768x128", decode),
            ("1x32/8x7x64", Shape { kv_heads: 8, ..Shape::of_self([1, 32, 7, 64]) }),
            ("1x32x1/9x64", Shape { seq_kv: 9, ..Shape::of_self([1, 32, 1, 64]) }),
        ] {
            assert_eq!((text.parse(), shape.to_string()), (Ok(shape), text.to_owned()));
        }
        assert_eq!("1x2/2x3/3x4".parse(), Ok(Shape::of_self([1, 2, 3, 4])));
        for wrong in [
            "",
            "1x2x3",
            "1x2x3x4x5",
            "1x0x3x4",
            "1x-2x3x4",
            "axbxcxd",
            "1X2X3X4",
            "1/1x2x3x4",
            "1x2x3x4/4",
            "1x2/x3x4",
            "1x2x3/0x4",
            "1x2/1/1x3x4",
            "1x2(1)x3x4",
        ] {
            assert!(wrong.parse::<Shape>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn problems_have_these_sizes() {
        let shape: Shape = "2x6/3x1/50x8".parse().expect("a shape");
        let problem = shape.problem(DType::F16, true).expect("valid");
        assert_eq!((problem.q().shape, problem.k().shape), ([2, 6, 1, 8], [2, 3, 50, 8]));
        // The only query sees all keys.
        assert_eq!(problem.band().visible(0, 1, 50), 0..50);
        let elements: [usize; 2] =
            [problem.q(), problem.k()].map(|view| view.shape.iter().product());
        assert_eq!(shape.elements(), elements);
        let wrong: Shape = "2x6/4x1/50x8".parse().expect("a shape");
        assert!(wrong.problem(DType::F16, true).is_err(), "6 heads do not share 4");
    }
}
