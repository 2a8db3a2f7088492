use super::{
    count::Counts,
    listing::{Instruction, Line},
};
use std::collections::{BTreeSet, HashMap};

/// The blocks of a program, how they follow one another, and the loops that they form.
#[derive(Debug)]
pub(crate) struct Flow {
    blocks: Vec<Block>,
    /// Of each block, the blocks that every path from the start to it passes, with itself.
    dominators: Vec<BTreeSet<usize>>,
    /// The loops, by their first block.
    pub(crate) loops: Vec<Loop>,
}

/// Instructions that run one after the other.
#[derive(Debug, Default)]
struct Block {
    counts: Counts,
    /// Whether it multiplies floats other than by FMA.
    multiplies: bool,
    successors: Vec<usize>,
}

/// A loop: the blocks between its head and the jumps back to it.
#[derive(Clone, Debug)]
pub(crate) struct Loop {
    head: usize,
    /// The blocks that jump back.
    latches: Vec<usize>,
    /// All its blocks, with those of loops inside it.
    body: BTreeSet<usize>,
}

impl Loop {
    pub(crate) fn is(&self, other: &Loop) -> bool {
        self.head == other.head
    }
}

impl Flow {
    pub(crate) fn new(lines: &[Line]) -> Self {
        let blocks = blocks(lines);
        let dominators = dominators(&blocks);
        let loops = loops(&blocks, &dominators);
        Self { blocks, dominators, loops }
    }

    /// What one iteration of a loop does without the loops inside it: on the common path, and in
    /// regions that are rarely taken.
    ///
    /// A region is what only one side of a branch leads to. It counts as rare if the branch can
    /// skip it, if it has neither FMA nor matrix instructions, and if it multiplies or does not
    /// touch memory. Such are the rescale of O, masks and the treatment of NaN. Loads behind a
    /// condition are not: most iterations take them. Where both sides are regions and one has FMA
    /// outside inner loops, a side without any is rare: it treats edge tiles.
    pub(crate) fn iteration(&self, one: &Loop) -> (Counts, Counts) {
        let inner: BTreeSet<usize> = self
            .loops
            .iter()
            .filter(|other| other.head != one.head && one.body.contains(&other.head))
            .flat_map(|other| other.body.iter().copied())
            .collect();
        let always =
            |block: usize| one.latches.iter().all(|&latch| self.dominators[latch].contains(&block));
        let mut rare_blocks = BTreeSet::new();
        for &branch in one.body.iter().filter(|&&block| always(block)) {
            let sides: Vec<usize> = self.blocks[branch]
                .successors
                .iter()
                .copied()
                .filter(|next| one.body.contains(next) && *next != one.head)
                .collect();
            let skipped = |side: usize| {
                // The other side must be where both meet again, and not another region.
                !always(side) && sides.iter().any(|&other| other != side && always(other))
            };
            let region = |side: usize| -> BTreeSet<usize> {
                let led_to = |block: &usize| self.dominators[*block].contains(&side);
                one.body.iter().copied().filter(led_to).collect()
            };
            for &side in sides.iter().filter(|&&side| skipped(side)) {
                let region = region(side);
                if self.is_rare(&region) {
                    rare_blocks.extend(region);
                }
            }
            if let [a, b] = sides[..]
                && !always(a)
                && !always(b)
            {
                let products = |side: usize| -> u32 {
                    let own = region(side);
                    own.difference(&inner)
                        .map(|&block| self.blocks[block].counts)
                        .map(|counts| counts.fma + counts.matrix)
                        .sum()
                };
                match [products(a), products(b)] {
                    [0, n] if n > 0 => rare_blocks.extend(region(a)),
                    [n, 0] if n > 0 => rare_blocks.extend(region(b)),
                    _ => {}
                }
            }
        }
        let (mut common, mut rare) = (Counts::default(), Counts::default());
        for &block in one.body.difference(&inner) {
            let counts = self.blocks[block].counts;
            if rare_blocks.contains(&block) {
                rare += counts;
            } else {
                common += counts;
            }
        }
        (common, rare)
    }

