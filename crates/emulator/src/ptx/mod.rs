//! CUDA kernels as NVRTC compiles them, on the CPU: an interpreter for PTX, the last text before machine code.
//!
//! Beside the emulation of the kernels' own text ([`emulator`](crate::Emulator)) this runs what only the compiler sees: `device.cuh`, the inline
//! assembly, the code for each compute capability. It watches every access ([`PtxKernel::run`] says what is an error), which makes it a stand-in for
//! the sanitizers that need a card. It knows the instructions that these kernels are compiled to and no others. What it cannot see: lanes of one warp
//! that race with each other, for it runs them in step.

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

/// What warps did of one instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineDone {
    /// Of the text, from 1 on.
    pub line: u32,
    /// Groups of lanes that shared memory served at once: a warp's 4-byte access is one, its 16-byte access four.
    pub shared_turns: u64,
    /// Turns that were taken besides, because lanes asked one bank for different words.
    pub bank_conflicts: u64,
}

/// A kernel of a PTX text.
#[derive(Debug)]
pub struct PtxKernel {
    name: String,
    text: String,
    program: Program,
    seen: Vec<Seen>,
}

impl PtxKernel {
    /// The kernel `entry_point` of `text`. Errors call it `name`.
    ///
    /// # Errors
    /// [`EmulatorError::Run`] where it uses what the interpreter does not know.
    pub fn parse(name: &str, entry_point: &str, text: &str) -> Result<Self, EmulatorError> {
        let failed = |message| EmulatorError::Run { kernel: name.to_owned(), message };
        let program = parse::parse(text, entry_point).map_err(failed)?;
        let seen = program.instructions.iter().map(|_| Seen::default()).collect();
        Ok(Self { name: name.to_owned(), text: text.to_owned(), program, seen })
    }

    /// What was done so far, instruction by instruction.
    pub fn done(&self) -> impl Iterator<Item = LineDone> {
        let instructions = self.program.instructions.iter().zip(&self.seen);
        instructions.filter(|(_, seen)| seen.done.load(Ordering::Relaxed)).map(
            |(instruction, seen)| {
                let (shared_turns, bank_conflicts) = seen.shared.told();
                LineDone { line: instruction.line, shared_turns, bank_conflicts }
            },
        )
    }

    /// The text that it was parsed from.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Runs all blocks of a launch, one after the other; `params` are the bytes of the kernel's parameter, and `global` is the memory that it
    /// points to.
    ///
    /// # Errors
    /// [`EmulatorError::Run`], with the line of the text: accesses outside of `global` and of shared memory or at no multiple of their size; shared
    /// memory that two warps touch without a barrier between them, where one writes; global memory that one block writes and another touches; lanes
    /// and warps that do not meet where all of them have to be; copies that nobody waits for.
    pub fn run(
        &self,
        run: &BlockRun,
        params: &[u8],
        global: &mut [&mut DeviceMemory],
    ) -> Result<(), EmulatorError> {
        let failed = |(line, why): (u32, String)| EmulatorError::Run {
            kernel: self.name.clone(),
            message: why + &quote(&self.text, line),
        };
        if params.len() != self.program.param_bytes as usize {
            return Err(failed((
                0,
                format!("it takes {} bytes, not {}", self.program.param_bytes, params.len()),
            )));
        }
        let threads = run.threads[0] as usize * run.threads[1] as usize;
        if threads == 0 || !threads.is_multiple_of(LANES) {
            return Err(failed((0, format!("{threads} threads are no number of whole warps"))));
        }
        let mut rng =
            Rng::new(if let ThreadOrder::Shuffled(seed) = run.order { seed } else { 1 }, 0);
        let mut memory = Global::new(global);
        for index in 0..run.grid {
            let shared = Shared::new(run.shared_bytes);
            let mut block =
                Block { global: &mut memory, shared, params, index, threads_x: run.threads[0] };
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
                    return Err((line, format!("block {}: not all warps come here", block.index)));
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

    /// A kernel that is given the address of `out` in %rd0, has %r0 = its thread, %rd1 = the address of out[thread], and then does `body`.
    fn kernel(body: &str) -> Result<PtxKernel, EmulatorError> {
        let text = format!(
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
        PtxKernel::parse("k", "k", &text)
    }

    /// The words that 64 threads leave in `out`.
    fn run(body: &str) -> Result<Vec<u32>, EmulatorError> {
        let mut out = DeviceMemory::new("out", &[0; 256]);
        let params = out.address().to_le_bytes();
        let order = ThreadOrder::Forward;
        let run = BlockRun {
            grid: 1,
            threads: [64, 1],
            shared_bytes: 1024,
            bf16: false,
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
    fn lanes_part_and_meet_again() {
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
                .done()
                .count(),
            0
        );
    }

    #[test]
    fn barriers_order_and_tell() {
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
            raced.contains("another warp wrote it") || raced.contains("another warp read it"),
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
    fn what_a_card_would_not_do_is_told() {
        let parted = "    setp.lt.u32 %p1, %r0, 40;\n    @%p1 bra LEFT;\n    bar.sync 0;\nLEFT:";
        for (body, words) in [
            (parted, "not all lanes come here"),
            (
                "    setp.lt.u32 %p1, %r0, 32;\n    @%p1 bra LEFT;\n    bar.sync 0;\nLEFT:",
                "not all warps come here",
            ),
            (
                "    st.global.u32 [%rd1+4], %r0;",
                "outside of all memory: at byte 256 of out, which has 256",
            ),
            ("    st.global.u64 [%rd1], %rd1;", "no multiple of that"),
            (
                "    st.global.u32 [%rd0], %r0;\n    ld.shared.u32 %r1, [%r0+1024];",
                "at byte 1024 of shared memory",
            ),
            ("    cp.async.ca.shared.global [%r0], [%rd1], 4, 4;", "no multiple"),
            (
                "    shl.b32 %r1, %r0, 2;\n    cp.async.ca.shared.global [%r1], [%rd1], 4, 4;\n    cp.async.commit_group;",
                "ends with copies under way",
            ),
            ("    ld.param.u64 %rd2, [k_param_0+8];", "at byte 8 of the parameter"),
            ("    div.u32 %r1, %r0, 0;", "has no result"),
            ("    sin.approx.f32 %r1, %r0;", "`sin.approx.f32` is not known here"),
            ("    mov.u32 %r1, %r9;", "`%r9` is no register"),
            ("    bra NOWHERE;", "no label NOWHERE"),
        ] {
            let error = error(body);
            assert!(error.contains(words), "{words}: {error}");
        }
    }
}
