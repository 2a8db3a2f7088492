use bytemuck::{Pod, Zeroable};

/// The parameters of a launch: the same fields in the same order as `Params` in `cuda/params.cuh`.
///
/// This is the only parameter of every kernel, passed by value. Pointers are device addresses of
/// the first element of a tensor, or 0 where the problem has no such tensor. Strides count
/// elements.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[allow(missing_docs, reason = "cuda/params.cuh documents every field")]
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
    pub fold: u32,
    pub chunk_keys: u32,
    pub chunk_count: u32,
    pub chunk_stride: u32,
    pub pad: u32,
}

impl CudaParams {
    /// `mask_kind`: no mask.
    pub const NO_MASK: u32 = 0;
    /// `mask_kind`: one byte per element; non-zero means allowed.
    pub const BOOL_MASK: u32 = 1;
    /// `mask_kind`: f32, added to the score.
    pub const F32_MASK: u32 = 2;
    /// `mask_kind`: f16, added to the score.
    pub const F16_MASK: u32 = 3;
    /// `mask_kind`: bf16, added to the score.
    pub const BF16_MASK: u32 = 4;
    /// Bit of `dense`: the elements of each row of q are contiguous, and the row starts at a
    /// multiple of 16 bytes. The same bit shifted left by [`DENSE_WORDS`](Self::DENSE_WORDS): at a
    /// multiple of 4 bytes.
    pub const DENSE_Q: u32 = 1;
    /// As [`DENSE_Q`](Self::DENSE_Q), for k.
    pub const DENSE_K: u32 = 2;
    /// As [`DENSE_Q`](Self::DENSE_Q), for v.
    pub const DENSE_V: u32 = 4;
    /// As [`DENSE_Q`](Self::DENSE_Q), for out.
    pub const DENSE_OUT: u32 = 8;
    /// The shift from the 16-byte bits of `dense` to the 4-byte bits.
    pub const DENSE_WORDS: u32 = 4;
}

#[cfg(test)]
mod tests {
    use super::CudaParams;

    /// Every GPU accepts at least 4 KiB of kernel parameters. The size also shows that neither
    /// language pads the fields.
    #[test]
    fn has_the_size_that_the_kernels_assert() {
        assert_eq!(size_of::<CudaParams>(), 360);
    }
}
