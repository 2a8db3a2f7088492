use flashtile_core::{
    Align, Call, Cost, DType, Layout, Mask, MaskKind, Problem, ProblemError, TensorView,
};

/// One problem with its inputs, as plain data. The catalogue consists of cases; a failure prints
/// its case, and the case replays it.
///
/// A case converts to one line of text and back. [`Display`](std::fmt::Display) leaves out what has
/// its default value, and [`FromStr`](std::str::FromStr) fills it in again.
///
/// ```
/// use flashtile_testkit::Case;
///
/// let case = Case { causal: true, kv_heads: 2, ..Case::new([1, 4, 17, 64]) };
/// assert_eq!(case.to_string(), "shape=1x4x17x64 hkv=2 causal=yes");
/// assert_eq!("shape=1x4x17x64 hkv=2 causal=yes".parse(), Ok(case));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// B.
    pub batch: usize,
    /// H.
    pub heads: usize,
    /// Hkv.
    pub kv_heads: usize,
    /// The capacity in queries.
    pub seq_q: usize,
    /// The capacity in keys.
    pub seq_kv: usize,
    /// D.
    pub head_dim: usize,
    /// Dv.
    pub head_dim_v: usize,
    /// Storage type of q, k, v and out.
    pub dtype: DType,
    /// Where q lies in memory.
    pub q: Placement,
    /// Where k lies in memory.
    pub k: Placement,
    /// Where v lies in memory.
    pub v: Placement,
    /// Where the output lies in memory.
    pub out: Placement,
    /// See [`Problem::causal`].
    pub causal: bool,
    /// See [`Problem::align`].
    pub align: Align,
    /// See [`Problem::window_left`].
    pub window_left: Option<usize>,
    /// See [`Problem::window_right`].
    pub window_right: Option<usize>,
    /// See [`Problem::softcap`].
    pub softcap: Option<f32>,
    /// See [`Call::scale`].
    pub scale: Option<f32>,
    /// The attention mask.
    pub mask: Option<MaskSpec>,
    /// Valid keys of each batch entry.
    pub kv_lens: KvLens,
    /// See [`Problem::dropout_p`].
    pub dropout_p: f64,
    /// See [`Call::seed`].
    pub dropout_seed: u64,
    /// See [`Call::offset`].
    pub dropout_offset: u32,
    /// Whether the problem asks for lse (default: yes).
    pub lse: bool,
    /// Queries in the call, at most the capacity.
    pub call_q: Option<usize>,
    /// Keys in the call, at most the capacity.
    pub call_kv: Option<usize>,
    /// The distribution of q, k and v.
    pub values: Values,
    /// Which memory holds NaN and infinities.
    pub poison: Poison,
    /// The input, if any, that holds one NaN in a visible place.
    pub nan: Option<Nan>,
    /// The seed of everything random.
    pub seed: u64,
}

/// Where a tensor lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Densely packed.
    Layout(Layout),
    /// With these strides along (B, H, S, D), in elements.
    Strides([usize; 4]),
}

impl Placement {
    /// As `layout`, but with `pads` more elements in the strides along (B, H, S, D) than needed.
    ///
    /// No element lies in the gaps between, and a kernel must not write to them.
    pub fn padded(layout: Layout, shape: [usize; 4], pads: [usize; 4]) -> Self {
        let mut order = [0, 1, 2, 3];
        order.sort_by_key(|&axis| std::cmp::Reverse(layout.axes()[axis]));
        let mut strides = [0; 4];
        let mut step = 1;
        for axis in order {
            strides[axis] = step + pads[axis];
            step = strides[axis] * shape[axis].max(1);
        }
        Self::Strides(strides)
    }

    fn view(self, dtype: DType, shape: [usize; 4]) -> Result<TensorView, ProblemError> {
        match self {
            Self::Layout(layout) => TensorView::from_bhsd_sizes(dtype, layout, shape),
            Self::Strides(strides) => Ok(TensorView::strided(dtype, shape, strides)),
        }
    }
}

/// A mask's shape and content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaskSpec {
    /// Bool or additive.
    pub kind: MaskKind,
    /// 1 to 4.
    pub rank: usize,
    /// Which of the axes (B, H, Sq, Skv) have their full size. The others have size 1, or are
    /// absent if the rank does not reach them.
    pub full: [bool; 4],
    /// Unused elements after each row.
    pub pad: usize,
    /// Its content.
    pub content: MaskContent,
}

/// The content of a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskContent {
    /// Independent entries: half of a bool mask and a fifth of an additive one are masked.
    Random,
    /// Random rectangles are masked.
    Blocks,
    /// As `Random`, and a third of the rows are fully masked.
    Rows,
    /// As `Blocks`, with the lowest finite number instead of -inf. A third of the rows hold nothing
    /// else.
    Lowest,
    /// Nothing is masked: all true, or all zero.
    Open,
    /// Everything is masked.
    Shut,
    /// Minus the distance of query and key, times a slope per head (a bool mask is open).
    Alibi,
}

/// How many keys are valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvLens {
    /// All: the problem has no kv_lens.
    Off,
    /// A random number for each batch entry, sometimes none or all.
    Random,
    /// These.
    Lens(Vec<i32>),
}

