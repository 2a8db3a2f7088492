//! The 32 lanes of a warp. Each lane has its own place in the program. An instruction that all
//! lanes execute together waits for all of them.

use super::alu;
use super::banks::Traffic;
use super::instruction::{Address, Instruction, MatrixType, Operand, Operation};
use super::instruction::{Reg, Space, Type};
use super::memory::{Global, Shared};
use crate::TensorSums;
use std::sync::atomic::{AtomicBool, Ordering};

pub(super) const LANES: usize = 32;

/// What the warps of a block share.
pub(super) struct Block<'a, 'b, 'c> {
    pub(super) global: &'c mut Global<'a, 'b>,
    pub(super) shared: Shared,
    pub(super) params: &'c [u8],
    pub(super) index: u32,
    pub(super) threads_x: u32,
    pub(super) sums: TensorSums,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Runs,
    /// Before an instruction that all lanes execute together.
    Waits,
    Ended,
}

/// Why a warp stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    Ended,
    /// Before a barrier: the index of that instruction.
    Barrier(u32),
}

/// The record of an instruction.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Whether any lane executed it.
    pub(super) done: AtomicBool,
    pub(super) shared: Traffic,
}

/// An asynchronous copy under way.
#[derive(Clone, Copy)]
struct Copy {
    to: u64,
    from: u64,
    size: u32,
    bytes: u32,
    group: u32,
}

pub(super) struct Warp<'p> {
    program: &'p [Instruction],
    /// The record of each instruction.
    seen: &'p [Seen],
    index: u16,
    /// Register r of lane n is `registers[32 r + n]`.
    registers: Vec<u64>,
    places: [u32; LANES],
    states: [State; LANES],
    copies: Vec<Vec<Copy>>,
    /// Per lane, the group of its next copies.
    groups: [u32; LANES],
}

/// A set of lanes, one bit each.
type Mask = u32;
const ALL: Mask = Mask::MAX;

fn lanes(mask: Mask) -> impl Iterator<Item = usize> {
    (0..LANES).filter(move |lane| mask >> lane & 1 != 0)
}

impl<'p> Warp<'p> {
    pub(super) fn new(
        program: &'p [Instruction],
        seen: &'p [Seen],
        registers: u32,
        index: u16,
    ) -> Self {
        Self {
            program,
            seen,
            index,
            registers: vec![0; registers as usize * LANES],
            places: [0; LANES],
            states: [State::Runs; LANES],
            copies: vec![Vec::new(); LANES],
            groups: [0; LANES],
        }
    }

    /// Runs until all lanes have ended or reached a barrier. An error has the line that caused it.
    pub(super) fn run(&mut self, block: &mut Block<'_, '_, '_>) -> Result<Stop, (u32, String)> {
        loop {
            let running = (0..LANES).filter(|&lane| self.states[lane] == State::Runs);
            let Some(place) = running.map(|lane| self.places[lane]).min() else {
                let ended = self.states.iter().filter(|&&state| state == State::Ended).count();
                if ended == LANES {
                    return self.end();
                }
                // All remaining lanes wait.
                let place = self.places
                    [self.states.iter().position(|&state| state == State::Waits).unwrap_or(0)];
                let together = ended == 0 && self.places.iter().all(|&other| other == place);
                let instruction = &self.program[place as usize];
                if !together {
                    return Err((
                        instruction.line,
                        format!("warp {}: not all lanes reach this instruction", self.index),
                    ));
                }
                if matches!(instruction.operation, Operation::Barrier { .. }) {
                    return Ok(Stop::Barrier(place));
                }
                self.states = [State::Runs; LANES];
                self.step(place, ALL, block).map_err(|why| (instruction.line, why))?;
                continue;
            };
            let mask = (0..LANES)
                .filter(|&lane| self.states[lane] == State::Runs && self.places[lane] == place)
                .fold(0, |mask, lane| mask | 1 << lane);
            // The last instruction is a return, so `place` is in range.
            let instruction = &self.program[place as usize];
            if instruction.operation.is_collective() {
                if instruction.guard.is_some() {
                    return Err((
                        instruction.line,
                        "a guard may exclude lanes that this instruction needs".into(),
                    ));
                }
                lanes(mask).for_each(|lane| self.states[lane] = State::Waits);
            } else {
                self.step(place, mask, block).map_err(|why| (instruction.line, why))?;
            }
        }
    }

    fn end(&self) -> Result<Stop, (u32, String)> {
        let under_way = self.copies.iter().any(|copies| !copies.is_empty());
        if under_way {
            Err((0, format!("warp {} ends with copies under way", self.index)))
        } else {
            Ok(Stop::Ended)
        }
    }

