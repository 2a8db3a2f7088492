use flashtile_core::{DType, Mask, MaskKind, TensorView};

/// A tensor read into float64, densely packed (B, H, S, D).
pub(crate) struct Dense {
    shape: [usize; 4],
    values: Vec<f64>,
}

impl Dense {
    pub(crate) fn new(view: &TensorView, bytes: &[u8]) -> Self {
        let [batch, heads, seq, dim] = view.shape;
        let mut values = Vec::new();
        for b in 0..batch {
            for h in 0..heads {
                for s in 0..seq {
                    values.extend((0..dim).map(|d| view.dtype.read(bytes, view.index(b, h, s, d))));
                }
            }
        }
        Self { shape: view.shape, values }
    }

    pub(crate) fn row(&self, b: usize, h: usize, s: usize) -> &[f64] {
        let [_, heads, seq, dim] = self.shape;
        let start = ((b * heads + h) * seq + s) * dim;
        &self.values[start..start + dim]
    }
}

/// An attention mask, read one score at a time.
pub(crate) struct MaskValues<'a> {
    mask: &'a Mask,
    bytes: &'a [u8],
}

impl<'a> MaskValues<'a> {
    pub(crate) fn new(mask: &'a Mask, bytes: &'a [u8]) -> Self {
        Self { mask, bytes }
    }

    /// False if a boolean mask is zero or an additive one is -inf.
    pub(crate) fn allows(&self, b: usize, h: usize, i: usize, j: usize) -> bool {
        match self.mask.kind {
            MaskKind::Bool => self.bytes[self.place(b, h, i, j)] != 0,
            MaskKind::Additive(dtype) => self.read(dtype, b, h, i, j) != f64::NEG_INFINITY,
        }
    }

    /// What is added to the score; `None` for boolean masks.
    pub(crate) fn added(&self, b: usize, h: usize, i: usize, j: usize) -> Option<f64> {
        match self.mask.kind {
            MaskKind::Bool => None,
            MaskKind::Additive(dtype) => Some(self.read(dtype, b, h, i, j)),
        }
    }

    fn read(&self, dtype: DType, b: usize, h: usize, i: usize, j: usize) -> f64 {
        dtype.read(self.bytes, self.place(b, h, i, j))
    }

    /// NumPy's broadcasting: an axis of size 1 is repeated.
    fn place(&self, b: usize, h: usize, i: usize, j: usize) -> usize {
        let mut place = 0;
        for (axis, index) in [b, h, i, j].into_iter().enumerate() {
            if self.mask.shape[axis] != 1 {
                place += index * self.mask.strides[axis];
            }
        }
        place
    }
}
