use crate::Error;
use flashtile_core::{Argument, DType, Layout, Problem, ProblemError, TensorView};
use half::{bf16, f16};

mod sealed {
    /// Limits [`Element`](super::Element) to the storage types that kernels know.
    pub trait Sealed: bytemuck::Pod {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// A Rust type that tensors are stored in: `f32`, [`half::f16`] or [`half::bf16`].
pub trait Element: sealed::Sealed {
    /// Its storage type.
    const DTYPE: DType;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
}
impl Element for f16 {
    const DTYPE: DType = DType::F16;
}
impl Element for bf16 {
    const DTYPE: DType = DType::BF16;
}

/// A densely packed, row-major tensor in the caller's memory.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Tensor<'a, T> {
    /// The elements, the last axis contiguous.
    pub data: &'a [T],
    /// Sizes of the axes, outermost first.
    pub shape: &'a [usize],
}

/// A densely packed, row-major tensor that owns its memory.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct OwnedTensor<T> {
    /// The elements, the last axis contiguous.
    pub data: Vec<T>,
    /// Sizes of the axes, outermost first.
    pub shape: Vec<usize>,
}

impl<T> OwnedTensor<T> {
    /// Borrows it, as an argument of the next call.
    pub fn view(&self) -> Tensor<'_, T> {
        Tensor { data: &self.data, shape: &self.shape }
    }
}

impl<'a, T> Tensor<'a, T> {
    /// A tensor of `shape`, outermost axis first. The functions that take it check that `data`
    /// holds as many elements.
    pub const fn new(data: &'a [T], shape: &'a [usize]) -> Self {
        Self { data, shape }
    }
}

impl<T> Tensor<'_, T> {
    /// Checks that the slice holds as many elements as the shape says.
    pub(crate) fn check_len(&self, argument: Argument) -> Result<(), Error> {
        let expected = self.shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
        let expected = expected.ok_or(ProblemError::Overflow { argument })?;
        if expected != self.data.len() {
            return Err(Error::Elements {
                argument,
                shape: self.shape.to_vec(),
                expected,
                given: self.data.len(),
            });
        }
        Ok(())
    }
}

impl<T: Element> Tensor<'_, T> {
    /// The view of a (B, H, S, D) tensor.
    pub(crate) fn bhsd(&self, argument: Argument) -> Result<TensorView, Error> {
        let view = TensorView::from_dims(argument, T::DTYPE, Layout::Bhsd, self.shape, 0)?;
        self.check_len(argument)?;
        Ok(view)
    }
}

/// The bytes of a slice of elements, as [`HostArgs`](crate::HostArgs) takes them.
///
/// ```
/// assert_eq!(flashtile::bytes_of(&[1.0f32]), [0, 0, 128, 63]);
/// ```
pub fn bytes_of<T: Element>(elements: &[T]) -> &[u8] {
    bytemuck::cast_slice(elements)
}

/// The bytes of a slice of elements, for [`HostArgs`](crate::HostArgs) to write.
///
/// ```
/// let mut out = [0.0f32; 1];
/// flashtile::bytes_of_mut(&mut out).copy_from_slice(&[0, 0, 128, 63]);
/// assert_eq!(out, [1.0]);
/// ```
pub fn bytes_of_mut<T: Element>(elements: &mut [T]) -> &mut [u8] {
    bytemuck::cast_slice_mut(elements)
}

/// Zeroes for the whole span of a problem's output, in bytes.
///
/// # Errors
/// [`Error::HostMemory`] if that much cannot be allocated.
pub fn zeroed_bytes(problem: &Problem) -> Result<Vec<u8>, Error> {
    let argument = Argument::Out;
    zeroed(argument, problem.out().byte_span().ok_or(ProblemError::Overflow { argument })?)
}

/// `len` zeroes, or an error instead of an abort.
pub(crate) fn zeroed<T: bytemuck::Zeroable + Clone>(
    argument: Argument,
    len: usize,
) -> Result<Vec<T>, Error> {
    let mut zeroes = Vec::new();
    let bytes = len.saturating_mul(size_of::<T>());
    zeroes.try_reserve_exact(len).map_err(|_| Error::HostMemory { argument, bytes })?;
    zeroes.resize(len, T::zeroed());
    Ok(zeroes)
}