    /// This warp's vote at a barrier: whether any lane's input is true.
    pub(super) fn vote(&self, place: u32, block: &Block<'_, '_, '_>) -> bool {
        match self.program[place as usize].operation {
            Operation::Barrier { any: Some((_, from)) } => {
                (0..LANES).any(|lane| self.value(from, lane, block) != 0)
            }
            _ => false,
        }
    }

    /// Continues after a barrier; `any` is the result of the vote.
    pub(super) fn pass(&mut self, place: u32, any: bool) {
        self.seen[place as usize].done.store(true, Ordering::Relaxed);
        if let Operation::Barrier { any: Some((to, _)) } = self.program[place as usize].operation {
            lanes(ALL).for_each(|lane| self.set(to, lane, any.into()));
        }
        self.states = [State::Runs; LANES];
        self.places = [place + 1; LANES];
    }

    fn set(&mut self, to: Reg, lane: usize, value: u64) {
        self.registers[to as usize * LANES + lane] = value;
    }

    fn value(&self, from: Operand, lane: usize, block: &Block<'_, '_, '_>) -> u64 {
        let thread = u32::from(self.index) * LANES as u32 + lane as u32;
        match from {
            Operand::Reg(register) => self.registers[register as usize * LANES + lane],
            Operand::Bits(bits) => bits,
            Operand::ThreadX => (thread % block.threads_x).into(),
            Operand::ThreadY => (thread / block.threads_x).into(),
            Operand::Block => block.index.into(),
        }
    }

    fn address(&self, of: Address, lane: usize, block: &Block<'_, '_, '_>) -> u64 {
        self.value(of.base, lane, block).wrapping_add_signed(of.offset)
    }

    /// Records an instruction and its accesses to shared memory.
    fn see(&self, place: u32, doing: Mask, block: &Block<'_, '_, '_>) {
        let seen = &self.seen[place as usize];
        seen.done.store(true, Ordering::Relaxed);
        if let Some((at, bytes)) = self.program[place as usize].operation.shared_access() {
            let addresses: Vec<u64> =
                lanes(doing).map(|lane| self.address(at, lane, block)).collect();
            seen.shared.count(&addresses, bytes);
        }
    }