/// The distribution of q, k and v.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// The normal distribution.
    Normal,
    /// Scores with about 36 times the spread: rows are nearly one-hot.
    Large,
    /// Scores with about 3600 times the spread.
    Huge,
    /// Numbers near the smallest of the storage type.
    Tiny,
    /// Each query points at one key.
    OneHot,
    /// One number everywhere: all keys tie.
    Constant,
    /// All rows of a head are one: all keys tie, as those of equal tokens do, and the roundings of
    /// a sum repeat.
    Alike,
    /// Magnitudes over many powers of two.
    Spread,
    /// Small whole numbers: many ties, exact products.
    Ints,
    /// Values between 0 and 1: nothing cancels in their sums, so errors grow with the number of
    /// keys.
    Positive,
    /// Values near the largest of f16; about 10^30 in other types.
    Vast,
}

impl Values {
    /// Every distribution but [`Alike`](Self::Alike): the error bound takes roundings to be
    /// independent, and kernels with long sums exceed it where they repeat.
    pub const ALL: [Values; 10] = [
        Values::Normal,
        Values::Large,
        Values::Huge,
        Values::Tiny,
        Values::OneHot,
        Values::Constant,
        Values::Spread,
        Values::Ints,
        Values::Positive,
        Values::Vast,
    ];
}

/// Which memory holds NaN and infinities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poison {
    /// Memory of no element of the call: between strides, beyond its lengths, and after the end.
    Gaps,
    /// That, and everything that no query sees: keys that are masked for all queries, queries
    /// without keys, and mask entries outside causal and window.
    Unseen,
}

/// The input that holds one NaN in a visible place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nan {
    /// In q: one row of the result is NaN.
    Q,
    /// In k: every row that sees the key is NaN.
    K,
    /// In v: one number is NaN in every row that sees the key.
    V,
}

impl Case {
    /// Self-attention of `[batch, heads, seq, head_dim]` in f32 and bshd, without further options.
    pub fn new([batch, heads, seq, head_dim]: [usize; 4]) -> Self {
        let bshd = Placement::Layout(Layout::Bshd);
        Self {
            batch,
            heads,
            kv_heads: heads,
            seq_q: seq,
            seq_kv: seq,
            head_dim,
            head_dim_v: head_dim,
            dtype: DType::F32,
            q: bshd,
            k: bshd,
            v: bshd,
            out: bshd,
            causal: false,
            align: Align::TopLeft,
            window_left: None,
            window_right: None,
            softcap: None,
            scale: None,
            mask: None,
            kv_lens: KvLens::Off,
            dropout_p: 0.0,
            dropout_seed: 0,
            dropout_offset: 0,
            lse: true,
            call_q: None,
            call_kv: None,
            values: Values::Normal,
            poison: Poison::Gaps,
            nan: None,
            seed: 0,
        }
    }

    /// Sizes of q.
    pub fn q_shape(&self) -> [usize; 4] {
        [self.batch, self.heads, self.seq_q, self.head_dim]
    }

    /// Sizes of k.
    pub fn k_shape(&self) -> [usize; 4] {
        [self.batch, self.kv_heads, self.seq_kv, self.head_dim]
    }

    /// Sizes of v.
    pub fn v_shape(&self) -> [usize; 4] {
        [self.batch, self.kv_heads, self.seq_kv, self.head_dim_v]
    }

    /// Sizes of out.
    pub fn out_shape(&self) -> [usize; 4] {
        [self.batch, self.heads, self.seq_q, self.head_dim_v]
    }

    /// The problem that the case describes.
    ///
    /// # Errors
    /// If the case breaks a rule of [`Problem`].
    pub fn problem(&self) -> Result<Problem, ProblemError> {
        let q = self.q.view(self.dtype, self.q_shape())?;
        let k = self.k.view(self.dtype, self.k_shape())?;
        let v = self.v.view(self.dtype, self.v_shape())?;
        Problem::builder(q, k, v)
            .out(self.out.view(self.dtype, self.out_shape())?)
            .causal(self.causal)
            .align(self.align)
            .window_left(self.window_left)
            .window_right(self.window_right)
            .softcap(self.softcap)
            .mask(self.mask.map(|spec| self.mask_view(&spec)).transpose()?)
            .kv_lens(self.kv_lens != KvLens::Off)
            .dropout_p(self.dropout_p)
            .lse(self.lse)
            .build()
    }

    fn mask_view(&self, spec: &MaskSpec) -> Result<Mask, ProblemError> {
        let scores = [self.batch, self.heads, self.seq_q, self.seq_kv];
        let dims: Vec<usize> = (4 - spec.rank.min(4)..4)
            .map(|axis| if spec.full[axis] { scores[axis] } else { 1 })
            .collect();
        let mut strides = vec![0; dims.len()];
        let mut step = 1;
        for (axis, stride) in strides.iter_mut().enumerate().rev() {
            *stride = step;
            step *= dims[axis].max(1);
            if axis + 1 == dims.len() {
                step += spec.pad;
            }
        }
        Mask::strided(spec.kind, &dims, &strides)
    }

    /// The call that the case describes.
    pub fn call(&self) -> Call {
        let Self {
            scale,
            dropout_seed: seed,
            dropout_offset: offset,
            call_q: seq_q,
            call_kv: seq_kv,
            ..
        } = *self;
        Call::new().scale(scale).seed(seed).offset(offset).seq_q(seq_q).seq_kv(seq_kv)
    }

    /// The floating-point operations of the case. Pairs that a mask or kv_lens exclude are counted
    /// too. 0 if the case is not valid.
    pub fn flops(&self) -> u64 {
        let cost = || {
            let problem = self.problem().ok()?;
            let call = self.call().resolve(&problem).ok()?;
            Some(Cost::new(&problem, &call, 16, 16, None).flops)
        };
        cost().unwrap_or(0)
    }
}
