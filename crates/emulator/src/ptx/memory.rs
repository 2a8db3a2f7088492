//! Checked memory. Every access has to lie within a tensor or within shared memory, at a multiple
//! of its size. Two warps may not access the same place without a barrier between them if one of
//! them writes; two blocks may not do so at all.

use crate::{DeviceMemory, POISON};

/// Accesses are recorded per place of this many bytes: the smallest number that kernels store.
const PLACE: usize = 2;

/// More than one block.
const SEVERAL: u32 = u32::MAX;

/// Device memory of a launch.
pub(super) struct Global<'a, 'b> {
    tensors: Vec<Tensor<'a, 'b>>,
}

struct Tensor<'a, 'b> {
    start: u64,
    end: u64,
    memory: &'a mut &'b mut DeviceMemory,
    /// The block that wrote a place, plus 1.
    writers: Vec<u32>,
    /// The block that read a place, plus 1, or [`SEVERAL`].
    readers: Vec<u32>,
}

impl<'a, 'b> Global<'a, 'b> {
    pub(super) fn new(memory: &'a mut [&'b mut DeviceMemory]) -> Self {
        let tensor = |memory: &'a mut &'b mut DeviceMemory| {
            let [start, end] = memory.range();
            let places = ((end - start) as usize).div_ceil(PLACE);
            Tensor { start, end, memory, writers: vec![0; places], readers: vec![0; places] }
        };
        Self { tensors: memory.iter_mut().map(tensor).collect() }
    }

    fn find(
        &mut self,
        what: &str,
        address: u64,
        bytes: u32,
    ) -> Result<(&mut Tensor<'a, 'b>, usize), String> {
        if !address.is_multiple_of(bytes.into()) {
            return Err(format!(
                "{what} of {bytes} bytes at an address that is not a multiple of that"
            ));
        }
        let end = address.saturating_add(bytes.into());
        if let Some(at) =
            self.tensors.iter().position(|tensor| tensor.start <= address && end <= tensor.end)
        {
            let tensor = &mut self.tensors[at];
            let offset = (address - tensor.start) as usize;
            return Ok((tensor, offset));
        }
        let distance = |tensor: &&Tensor<'_, '_>| {
            if address < tensor.start { tensor.start - address } else { end - tensor.end.min(end) }
        };
        let nearest = self.tensors.iter().min_by_key(distance).ok_or("there is no memory")?;
        let offset = i128::from(address) - i128::from(nearest.start);
        let (name, len) = (nearest.memory.name(), nearest.end - nearest.start);
        Err(format!(
            "{what} of {bytes} bytes outside every tensor, at byte {offset} of {name}, \
             which has {len}"
        ))
    }

    pub(super) fn read(&mut self, block: u32, address: u64, bytes: u32) -> Result<&[u8], String> {
        let (tensor, offset) = self.find("a read", address, bytes)?;
        let end = offset + bytes as usize;
        let places = offset / PLACE..end.div_ceil(PLACE);
        for (writer, reader) in
            tensor.writers[places.clone()].iter().zip(&mut tensor.readers[places])
        {
            if *writer != 0 && *writer != block + 1 {
                return Err(format!(
                    "a read of memory that block {} writes in the same launch",
                    writer - 1
                ));
            }
            *reader = if *reader == 0 || *reader == block + 1 { block + 1 } else { SEVERAL };
        }
        Ok(&tensor.memory.content()[offset..end])
    }

    pub(super) fn write(&mut self, block: u32, address: u64, value: &[u8]) -> Result<(), String> {
        let (tensor, offset) = self.find("a write", address, value.len() as u32)?;
        let end = offset + value.len();
        let places = offset / PLACE..end.div_ceil(PLACE);
        for (writer, reader) in
            tensor.writers[places.clone()].iter_mut().zip(&tensor.readers[places])
        {
            if *reader != 0 && *reader != block + 1 {
                return Err(
                    "a write to memory that another block reads in the same launch".to_owned()
                );
            }
            if *writer != 0 && *writer != block + 1 {
                return Err(format!("a write to memory that block {} writes too", *writer - 1));
            }
            *writer = block + 1;
        }
        tensor.memory.content_mut()[offset..end].copy_from_slice(value);
        Ok(())
    }
}

/// The last access to a place in shared memory.
#[derive(Clone, Copy, Default)]
struct Touched {
    /// Barriers before the access, plus 1; 0 if there was none.
    since: u32,
    warp: u16,
    /// Whether other warps accessed it too, since the same barrier.
    several: bool,
}

impl Touched {
    /// Whether another warp accessed it, with no barrier since.
    fn by_another(self, now: u32, warp: u16) -> bool {
        self.since == now && (self.several || self.warp != warp)
    }

    fn touch(&mut self, now: u32, warp: u16) {
        let several = self.since == now && (self.several || self.warp != warp);
        *self = Self { since: now, warp, several };
    }
}

/// Shared memory of a block.
pub(super) struct Shared {
    bytes: Vec<u8>,
    reads: Vec<Touched>,
    writes: Vec<Touched>,
    /// Barriers so far, plus 1.
    now: u32,
}

impl Shared {
    pub(super) fn new(bytes: u32) -> Self {
        let places = (bytes as usize).div_ceil(PLACE);
        let poison = POISON.into_iter().cycle().take(bytes as usize).collect();
        Self {
            bytes: poison,
            reads: vec![Touched::default(); places],
            writes: vec![Touched::default(); places],
            now: 1,
        }
    }

