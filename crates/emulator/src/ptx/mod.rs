//! An interpreter for the PTX that NVRTC writes, the last form of a kernel before machine code.
//!
//! Unlike the [`Emulator`](crate::Emulator), it covers `device.cuh`, the inline assembly and the
//! code for each compute capability. It checks every access ([`PtxKernel::run`] lists the errors),
//! so it replaces the sanitizers that need a GPU. It supports the instructions that these kernels
//! use, and no others. It cannot see races between the lanes of one warp, because it runs them in
//! step.

mod alu;
mod banks;
mod instruction;
mod memory;
mod parse;
mod warp;

use crate::{BlockRun, DeviceMemory, EmulatorError, ThreadOrder, quote};
use flashtile_testkit::Rng;
use instruction::Program;
use memory::{Global, Shared};
use std::sync::atomic::Ordering;
use warp::{Block, LANES, Seen, Stop, Warp};

/// An instruction that was executed, with its accesses to shared memory by all warps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecutedLine {
    /// Line number in the PTX, counted from 1.
    pub line: u32,
    /// Groups of lanes that shared memory can serve at once. A warp's 4-byte access counts as one
    /// group, its 16-byte access as four.
    pub shared_accesses: u64,
    /// Extra turns that groups needed, because lanes asked one bank for different words.
    pub bank_conflicts: u64,
}

/// A kernel in PTX.
#[derive(Debug)]
pub struct PtxKernel {
    name: String,
    ptx: String,
    program: Program,
    seen: Vec<Seen>,
}

impl PtxKernel {
    /// The kernel `entry_point` of `ptx`. Errors call it `name`.
    ///
    /// # Errors
    /// [`EmulatorError::Run`] if it holds something that the interpreter does not support.
    pub fn parse(name: &str, entry_point: &str, ptx: &str) -> Result<Self, EmulatorError> {
        let failed = |message| EmulatorError::Run { kernel: name.to_owned(), message };
        let program = parse::parse(ptx, entry_point).map_err(failed)?;
        let seen = program.instructions.iter().map(|_| Seen::default()).collect();
        Ok(Self { name: name.to_owned(), ptx: ptx.to_owned(), program, seen })
    }

    /// The instructions that any run so far has executed.
    pub fn executed(&self) -> impl Iterator<Item = ExecutedLine> {
        let instructions = self.program.instructions.iter().zip(&self.seen);
        instructions.filter(|(_, seen)| seen.done.load(Ordering::Relaxed)).map(
            |(instruction, seen)| {
                let (shared_accesses, bank_conflicts) = seen.shared.counts();
                ExecutedLine { line: instruction.line, shared_accesses, bank_conflicts }
            },
        )
    }

    /// The PTX that it was parsed from.
    pub fn ptx(&self) -> &str {
        &self.ptx
    }

    /// Runs all blocks of a launch, one after the other. `params` holds the bytes of the kernel's
    /// parameter, and `global` is the memory that it points to.
    ///
    /// # Errors
    /// [`EmulatorError::Run`], with the line of the PTX, for
    /// - an access outside `global` and shared memory, or at an address that is not a multiple of
    ///   its size;
    /// - shared memory that two warps access without a barrier between them, if one of them writes;
    /// - global memory that one block writes and another block accesses;
    /// - lanes and warps that do not meet where all of them have to;
    /// - copies that no thread waits for.
    pub fn run(
        &self,
        run: &BlockRun,
        params: &[u8],
        global: &mut [&mut DeviceMemory],
    ) -> Result<(), EmulatorError> {
        let failed = |(line, why): (u32, String)| EmulatorError::Run {
            kernel: self.name.clone(),
            message: why + &quote(&self.ptx, line),
        };
        if params.len() != self.program.param_bytes as usize {
            return Err(failed((
                0,
                format!("it takes {} bytes, not {}", self.program.param_bytes, params.len()),
            )));
        }
        let threads = run.threads[0] as usize * run.threads[1] as usize;
        if threads == 0 || !threads.is_multiple_of(LANES) {
            return Err(failed((0, format!("{threads} threads: a block has whole warps of 32"))));
        }
        let mut rng =
            Rng::new(if let ThreadOrder::Shuffled(seed) = run.order { seed } else { 1 }, 0);
        let mut memory = Global::new(global);
        for index in 0..run.grid {
            let shared = Shared::new(run.shared_bytes);
            let mut block = Block {
                global: &mut memory,
                shared,
                params,
                index,
                threads_x: run.threads[0],
                sums: run.sums,
            };
            self.run_block(&mut block, threads / LANES, run.order, &mut rng).map_err(failed)?;
        }
        Ok(())
    }