    /// Executes one instruction for the lanes in `mask`, which have all reached it.
    fn step(
        &mut self,
        place: u32,
        mask: Mask,
        block: &mut Block<'_, '_, '_>,
    ) -> Result<(), String> {
        let instruction = &self.program[place as usize];
        let guarded = |lane: &usize| match instruction.guard {
            None => true,
            Some((register, wanted)) => {
                (self.registers[register as usize * LANES + lane] != 0) == wanted
            }
        };
        let doing = lanes(mask).filter(guarded).fold(0, |mask, lane| mask | 1 << lane);
        lanes(mask).for_each(|lane| self.places[lane] = place + 1);
        if doing != 0 {
            self.see(place, doing, block);
        }
        match &instruction.operation {
            Operation::Branch { to } => lanes(doing).for_each(|lane| self.places[lane] = *to),
            Operation::WarpBarrier => {}
            Operation::Return => lanes(doing).for_each(|lane| self.states[lane] = State::Ended),
            Operation::Shuffle { by_xor, to, found, from, lane } => {
                self.shuffle(*by_xor, *to, *from, *lane, block)?;
                found
                    .iter()
                    .for_each(|&found| lanes(ALL).for_each(|lane| self.set(found, lane, 1)));
            }
            Operation::Any { to, from } => {
                let any = lanes(ALL).any(|lane| self.value(*from, lane, block) != 0);
                lanes(ALL).for_each(|lane| self.set(*to, lane, any.into()));
            }
            Operation::LoadMatrix { transposed, to, from } => {
                self.load_matrices(*transposed, to, *from, block)?
            }
            Operation::MultiplyAdd { depth, of, to, a, b, c } => {
                self.multiply_add(*depth, *of, to, [a, b, c], block)?
            }
            operation => {
                for lane in lanes(doing) {
                    self.one(operation, lane, block).map_err(|why| {
                        let thread = usize::from(self.index) * LANES + lane;
                        format!("block {}, thread {thread}: {why}", block.index)
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Executes an instruction that each lane executes alone.
    fn one(
        &mut self,
        operation: &Operation,
        lane: usize,
        block: &mut Block<'_, '_, '_>,
    ) -> Result<(), String> {
        let value = |from: Operand| self.value(from, lane, block);
        match operation {
            Operation::Compute { function, of, to, from } => {
                let computed = alu::compute(*function, *of, from.map(value));
                let computed =
                    computed.ok_or_else(|| format!("{function:?} of {of:?} has no result"))?;
                self.set(*to, lane, computed);
            }
            Operation::InsertBits { to, from, bits } => {
                let [[a, b], [at, count]] = [from.map(value), bits.map(value)];
                self.set(*to, lane, alu::insert_bits(a, b, at, count));
            }
            Operation::Convert { to_type, from_type, to, from } => {
                let converted = alu::convert(*to_type, *from_type, value(*from));
                self.set(
                    *to,
                    lane,
                    converted
                        .ok_or_else(|| format!("no conversion of {from_type:?} to {to_type:?}"))?,
                );
            }
            Operation::ConvertPair { bf16, to, from } => {
                let [high, low] = from.map(value);
                self.set(*to, lane, alu::convert_pair(*bf16, high, low));
            }
            Operation::Compare { comparison, or_unordered, of, to, from } => {
                let [a, b] = from.map(value);
                self.set(*to, lane, alu::compare(*comparison, *or_unordered, *of, a, b).into());
            }
            Operation::Select { to, from, by } => {
                let selected = value(from[usize::from(value(*by) == 0)]);
                self.set(*to, lane, selected);
            }
            Operation::Pack { half, to, from } => {
                let [low, high] = from.map(|from| alu::wrap(*half, value(from).into()));
                self.set(*to, lane, low | high << (8 * half.bytes()));
            }
            Operation::Unpack { half, to, from } => {
                let whole = value(*from);
                self.set(to[0], lane, alu::wrap(*half, whole.into()));
                self.set(to[1], lane, alu::wrap(*half, (whole >> (8 * half.bytes())).into()));
            }
            Operation::Load { space, of, to, from } => {
                self.load(*space, *of, to, *from, lane, block)?
            }
            Operation::Store { space, of, to, from } => {
                self.store(*space, *of, *to, from, lane, block)?
            }
            Operation::CopyAsync { size, to, from, bytes } => {
                let (at, bytes) = (self.address(*to, lane, block), value(*bytes) as u32);
                let copy = Copy {
                    to: at,
                    from: self.address(*from, lane, block),
                    size: *size,
                    bytes,
                    group: self.groups[lane],
                };
                if copy.bytes > copy.size || !copy.from.is_multiple_of(copy.size.into()) {
                    return Err(format!(
                        "a copy of {bytes} bytes: expected at most {size}, aligned to {size}"
                    ));
                }
                // A GPU may copy at any time until the wait. This does so as late as possible.
                block.shared.poison(self.index, copy.to, copy.size)?;
                self.copies[lane].push(copy);
            }
            Operation::CopyCommit => self.groups[lane] += 1,
            Operation::CopyWait { latest } => self.arrive(*latest, lane, block)?,
            Operation::Branch { .. }
            | Operation::Return
            | Operation::Barrier { .. }
            | Operation::WarpBarrier
            | Operation::Shuffle { .. }
            | Operation::Any { .. }
            | Operation::LoadMatrix { .. }
            | Operation::MultiplyAdd { .. } => {
                return Err(format!("{operation:?} is not an instruction for one lane"));
            }
        }
        Ok(())
    }

    /// Does a lane's copies, except the last `latest` groups and those that are in no group yet.
    fn arrive(
        &mut self,
        latest: u32,
        lane: usize,
        block: &mut Block<'_, '_, '_>,
    ) -> Result<(), String> {
        let open = self.groups[lane];
        let (arrived, left) = self.copies[lane].iter().partition(|copy| copy.group + latest < open);
        let arrived: Vec<Copy> = arrived;
        self.copies[lane] = left;
        for copy in arrived {
            let mut bytes = vec![0; copy.size as usize];
            for (n, to) in bytes[..copy.bytes as usize].chunks_mut(2).enumerate() {
                to.copy_from_slice(block.global.read(
                    block.index,
                    copy.from + 2 * n as u64,
                    to.len() as u32,
                )?);
            }
            block.shared.write(self.index, copy.to, &bytes)?;
        }
        Ok(())
    }

    fn load(
        &mut self,
        space: Space,
        of: Type,
        to: &[Reg],
        from: Address,
        lane: usize,
        block: &mut Block<'_, '_, '_>,
    ) -> Result<(), String> {
        let (address, size) = (self.address(from, lane, block), of.bytes());
        let whole = size * to.len() as u32;
        let bytes = match space {
            Space::Shared => block.shared.read(self.index, address, whole)?,
            Space::Global => block.global.read(block.index, address, whole)?,
            Space::Param => {
                let start = address as usize;
                let bytes = block.params.get(start..start.saturating_add(whole as usize));
                bytes.ok_or_else(|| {
                    format!("a read of {whole} bytes at byte {address} of the parameter")
                })?
            }
        };
        for (&to, bytes) in to.iter().zip(bytes.chunks(size as usize)) {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            self.set(to, lane, u64::from_le_bytes(word));
        }
        Ok(())
    }

    fn store(
        &mut self,
        space: Space,
        of: Type,
        to: Address,
        from: &[Operand],
        lane: usize,
        block: &mut Block<'_, '_, '_>,
    ) -> Result<(), String> {
        let (address, size) = (self.address(to, lane, block), of.bytes());
        let value =
            |&from| self.value(from, lane, block).to_le_bytes().into_iter().take(size as usize);
        let bytes: Vec<u8> = from.iter().flat_map(value).collect();
        match space {
            Space::Shared => block.shared.write(self.index, address, &bytes),
            Space::Global => block.global.write(block.index, address, &bytes),
            Space::Param => Err("a write to the parameters".into()),
        }
    }

    fn shuffle(
        &mut self,
        by_xor: bool,
        to: Reg,
        from: Operand,
        other: Operand,
        block: &Block<'_, '_, '_>,
    ) -> Result<(), String> {
        let before: Vec<u64> = lanes(ALL).map(|lane| self.value(from, lane, block)).collect();
        for lane in lanes(ALL) {
            let other = self.value(other, lane, block) as usize;
            let source = if by_xor { lane ^ other } else { other };
            let value = before
                .get(source)
                .ok_or_else(|| format!("lane {lane} reads from lane {source}"))?;
            self.set(to, lane, *value);
        }
        Ok(())
    }

    /// Loads four 8 x 8 matrices of 16-bit numbers, in the layout that PTX documents. Lane 8 n + r
    /// gives the address of row r of matrix n. From each matrix, lane 4 g + t receives columns 2 t
    /// and 2 t + 1 of row g; with `transposed`, rows 2 t and 2 t + 1 of column g.
    fn load_matrices(
        &mut self,
        transposed: bool,
        to: &[Reg; 4],
        from: Address,
        block: &mut Block<'_, '_, '_>,
    ) -> Result<(), String> {
        for (n, &to) in to.iter().enumerate() {
            let mut matrix = [[0_u16; 8]; 8];
            for (r, row) in matrix.iter_mut().enumerate() {
                let bytes =
                    block.shared.read(self.index, self.address(from, 8 * n + r, block), 16)?;
                for (x, bytes) in row.iter_mut().zip(bytes.chunks(2)) {
                    *x = u16::from_le_bytes([bytes[0], bytes[1]]);
                }
            }
            for lane in lanes(ALL) {
                let (g, t) = (lane / 4, lane % 4);
                let (low, high) = if transposed {
                    (matrix[2 * t][g], matrix[2 * t + 1][g])
                } else {
                    (matrix[g][2 * t], matrix[g][2 * t + 1])
                };
                self.set(to, lane, u64::from(low) | u64::from(high) << 16);
            }
        }
        Ok(())
    }

    /// C += A B, in the layouts that PTX documents for m16n8k16 and m16n8k8.
    fn multiply_add(
        &mut self,
        depth: u32,
        of: MatrixType,
        to: &[Reg; 4],
        [a, b, c]: [&[Operand]; 3],
        block: &Block<'_, '_, '_>,
    ) -> Result<(), String> {
        let depth = depth as usize;
        let (mut rows, mut columns) = ([[0.0_f32; 16]; 16], [[0.0_f32; 16]; 8]);
        let per = of.per_register();
        for lane in lanes(ALL) {
            let (g, t) = (lane / 4, lane % 4);
            for (n, &word) in a.iter().enumerate() {
                let k = per * t + n / 2 * 4 * per;
                let numbers = alu::matrix_values(of, self.value(word, lane, block) as u32)?;
                rows[g + n % 2 * 8][k..k + per].copy_from_slice(&numbers[..per]);
            }
            for (n, &word) in b.iter().enumerate() {
                let k = per * t + n * 4 * per;
                let numbers = alu::matrix_values(of, self.value(word, lane, block) as u32)?;
                columns[g][k..k + per].copy_from_slice(&numbers[..per]);
            }
        }
        let sums = match of {
            MatrixType::F16 | MatrixType::BF16 => block.sums,
            MatrixType::Tf32 => block.sums.of_tf32(),
        };
        let wide = of != MatrixType::F16;
        for lane in lanes(ALL) {
            for (n, &to) in to.iter().enumerate() {
                let (row, column) = (&rows[lane / 4 + n / 2 * 8], &columns[lane % 4 * 2 + n % 2]);
                let sum = f32::from_bits(self.value(c[n], lane, block) as u32);
                let sum = sums.add_products(sum, &row[..depth], &column[..depth], wide);
                self.set(to, lane, sum.to_bits().into());
            }
        }
        Ok(())
    }
}
