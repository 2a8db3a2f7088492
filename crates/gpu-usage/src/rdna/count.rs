use super::listing::Instruction;
use std::ops::AddAssign;

/// How many instructions of each kind a piece of code has. Bytes and FMA are those of one lane,
/// except where said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All instructions, with waits, hints and branches. A pair that is issued at once is one.
    pub instructions: u32,
    /// Fused multiply-adds. A packed or a dot-product instruction does two, a pair of instructions
    /// as many as its halves.
    pub fma: u32,
    /// Matrix instructions (WMMA).
    pub matrix: u32,
    /// Vector instructions without matrix instructions. A pair that is issued at once is one.
    pub vector: u32,
    /// Those of the vector instructions that run at a quarter of the rate: exp, log, rcp, sqrt.
    pub transcendental: u32,
    /// Those of the transcendental instructions that compute exp.
    pub exp: u32,
    /// Scalar instructions. Waits, hints, barriers, branches and loads are none.
    pub scalar: u32,
    /// Branches.
    pub branches: u32,
    /// Instructions that read workgroup memory.
    pub shared_loads: u32,
    /// Bytes that they read.
    pub shared_bytes: u32,
    /// Instructions that write workgroup memory.
    pub shared_stores: u32,
    /// Exchanges between lanes through the unit of workgroup memory. Exchanges by DPP are vector
    /// instructions.
    pub exchanges: u32,
    /// Scalar loads.
    pub scalar_loads: u32,
    /// Bytes that they load, once per subgroup.
    pub scalar_bytes: u32,
    /// Vector instructions that access buffers or global memory.
    pub vector_memory: u32,
    /// Accesses to scratch memory.
    pub scratch: u32,
    /// Barriers.
    pub barriers: u32,
    /// Words that the disassembler did not know.
    pub unknown: u32,
}

impl Counts {
    /// What one instruction adds.
    pub(crate) fn of(instruction: &Instruction) -> Self {
        let name = instruction.name.as_str();
        let mut counts = Self { instructions: 1, ..Self::default() };
        if name == "?" {
            counts.unknown = 1;
        } else if name.starts_with("v_wmma") || name.starts_with("v_swmmac") {
            counts.matrix = 1;
        } else if name.starts_with("v_") {
            counts.vector = 1;
            counts.fma = fma(name) + instruction.second.as_deref().map_or(0, fma);
            counts.transcendental = u32::from(is_transcendental(name));
            counts.exp = u32::from(name.starts_with("v_exp_"));
        } else if name.starts_with("ds_") {
            counts.of_shared_memory(name);
        } else if name.starts_with("scratch_") {
            counts.scratch = 1;
        } else if ["buffer_", "global_", "flat_"].iter().any(|unit| name.starts_with(unit)) {
            counts.vector_memory = 1;
        } else if name.starts_with("s_") {
            counts.of_scalar(name);
        } else {
            counts.unknown = 1;
        }
        counts
    }

    fn of_shared_memory(&mut self, name: &str) {
        // `read2`, `load_2addr`, `write2st64`: two addresses.
        let addresses = if name.contains('2') && two_addresses(name) { 2 } else { 1 };
        if name.contains("permute") || name.contains("swizzle") {
            self.exchanges = 1;
        } else if name.starts_with("ds_load") || name.starts_with("ds_read") {
            self.shared_loads = 1;
            self.shared_bytes = addresses * width(name);
        } else {
            self.shared_stores = 1;
        }
    }

    fn of_scalar(&mut self, name: &str) {
        const NO_WORK: [&str; 10] = [
            "s_wait",
            "s_delay",
            "s_clause",
            "s_nop",
            "s_sleep",
            "s_inst_prefetch",
            "s_set_inst_prefetch",
            "s_prefetch",
            "s_sendmsg",
            "s_endpgm",
        ];
        if name.contains("branch") {
            self.branches = 1;
        } else if name.starts_with("s_barrier") {
            // From RDNA 4 on, a barrier is a signal and a wait.
            self.barriers = u32::from(!name.ends_with("_wait"));
        } else if name.starts_with("s_load") || name.starts_with("s_buffer_load") {
            self.scalar_loads = 1;
            self.scalar_bytes = width(name);
        } else if !NO_WORK.iter().any(|prefix| name.starts_with(prefix)) {
            self.scalar = 1;
        }
    }
}

