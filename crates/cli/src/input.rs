//! From a safetensors file to a problem and its tensors.

use crate::{AttentionArgs, LayoutArgs};
use anyhow::{Context as _, Result, bail, ensure};
use flashtile::{
    Argument, Call, DType, HostArgs, HostInputs, Layout, Mask, MaskKind, Problem, ProblemError,
    TensorView, concat_past,
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView as Stored};
use std::{borrow::Cow, fs, path::Path};

/// The contents of a file, checked, as the arguments of one call.
#[derive(Debug)]
pub struct Input<'a> {
    /// What to compute.
    pub problem: Problem,
    /// Scale, seed and offset.
    pub call: Call,
    /// Order of the axes of q, k, v and out.
    pub layout: Layout,
    q: Cow<'a, [u8]>,
    k: Cow<'a, [u8]>,
    v: Cow<'a, [u8]>,
    mask: Option<&'a [u8]>,
    kv_lens: Option<Vec<i32>>,
}

/// The bytes of a file.
///
/// # Errors
/// A file that cannot be opened, or is not a regular file (a device may never end).
pub fn load(path: &Path) -> Result<Vec<u8>> {
    let read = || {
        ensure!(fs::metadata(path)?.is_file(), "not a regular file");
        Ok(fs::read(path)?)
    };
    read().with_context(|| format!("cannot read {}", path.display()))
}

impl<'a> Input<'a> {
    /// Reads the tensors of a safetensors file's `bytes`. Tensors stay in `bytes`; only past keys
    /// and values are copied, to be joined with the new ones.
    ///
    /// # Errors
    /// A broken file, a missing tensor, a dtype that is not supported, or an error of [`Problem`].
    pub fn parse(bytes: &'a [u8], layout: &LayoutArgs, options: &AttentionArgs) -> Result<Self> {
        let file = SafeTensors::deserialize(bytes).context("not a valid safetensors file")?;
        let heads = (layout.heads, "--heads");
        let kv_heads = (layout.kv_heads, "--kv-heads");
        let (q, q_view) = tensor(&file, Argument::Q, layout.layout, heads)?;
        let (k, k_view) = tensor(&file, Argument::K, layout.layout, kv_heads)?;
        let (v, v_view) = tensor(&file, Argument::V, layout.layout, kv_heads)?;
        // Before past keys are joined, so that errors name the tensors of the file.
        Problem::builder(q_view, k_view, v_view).build()?;
        let past_key = optional(&file, Argument::PastKey)?;
        let past_value = optional(&file, Argument::PastValue)?;
        ensure!(
            past_key.is_some() || past_value.is_none(),
            "past_key is missing: past_value needs it"
        );
        ensure!(
            past_value.is_some() || past_key.is_none(),
            "past_value is missing: past_key needs it"
        );
        let (k, k_view) = with_past(&file, Argument::PastKey, k, k_view, layout.layout)?;
        let (v, v_view) = with_past(&file, Argument::PastValue, v, v_view, layout.layout)?;

        let [batch, heads, seq_q, _] = q_view.shape;
        let out = TensorView::from_bhsd_sizes(
            q_view.dtype,
            layout.layout,
            [batch, heads, seq_q, v_view.shape[3]],
        )
        .map_err(|_| ProblemError::Overflow { argument: Argument::Out })?;
        let mask = optional(&file, Argument::AttnMask)?;
        let lens = optional(&file, Argument::KvLens)?;
        let problem = Problem::builder(q_view, k_view, v_view)
            .out(out)
            .mask(mask.as_ref().map(mask_view).transpose()?)
            .causal(options.causal)
            .align(options.align)
            .window_left(options.window_left)
            .window_right(options.window_right)
            .softcap(options.softcap)
            .dropout_p(options.dropout_p)
            .lse(options.lse)
            .kv_lens(lens.is_some())
            .build()?;
        let call = Call::new().scale(options.scale).seed(options.seed).offset(options.offset);
        call.resolve(&problem)?;
        let kv_lens = lens.as_ref().map(|lens| read_lens(lens, &problem)).transpose()?;
        let mask = mask.as_ref().map(Stored::data);
        Ok(Self { problem, call, layout: layout.layout, q, k, v, mask, kv_lens })
    }

