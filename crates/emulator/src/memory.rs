use crate::EmulatorError;

/// Bytes of NaN on both sides: a kernel that reads there shows in its result, one that writes there is found out.
const MARGIN: usize = 16 << 10;

/// What a driver's allocations are aligned to.
const ALIGNMENT: usize = 256;

/// NaN as f32, as f16 and as bf16.
pub(crate) const POISON: [u8; 2] = 0x7FE5u16.to_le_bytes();

/// A piece of device memory, which is host memory here.
#[derive(Debug)]
pub struct DeviceMemory {
    what: &'static str,
    bytes: Vec<u8>,
    begin: usize,
    end: usize,
}

impl DeviceMemory {
    /// Memory that holds `content`. Errors call it `what`.
    pub fn new(what: &'static str, content: &[u8]) -> Self {
        let mut memory = Self::poisoned(what, content.len());
        memory.content_mut().copy_from_slice(content);
        memory
    }

    /// Memory that holds NaN.
    pub fn poisoned(what: &'static str, len: usize) -> Self {
        let mut bytes = vec![0; MARGIN + ALIGNMENT + len + MARGIN];
        let begin = MARGIN + bytes[MARGIN..].as_ptr().align_offset(ALIGNMENT);
        // The pattern begins at even addresses, as elements do.
        bytes.iter_mut().enumerate().for_each(|(n, byte)| *byte = POISON[(n + begin) % 2]);
        Self { what, bytes, begin, end: begin + len }
    }

    /// What kernels are given as pointer.
    pub fn address(&mut self) -> u64 {
        self.bytes[self.begin..].as_mut_ptr().expose_provenance() as u64
    }

    /// What errors call it.
    pub(crate) fn name(&self) -> &'static str {
        self.what
    }

    /// What it holds.
    pub fn content(&self) -> &[u8] {
        &self.bytes[self.begin..self.end]
    }

    pub(crate) fn content_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.begin..self.end]
    }

    /// First address and the one behind the last.
    pub(crate) fn range(&mut self) -> [u64; 2] {
        let begin = self.address();
        [begin, begin + (self.end - self.begin) as u64]
    }

    /// Whether the memory around it is as it was.
    ///
    /// # Errors
    /// [`EmulatorError::OutOfBounds`] where it is not.
    pub fn check(&self) -> Result<(), EmulatorError> {
        let poisoned = |from: usize, to: usize| {
            (from..to).all(|n| self.bytes[n] == POISON[(n + self.begin) % 2])
        };
        for (behind, whole) in
            [(false, poisoned(0, self.begin)), (true, poisoned(self.end, self.bytes.len()))]
        {
            if !whole {
                return Err(EmulatorError::OutOfBounds { what: self.what, behind });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn margins_are_watched_and_contents_are_not() {
        for at in [MARGIN - 1, MARGIN + 300] {
            let mut memory = DeviceMemory::new("q", &[1, 2, 3]);
            assert_eq!(memory.address() % 256, 0);
            memory.content_mut()[2] = 9;
            assert_eq!(memory.content(), [1, 2, 9]);
            assert!(memory.check().is_ok());
            memory.bytes[at] = 0;
            let behind = at > MARGIN;
            assert!(
                matches!(memory.check(), Err(EmulatorError::OutOfBounds { what: "q", behind: b }) if b == behind)
            );
        }
    }
}
