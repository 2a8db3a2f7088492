use crate::{
    Attention, Choice, Element, Error, OwnedTensor, Tensor, bytes_of, bytes_of_mut, tensor::zeroed,
};
use flashtile_core::{
    Align, Argument, Call, HostArgs, Mask, MaskKind, Problem, ProblemError, TensorView,
};
use std::sync::{LazyLock, Mutex, PoisonError};

/// The mask of [`scaled_dot_product_attention`]: rank 1 to 4, broadcast by NumPy's rules against
/// (B, H, Sq, Skv).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum AttnMask<'a, T> {
    /// `true` where the key is allowed.
    Bool(Tensor<'a, bool>),
    /// Added to the scores; -inf masks the key, every other value is a number.
    Additive(Tensor<'a, T>),
}

/// The optional arguments of [`scaled_dot_product_attention_with`], at PyTorch's defaults.
///
/// ```
/// let options = flashtile::SdpaOptions::<f32>::new().causal(true).scale(0.5);
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct SdpaOptions<'a, T> {
    mask: Option<AttnMask<'a, T>>,
    dropout_p: f64,
    causal: bool,
    align: Align,
    scale: Option<f32>,
    gqa: bool,
}

impl<T> Default for SdpaOptions<'_, T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a, T> SdpaOptions<'a, T> {
    /// No mask, no dropout, not causal, scale 1/sqrt(D), one key head per query head.
    pub const fn new() -> Self {
        let (mask, scale, align) = (None, None, Align::TopLeft);
        Self { mask, dropout_p: 0.0, causal: false, align, scale, gqa: false }
    }

    /// An attention mask.
    pub fn mask(mut self, mask: impl Into<Option<AttnMask<'a, T>>>) -> Self {
        self.mask = mask.into();
        self
    }

    /// The probability that a weight is dropped, in [0, 1].
    pub fn dropout_p(mut self, p: f64) -> Self {
        self.dropout_p = p;
        self
    }

    /// Masks the keys after each query's position.
    pub fn causal(mut self, causal: bool) -> Self {
        self.causal = causal;
        self
    }

    /// The position of queries among the keys. PyTorch's `is_causal` is [`Align::TopLeft`]; a
    /// decode step over a key-value cache wants [`Align::BottomRight`].
    pub fn align(mut self, align: Align) -> Self {
        self.align = align;
        self
    }

    /// Multiplies q.k; `None` for 1/sqrt(D).
    pub fn scale(mut self, scale: impl Into<Option<f32>>) -> Self {
        self.scale = scale.into();
        self
    }

    /// Lets groups of query heads share a key head (GQA, MQA).
    pub fn gqa(mut self, enable: bool) -> Self {
        self.gqa = enable;
        self
    }
}

/// softmax(scale * q k^T + mask) v, with PyTorch's name, argument order and meaning, on the best
/// backend of this machine.
///
/// `query` is (B, H, Sq, D), `key` (B, Hkv, Skv, D) and `value` (B, Hkv, Skv, Dv), densely packed;
/// the result is (B, H, Sq, Dv). `scale` is 1/sqrt(D) if `None`. With `is_causal`, query i sees the
/// keys j <= i (top-left, also where Sq and Skv differ). With `enable_gqa`, H may be a multiple of
/// Hkv.
///
/// [`scaled_dot_product_attention_with`] takes the optional arguments by name. Where PyTorch leaves
/// something open, or this is wider:
/// - `attn_mask` and `is_causal` may be given together: both must allow a key.
/// - A row without allowed keys is 0, not NaN.
/// - Empty batches, queries and keys give results (without keys: zeros).
/// - Dropout draws from a generator of the process: [`manual_seed`] sets its seed (0 at the start),
///   and every call with `dropout_p > 0` takes its next position. The same seed gives the same
///   results on every backend, but not PyTorch's random numbers.
///
/// Where it is narrower: tensors have exactly four axes, and only the mask is broadcast.
///
/// [`Attention::run`] is the same with strides, other layouts, windows, softcap and explicit seeds.
///
/// # Errors
/// [`Error::Problem`], [`Error::Elements`] and [`Error::GqaDisabled`] for arguments that do not fit
/// together; [`Error::Backend`] if running fails.
#[expect(clippy::too_many_arguments, reason = "PyTorch's signature, argument for argument")]
pub fn scaled_dot_product_attention<T: Element>(
    query: Tensor<'_, T>,
    key: Tensor<'_, T>,
    value: Tensor<'_, T>,
    attn_mask: Option<AttnMask<'_, T>>,
    dropout_p: f64,
    is_causal: bool,
    scale: Option<f32>,
    enable_gqa: bool,
) -> Result<OwnedTensor<T>, Error> {
    let options = SdpaOptions::new()
        .mask(attn_mask)
        .dropout_p(dropout_p)
        .causal(is_causal)
        .scale(scale)
        .gqa(enable_gqa);
    scaled_dot_product_attention_with(query, key, value, &options)
}

