use crate::EmulatorError;

/// Bytes of NaN on each side. A kernel that reads there gives NaN; one that writes there is
/// reported.
const MARGIN: usize = 16 << 10;

/// The alignment of a driver's allocations.
const ALIGNMENT: usize = 256;

/// NaN as f32, as f16 and as bf16.
pub(crate) const POISON: [u8; 2] = 0x7FE5u16.to_le_bytes();

/// An allocation in device memory. It lies in host memory here.
#[derive(Debug)]
pub struct DeviceMemory {
    name: &'static str,
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl DeviceMemory {
    /// Memory that holds `content`. Errors call it `name`.
    pub fn new(name: &'static str, content: &[u8]) -> Self {
        let mut memory = Self::poisoned(name, content.len());
        memory.content_mut().copy_from_slice(content);
        memory
    }

    /// Memory of `len` bytes that holds NaN. Errors call it `name`.
    pub fn poisoned(name: &'static str, len: usize) -> Self {
        let mut bytes = vec![0; MARGIN + ALIGNMENT + len + MARGIN];
        let start = MARGIN + bytes[MARGIN..].as_ptr().align_offset(ALIGNMENT);
        // The pattern starts at even addresses, like the elements.
        bytes.iter_mut().enumerate().for_each(|(n, byte)| *byte = POISON[(n + start) % 2]);
        Self { name, bytes, start, end: start + len }
    }

    /// The pointer that kernels receive.
    pub fn address(&mut self) -> u64 {
        self.bytes[self.start..].as_mut_ptr().expose_provenance() as u64
    }

    /// The name in errors.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// The bytes of the allocation.
    pub fn content(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(crate) fn content_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    /// The first address, and the address after the last byte.
    pub(crate) fn range(&mut self) -> [u64; 2] {
        let start = self.address();
        [start, start + (self.end - self.start) as u64]
    }

    /// Checks that the memory around the allocation is unchanged.
    ///
    /// # Errors
    /// [`EmulatorError::OutOfBounds`] if it was written.
    pub fn check(&self) -> Result<(), EmulatorError> {
        let poisoned = |from: usize, to: usize| {
            (from..to).all(|n| self.bytes[n] == POISON[(n + self.start) % 2])
        };
        for (after, whole) in
            [(false, poisoned(0, self.start)), (true, poisoned(self.end, self.bytes.len()))]
        {
            if !whole {
                return Err(EmulatorError::OutOfBounds { tensor: self.name, after });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_to_the_margins_are_errors_and_writes_to_the_content_are_not() {
        for at in [MARGIN - 1, MARGIN + 300] {
            let mut memory = DeviceMemory::new("q", &[1, 2, 3]);
            assert_eq!(memory.address() % 256, 0);
            memory.content_mut()[2] = 9;
            assert_eq!(memory.content(), [1, 2, 9]);
            assert!(memory.check().is_ok());
            memory.bytes[at] = 0;
            let error = memory.check().map_err(|error| error.to_string());
            let expected =
                if at > MARGIN { "memory after the end of q" } else { "memory before q" };
            assert_eq!(error, Err(format!("{expected} was written")));
        }
    }
}