/// FMA that an instruction, or one half of a pair, does per lane.
fn fma(name: &str) -> u32 {
    let name = name.trim_start_matches("v_").trim_start_matches("dual_");
    if name.starts_with("pk_fma") || name.starts_with("dot2") {
        return 2;
    }
    let fused = ["fma_", "fmac_", "fmamk_", "fmaak_", "mad_f", "mac_f"];
    u32::from(fused.iter().any(|prefix| name.starts_with(prefix)))
}

fn is_transcendental(name: &str) -> bool {
    ["v_exp_", "v_log_", "v_rcp_", "v_rsq_", "v_sqrt_", "v_sin_", "v_cos_"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

fn two_addresses(name: &str) -> bool {
    name.contains("_2addr") || name.contains("read2") || name.contains("write2")
}

/// Bytes that a load's name says: `_b128`, `_dwordx4`, `_dword`, `_u16`.
fn width(name: &str) -> u32 {
    let last = name
        .split('_')
        .rfind(|part| {
            part.starts_with("dword") || part.trim_start_matches(['b', 'u', 'i']) != *part
        })
        .unwrap_or_default();
    match last.strip_prefix("dword") {
        Some("") => 4,
        Some(count) => 4 * count.trim_start_matches('x').parse().unwrap_or(1),
        None => last.trim_start_matches(['b', 'u', 'i']).parse().unwrap_or(32) / 8,
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.instructions += other.instructions;
        self.fma += other.fma;
        self.matrix += other.matrix;
        self.vector += other.vector;
        self.transcendental += other.transcendental;
        self.exp += other.exp;
        self.scalar += other.scalar;
        self.branches += other.branches;
        self.shared_loads += other.shared_loads;
        self.shared_bytes += other.shared_bytes;
        self.shared_stores += other.shared_stores;
        self.exchanges += other.exchanges;
        self.scalar_loads += other.scalar_loads;
        self.scalar_bytes += other.scalar_bytes;
        self.vector_memory += other.vector_memory;
        self.scratch += other.scratch;
        self.barriers += other.barriers;
        self.unknown += other.unknown;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rdna::listing::{Line, parse};

    /// Every line is one instruction, which the other counts need not repeat.
    fn counts(code: &str) -> Counts {
        let mut all = Counts::default();
        for line in parse(code) {
            match line {
                Line::Instruction(instruction) => all += Counts::of(&instruction),
                Line::Label(_) => {}
            }
        }
        let lines = code.lines().filter(|line| !line.trim().is_empty()).count();
        assert_eq!(all.instructions as usize, lines, "{code}");
        Counts { instructions: 0, ..all }
    }

    #[test]
    fn fma_of_each_kind() {
        let code = "
            v_fmac_f32_e32 v1, v2, v3
            v_fma_f32 v1, v2, v3, v4
            v_fmamk_f32 v1, v2, 0x3f000000, v3
            v_fma_mix_f32 v1, s2, v3, v4 op_sel_hi:[1,0,0]
            v_fmac_f32_dpp v1, v2, v3 quad_perm:[1,0,3,2] row_mask:0xf bank_mask:0xf";
        assert_eq!(counts(code), Counts { fma: 5, vector: 5, ..Counts::default() });
        let two = counts("v_pk_fma_f16 v1, v2, v3, v4\n v_dot2_f32_f16 v1, v2, v3, v4");
        assert_eq!(two, Counts { fma: 4, vector: 2, ..Counts::default() });
        // A multiplication and an addition are none.
        let none = counts(
            "v_mul_f32_e32 v1, v2, v3\n v_pk_mul_f16 v1, v2, v3\n v_mad_u32_u24 v1, v2, v3, v4",
        );
        assert_eq!(none, Counts { vector: 3, ..Counts::default() });
    }

    #[test]
    fn a_pair_is_one_vector_instruction() {
        let pair = |halves| counts(&format!("{halves} ; 00000000 00000000"));
        let both = pair("v_dual_fmac_f32 v1, v2, v3 :: v_dual_fmac_f32 v4, v5, v6");
        assert_eq!(both, Counts { fma: 2, vector: 1, ..Counts::default() });
        let one = pair("v_dual_mul_f32 v1, v2, v3 :: v_dual_fmaak_f32 v4, v5, v6, 0x1");
        assert_eq!(one, Counts { fma: 1, vector: 1, ..Counts::default() });
        let none = pair("v_dual_mov_b32 v1, v2 :: v_dual_mul_f32 v4, v5, v6");
        assert_eq!(none, Counts { vector: 1, ..Counts::default() });
    }

    #[test]
    fn matrix_instructions_stand_apart() {
        let code =
            "v_wmma_f32_16x16x16_f16 v[0:7], v[8:15], v[16:23], v[0:7]\n v_exp_f32_e32 v1, v2";
        let expected =
            Counts { matrix: 1, vector: 1, transcendental: 1, exp: 1, ..Counts::default() };
        assert_eq!(counts(code), expected);
        let other = Counts { vector: 1, transcendental: 1, ..Counts::default() };
        assert_eq!(counts("v_rcp_f32_e32 v1, v2"), other);
    }

    #[test]
    fn bytes_of_workgroup_memory() {
        for (name, bytes) in [
            ("ds_load_b128", 16),
            ("ds_load_b64", 8),
            ("ds_read_b32", 4),
            ("ds_load_2addr_b32", 8),
            ("ds_load_2addr_stride64_b64", 16),
            ("ds_read2_b32", 8),
            ("ds_read2st64_b64", 16),
            ("ds_load_u16_d16_hi", 2),
            ("ds_load_u8", 1),
        ] {
            let expected = Counts { shared_loads: 1, shared_bytes: bytes, ..Counts::default() };
            assert_eq!(counts(&format!("{name} v1, v2 offset:4")), expected, "{name}");
        }
        let rest = counts("ds_store_2addr_b32 v1, v2, v3\n ds_bpermute_b32 v1, v2, v3");
        assert_eq!(rest, Counts { shared_stores: 1, exchanges: 1, ..Counts::default() });
    }

    #[test]
    fn scalar_instructions_and_loads() {
        let code = "
            s_buffer_load_b512 s[0:15], s[16:19], 0x0
            s_load_dwordx4 s[0:3], s[4:5], null
            s_buffer_load_dword s0, s[4:7], null
            s_add_u32 s0, s1, s2
            s_delay_alu 0x1
            s_waitcnt lgkmcnt(0)
            s_wait_kmcnt 0x0
            s_clause 0x3
            s_barrier_signal -1
            s_barrier_wait 0xffff
            s_cbranch_scc1 BB4";
        let expected = Counts {
            scalar_loads: 3,
            scalar_bytes: 64 + 16 + 4,
            scalar: 1,
            barriers: 1,
            branches: 1,
            ..Counts::default()
        };
        assert_eq!(counts(code), expected);
    }

    #[test]
    fn memory_and_unknown_words() {
        let code = "
            buffer_load_b128 v[0:3], v4, s[0:3], 0
            global_store_b32 v0, v1, s[0:1]
            scratch_load_b32 v1, off, s32
            (invalid instruction)";
        let expected = Counts { vector_memory: 2, scratch: 1, unknown: 1, ..Counts::default() };
        assert_eq!(counts(code), expected);
    }
}