/// [`scaled_dot_product_attention`] with its optional arguments by name.
///
/// ```
/// use flashtile::{SdpaOptions, Tensor, scaled_dot_product_attention_with};
///
/// # fn main() -> Result<(), flashtile::Error> {
/// let x = Tensor::new(&[1.0f32, 2.0], &[1, 1, 2, 1]);
/// let out = scaled_dot_product_attention_with(x, x, x, &SdpaOptions::new().causal(true))?;
/// assert_eq!(out.data[0], 1.0);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// As [`scaled_dot_product_attention`].
pub fn scaled_dot_product_attention_with<T: Element>(
    query: Tensor<'_, T>,
    key: Tensor<'_, T>,
    value: Tensor<'_, T>,
    options: &SdpaOptions<'_, T>,
) -> Result<OwnedTensor<T>, Error> {
    let (q, k, v) = (query.bhsd(Argument::Q)?, key.bhsd(Argument::K)?, value.bhsd(Argument::V)?);
    let problem = Problem::builder(q, k, v)
        .mask(options.mask.as_ref().map(view_of_mask).transpose()?)
        .causal(options.causal)
        .align(options.align)
        .dropout_p(options.dropout_p)
        .out(out_view(&q, &v)?)
        .build()?;
    let (heads, kv_heads) = (problem.heads(), problem.kv_heads());
    if !options.gqa && heads != kv_heads {
        return Err(Error::GqaDisabled { heads, kv_heads });
    }
    let (seed, offset) = if problem.dropout_p() > 0.0 { next_draw() } else { (0, 0) };
    let shape = problem.out().shape.to_vec();
    let mut data = zeroed::<T>(Argument::Out, shape.iter().product())?;
    let mask = options.mask.map(|mask| match mask {
        AttnMask::Bool(mask) => bytemuck::cast_slice(mask.data),
        AttnMask::Additive(mask) => bytes_of(mask.data),
    });
    let (q, k, v) = (bytes_of(query.data), bytes_of(key.data), bytes_of(value.data));
    let call = Call::new().scale(options.scale).seed(seed).offset(offset);
    let mut args = HostArgs::new(q, k, v, bytes_of_mut(&mut data)).call(call);
    args.mask = mask;
    Attention::global().run(&problem, args, Choice::AUTO)?;
    Ok(OwnedTensor { data, shape })
}

/// A dense (B, H, Sq, Dv) output, whatever axes of q are 1.
fn out_view(q: &TensorView, v: &TensorView) -> Result<TensorView, ProblemError> {
    TensorView::bhsd(q.dtype, [q.shape[0], q.shape[1], q.shape[2], v.shape[3]])
        .map_err(|_| ProblemError::Overflow { argument: Argument::Out })
}

fn view_of_mask<T: Element>(mask: &AttnMask<'_, T>) -> Result<Mask, Error> {
    let view = match mask {
        AttnMask::Bool(mask) => Mask::contiguous(MaskKind::Bool, mask.shape)?,
        AttnMask::Additive(mask) => Mask::contiguous(MaskKind::Additive(T::DTYPE), mask.shape)?,
    };
    match mask {
        AttnMask::Bool(mask) => mask.check_len(Argument::AttnMask)?,
        AttnMask::Additive(mask) => mask.check_len(Argument::AttnMask)?,
    }
    Ok(view)
}

/// Seed and position of the process's dropout generator.
static GENERATOR: LazyLock<Mutex<(u64, u32)>> = LazyLock::new(Mutex::default);

/// Sets the seed of the dropout of [`scaled_dot_product_attention`], and restarts at its first
/// position.
pub fn manual_seed(seed: u64) {
    *GENERATOR.lock().unwrap_or_else(PoisonError::into_inner) = (seed, 0);
}

