use crate::{
    Align, Argument, Band, DType, Dropout, Layout, MAX_SEQ, Mask, ProblemError, TensorView,
};
use std::fmt;

/// One attention configuration, checked once. [`Call`](crate::Call) holds what changes per call.
///
/// For every batch entry, head and query: s = scale * q.k; with softcap c, s = c * tanh(s / c);
/// then s += additive mask; p = softmax over the allowed keys; dropout on p; out = p v. A score
/// beyond f32's range saturates at its largest finite number. A row without allowed keys has output
/// 0 and lse -inf.
///
/// Sequence lengths are capacities: a call may use fewer. Problems compare and hash by value, so
/// they serve as keys of a [`PlanCache`](crate::PlanCache).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    q: TensorView,
    k: TensorView,
    v: TensorView,
    out: TensorView,
    options: Options,
}

/// Everything about a problem but its tensors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Options {
    mask: Option<Mask>,
    causal: bool,
    align: Align,
    window_left: Option<usize>,
    window_right: Option<usize>,
    softcap: Option<Float>,
    dropout_p: Float,
    lse: bool,
    kv_lens: bool,
}

/// A number that compares and hashes by its bits. f32 and f64 pass through unchanged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Float(u64);

impl Float {
    fn new(value: f64) -> Self {
        // -0 is 0 in every formula.
        Self((value + 0.0).to_bits())
    }

    fn get(self) -> f64 {
        f64::from_bits(self.0)
    }
}

impl Problem {
    /// Starts the description of attention of `q` (B, H, Sq, D) over `k` (B, Hkv, Skv, D) and `v`
    /// (B, Hkv, Skv, Dv).
    pub fn builder(q: TensorView, k: TensorView, v: TensorView) -> ProblemBuilder {
        ProblemBuilder { q, k, v, out: None, options: Options::default() }
    }

    /// Storage type of q, k, v and out.
    pub fn dtype(&self) -> DType {
        self.q.dtype
    }
    /// B.
    pub fn batch(&self) -> usize {
        self.q.shape[0]
    }
    /// H, heads of q and out.
    pub fn heads(&self) -> usize {
        self.q.shape[1]
    }
    /// Hkv, heads of k and v.
    pub fn kv_heads(&self) -> usize {
        self.k.shape[1]
    }
    /// Query heads that share a key head: H / Hkv.
    pub fn group_size(&self) -> usize {
        self.heads() / self.kv_heads()
    }
    /// Sq, the capacity in queries.
    pub fn seq_q(&self) -> usize {
        self.q.shape[2]
    }
    /// Skv, the capacity in keys.
    pub fn seq_kv(&self) -> usize {
        self.k.shape[2]
    }
    /// D, the width of q and k.
    pub fn head_dim(&self) -> usize {
        self.q.shape[3]
    }
    /// Dv, the width of v and out.
    pub fn head_dim_v(&self) -> usize {
        self.v.shape[3]
    }
    /// The queries.
    pub fn q(&self) -> &TensorView {
        &self.q
    }
    /// The keys.
    pub fn k(&self) -> &TensorView {
        &self.k
    }
    /// The values.
    pub fn v(&self) -> &TensorView {
        &self.v
    }
    /// The output, (B, H, Sq, Dv).
    pub fn out(&self) -> &TensorView {
        &self.out
    }
    /// The attention mask, if there is one.
    pub fn mask(&self) -> Option<&Mask> {
        self.options.mask.as_ref()
    }
    /// Whether keys after the query's position are masked.
    pub fn causal(&self) -> bool {
        self.options.causal
    }
    /// Where queries stand among the keys.
    pub fn align(&self) -> Align {
        self.options.align
    }
    /// Keys seen before the query's position; `None` for all.
    pub fn window_left(&self) -> Option<usize> {
        self.options.window_left
    }
    /// Keys seen after the query's position; `None` for all.
    pub fn window_right(&self) -> Option<usize> {
        self.options.window_right
    }
    /// The softcap c.
    pub fn softcap(&self) -> Option<f32> {
        self.options.softcap.map(|c| c.get() as f32)
    }
    /// The probability that a weight is dropped; 0 for none.
    pub fn dropout_p(&self) -> f64 {
        self.options.dropout_p.get()
    }
    /// Whether the log-sum-exp of each row is wanted.
    pub fn lse(&self) -> bool {
        self.options.lse
    }
    /// Whether each batch entry has its own count of valid keys.
    pub fn kv_lens(&self) -> bool {
        self.options.kv_lens
    }
    /// The band of keys that causal, windows and align leave.
    pub fn band(&self) -> Band {
        Band::new(self.align(), self.causal(), self.window_left(), self.window_right())
    }
    /// The dropout generator's constants; `None` where `dropout_p` is 0.
    pub fn dropout(&self) -> Option<Dropout> {
        Dropout::new(self.dropout_p())
    }
    /// Sizes of the log-sum-exp output, f32, densely packed: (B, H, Sq) with Sq the capacity.
    pub fn lse_shape(&self) -> [usize; 3] {
        [self.batch(), self.heads(), self.seq_q()]
    }
    /// Bytes of the log-sum-exp output; 0 where the problem does not ask for it.
    pub fn lse_bytes(&self) -> u64 {
        let rows = || self.lse_shape().iter().fold(4, |n: u64, &m| n.saturating_mul(m as u64));
        if self.lse() { rows() } else { 0 }
    }
    /// True where there is nothing to write: no batch entries or no queries.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}x{}x{}x{}",
            self.dtype(),
            self.batch(),
            self.heads(),
            self.seq_q(),
            self.head_dim()
        )?;
        if self.seq_kv() != self.seq_q() {
            write!(f, " over {} keys", self.seq_kv())?;
        }
        if self.head_dim_v() != self.head_dim() {
            write!(f, ", head_dim_v {}", self.head_dim_v())?;
        }
        if self.kv_heads() != self.heads() {
            write!(f, ", {} kv heads", self.kv_heads())?;
        }
        if self.causal() {
            f.write_str(", causal")?;
        }
        if self.align() != Align::TopLeft {
            write!(f, ", align {}", self.align())?;
        }
        if let Some(n) = self.window_left() {
            write!(f, ", window left {n}")?;
        }
        if let Some(n) = self.window_right() {
            write!(f, ", window right {n}")?;
        }
        if let Some(c) = self.softcap() {
            write!(f, ", softcap {c}")?;
        }
        if let Some(mask) = self.mask() {
            write!(f, ", {} mask", mask.kind)?;
        }
        if self.dropout_p() > 0.0 {
            write!(f, ", dropout {}", self.dropout_p())?;
        }
        if self.kv_lens() {
            f.write_str(", kv_lens")?;
        }
        if self.lse() {
            f.write_str(", lse")?;
        }
        Ok(())
    }
}

