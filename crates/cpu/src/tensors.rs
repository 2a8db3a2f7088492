//! The caller's tensors, read in place where their rows are dense f32.

use crate::products::Block;
use flashtile_core::{DType, Mask, MaskKind, TensorView};
use half::{bf16, f16, slice::HalfFloatSliceExt};
use std::ops::Range;

/// A tensor in the caller's memory.
#[derive(Clone, Copy)]
pub(crate) struct Tensor<'a> {
    view: TensorView,
    bytes: &'a [u8],
    /// The same memory as numbers, where they are f32 of this machine and aligned.
    floats: Option<&'a [f32]>,
}

/// The rows of one head of a tensor: row `n` starts at element `start + n * row_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    tensor: Tensor<'a>,
    start: usize,
    row_stride: usize,
    column_stride: usize,
    width: usize,
    /// The tensor's numbers, where they are used in place.
    in_place: Option<&'a [f32]>,
}

impl<'a> Tensor<'a> {
    pub(crate) fn new(view: TensorView, bytes: &'a [u8]) -> Self {
        let floats = match view.dtype {
            DType::F32 if cfg!(target_endian = "little") => numbers(bytes),
            DType::F32 | DType::F16 | DType::BF16 => None,
        };
        Self { view, bytes, floats }
    }

    /// The rows of head `h` of batch entry `b`.
    pub(crate) fn rows(&self, b: usize, h: usize) -> Rows<'a> {
        let [_, _, row_stride, column_stride] = self.view.strides;
        let start = self.view.index(b, h, 0, 0);
        let in_place = self.floats.filter(|_| in_place(&self.view));
        let width = self.view.shape[3];
        Rows { tensor: *self, start, row_stride, column_stride, width, in_place }
    }
}

/// Whether tiles of a tensor with this view are read where they are.
pub(crate) fn in_place(view: &TensorView) -> bool {
    let [_, _, row_stride, column_stride] = view.strides;
    let dense = column_stride == 1 || view.shape[3] == 1;
    view.dtype == DType::F32 && dense && row_stride >= view.shape[3]
}

impl<'a> Rows<'a> {
    /// The numbers of `rows`: in place, or converted to `scratch`.
    ///
    /// Inlined into the kernels, so that conversions use their vector instructions.
    #[inline(always)]
    pub(crate) fn block<'s>(&'s self, rows: Range<usize>, scratch: &'s mut [f32]) -> Block<'s> {
        let width = self.width;
        if let Some(floats) = self.in_place {
            let start = self.start + rows.start * self.row_stride;
            let len = (rows.len() - 1) * self.row_stride + width;
            return Block { data: &floats[start..start + len], stride: self.row_stride };
        }
        let count = rows.len();
        for (row, to) in rows.zip(scratch.chunks_exact_mut(width)) {
            self.read(row, to);
        }
        Block { data: &scratch[..count * width], stride: width }
    }

    /// The numbers of some rows, counted from `first`: in place, or converted to `scratch`.
    #[inline(always)]
    pub(crate) fn some<'s, const N: usize>(
        &self,
        first: usize,
        rows: [usize; N],
        scratch: &'s mut [f32],
    ) -> [&'s [f32]; N]
    where
        'a: 's,
    {
        let width = self.width;
        let mut found = [&[][..]; N];
        if let Some(floats) = self.in_place {
            for n in 0..N {
                found[n] = &floats[self.start + (first + rows[n]) * self.row_stride..][..width];
            }
            return found;
        }
        for (row, to) in rows.into_iter().zip(scratch.chunks_exact_mut(width)) {
            self.read(first + row, to);
        }
        for (found, row) in found.iter_mut().zip(scratch.chunks_exact(width)) {
            *found = row;
        }
        found
    }

    /// The rows of the head that is `n` heads further on.
    #[inline(always)]
    pub(crate) fn of_next_head(&self, n: usize) -> Self {
        Self { start: self.start + n * self.tensor.view.strides[1], ..*self }
    }

    /// Reads row `row` as f32.
    #[inline(always)]
    pub(crate) fn read(&self, row: usize, to: &mut [f32]) {
        let Tensor { view, bytes, floats } = &self.tensor;
        let size = view.dtype.size();
        let start = self.start + row * self.row_stride;
        if self.column_stride == 1 || to.len() == 1 {
            if let Some(floats) = floats {
                return to.copy_from_slice(&floats[start..start + to.len()]);
            }
            if read_dense(view.dtype, &bytes[start * size..(start + to.len()) * size], to) {
                return;
            }
        }
        for (column, to) in to.iter_mut().enumerate() {
            *to = element(view.dtype, bytes, start + column * self.column_stride);
        }
    }
}

/// The bytes as numbers of this machine's memory, if they are aligned.
fn numbers<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> Option<&[T]> {
    let whole = bytes.len() / size_of::<T>() * size_of::<T>();
    bytemuck::try_cast_slice(&bytes[..whole]).ok()
}

/// f16 as f32, exactly. The exponent is moved into place and corrected by a product, which also
/// normalises subnormal numbers.
#[inline(always)]
fn f16_value(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let moved = u32::from(bits & 0x7FFF) << 13;
    let finite = (f32::from_bits(moved) * f32::from_bits((127 + 112) << 23)).to_bits();
    let special = moved | 0x7F80_0000;
    f32::from_bits(sign | if moved >= 31 << 23 { special } else { finite })
}