    /// The arguments of a call that writes to `out` and `lse`.
    pub fn args<'b>(&'b self, out: &'b mut [u8], lse: Option<&'b mut [f32]>) -> HostArgs<'b> {
        let mut args = HostArgs::new(&self.q, &self.k, &self.v, out).call(self.call);
        args.mask = self.mask;
        args.kv_lens = self.kv_lens.as_deref();
        args.lse = lse;
        args
    }

    /// The inputs alone, for the oracle.
    pub fn inputs(&self) -> HostInputs<'_> {
        let mut inputs = HostInputs::new(&self.q, &self.k, &self.v).call(self.call);
        inputs.mask = self.mask;
        inputs.kv_lens = self.kv_lens.as_deref();
        inputs
    }

    /// Bytes of the score matrix in f32, if it were stored.
    pub fn score_matrix_bytes(&self) -> u64 {
        let p = &self.problem;
        [p.batch(), p.heads(), p.seq_q(), p.seq_kv(), 4]
            .iter()
            .fold(1, |n, &m| n.saturating_mul(m as u64))
    }
}

/// Reads the tensor that `argument` names, if the file holds it.
fn optional<'a>(file: &SafeTensors<'a>, argument: Argument) -> Result<Option<Stored<'a>>> {
    match file.tensor(&argument.to_string()) {
        Ok(stored) => Ok(Some(stored)),
        Err(safetensors::SafeTensorError::TensorNotFound(_)) => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot read {argument}")),
    }
}

/// q, k or v, with as many heads as the option of that name says.
fn tensor<'a>(
    file: &SafeTensors<'a>,
    argument: Argument,
    layout: Layout,
    (heads, option): (Option<usize>, &str),
) -> Result<(Cow<'a, [u8]>, TensorView)> {
    let stored = optional(file, argument)?
        .with_context(|| format!("{argument} is missing from the file"))?;
    let dtype = float(argument, stored.dtype())?;
    if layout == Layout::Bsd && heads.is_none() {
        bail!("{option} is missing: layout bsd packs the heads of {argument}");
    }
    let view = TensorView::from_dims(argument, dtype, layout, stored.shape(), heads.unwrap_or(0))?;
    if let Some(heads) = heads {
        ensure!(
            heads == view.shape[1],
            "{option} is {heads}, but {argument} has {} heads",
            view.shape[1]
        );
    }
    Ok((Cow::Borrowed(stored.data()), view))
}

/// The past that `argument` names, if the file has it, followed by `new`.
fn with_past<'a>(
    file: &SafeTensors<'a>,
    argument: Argument,
    new: Cow<'a, [u8]>,
    view: TensorView,
    layout: Layout,
) -> Result<(Cow<'a, [u8]>, TensorView)> {
    let Some(stored) = optional(file, argument)? else { return Ok((new, view)) };
    let dtype = float(argument, stored.dtype())?;
    let past = TensorView::from_dims(argument, dtype, Layout::Bhsd, stored.shape(), 0)?;
    let (bytes, view) = concat_past(argument, (stored.data(), &past), (&new, &view), layout)?;
    Ok((Cow::Owned(bytes), view))
}

fn float(argument: Argument, dtype: Dtype) -> Result<DType> {
    match dtype {
        Dtype::F32 => Ok(DType::F32),
        Dtype::F16 => Ok(DType::F16),
        Dtype::BF16 => Ok(DType::BF16),
        other => bail!("{argument} must be F32, F16 or BF16, but is {other}"),
    }
}

fn mask_view(stored: &Stored<'_>) -> Result<Mask> {
    let kind = match stored.dtype() {
        Dtype::BOOL => MaskKind::Bool,
        Dtype::F32 | Dtype::F16 | Dtype::BF16 => {
            MaskKind::Additive(float(Argument::AttnMask, stored.dtype())?)
        }
        other => bail!("attn_mask must be BOOL, F32, F16 or BF16, but is {other}"),
    };
    Ok(Mask::contiguous(kind, stored.shape())?)
}

/// One length per batch entry, each at most seq_kv.
fn read_lens(stored: &Stored<'_>, problem: &Problem) -> Result<Vec<i32>> {
    let given = stored.shape();
    ensure!(given.len() == 1, "kv_lens must have rank 1, but its shape is {given:?}");
    let lens: Vec<i64> = match stored.dtype() {
        Dtype::I32 => {
            little_endian(stored.data()).map(|b| i64::from(i32::from_le_bytes(b))).collect()
        }
        Dtype::I64 => little_endian(stored.data()).map(i64::from_le_bytes).collect(),
        other => bail!("kv_lens must be I32 or I64, but is {other}"),
    };
    let (expected, seq_kv) = (problem.batch(), problem.seq_kv());
    if lens.len() != expected {
        return Err(ProblemError::KvLensCount { expected, given: lens.len() }.into());
    }
    let narrow = |(batch, &given): (usize, &i64)| {
        let fits = i32::try_from(given).ok().filter(|&n| n >= 0 && n as usize <= seq_kv);
        Ok(fits.ok_or(ProblemError::KvLen { batch, seq_kv, given })?)
    };
    lens.iter().enumerate().map(narrow).collect()
}

fn little_endian<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks().0.iter().copied()
}