    pub(super) fn barrier(&mut self) {
        self.now += 1;
    }

    /// The bytes of an access, and the places that they cover.
    fn find(
        &self,
        what: &str,
        address: u64,
        bytes: u32,
    ) -> Result<[std::ops::Range<usize>; 2], String> {
        let end = address.saturating_add(bytes.into());
        if end > self.bytes.len() as u64 {
            return Err(format!(
                "{what} of {bytes} bytes at byte {address} of shared memory, which has {}",
                self.bytes.len()
            ));
        }
        if !address.is_multiple_of(bytes.into()) {
            return Err(format!(
                "{what} of {bytes} bytes at byte {address} of shared memory, not a multiple of that"
            ));
        }
        let (start, end) = (address as usize, end as usize);
        Ok([start..end, start / PLACE..end.div_ceil(PLACE)])
    }

    pub(super) fn read(&mut self, warp: u16, address: u64, bytes: u32) -> Result<&[u8], String> {
        let [at, places] = self.find("a read", address, bytes)?;
        let now = self.now;
        if self.writes[places.clone()].iter().any(|write| write.by_another(now, warp)) {
            return Err(format!(
                "a race: a read of byte {address} of shared memory, which another warp wrote since \
                 the last barrier"
            ));
        }
        self.reads[places].iter_mut().for_each(|read| read.touch(now, warp));
        Ok(&self.bytes[at])
    }

    pub(super) fn write(&mut self, warp: u16, address: u64, value: &[u8]) -> Result<(), String> {
        let [at, places] = self.find("a write", address, value.len() as u32)?;
        let now = self.now;
        for (did, touched) in [("read", &self.reads), ("wrote", &self.writes)] {
            if touched[places.clone()].iter().any(|touched| touched.by_another(now, warp)) {
                return Err(format!(
                    "a race: a write to byte {address} of shared memory, which another warp {did} \
                     since the last barrier"
                ));
            }
        }
        self.writes[places].iter_mut().for_each(|write| write.touch(now, warp));
        self.bytes[at].copy_from_slice(value);
        Ok(())
    }

    /// Writes NaN, which stays until a copy under way arrives.
    pub(super) fn poison(&mut self, warp: u16, address: u64, bytes: u32) -> Result<(), String> {
        let poison: Vec<u8> = POISON.into_iter().cycle().take(bytes as usize).collect();
        self.write(warp, address, &poison)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn warps_race_without_a_barrier_between_them() {
        let mut shared = Shared::new(64);
        shared.write(0, 8, &[1; 4]).unwrap();
        assert_eq!(shared.read(0, 8, 4), Ok(&[1; 4][..]), "the same warp");
        assert!(shared.read(1, 8, 4).unwrap_err().contains("another warp wrote since"));
        shared.barrier();
        shared.read(1, 8, 4).unwrap();
        shared.read(0, 8, 4).unwrap();
        for warp in [0, 1] {
            assert!(
                shared.write(warp, 8, &[2; 2]).unwrap_err().contains("another warp read since")
            );
        }
        shared.write(1, 16, &[2; 2]).unwrap();
        assert!(shared.write(0, 16, &[2; 2]).unwrap_err().contains("another warp wrote since"));
        shared.barrier();
        shared.write(0, 8, &[3; 8]).unwrap();
        for (address, bytes) in [(62, 4), (1, 2), (u64::MAX - 1, 2)] {
            assert!(shared.read(0, address, bytes).is_err());
        }
        assert_eq!(Shared::new(4).read(0, 0, 4), Ok(&0x7FE5_7FE5_u32.to_le_bytes()[..]));
    }

    #[test]
    fn blocks_stay_within_tensors_and_do_not_share_what_one_writes() {
        let (mut q, mut out) =
            (DeviceMemory::new("q", &[7; 16]), DeviceMemory::poisoned("out", 16));
        let (q_at, out_at) = (q.address(), out.address());
        let mut memory = [&mut q, &mut out];
        let mut global = Global::new(&mut memory);
        assert_eq!(global.read(0, q_at + 4, 4), Ok(&[7; 4][..]));
        assert!(global.read(0, q_at + 2, 4).unwrap_err().contains("not a multiple"));
        assert!(
            global.read(0, q_at + 16, 4).unwrap_err().contains("at byte 16 of q, which has 16")
        );
        assert!(
            global.write(0, out_at - 4, &[1, 0, 0, 0]).unwrap_err().contains("at byte -4 of out")
        );
        global.write(0, out_at, &[5, 0, 0, 0]).unwrap();
        global.write(0, out_at, &[6, 0]).unwrap();
        assert!(
            global.write(1, out_at, &[5, 0, 0, 0]).unwrap_err().contains("that block 0 writes too")
        );
        assert!(global.read(1, out_at, 4).unwrap_err().contains("that block 0 writes"));
        assert_eq!(global.read(0, out_at, 4), Ok(&[6, 0, 0, 0][..]));
        assert!(
            global
                .write(1, q_at + 4, &[5, 0, 0, 0])
                .unwrap_err()
                .contains("that another block reads")
        );
        global.write(0, q_at + 4, &[5, 0, 0, 0]).unwrap();
        (0..2).for_each(|block| assert!(global.read(block, q_at + 8, 2).is_ok()));
        assert!(
            global.write(0, q_at + 8, &[5, 0]).unwrap_err().contains("that another block reads")
        );
    }
}
