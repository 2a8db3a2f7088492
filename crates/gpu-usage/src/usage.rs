use crate::capture::Compiled;
use std::fmt;

/// What a pipeline takes on one GPU, in terms that are the same for every driver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Registers per thread: vector registers of 32 bits on AMD, registers of 32 bits on NVIDIA,
    /// halves of 16 bits on Apple, registers of four components on Adreno.
    pub registers: u64,
    /// Subgroups that run at once: per SIMD on AMD, per multiprocessor on NVIDIA, per core on Apple
    /// and Adreno. Registers limit it, and on AMD workgroup memory too.
    pub subgroups: u64,
    /// Lanes of a subgroup.
    pub subgroup_size: u32,
    /// Spilled values (AMD, scalar and vector), or instructions that spill to memory or fill from
    /// it (others). NVIDIA's spills from one kind of register to another do not count.
    pub spills: u64,
    /// Bytes of memory per thread: scratch (AMD, Apple) or local memory (NVIDIA). Adreno counts its
    /// accesses as spills.
    pub scratch: u64,
    /// Bytes of workgroup memory, where the driver says it.
    pub shared: Option<u64>,
    /// Instructions of the whole program.
    pub instructions: u64,
    /// Matrix instructions among them, where the driver prints the machine code (AMD, NVIDIA).
    pub matrix: u64,
}

/// The starts of the names of matrix instructions: AMD's, then NVIDIA's.
const MATRIX: [&str; 4] = ["v_wmma", "v_swmmac", "hmma.", "imma."];

/// The names that one driver gives to its statistics.
struct Names {
    registers: &'static str,
    subgroups: &'static str,
    /// Summed.
    spills: &'static [&'static str],
    scratch: Option<&'static str>,
    shared: Option<&'static str>,
    instructions: &'static str,
}

/// RADV, NVK, Honeykrisp and Turnip, of Mesa 26. The names of registers tell them apart.
const DRIVERS: [Names; 4] = [
    Names {
        registers: "VGPRs",
        subgroups: "Subgroups per SIMD",
        spills: &["Spilled SGPRs", "Spilled VGPRs"],
        scratch: Some("Scratch size"),
        shared: Some("LDS size"),
        instructions: "Instructions",
    },
    Names {
        registers: "Number of GPRs",
        subgroups: "Max warps/SM",
        spills: &["Spills to memory", "Fills from memory"],
        scratch: Some("SLM size"),
        shared: None,
        instructions: "Instruction count",
    },
    Names {
        registers: "GPRs",
        // Threads of a core, which become subgroups below.
        subgroups: "Threads",
        spills: &["Spills", "Fills"],
        scratch: Some("Scratch"),
        shared: None,
        instructions: "Instructions",
    },
    Names {
        registers: "Registers used",
        subgroups: "Max Waves Per Core",
        spills: &["STP Count", "LDP Count"],
        scratch: None,
        shared: None,
        instructions: "Instruction Count",
    },
];

impl Usage {
    /// Reads the driver's statistics. `None` for a driver that gives none, as lavapipe.
    ///
    /// # Errors
    /// A driver that this version does not know, or one that lacks a statistic: its name.
    pub fn of(compiled: &Compiled) -> Result<Option<Self>, String> {
        if compiled.statistics.is_empty() {
            return Ok(None);
        }
        let names = DRIVERS
            .iter()
            .find(|names| compiled.statistic(names.registers).is_some())
            .ok_or("the driver's statistics have unknown names")?;
        let get = |name: &str| {
            compiled
                .statistic(name)
                .ok_or_else(|| format!("the driver does not give the statistic '{name}'"))
        };
        let mut subgroups = get(names.subgroups)?;
        if names.subgroups == "Threads" {
            subgroups /= u64::from(compiled.subgroup_size.max(1));
        }
        let mut spills = 0;
        for name in names.spills {
            spills += get(name)?;
        }
        Ok(Some(Self {
            registers: get(names.registers)?,
            subgroups,
            subgroup_size: compiled.subgroup_size,
            spills,
            scratch: names.scratch.map_or(Ok(0), get)?,
            shared: names.shared.map(get).transpose()?,
            instructions: get(names.instructions)?,
            matrix: matrix_instructions(compiled.listing().unwrap_or_default()),
        }))
    }
}

