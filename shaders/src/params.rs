use bytemuck::{Pod, Zeroable};

/// The parameters of one dispatch: `Params` in `wgsl/params.wgsl`, the same fields in the same
/// order.
///
/// Plain data. Calls with equal bytes share one uniform slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[allow(missing_docs, reason = "documented field by field in the WGSL struct, in wgsl/params.wgsl")]
pub struct Params {
    pub q_strides: [u32; 4],
    pub k_strides: [u32; 4],
    pub v_strides: [u32; 4],
    pub out_strides: [u32; 4],
    pub mask_strides: [u32; 4],
    pub seed: [u32; 2],
    pub q_offset: u32,
    pub k_offset: u32,
    pub v_offset: u32,
    pub out_offset: u32,
    pub mask_offset: u32,
    pub lse_offset: u32,
    pub kv_lens_offset: u32,
    pub lse_rows: u32,
    pub seq_q: u32,
    pub seq_kv: u32,
    pub heads: u32,
    pub group: u32,
    pub batch_begin: u32,
    pub head_begin: u32,
    pub row_begin: u32,
    pub row_end: u32,
    pub key_begin: u32,
    pub head_count: u32,
    pub fold: u32,
    pub tile_count: u32,
    pub chunk_count: u32,
    pub chunk_keys: u32,
    pub chunk_stride: u32,
    pub item_count: u32,
    pub grid_width: u32,
    pub band_lo: i32,
    pub band_hi: i32,
    pub bottom_right: u32,
    pub dropout_threshold: u32,
    pub scale: f32,
    pub softcap: f32,
    pub keep_scale: f32,
    pub dropout_offset: u32,
    pub score_stride: u32,
    pub rolled: u32,
    pub head_dim: u32,
    pub head_dim_v: u32,
    /// Padding: the size of a uniform must be a multiple of 16.
    pub pad: u32,
}

impl Params {
    /// `chunk_keys` where keys are not split: more than any sequence has.
    pub const UNSPLIT: u32 = 1 << 30;
}

#[cfg(test)]
mod tests {
    use super::Params;

    /// The parameters fit one slot of a uniform buffer at the strictest alignment, 256 bytes.
    #[test]
    fn params_fit_one_slot() {
        assert_eq!(size_of::<Params>(), 240);
    }
}