    fn is_rare(&self, region: &BTreeSet<usize>) -> bool {
        let mut all = Counts::default();
        let mut multiplies = false;
        for &block in region {
            all += self.blocks[block].counts;
            multiplies |= self.blocks[block].multiplies;
        }
        let memory = all.shared_loads + all.shared_stores + all.scalar_loads + all.vector_memory;
        all.fma + all.matrix == 0 && (multiplies || memory == 0)
    }

    /// What a loop does with all loops inside it, each counted once.
    pub(crate) fn everything(&self, one: &Loop) -> Counts {
        let mut all = Counts::default();
        for &block in &one.body {
            all += self.blocks[block].counts;
        }
        all
    }

    /// Whether `inner` lies inside `outer`.
    pub(crate) fn contains(&self, outer: &Loop, inner: &Loop) -> bool {
        outer.head != inner.head && outer.body.contains(&inner.head)
    }

    /// Whether an iteration of `around`, which holds both loops, takes one or the other, and never
    /// both.
    pub(crate) fn are_alternatives(&self, around: &Loop, a: &Loop, b: &Loop) -> bool {
        let leads_to = |from: &Loop, to: &Loop| {
            let mut seen = BTreeSet::from([around.head]);
            let mut open = vec![from.head];
            while let Some(block) = open.pop() {
                if block == to.head {
                    return true;
                }
                let next = self.blocks[block].successors.iter().copied();
                open.extend(next.filter(|next| around.body.contains(next) && seen.insert(*next)));
            }
            false
        };
        !leads_to(a, b) && !leads_to(b, a)
    }
}

/// Blocks start at labels and after jumps.
fn blocks(lines: &[Line]) -> Vec<Block> {
    let mut blocks = vec![Block::default()];
    let mut labels: HashMap<&str, usize> = HashMap::new();
    let mut jumps: Vec<(usize, &str)> = Vec::new();
    // Whether the last block runs on into the next one.
    let mut runs_on = true;
    let mut empty = true;
    for line in lines {
        if !empty && (matches!(line, Line::Label(_)) || blocks_end(&blocks, &jumps, runs_on)) {
            let last = blocks.len() - 1;
            if runs_on {
                blocks[last].successors.push(last + 1);
            }
            blocks.push(Block::default());
            (runs_on, empty) = (true, true);
        }
        let last = blocks.len() - 1;
        match line {
            Line::Label(label) => {
                labels.insert(label, last);
            }
            Line::Instruction(instruction) => {
                empty = false;
                blocks[last].counts += Counts::of(instruction);
                blocks[last].multiplies |= multiplies(instruction);
                if let Some(target) = &instruction.target {
                    jumps.push((last, target));
                }
                if ["s_branch", "s_endpgm", "s_setpc_b64"].contains(&instruction.name.as_str()) {
                    runs_on = false;
                }
            }
        }
    }
    for (block, target) in jumps {
        if let Some(&to) = labels.get(target) {
            blocks[block].successors.push(to);
        }
    }
    blocks
}

/// Whether the last block has jumped.
fn blocks_end(blocks: &[Block], jumps: &[(usize, &str)], runs_on: bool) -> bool {
    !runs_on || jumps.last().is_some_and(|&(block, _)| block == blocks.len() - 1)
}

fn multiplies(instruction: &Instruction) -> bool {
    let halves = [Some(instruction.name.as_str()), instruction.second.as_deref()];
    halves.into_iter().flatten().any(|name| {
        ["v_mul_f", "v_dual_mul_f", "v_pk_mul_f"].iter().any(|prefix| name.starts_with(prefix))
    })
}