/// Each instruction is on a line of its own, after the registers that it writes or before them.
fn matrix_instructions(listing: &str) -> u64 {
    let is_matrix = |word: &str| MATRIX.iter().any(|name| word.starts_with(name));
    listing.lines().filter(|line| line.split_whitespace().any(is_matrix)).count() as u64
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { registers, subgroups, subgroup_size, spills, scratch, instructions, .. } = self;
        write!(
            f,
            "{registers} registers, {subgroups} subgroups of {subgroup_size}, {spills} spills, \
             {scratch} bytes scratch, "
        )?;
        if let Some(shared) = self.shared {
            write!(f, "{shared} bytes shared, ")?;
        }
        write!(f, "{instructions} instructions")?;
        match self.matrix {
            0 => Ok(()),
            count => write!(f, ", {count} of them matrix"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn compiled(subgroup_size: u32, statistics: &[(&str, u64)]) -> Compiled {
        let statistics = statistics.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
        Compiled { subgroup_size, statistics, ..Compiled::default() }
    }

    #[test]
    fn each_driver_gives_the_same_line() {
        let amd = compiled(
            64,
            &[
                ("SGPRs", 108),
                ("VGPRs", 132),
                ("Spilled SGPRs", 3),
                ("Spilled VGPRs", 4),
                ("LDS size", 1024),
                ("Scratch size", 16),
                ("Subgroups per SIMD", 5),
                ("Instructions", 900),
            ],
        );
        assert_eq!(
            Usage::of(&amd).unwrap().unwrap().to_string(),
            "132 registers, 5 subgroups of 64, 7 spills, 16 bytes scratch, 1024 bytes shared, \
             900 instructions"
        );
        let nvidia = compiled(
            32,
            &[
                ("Instruction count", 70),
                ("Max warps/SM", 20),
                ("Spills to memory", 1),
                ("Fills from memory", 2),
                ("Spills to reg", 9),
                ("Number of GPRs", 88),
                ("SLM size", 192),
            ],
        );
        assert_eq!(
            Usage::of(&nvidia).unwrap().unwrap().to_string(),
            "88 registers, 20 subgroups of 32, 3 spills, 192 bytes scratch, 70 instructions"
        );
        let apple = compiled(
            32,
            &[
                ("Instructions", 11),
                ("GPRs", 217),
                ("Threads", 448),
                ("Scratch", 0),
                ("Spills", 0),
                ("Fills", 0),
            ],
        );
        assert_eq!(
            Usage::of(&apple).unwrap().unwrap().to_string(),
            "217 registers, 14 subgroups of 32, 0 spills, 0 bytes scratch, 11 instructions"
        );
        let adreno = compiled(
            64,
            &[
                ("Instruction Count", 12),
                ("Max Waves Per Core", 2),
                ("Registers used", 48),
                ("STP Count", 5),
                ("LDP Count", 6),
            ],
        );
        assert_eq!(
            Usage::of(&adreno).unwrap().unwrap().to_string(),
            "48 registers, 2 subgroups of 64, 11 spills, 0 bytes scratch, 12 instructions"
        );
    }

    #[test]
    fn matrix_instructions_are_counted_in_the_listing() {
        let amd = "BB0:
            v_wmma_f32_16x16x16_f16 v[0:7], v[8:15], v[16:23], v[0:7]
            v_fmac_f32_e32 v1, v2, v3
            v_wmma_f32_16x16x16_f16 v[0:7], v[8:15], v[16:23], v[0:7]";
        assert_eq!(matrix_instructions(amd), 2);
        let nvidia = "block 0 L2 [] -> {
            r88..92   = hmma.m16n8k16.f32 r84..88 r80..82 r88..92   // delay=1
            r1        = ffma r1 r2 r3                               // delay=1";
        assert_eq!(matrix_instructions(nvidia), 1);
        let usage = Usage { instructions: 9, matrix: 2, ..Usage::default() };
        assert!(usage.to_string().ends_with(" 9 instructions, 2 of them matrix"), "{usage}");
    }

    #[test]
    fn a_missing_statistic_is_named() {
        let error = Usage::of(&compiled(64, &[("VGPRs", 1)])).unwrap_err();
        assert!(error.contains("Subgroups per SIMD"), "{error}");
        assert!(Usage::of(&compiled(8, &[("Registers", 1)])).is_err());
        assert_eq!(Usage::of(&compiled(8, &[])), Ok(None));
    }
}