/// The seed and offset of one call. After 2^32 calls the seed changes, so that no two calls draw
/// alike.
fn next_draw() -> (u64, u32) {
    let mut generator = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    let (seed, offset) = *generator;
    *generator = match offset.checked_add(1) {
        Some(next) => (seed, next),
        None => (seed.wrapping_add(1), 0),
    };
    (seed, offset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;
    use half::f16;

    const ONE: &[usize] = &[1, 1, 1, 1];
    const TWO_KEYS: &[usize] = &[1, 1, 2, 1];

    #[track_caller]
    fn assert_near(out: Result<OwnedTensor<f32>, Error>, expected: &[f32]) {
        assert_abs_diff_eq!(out.expect("runs").data[..], expected[..], epsilon = 9e-6);
    }

    /// A query over two keys of scores ln 1 and ln 3, values 10 and 20: weights 1/4 and 3/4.
    fn two_keys(
        mask: Option<AttnMask<'_, f32>>,
        dropout_p: f64,
        causal: bool,
    ) -> Result<OwnedTensor<f32>, Error> {
        let q = Tensor { data: &[1.0], shape: ONE };
        let k = Tensor { data: &[0.0, 3f32.ln()], shape: TWO_KEYS };
        let v = Tensor { data: &[10.0, 20.0], shape: TWO_KEYS };
        scaled_dot_product_attention(q, k, v, mask, dropout_p, causal, None, false)
    }

    #[test]
    fn masks_mean_what_they_mean_in_pytorch() {
        assert_near(two_keys(None, 0.0, false), &[17.5]);
        assert_near(two_keys(None, 0.0, true), &[10.0]);
        let second = AttnMask::Bool(Tensor { data: &[false, true], shape: &[2] });
        assert_near(two_keys(Some(second), 0.0, false), &[20.0]);
        let equal = AttnMask::Additive(Tensor { data: &[3f32.ln(), 0.0], shape: &[1, 2] });
        assert_near(two_keys(Some(equal), 0.0, false), &[15.0]);
        // Both together: no key is left, and the row is 0.
        assert_near(two_keys(Some(second), 0.0, true), &[0.0]);
    }

    #[test]
    fn the_generator_repeats_with_its_seed() {
        let draw = || -> Vec<f32> {
            (0..16).map(|_| two_keys(None, 0.5, false).expect("runs").data[0]).collect()
        };
        manual_seed(7);
        let first = draw();
        assert_ne!(first[..8], first[8..], "each call draws anew");
        manual_seed(7);
        assert_eq!(draw(), first);
    }

    #[test]
    fn heads_are_grouped_only_on_request() {
        let q = [f16::ONE; 4];
        let q = Tensor { data: &q, shape: &[1, 4, 1, 1] };
        let kv = [f16::ONE, f16::from_f32(2.0)];
        let kv = Tensor { data: &kv, shape: &[1, 2, 1, 1] };
        let run = |gqa| scaled_dot_product_attention(q, kv, kv, None, 0.0, false, Some(1.0), gqa);
        let out = run(true).expect("runs");
        assert_eq!(out.data.iter().map(|x| x.to_f32()).collect::<Vec<_>>(), [1.0, 1.0, 2.0, 2.0]);
        assert!(matches!(run(false), Err(Error::GqaDisabled { heads: 4, kv_heads: 2 })));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let q = Tensor { data: &[1.0f32], shape: ONE };
        let long = Tensor { data: &[1.0f32, 2.0], shape: ONE };
        let flat = Tensor { data: &[1.0f32], shape: &[1, 1, 1] };
        let run = |q, k, v, mask, scale| {
            scaled_dot_product_attention(q, k, v, mask, 0.0, false, scale, false)
        };
        let short = AttnMask::Bool(Tensor { data: &[true], shape: &[2, 1] });
        let wide = AttnMask::Bool(Tensor { data: &[true, false], shape: &[2] });
        for (result, message) in [
            (
                run(q, long, q, None, None),
                "k of shape [1, 1, 1, 1] has 1 elements, but its slice holds 2",
            ),
            (
                run(q, q, flat, None, None),
                "v must have rank 4 in layout bhsd, but its shape is [1, 1, 1]",
            ),
            (
                run(q, q, q, Some(short), None),
                "attn_mask of shape [2, 1] has 2 elements, but its slice holds 1",
            ),
            (
                run(q, q, q, Some(wide), None),
                "attn_mask of shape [1, 1, 1, 2] does not broadcast to",
            ),
            (run(q, q, q, None, Some(f32::NAN)), "scale must be finite, but is NaN"),
        ] {
            let error = result.expect_err(message).to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }
}
