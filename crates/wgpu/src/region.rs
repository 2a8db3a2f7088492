use flashtile_core::Args as CoreArgs;

/// The buffers and values of one call: see [`flashtile_core::Args`].
pub type Args<'a> = CoreArgs<Region<'a>>;

/// A piece of a buffer that the caller owns, with usage `STORAGE`.
///
/// Made from whatever wgpu calls a piece of a buffer: `&Buffer`, `BufferSlice`, `BufferBinding`.
/// The tensor starts at the start of the region; the region may be longer. Its start has to be a
/// multiple of the element size and of nothing else. (Multiples of the device's
/// `min_storage_buffer_offset_alignment`, 256 at most, let a tensor fill a whole binding.)
#[derive(Clone, Copy, Debug)]
pub struct Region<'a> {
    pub(crate) buffer: &'a wgpu::Buffer,
    /// Bytes from the start of the buffer to the start of the region.
    pub(crate) offset: u64,
    /// Bytes from the start of the buffer to the end of the region.
    pub(crate) end: u64,
}

impl Region<'_> {
    /// Moves the start of the region by `bytes`.
    #[must_use]
    pub fn offset(mut self, bytes: u64) -> Self {
        self.offset = self.offset.saturating_add(bytes);
        self
    }
}

impl<'a> From<&'a wgpu::Buffer> for Region<'a> {
    fn from(buffer: &'a wgpu::Buffer) -> Self {
        Self { buffer, offset: 0, end: buffer.size() }
    }
}

impl<'a> From<wgpu::BufferSlice<'a>> for Region<'a> {
    fn from(slice: wgpu::BufferSlice<'a>) -> Self {
        let offset = slice.offset();
        Self { buffer: slice.buffer(), offset, end: offset + slice.size() }
    }
}

impl<'a> From<wgpu::BufferBinding<'a>> for Region<'a> {
    fn from(binding: wgpu::BufferBinding<'a>) -> Self {
        let wgpu::BufferBinding { buffer, offset, size } = binding;
        let end = size.map_or(buffer.size(), |size| offset.saturating_add(size.get()));
        Self { buffer, offset, end }
    }
}
