use bytemuck::{Pod, Zeroable};

/// Everything a launch is told, as `Params` in `cuda/params.cuh`: the same fields in the same order. Passed by value, the only kernel parameter.
///
/// Pointers are device addresses that lead to the first element of their tensor, 0 where there is none. Strides count elements.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[allow(
    missing_docs,
    reason = "documented field by field in cuda/params.cuh, beside its other half"
)]
pub struct CudaParams {
    pub q: u64,
    pub k: u64,
    pub v: u64,
    pub mask: u64,
    pub kv_lens: u64,
    pub out: u64,
    pub lse: u64,
    pub scores: u64,
    pub q_strides: [u64; 4],
    pub k_strides: [u64; 4],
    pub v_strides: [u64; 4],
    pub out_strides: [u64; 4],
    pub mask_strides: [u64; 4],
    pub score_stride: u64,
    pub bh_begin: u64,
    pub lse_rows: u32,
    pub seq_q: u32,
    pub seq_kv: u32,
    pub heads: u32,
    pub group: u32,
    pub row_begin: u32,
    pub row_end: u32,
    pub tile_count: u32,
    pub across: u32,
    pub longest_first: u32,
    pub band_lo: i32,
    pub band_hi: i32,
    pub bottom_right: u32,
    pub mask_kind: u32,
    pub dropout_threshold: u32,
    pub dropout_offset: u32,
    pub seed: [u32; 2],
    pub scale: f32,
    pub softcap: f32,
    pub keep_scale: f32,
    pub dropout: u32,
    pub head_dim: u32,
    pub head_dim_v: u32,
    pub dense: u32,
    pub pad: u32,
}

impl CudaParams {
    /// `mask_kind`: no mask.
    pub const NO_MASK: u32 = 0;
    /// `mask_kind`: one byte an element, non-zero = allowed.
    pub const BOOL_MASK: u32 = 1;
    /// `mask_kind`: added to the score.
    pub const F32_MASK: u32 = 2;
    /// `mask_kind`: added to the score.
    pub const F16_MASK: u32 = 3;
    /// `mask_kind`: added to the score.
    pub const BF16_MASK: u32 = 4;
    /// Bits of `dense`: every row of the tensor begins at a multiple of 16 bytes, and its elements lie side by side. The same bit
    /// [`DENSE_WORDS`](Self::DENSE_WORDS) further up: of 4 bytes.
    pub const DENSE_Q: u32 = 1;
    /// As [`DENSE_Q`](Self::DENSE_Q), for k.
    pub const DENSE_K: u32 = 2;
    /// As [`DENSE_Q`](Self::DENSE_Q), for v.
    pub const DENSE_V: u32 = 4;
    /// As [`DENSE_Q`](Self::DENSE_Q), for out.
    pub const DENSE_OUT: u32 = 8;
    /// How much further up the bits for rows that begin at multiples of 4 bytes are.
    pub const DENSE_WORDS: u32 = 4;
}

#[cfg(test)]
mod tests {
    use super::CudaParams;

    /// Kernel parameters end at 4 KiB on every card, and a struct must hold no padding that the other half does not know of.
    #[test]
    fn has_the_size_that_the_kernels_assert() {
        assert_eq!(size_of::<CudaParams>(), 344);
    }
}