/// The options of a [`Problem`], to be checked by [`build`](ProblemBuilder::build).
#[derive(Clone, Debug)]
#[must_use]
pub struct ProblemBuilder {
    q: TensorView,
    k: TensorView,
    v: TensorView,
    out: Option<TensorView>,
    options: Options,
}

impl ProblemBuilder {
    /// The placement of the output. Default: densely packed, axes in the order of q's strides.
    pub fn out(mut self, out: TensorView) -> Self {
        self.out = Some(out);
        self
    }
    /// Masks keys after the query's position.
    pub fn causal(mut self, causal: bool) -> Self {
        self.options.causal = causal;
        self
    }
    /// The position of queries among the keys, from which causal masks and windows measure. A
    /// decode step over a key-value cache wants [`Align::BottomRight`]: with the default, top-left,
    /// its only query sees key 0 alone.
    pub fn align(mut self, align: Align) -> Self {
        self.options.align = align;
        self
    }
    /// Keys seen before the query's position; `None` for all.
    pub fn window_left(mut self, keys: impl Into<Option<usize>>) -> Self {
        self.options.window_left = keys.into();
        self
    }
    /// Keys seen after the query's position; `None` for all.
    pub fn window_right(mut self, keys: impl Into<Option<usize>>) -> Self {
        self.options.window_right = keys.into();
        self
    }
    /// Bounds scores smoothly to ±c, as Gemma 2 does; `None` for no bound.
    pub fn softcap(mut self, c: impl Into<Option<f32>>) -> Self {
        self.options.softcap = c.into().map(|c| Float::new(c.into()));
        self
    }
    /// An attention mask.
    pub fn mask(mut self, mask: impl Into<Option<Mask>>) -> Self {
        self.options.mask = mask.into();
        self
    }
    /// The probability that a weight is dropped, in [0, 1]; 0 for no dropout.
    pub fn dropout_p(mut self, p: f64) -> Self {
        self.options.dropout_p = Float::new(p);
        self
    }
    /// Asks for the log-sum-exp of each row.
    pub fn lse(mut self, lse: bool) -> Self {
        self.options.lse = lse;
        self
    }
    /// Gives each batch entry its own count of valid keys.
    pub fn kv_lens(mut self, kv_lens: bool) -> Self {
        self.options.kv_lens = kv_lens;
        self
    }