    fn run_block(
        &self,
        block: &mut Block<'_, '_, '_>,
        warps: usize,
        order: ThreadOrder,
        rng: &mut Rng,
    ) -> Result<(), (u32, String)> {
        let Program { instructions, registers, .. } = &self.program;
        let mut warps: Vec<Warp<'_>> = (0..warps as u16)
            .map(|index| Warp::new(instructions, &self.seen, *registers, index))
            .collect();
        if order == ThreadOrder::Reverse {
            warps.reverse();
        }
        loop {
            if let ThreadOrder::Shuffled(_) = order {
                rng.shuffle(&mut warps);
            }
            let stops =
                warps.iter_mut().map(|warp| warp.run(block)).collect::<Result<Vec<Stop>, _>>()?;
            let place = match stops[0] {
                Stop::Ended if stops.iter().all(|&stop| stop == Stop::Ended) => return Ok(()),
                Stop::Barrier(place) if stops.iter().all(|&stop| stop == stops[0]) => place,
                _ => {
                    let place = stops.iter().find_map(|&stop| {
                        if let Stop::Barrier(place) = stop { Some(place) } else { None }
                    });
                    let line = place.map_or(0, |place| instructions[place as usize].line);
                    return Err((
                        line,
                        format!("block {}: not all warps reach this barrier", block.index),
                    ));
                }
            };
            let any = warps.iter().any(|warp| warp.vote(place, block));
            block.shared.barrier();
            warps.iter_mut().for_each(|warp| warp.pass(place, any));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::TensorSums;

    /// A kernel that executes `body`, with %r0 = its thread, %rd0 = the address of `out` and
    /// %rd1 = the address of out[thread].
    fn kernel(body: &str) -> Result<PtxKernel, EmulatorError> {
        let ptx = format!(
            ".version 9.0
.visible .entry k(
    .param .align 8 .b8 k_param_0[8]
)
.maxntid 64, 1, 1
{{
    .reg .pred %p<4>;
    .reg .b32 %r<8>;
    .reg .b64 %rd<4>;
    mov.u32 %r0, %tid.x;
    ld.param.u64 %rd0, [k_param_0];
    mul.wide.u32 %rd1, %r0, 4;
    add.s64 %rd1, %rd0, %rd1; // where it writes
{body}
    ret;
}}
"
        );
        PtxKernel::parse("k", "k", &ptx)
    }

    /// The words that 64 threads write to `out`.
    fn run(body: &str) -> Result<Vec<u32>, EmulatorError> {
        let mut out = DeviceMemory::new("out", &[0; 256]);
        let params = out.address().to_le_bytes();
        let order = ThreadOrder::Forward;
        let run = BlockRun {
            grid: 1,
            threads: [64, 1],
            shared_bytes: 1024,
            bf16: false,
            sums: TensorSums::Nearest,
            order,
            mutant: 0,
        };
        kernel(body)?.run(&run, &params, &mut [&mut out])?;
        Ok(out
            .content()
            .chunks(4)
            .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
            .collect())
    }

    fn error(body: &str) -> String {
        run(body).unwrap_err().to_string()
    }

    #[test]
    fn lanes_diverge_and_reconverge() {
        let body = "
    setp.lt.u32 %p1, %r0, 10;
    @%p1 bra SMALL;
    mov.u32 %r1, 7;
    bra.uni BOTH;
SMALL:
    { .reg .b32 own; shl.b32 own, %r0, 1; mov.b32 %r1, own; }
BOTH:
    shfl.sync.bfly.b32 %r2|%p2, %r1, 1, 31, -1;
    @!%p1 add.s32 %r2, %r2, 100;
    st.global.u32 [%rd1], %r2;";
        let expected: Vec<u32> = (0..64)
            .map(|n: u32| if n ^ 1 < 10 { 2 * (n ^ 1) } else { 7 } + if n < 10 { 0 } else { 100 })
            .collect();
        assert_eq!(run(body).unwrap(), expected);
        assert_eq!(
            kernel("    setp.eq.u32 %p1, %r0, 99;\n    @%p1 bra END;\nEND:")
                .unwrap()
                .executed()
                .count(),
            0
        );
    }

    #[test]
    fn barriers_order_accesses_and_share_votes() {
        let store = "
    shl.b32 %r1, %r0, 2;
    mov.u32 %r2, shared_bytes;
    add.s32 %r1, %r1, %r2;
    st.shared.u32 [%r1], %r0;";
        let load = "
    xor.b32 %r3, %r1, 128;
    ld.shared.u32 %r4, [%r3];
    st.global.u32 [%rd1], %r4;";
        let barrier = "\n    bar.sync 0;";
        let expected: Vec<u32> = (0..64).map(|n| n ^ 32).collect();
        assert_eq!(run(&[store, barrier, load].concat()).unwrap(), expected);
        let raced = error(&[store, load].concat());
        assert!(
            raced.contains("another warp wrote since") || raced.contains("another warp read since"),
            "{raced}"
        );
        assert!(raced.contains("| "), "the line is quoted: {raced}");
        let any = "
    setp.eq.u32 %p1, %r0, 40;
    bar.red.or.pred %p2, 0, %p1;
    selp.b32 %r1, 5, 6, %p2;
    st.global.u32 [%rd1], %r1;";
        assert_eq!(run(any).unwrap(), [5; 64]);
    }

    #[test]
    fn mistakes_are_reported() {
        let diverged = "    setp.lt.u32 %p1, %r0, 40;\n    @%p1 bra LEFT;\n    bar.sync 0;\nLEFT:";
        for (body, words) in [
            (diverged, "not all lanes reach this"),
            (
                "    setp.lt.u32 %p1, %r0, 32;\n    @%p1 bra LEFT;\n    bar.sync 0;\nLEFT:",
                "not all warps reach this",
            ),
            (
                "    st.global.u32 [%rd1+4], %r0;",
                "outside every tensor, at byte 256 of out, which has 256",
            ),
            ("    st.global.u64 [%rd1], %rd1;", "not a multiple of that"),
            (
                "    st.global.u32 [%rd0], %r0;\n    ld.shared.u32 %r1, [%r0+1024];",
                "at byte 1024 of shared memory",
            ),
            ("    cp.async.ca.shared.global [%r0], [%rd1], 4, 4;", "not a multiple"),
            (
                "
    shl.b32 %r1, %r0, 2;
    cp.async.ca.shared.global [%r1], [%rd1], 4, 4;
    cp.async.commit_group;",
                "ends with copies under way",
            ),
            ("    ld.param.u64 %rd2, [k_param_0+8];", "at byte 8 of the parameter"),
            ("    div.u32 %r1, %r0, 0;", "has no result"),
            ("    sin.approx.f32 %r1, %r0;", "does not support `sin.approx.f32`"),
            ("    mov.u32 %r1, %r9;", "`%r9` is not a register"),
            ("    bra NOWHERE;", "no label NOWHERE"),
        ] {
            let error = error(body);
            assert!(error.contains(words), "{words}: {error}");
        }
    }
}
