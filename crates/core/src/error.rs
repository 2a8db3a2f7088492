use crate::{DType, Layout, MAX_SEQ};
use std::fmt;

/// The argument that an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Argument {
    /// The queries.
    Q,
    /// The keys.
    K,
    /// The values.
    V,
    /// The attention mask.
    AttnMask,
    /// The number of valid keys of each batch entry.
    KvLens,
    /// The output.
    Out,
    /// The log-sum-exp output.
    Lse,
    /// Keys that are concatenated in front of `k`.
    PastKey,
    /// Values that are concatenated in front of `v`.
    PastValue,
    /// The workspace, which holds the scores of the unfused kernels.
    Workspace,
    /// A view that is not yet bound to an argument.
    View,
}

impl fmt::Display for Argument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Argument::Q => "q",
            Argument::K => "k",
            Argument::V => "v",
            Argument::AttnMask => "attn_mask",
            Argument::KvLens => "kv_lens",
            Argument::Out => "out",
            Argument::Lse => "lse",
            Argument::PastKey => "past_key",
            Argument::PastValue => "past_value",
            Argument::Workspace => "workspace",
            Argument::View => "tensor",
        })
    }
}

/// A rule of [`Problem`](crate::Problem) or [`Call`](crate::Call) that the given arguments break.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ProblemError {
    /// A tensor does not have the number of axes that its layout requires.
    #[error("{argument} must have rank {expected} in layout {layout}, but its shape is {given:?}")]
    Rank {
        /// Which tensor.
        argument: Argument,
        /// The layout that was requested.
        layout: Layout,
        /// The layout's rank.
        expected: usize,
        /// The shape that was given.
        given: Vec<usize>,
    },
    /// The last axis of a packed tensor does not divide into heads.
    #[error(
        "{argument} packs {width} numbers per position, which do not divide into {heads} heads"
    )]
    PackedHeads {
        /// Which tensor.
        argument: Argument,
        /// The size of its last axis.
        width: usize,
        /// The number of heads that was requested.
        heads: usize,
    },
    /// The size of an axis does not match the rest of the problem.
    #[error("{argument} must have {axis} {expected} ({because}), but has {given}")]
    Size {
        /// Which tensor.
        argument: Argument,
        /// Name of the axis.
        axis: &'static str,
        /// The size that the other tensors require.
        expected: usize,
        /// The size it has.
        given: usize,
        /// Why that size is expected.
        because: &'static str,
    },
    /// An axis that needs at least one entry has none.
    #[error("{argument} must have {axis} of at least 1, but has 0")]
    Zero {
        /// Which tensor.
        argument: Argument,
        /// Name of the axis.
        axis: &'static str,
    },
    /// A sequence is longer than [`MAX_SEQ`].
    #[error("{argument} has a sequence length of {given}; the maximum is {MAX_SEQ}")]
    SequenceTooLong {
        /// Which tensor.
        argument: Argument,
        /// Its length.
        given: usize,
    },
    /// The number of query heads is not a multiple of the number of key heads.
    #[error("q has {heads} heads, which is not a multiple of the {kv_heads} heads of k")]
    HeadGroups {
        /// Heads of q.
        heads: usize,
        /// Heads of k and v.
        kv_heads: usize,
    },
    /// Two tensors that must have the same storage type differ.
    #[error("{argument} must be {expected} like {like}, but is {given}")]
    DTypeMix {
        /// Which tensor.
        argument: Argument,
        /// The tensor that it must match.
        like: Argument,
        /// Storage type of that tensor.
        expected: DType,
        /// Storage type of this tensor.
        given: DType,
    },
    /// A tensor's extent does not fit the address space.
    #[error(
        "the extent of {argument} overflows: its sizes and strides reach beyond addressable memory"
    )]
    Overflow {
        /// Which tensor.
        argument: Argument,
    },
    /// Two elements of an output share one address.
    #[error(
        "{argument} overlaps itself: with shape {shape:?} and strides {strides:?} two elements \
         share an address"
    )]
    Overlap {
        /// Which tensor.
        argument: Argument,
        /// Sizes of its axes.
        shape: [usize; 4],
        /// Strides along its axes.
        strides: [usize; 4],
    },
    /// The scale is NaN or infinite.
    #[error("scale must be finite, but is {given}")]
    Scale {
        /// The scale given.
        given: f32,
    },
    /// The softcap is not a positive finite number.
    #[error("softcap must be a positive finite number, but is {given}")]
    Softcap {
        /// The softcap given.
        given: f32,
    },
    /// The dropout probability is outside [0, 1].
    #[error("dropout_p must lie in [0, 1], but is {given}")]
    DropoutP {
        /// The probability given.
        given: f64,
    },
    /// A mask's shape does not broadcast to the scores.
    #[error(
        "attn_mask of shape {given:?} does not broadcast to (batch, heads, seq_q, seq_kv) = \
         {scores:?}"
    )]
    MaskBroadcast {
        /// The mask's shape.
        given: Vec<usize>,
        /// The shape of the scores.
        scores: [usize; 4],
    },
    /// A mask has no axes, or more than four.
    #[error("attn_mask must have rank 1 to 4, but its shape is {given:?}")]
    MaskRank {
        /// The mask's shape.
        given: Vec<usize>,
    },
    /// The number of entries in kv_lens is not the batch size.
    #[error("kv_lens must hold one length per batch entry, {expected}, but holds {given}")]
    KvLensCount {
        /// Batch size.
        expected: usize,
        /// Entries given.
        given: usize,
    },
    /// A length in kv_lens is negative or beyond seq_kv.
    #[error("kv_lens[{batch}] must lie in 0..={seq_kv}, but is {given}")]
    KvLen {
        /// Which entry.
        batch: usize,
        /// The number of keys.
        seq_kv: usize,
        /// The length given.
        given: i64,
    },
    /// A length of a call exceeds the planned capacity.
    #[error("{axis} of this call is {given}, which exceeds the planned capacity of {capacity}")]
    BeyondCapacity {
        /// `seq_q` or `seq_kv`.
        axis: &'static str,
        /// The planned capacity.
        capacity: usize,
        /// The length given.
        given: usize,
    },
    /// An argument that the problem requires is absent.
    #[error("{argument} is missing, but the problem requires it")]
    Missing {
        /// Which argument.
        argument: Argument,
    },
    /// An argument was given that the problem does not use.
    #[error("{argument} was given, but the problem does not use it")]
    Unexpected {
        /// Which argument.
        argument: Argument,
    },
    /// An argument other than past keys or values was named to be joined with new ones.
    #[error("expected past_key or past_value, but {argument} was named")]
    NotPast {
        /// Which argument.
        argument: Argument,
    },
    /// A slice or buffer ends before its tensor does.
    #[error("{argument} needs {expected} bytes, but {given} were given")]
    TooShort {
        /// Which argument.
        argument: Argument,
        /// Bytes that the tensor spans.
        expected: usize,
        /// Bytes given.
        given: usize,
    },
    /// Partial results that are to be merged differ in shape.
    #[error("partial result {index} has {what} of length {given}, but {expected} are expected")]
    MergeShape {
        /// Which part.
        index: usize,
        /// `out` or `lse`.
        what: &'static str,
        /// The expected length.
        expected: usize,
        /// Its length.
        given: usize,
    },
}