/// Converts a dense row of aligned 16-bit numbers. Returns false where it cannot.
#[inline(always)]
fn read_dense(dtype: DType, bytes: &[u8], to: &mut [f32]) -> bool {
    if cfg!(target_endian = "big") {
        return false;
    }
    match dtype {
        DType::F32 => false,
        DType::F16 => match numbers::<u16>(bytes) {
            Some(from) => {
                for (to, &bits) in to.iter_mut().zip(from) {
                    *to = f16_value(bits);
                }
                true
            }
            None => false,
        },
        DType::BF16 => match numbers::<u16>(bytes) {
            Some(from) => {
                for (to, &bits) in to.iter_mut().zip(from) {
                    *to = f32::from_bits(u32::from(bits) << 16);
                }
                true
            }
            None => false,
        },
    }
}

/// Element `index` of little-endian `bytes`, exactly.
fn element(dtype: DType, bytes: &[u8], index: usize) -> f32 {
    let bytes = &bytes[index * dtype.size()..];
    match dtype {
        DType::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        DType::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        DType::BF16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
    }
}

/// Rounds `from` to nearest even, as the little-endian bytes of `dtype`.
pub(crate) fn encode(dtype: DType, from: &[f32], to: &mut [u8]) {
    match dtype {
        DType::F32 => {
            for (to, x) in to.chunks_exact_mut(4).zip(from) {
                to.copy_from_slice(&x.to_le_bytes());
            }
        }
        DType::F16 => {
            // A few at a time, so that the conversion of many numbers at once is used.
            for (to, from) in to.chunks_mut(64).zip(from.chunks(32)) {
                let mut halves = [f16::ZERO; 32];
                let halves = &mut halves[..from.len()];
                halves.convert_from_f32_slice(from);
                for (to, half) in to.chunks_exact_mut(2).zip(halves) {
                    to.copy_from_slice(&half.to_le_bytes());
                }
            }
        }
        DType::BF16 => {
            for (to, &x) in to.chunks_exact_mut(2).zip(from) {
                to.copy_from_slice(&bf16::from_f32(x).to_le_bytes());
            }
        }
    }
}

/// The attention mask in the caller's memory.
#[derive(Clone, Copy)]
pub(crate) struct MaskTensor<'a> {
    mask: &'a Mask,
    bytes: &'a [u8],
}

impl<'a> MaskTensor<'a> {
    pub(crate) fn new(mask: &'a Mask, bytes: &'a [u8]) -> Self {
        Self { mask, bytes }
    }

    /// The index of the entry for the first key of a row.
    pub(crate) fn row(&self, b: usize, h: usize, i: usize) -> usize {
        self.mask.index(b, h, i, 0)
    }

    /// What is added to the scores of a row that starts at `start`, for `keys`: -inf where the key
    /// is masked.
    pub(crate) fn bias(
        &self,
        start: usize,
        keys: Range<usize>,
    ) -> impl Iterator<Item = f32> + use<'a> {
        let Self { mask, bytes } = *self;
        let stride = mask.strides[3];
        keys.map(move |j| {
            let index = start + j * stride;
            match mask.kind {
                MaskKind::Bool if bytes[index] == 0 => f32::NEG_INFINITY,
                MaskKind::Bool => 0.0,
                MaskKind::Additive(dtype) => element(dtype, bytes, index),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_pattern_of_16_bits_survives() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for dtype in [DType::F16, DType::BF16] {
            let mut all = vec![0.0; 1 << 16];
            assert!(read_dense(dtype, &bytes, &mut all));
            for (bits, &x) in all.iter().enumerate() {
                let exact = dtype.read(&bytes, bits);
                assert!(x.is_nan() && exact.is_nan() || f64::from(x) == exact, "{dtype} {bits:x}");
                let alone = element(dtype, &bytes, bits);
                assert!(x.is_nan() && alone.is_nan() || x.to_bits() == alone.to_bits());
            }
            let mut again = vec![0; bytes.len()];
            encode(dtype, &all, &mut again);
            for (bits, (a, b)) in bytes.chunks(2).zip(again.chunks(2)).enumerate() {
                assert!(a == b || all[bits].is_nan(), "{dtype} {bits:x}");
            }
        }
    }

    #[test]
    fn results_are_rounded_to_nearest_even() {
        let mut rounded = [0; 2 * 3];
        let given = [1.0 + 2f32.powi(-11), 1.0 + 3.0 * 2f32.powi(-11), 65520.0];
        encode(DType::F16, &given, &mut rounded);
        let got = [0, 1, 2].map(|n| DType::F16.read(&rounded, n));
        assert_eq!(got, [1.0, 1.0 + 2f64.powi(-9), f64::INFINITY]);
        encode(DType::BF16, &[1.0 + 2f32.powi(-8), 3e38, f32::MAX], &mut rounded);
        assert_eq!(DType::BF16.read(&rounded, 0), 1.0);
        assert_eq!(DType::BF16.read(&rounded, 2), f64::INFINITY);
    }
}
