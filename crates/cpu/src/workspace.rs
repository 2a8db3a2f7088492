//! Memory that threads use again: tiles in f32, and the partial results of a split.

use crate::error::Error;
use bytemuck::Zeroable;
use std::sync::{Mutex, PoisonError};

/// 64 bytes: a cache line, and a vector of AVX-512.
#[derive(Clone, Copy, Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
struct Line([f32; Line::FLOATS]);

impl Line {
    const FLOATS: usize = 16;
}

/// How many f32 of each kind a thread needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Q of a tile, transposed: a vector of queries per column.
    pub(crate) q: usize,
    /// O, transposed in the same way.
    pub(crate) o: usize,
    /// m and l of each query.
    pub(crate) sums: usize,
    /// Scores, then weights, of a group of queries.
    pub(crate) p: usize,
    /// The mask of a group of queries.
    pub(crate) bias: usize,
    /// A tile of K that is not read in place.
    pub(crate) k: usize,
    /// The same of V.
    pub(crate) v: usize,
    /// One row of Q or of the output.
    pub(crate) row: usize,
    /// What a tile of keys adds to O, where a tile has few queries.
    pub(crate) parts: usize,
}

impl Sizes {
    fn all(&self) -> [usize; 9] {
        [self.q, self.o, self.sums, self.p, self.bias, self.k, self.v, self.row, self.parts]
            .map(|floats| floats.next_multiple_of(Line::FLOATS))
    }

    /// Bytes per thread.
    pub(crate) fn bytes(&self) -> u64 {
        self.all().iter().map(|&floats| 4 * floats as u64).sum()
    }
}

/// The memory of one thread.
pub(crate) struct Workspace {
    lines: Vec<Line>,
    sizes: Sizes,
    /// One encoded row of the output.
    pub(crate) encoded: Vec<u8>,
}

/// The pieces of a [`Workspace`], named as in [`Sizes`].
pub(crate) struct Pieces<'a> {
    pub(crate) q: &'a mut [f32],
    pub(crate) o: &'a mut [f32],
    pub(crate) sums: &'a mut [f32],
    pub(crate) p: &'a mut [f32],
    pub(crate) bias: &'a mut [f32],
    pub(crate) k: &'a mut [f32],
    pub(crate) v: &'a mut [f32],
    pub(crate) row: &'a mut [f32],
    pub(crate) parts: &'a mut [f32],
    pub(crate) encoded: &'a mut Vec<u8>,
}

impl Workspace {
    fn new(sizes: Sizes) -> Result<Self, Error> {
        let lines = zeroed(sizes.all().iter().sum::<usize>() / Line::FLOATS)?;
        Ok(Self { lines, sizes, encoded: Vec::new() })
    }

    pub(crate) fn pieces(&mut self) -> Pieces<'_> {
        let mut rest: &mut [f32] = bytemuck::cast_slice_mut(&mut self.lines);
        let [q, o, sums, p, bias, k, v, row, parts] = self.sizes.all().map(|floats| {
            let (piece, after) = std::mem::take(&mut rest).split_at_mut(floats);
            rest = after;
            piece
        });
        Pieces { q, o, sums, p, bias, k, v, row, parts, encoded: &mut self.encoded }
    }
}

/// `count` zeroes, or an error instead of an abort.
pub(crate) fn zeroed<T: Zeroable + Clone>(count: usize) -> Result<Vec<T>, Error> {
    let mut all = Vec::new();
    let bytes = count.saturating_mul(size_of::<T>());
    all.try_reserve_exact(count).map_err(|_| Error::HostMemory { bytes })?;
    all.resize(count, T::zeroed());
    Ok(all)
}

/// The workspaces of a plan. Calls return what they took, so a plan that runs again allocates
/// nothing.
pub(crate) struct Pool {
    sizes: Sizes,
    free: Mutex<Vec<Workspace>>,
    /// Partial results of a split, of the calls that are not running.
    partials: Mutex<Vec<Vec<f32>>>,
}

impl Pool {
    pub(crate) fn new(sizes: Sizes) -> Self {
        Self { sizes, free: Mutex::default(), partials: Mutex::default() }
    }

    /// Takes a workspace for each of `threads` threads.
    pub(crate) fn take(&self, threads: usize) -> Result<Vec<Workspace>, Error> {
        let mut taken = Vec::new();
        while taken.len() < threads {
            let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
            taken.push(match free {
                Some(workspace) => workspace,
                None => Workspace::new(self.sizes)?,
            });
        }
        Ok(taken)
    }

    pub(crate) fn give_back(&self, taken: impl IntoIterator<Item = Workspace>) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).extend(taken);
    }

    /// Takes memory for `floats` numbers, whose contents are unspecified.
    pub(crate) fn take_partials(&self, floats: usize) -> Result<Vec<f32>, Error> {
        let free = self.partials.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match free {
            Some(partials) if partials.len() >= floats => Ok(partials),
            _ => zeroed(floats),
        }
    }

    pub(crate) fn give_partials_back(&self, partials: Vec<f32>) {
        self.partials.lock().unwrap_or_else(PoisonError::into_inner).push(partials);
    }
}

/// What a plan keeps: for tests.
#[cfg(test)]
#[derive(Debug, PartialEq)]
pub(crate) struct Kept {
    pub(crate) bytes: u64,
    /// Where the pieces of memory lie, in ascending order.
    places: Vec<usize>,
}

#[cfg(test)]
impl Pool {
    /// What calls have given back, without the encoded rows.
    pub(crate) fn kept(&self) -> Kept {
        let free = self.free.lock().expect("no panic");
        let partials = self.partials.lock().expect("no panic");
        let tiles = free.iter().map(|w| (w.lines.as_ptr() as usize, size_of_val(&w.lines[..])));
        let rows = partials.iter().map(|p| (p.as_ptr() as usize, size_of_val(&p[..])));
        let mut places = Vec::new();
        let mut bytes = 0;
        for (place, size) in tiles.chain(rows) {
            places.push(place);
            bytes += size as u64;
        }
        places.sort_unstable();
        Kept { bytes, places }
    }
}