    /// Checks the description.
    ///
    /// # Errors
    /// A [`ProblemError`] that names the argument, what was expected and what was given.
    pub fn build(self) -> Result<Problem, ProblemError> {
        let Self { q, k, v, out, mut options } = self;
        let [batch, heads, seq_q, head_dim] = q.shape;
        let [_, kv_heads, seq_kv, _] = k.shape;
        let head_dim_v = v.shape[3];

        for (argument, view) in [(Argument::Q, &q), (Argument::K, &k), (Argument::V, &v)] {
            for (axis, n) in [("heads", view.shape[1]), ("head_dim", view.shape[3])] {
                if n == 0 {
                    return Err(ProblemError::Zero { argument, axis });
                }
            }
            check_view(argument, view, q.dtype)?;
        }
        if !heads.is_multiple_of(kv_heads) {
            return Err(ProblemError::HeadGroups { heads, kv_heads });
        }
        let size = |argument, axis, expected, given, because| {
            if expected == given {
                Ok(())
            } else {
                Err(ProblemError::Size { argument, axis, expected, given, because })
            }
        };
        size(Argument::K, "batch", batch, k.shape[0], "the batch of q")?;
        size(Argument::V, "batch", batch, v.shape[0], "the batch of q")?;
        size(Argument::V, "heads", kv_heads, v.shape[1], "the heads of k")?;
        size(Argument::V, "seq_kv", seq_kv, v.shape[2], "the length of k")?;
        size(Argument::K, "head_dim", head_dim, k.shape[3], "the head_dim of q")?;

        let out = match out {
            Some(out) => out,
            None => like_order_of(&q, [batch, heads, seq_q, head_dim_v])?,
        };
        check_view(Argument::Out, &out, q.dtype)?;
        size(Argument::Out, "batch", batch, out.shape[0], "the batch of q")?;
        size(Argument::Out, "heads", heads, out.shape[1], "the heads of q")?;
        size(Argument::Out, "seq_q", seq_q, out.shape[2], "the length of q")?;
        size(Argument::Out, "head_dim_v", head_dim_v, out.shape[3], "the head_dim of v")?;
        if !out.is_empty() && !out.is_injective() {
            return Err(ProblemError::Overlap {
                argument: Argument::Out,
                shape: out.shape,
                strides: out.strides,
            });
        }
        // The scores are counted too: batch * heads * seq_q is the size of lse and of every grid.
        batch
            .checked_mul(heads)
            .and_then(|n| n.checked_mul(seq_q))
            .and_then(|n| n.checked_mul(4))
            .filter(|&n| n <= isize::MAX as usize)
            .ok_or(ProblemError::Overflow { argument: Argument::Lse })?;

        options.mask = options.mask.map(Mask::with_broadcast_strides);
        if let Some(mask) = &options.mask {
            mask.check([batch, heads, seq_q, seq_kv])?;
        }
        if let Some(c) = options.softcap.map(Float::get)
            && !(c.is_finite() && c > 0.0)
        {
            return Err(ProblemError::Softcap { given: c as f32 });
        }
        let dropout_p = options.dropout_p.get();
        if !(0.0..=1.0).contains(&dropout_p) {
            return Err(ProblemError::DropoutP { given: dropout_p });
        }
        Ok(Problem { q, k, v, out, options })
    }
}

fn check_view(argument: Argument, view: &TensorView, dtype: DType) -> Result<(), ProblemError> {
    if view.dtype != dtype {
        return Err(ProblemError::DTypeMix {
            argument,
            like: Argument::Q,
            expected: dtype,
            given: view.dtype,
        });
    }
    if view.shape[2] > MAX_SEQ {
        return Err(ProblemError::SequenceTooLong { argument, given: view.shape[2] });
    }
    view.byte_span().ok_or(ProblemError::Overflow { argument })?;
    Ok(())
}