/// The usual iteration, to a fixed point. Blocks that nothing leads to, such as the padding after a
/// jump, are no predecessors.
fn dominators(blocks: &[Block]) -> Vec<BTreeSet<usize>> {
    let mut predecessors = vec![Vec::new(); blocks.len()];
    let mut reached = BTreeSet::from([0]);
    let mut open = vec![0];
    while let Some(from) = open.pop() {
        for &to in &blocks[from].successors {
            predecessors[to].push(from);
            if reached.insert(to) {
                open.push(to);
            }
        }
    }
    let all: BTreeSet<usize> = (0..blocks.len()).collect();
    let mut dominators = vec![all; blocks.len()];
    dominators[0] = BTreeSet::from([0]);
    loop {
        let mut changed = false;
        for block in 1..blocks.len() {
            let mut sets = predecessors[block].iter().map(|&from| &dominators[from]);
            let mut new = match sets.next() {
                None => BTreeSet::new(),
                Some(first) => {
                    sets.fold(first.clone(), |all, one| all.intersection(one).copied().collect())
                }
            };
            new.insert(block);
            if new != dominators[block] {
                dominators[block] = new;
                changed = true;
            }
        }
        if !changed {
            return dominators;
        }
    }
}

fn loops(blocks: &[Block], dominators: &[BTreeSet<usize>]) -> Vec<Loop> {
    let mut loops: Vec<Loop> = Vec::new();
    for head in 0..blocks.len() {
        let jumps_back = |&from: &usize| {
            blocks[from].successors.contains(&head) && dominators[from].contains(&head)
        };
        let latches: Vec<usize> = (0..blocks.len()).filter(jumps_back).collect();
        if latches.is_empty() {
            continue;
        }
        // Backwards from the jumps, up to the head.
        let mut body = BTreeSet::from([head]);
        let mut open = latches.clone();
        while let Some(block) = open.pop() {
            if body.insert(block) {
                open.extend(
                    (0..blocks.len()).filter(|&from| blocks[from].successors.contains(&block)),
                );
            }
        }
        loops.push(Loop { head, latches, body });
    }
    loops
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rdna::listing::parse;

    fn flow(text: &str) -> Flow {
        Flow::new(&parse(text))
    }

    /// FMA and vector instructions of the common path, and vector instructions of the rest.
    fn iteration(flow: &Flow, n: usize) -> [u32; 3] {
        let (common, rare) = flow.iteration(&flow.loops[n]);
        [common.fma, common.vector, rare.vector]
    }

    #[test]
    fn a_loop_at_the_end_of_its_body() {
        let flow = flow(
            "BB0:
             v_mov_b32_e32 v0, 0
             BB1:
             v_fmac_f32_e32 v1, v2, v3
             v_add_f32_e32 v1, v2, v3
             s_cbranch_scc1 BB1
             BB2:
             v_mul_f32_e32 v1, v2, v3
             s_endpgm",
        );
        assert_eq!(flow.loops.len(), 1);
        assert_eq!(iteration(&flow, 0), [1, 2, 0]);
    }

    #[test]
    fn a_loop_that_is_entered_in_its_middle() {
        // The test stands at BB3, and the body before it, after padding.
        let flow = flow(
            "BB0:
             s_branch BB3
             s_nop 0
             BB2:
             v_fmac_f32_e32 v1, v2, v3
             BB3:
             v_cmp_lt_u32_e32 vcc, v1, v2
             s_cbranch_vccnz BB2
             BB4:
             s_endpgm",
        );
        assert_eq!(flow.loops.len(), 1);
        assert_eq!(iteration(&flow, 0), [1, 2, 0]);
    }

    #[test]
    fn an_outer_loop_does_not_count_the_inner_one() {
        let flow = flow(
            "BB0:
             v_mov_b32_e32 v0, 0
             BB1:
             v_add_f32_e32 v1, v2, v3
             BB2:
             v_fmac_f32_e32 v1, v2, v3
             s_cbranch_scc1 BB2
             BB3:
             v_mul_f32_e32 v1, v2, v3
             s_cbranch_scc0 BB1
             BB4:
             s_endpgm",
        );
        assert_eq!(flow.loops.len(), 2);
        assert_eq!(iteration(&flow, 0), [0, 2, 0]);
        assert_eq!(iteration(&flow, 1), [1, 1, 0]);
        assert!(flow.contains(&flow.loops[0], &flow.loops[1]));
        assert!(!flow.contains(&flow.loops[1], &flow.loops[0]));
    }

    /// A loop with `region` behind a branch that skips it.
    fn with_region(region: &str) -> [u32; 3] {
        let flow = flow(&format!(
            "BB0:
             s_mov_b32 s0, 0
             BB1:
             v_fmac_f32_e32 v1, v2, v3
             s_cbranch_execz BB9
             {region}
             BB9:
             v_fmac_f32_e32 v1, v2, v3
             s_cbranch_scc1 BB1
             BB10:
             s_endpgm"
        ));
        assert_eq!(flow.loops.len(), 1);
        iteration(&flow, 0)
    }

    #[test]
    fn a_rescale_is_rare() {
        assert_eq!(with_region("BB2:\n v_mul_f32_e32 v1, v2, v3\n v_mov_b32 v1, v2"), [2, 2, 2]);
        // Through workgroup memory, in two blocks.
        let spilled = "BB2:
            ds_store_b32 v1, v2
            v_mov_b32_e32 v1, v2
            s_cbranch_scc0 BB4
            BB3:
            v_mul_f32_e32 v1, v2, v3
            BB4:
            ds_load_b32 v1, v2";
        assert_eq!(with_region(spilled), [2, 2, 2]);
        // A mask.
        assert_eq!(with_region("BB2:\n v_cndmask_b32_e32 v1, v2, v3, vcc"), [2, 2, 1]);
    }

    #[test]
    fn work_behind_a_condition_is_not_rare() {
        assert_eq!(
            with_region("BB2:\n v_mul_f32_e32 v1, v2, v3\n v_fma_f32 v1, v2, v3, v4"),
            [3, 4, 0]
        );
        assert_eq!(
            with_region("BB2:\n v_mov_b32_e32 v1, v2\n buffer_load_b32 v1, v2, s[0:3], 0"),
            [2, 3, 0]
        );
    }

    #[test]
    fn loops_that_may_be_skipped_are_not_alternatives() {
        let alternatives = |between: &str| {
            let flow = flow(&format!(
                "BB1:
                 s_cbranch_scc0 BB4
                 BB2:
                 v_fmac_f32_e32 v1, v2, v3
                 s_cbranch_scc1 BB2
                 BB3:
                 {between}
                 BB4:
                 v_fmac_f32_e32 v1, v2, v3
                 s_cbranch_scc1 BB4
                 BB5:
                 s_cbranch_scc1 BB1
                 BB6:
                 s_endpgm"
            ));
            assert_eq!(flow.loops.len(), 3);
            flow.are_alternatives(&flow.loops[0], &flow.loops[1], &flow.loops[2])
        };
        assert!(!alternatives("s_nop 0"));
        assert!(alternatives("s_branch BB5"));
    }

    /// A loop with one of two regions in each iteration.
    fn with_alternatives(first: &str, second: &str) -> [u32; 3] {
        let flow = flow(&format!(
            "BB1:
             v_fmac_f32_e32 v1, v2, v3
             s_cbranch_scc0 BB3
             BB2:
             {first}
             s_branch BB8
             BB3:
             {second}
             BB8:
             s_cbranch_scc1 BB1
             BB10:
             s_endpgm"
        ));
        iteration(&flow, 0)
    }

    #[test]
    fn of_two_alternatives_neither_is_rare() {
        let (one, other) = ("v_mul_f32_e32 v1, v2, v3", "v_mul_f32_e32 v4, v5, v6");
        assert_eq!(with_alternatives(one, other), [1, 3, 0]);
        let (one, other) = ("v_fma_f32 v1, v2, v3, v4", "v_fma_f32 v1, v2, v3, v5");
        assert_eq!(with_alternatives(one, other), [3, 3, 0]);
    }

    #[test]
    fn an_alternative_to_fma_is_rare() {
        let (one, other) = ("v_fma_f32 v1, v2, v3, v4", "v_mov_b32_e32 v1, v2");
        assert_eq!(with_alternatives(one, other), [2, 2, 1]);
        assert_eq!(with_alternatives(other, one), [2, 2, 1]);
    }
}