/// A dense view of `shape` whose axes lie in the order in which q's do.
fn like_order_of(q: &TensorView, shape: [usize; 4]) -> Result<TensorView, ProblemError> {
    // A q with an axis of size 1 fits several layouts; bshd, the default, is asked first.
    let layout = [Layout::Bshd, Layout::Bhsd, Layout::Hbsd].into_iter().find(|layout| {
        let mut axes: Vec<_> = (0..3).filter(|&axis| q.shape[axis] > 1).collect();
        axes.sort_by_key(|&axis| layout.axes()[axis]);
        axes.windows(2).all(|pair| q.strides[pair[0]] >= q.strides[pair[1]])
    });
    TensorView::from_bhsd_sizes(q.dtype, layout.unwrap_or_default(), shape)
        .map_err(|_| ProblemError::Overflow { argument: Argument::Out })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MaskKind;

    fn view(shape: [usize; 4]) -> TensorView {
        TensorView::from_bhsd_sizes(DType::F32, Layout::Bhsd, shape).expect("small")
    }

    #[test]
    fn out_follows_the_layout_of_q() {
        for layout in [Layout::Bshd, Layout::Bhsd, Layout::Hbsd] {
            let q = TensorView::from_bhsd_sizes(DType::F32, layout, [2, 4, 5, 8]).expect("small");
            let k = TensorView::from_bhsd_sizes(DType::F32, layout, [2, 2, 7, 8]).expect("small");
            let v = TensorView::from_bhsd_sizes(DType::F32, layout, [2, 2, 7, 3]).expect("small");
            let problem = Problem::builder(q, k, v).build().expect("valid");
            let expected =
                TensorView::from_bhsd_sizes(DType::F32, layout, [2, 4, 5, 3]).expect("small");
            assert_eq!(*problem.out(), expected, "{layout}");
        }
    }

    #[test]
    fn every_broken_rule_has_its_error() {
        let q = view([2, 4, 5, 8]);
        let kv = view([2, 2, 7, 8]);
        let b = |q, k, v| Problem::builder(q, k, v);
        let ok = || b(q, kv, kv);
        let f16 = TensorView::strided(DType::F16, kv.shape, kv.strides);
        let wide = TensorView::strided(kv.dtype, kv.shape, [usize::MAX / 2, 1, 1, 1]);
        let cases: Vec<(&str, ProblemBuilder)> = vec![
            (
                "q has 4 heads, which is not a multiple of the 3 heads of k",
                b(q, view([2, 3, 7, 8]), view([2, 3, 7, 8])),
            ),
            ("k must have batch 2 (the batch of q), but has 1", b(q, view([1, 2, 7, 8]), kv)),
            ("v must have seq_kv 7 (the length of k), but has 6", b(q, kv, view([2, 2, 6, 8]))),
            ("v must have heads 2 (the heads of k), but has 4", b(q, kv, view([2, 4, 7, 8]))),
            ("k must have head_dim 8 (the head_dim of q), but has 9", b(q, view([2, 2, 7, 9]), kv)),
            ("k must have heads of at least 1, but has 0", b(q, view([2, 0, 7, 8]), kv)),
            ("v must have head_dim of at least 1, but has 0", b(q, kv, view([2, 2, 7, 0]))),
            ("v must be f32 like q, but is f16", b(q, kv, f16)),
            ("the extent of k overflows", b(q, wide, kv)),
            ("out overlaps itself", ok().out(TensorView::strided(q.dtype, q.shape, [0, 40, 8, 1]))),
            (
                "out must have head_dim_v 8 (the head_dim of v), but has 7",
                ok().out(view([2, 4, 5, 7])),
            ),
            ("softcap must be a positive finite number, but is NaN", ok().softcap(f32::NAN)),
            ("softcap must be a positive finite number, but is 0", ok().softcap(0.0)),
            ("dropout_p must lie in [0, 1], but is -0.1", ok().dropout_p(-0.1)),
            ("dropout_p must lie in [0, 1], but is 1.5", ok().dropout_p(1.5)),
            ("dropout_p must lie in [0, 1], but is NaN", ok().dropout_p(f64::NAN)),
            (
                "attn_mask of shape [1, 1, 5, 8] does not broadcast to \
                 (batch, heads, seq_q, seq_kv) = [2, 4, 5, 7]",
                ok().mask(Mask::contiguous(MaskKind::Bool, &[5, 8]).expect("rank 2")),
            ),
            (
                "q has a sequence length of 536870912; the maximum is",
                b(TensorView::strided(q.dtype, [2, 4, MAX_SEQ + 1, 8], [0; 4]), kv, kv),
            ),
        ];
        let mut wrong = Vec::new();
        for (message, builder) in cases {
            match builder.build() {
                Err(e) if e.to_string().starts_with(message) => {}
                other => wrong.push(format!("expected `{message}`, got {other:?}")),
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert!(ok().build().is_ok());
    }

    #[test]
    fn equal_problems_hash_alike() {
        use std::hash::{BuildHasher, RandomState};
        let state = RandomState::new();
        let build = |p: f64, c: Option<f32>| {
            let x = view([1, 2, 3, 4]);
            Problem::builder(x, x, x).dropout_p(p).softcap(c).build().expect("valid")
        };
        let (a, b) = (build(0.0, Some(30.0)), build(-0.0, Some(30.0)));
        assert_eq!(a, b);
        assert_eq!(state.hash_one(&a), state.hash_one(&b));
        assert_eq!(a.softcap(), Some(30.0));
        for other in [build(0.5, Some(30.0)), build(0.0, None), build(0.0, Some(30.000002))] {
            assert_ne!(a, other);
        }
    }

    #[test]
    fn empty_sequences_are_problems_too() {
        assert!(
            Problem::builder(view([0, 2, 3, 4]), view([0, 2, 3, 4]), view([0, 2, 3, 4]))
                .build()
                .is_ok()
        );
        assert!(
            Problem::builder(view([1, 2, 0, 4]), view([1, 2, 3, 4]), view([1, 2, 3, 4]))
                .build()
                .is_ok()
        );
        assert!(
            Problem::builder(view([1, 2, 3, 4]), view([1, 2, 0, 4]), view([1, 2, 0, 4]))
                .build()
                .is_ok()
        );
    }
}
