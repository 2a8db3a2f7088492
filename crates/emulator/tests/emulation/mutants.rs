//! The kernel sources with one mistake at a time: a barrier or a wait removed, an index or a limit
//! changed. Every mutant has to fail a case in some order of threads; otherwise the conformance
//! tests would not have found it either.
//!
//! All mutants of a source are compiled at once: each changed place asks which mutant runs.
//! [`HARMLESS`] lists changes that do no harm, with the reason.

use super::Test;
use super::common::prepare;
use flashtile_core::Backend;
use flashtile_core::KernelKind;
use flashtile_emulator::{EmulatedCudaBackend, Emulator, ThreadOrder};
use flashtile_shaders::Operation;
use flashtile_shaders::cuda::{
    CUDA_MMA_TILES, CUDA_SIMT_TILES, CUDA_TF32_TILES, CudaTiles, CudaVariant,
};
use std::sync::Arc;

/// Statements that mutants remove.
const STATEMENTS: [&str; 3] = ["barrier();", "copy_wait<0>();", "copy_commit();"];

/// Expressions that mutants increase by four; a smaller step would break the alignment of loads. An
/// expression precedes those that it starts with. None of them is an address in global memory: a
/// wrong address would end the process and show nothing.
const EXPRESSIONS: [&str; 16] = [
    // The keys that a query sees
    "params.band_lo",
    "params.band_hi",
    "row_end - 1",
    // Tiles of the kernel on f32 units
    "4 * TX * g",
    "kv_place(j)",
    "kv_place(n)",
    "kv_place(4)",
    "stage * KV_FLOATS",
    "place / BC",
    "thread % 32",
    "thread / 32",
    // Tiles of the kernel on tensor cores
    "lane / 16",
    "lane % 16",
    "lane / 8",
    "lane % 8",
    // Dropout
    "j / 4",
];

/// Mutants that may pass: part of the line, the expression, and the reason.
const HARMLESS: &[(&str, &str, &str)] = &[
    ("lane / 8 % 2", "lane / 8", "four more is the same modulo 2"),
    ("Range last = ", "row_end - 1", "checks more tiles key by key than necessary"),
];

struct Mutant {
    what: &'static str,
    line: String,
}

impl Mutant {
    /// Whether it does not change what the kernel computes. `uncalled` holds lines of functions
    /// that the kernel does not call.
    fn is_harmless(&self, uncalled: &[&str]) -> bool {
        let same =
            |(line, what, _): &(&str, &str, &str)| self.what == *what && self.line.contains(line);
        HARMLESS.iter().any(same) || uncalled.iter().any(|line| self.line.contains(line))
    }
}

/// Puts all mutants into a kernel source, from `after` on.
fn mutate(source: &str, after: &str) -> (String, Vec<Mutant>) {
    let start = source.find(after).map_or(0, |at| at + after.len());
    let mut changed = source[..start].to_owned();
    let mut mutants = Vec::new();
    for line in source[start..].split_inclusive('\n') {
        let code = line.trim_start();
        let fixed = ["#", "//", "constexpr", "template", "static_assert", "struct"]
            .iter()
            .any(|word| code.starts_with(word));
        let end = if fixed { 0 } else { line.find("//").unwrap_or(line.len()) };
        let mut at = 0;
        while at < line.len() {
            let found = if at < end { place_at(line, at) } else { None };
            let Some(what) = found else {
                let next = line[at..].chars().next().map_or(1, char::len_utf8);
                changed.push_str(&line[at..at + next]);
                at += next;
                continue;
            };
            mutants.push(Mutant { what, line: line.trim().to_owned() });
            let n = mutants.len();
            if STATEMENTS.contains(&what) {
                changed += &format!("if (!is_mutant({n})) {{ {what} }}");
            } else {
                changed += &format!("({what} + 4 * is_mutant({n}))");
            }
            at += what.len();
        }
    }
    (changed, mutants)
}

/// The statement or expression at this place of a line, if it can be changed.
fn place_at(line: &str, at: usize) -> Option<&'static str> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (before, rest) = (&line[..at], &line[at..]);
    let what = STATEMENTS.iter().chain(&EXPRESSIONS).find(|what| {
        let ends = |rest: &str| {
            rest.chars().next().is_none_or(|c| !is_word(c)) || !what.ends_with(is_word)
        };
        rest.strip_prefix(**what).is_some_and(ends)
    })?;
    let next = rest[what.len()..].trim_start();
    let assigned = next.starts_with('=') && !next.starts_with("==");
    let last_word = before.trim_end().rsplit(|c| !is_word(c)).next().unwrap_or("");
    let declared = before.ends_with(' ') && ["u32", "i32", "u64", "float"].contains(&last_word);
    let inside = before.ends_with(|c| is_word(c) || c == '.') && what.starts_with(is_word);
    (!assigned && !declared && !inside).then_some(*what)
}

/// A kernel, and the cases that find its mutants.
struct Suspect {
    name: &'static str,
    kernel: KernelKind,
    operation: Operation,
    tiles: Vec<CudaTiles>,
    /// Lines of functions that are part of every source and that this kernel does not call.
    uncalled: &'static [&'static str],
    cases: &'static str,
}

/// Lines of `kv_range` and `tile_is_full`, which the unfused kernels do not call; of
/// `visible_keys`; of dropout; of the two products.
const TILES_VISITED: &str = "visible_keys(params, item, row_end - 1)";
const VISIBLE: &str = "position + params.band_";
const DROPOUT: &str = "dropout_words(params, item, i, j / 4 * 4)";
const PHILOX: &str = "return philox(j / 4";
const SCORES: &str = "keys[c] = ";
const VALUES: &str = "values[n][g] = ";
const NEXT_VALUES: &str = "v_row += ";
const DIRTY: &str = "kv_place(block / ";

const UNFUSED_CASES: &str = "
    shape=2x2x70x68 hkv=1 skv=136 dv=68 causal=yes align=bottom-right kv_lens=136:70 \
        call_q=67
    shape=1x2x66x9 skv=70 dv=7 dtype=f16 mask=f32:1hqk:blocks dropout=0.3 softcap=4.0 \
        window_left=30 poison=unseen
    shape=1x2x5x72 skv=131 dv=66 mask=bool:qk:rows dropout=0.3 out=2000:900:80:1 \
        call_kv=129 poison=unseen
    shape=1x1x3x8 skv=130 nan=v dtype=bf16 causal=yes align=100";

fn suspects() -> Vec<Suspect> {
    let simt = |width| CUDA_SIMT_TILES.into_iter().rev().find(move |tiles| tiles.columns == width);
    let mma = |width| CUDA_MMA_TILES.into_iter().rev().find(move |tiles| tiles.head_dim == width);
    let unfused = |name, operation, uncalled| Suspect {
        name,
        uncalled,
        kernel: KernelKind::Unfused,
        operation,
        tiles: Vec::new(),
        cases: UNFUSED_CASES,
    };
    vec![
        Suspect {
            name: "flash on f32 units",
            kernel: KernelKind::Flash,
            operation: Operation::FlashForward,
            tiles: [simt(128), simt(256)].into_iter().flatten().collect(),
            uncalled: &[DROPOUT],
            cases: "
                shape=1x1x70x8 skv=200 window_left=40 align=100
                shape=1x1x70x8 skv=200 causal=yes align=60
                shape=1x2x70x20 hkv=1 skv=90 causal=yes align=bottom-right
                shape=2x2x70x72 skv=75 dv=152 window_left=30 window_right=5 kv_lens=75:20 \
                    poison=unseen
                shape=2x2x66x24 skv=140 dv=33 dtype=f16 mask=f32:1hqk:blocks dropout=0.3 \
                    softcap=4.0 causal=yes align=40 poison=unseen
                shape=1x2x9x300 skv=140 dv=300 out=99999:3020:320:1 window_left=40 \
                    align=bottom-right call_kv=139
                shape=2x1x66x5 skv=66 dv=7 dtype=bf16 mask=bool:b1qk:rows poison=unseen call_q=65",
        },
        Suspect {
            name: "flash on tensor cores",
            kernel: KernelKind::Flash,
            operation: Operation::FlashForward,
            tiles: [mma(64), mma(32)].into_iter().flatten().collect(),
            uncalled: &[],
            cases: "
                shape=1x1x130x8 skv=300 dtype=f16 window_left=40 align=100
                shape=1x1x130x8 skv=300 dtype=f16 causal=yes align=60
                shape=1x1x20x16 skv=70 dtype=f16 nan=v dropout=0.4
                shape=1x2x140x20 hkv=1 skv=150 dtype=f16 causal=yes align=bottom-right
                shape=2x2x70x32 skv=150 dv=72 dtype=bf16 window_left=30 window_right=5 \
                    kv_lens=150:20 poison=unseen
                shape=2x2x66x26 skv=140 dv=31 dtype=f16 mask=f32:1hqk:blocks dropout=0.3 \
                    softcap=4.0 causal=yes align=40 poison=unseen
                shape=1x2x9x17 skv=140 dv=70 dtype=f16 out=99999:3020:320:1 window_left=40 \
                    align=bottom-right call_kv=139
                shape=2x1x66x5 skv=66 dv=7 dtype=bf16 mask=bool:b1qk:rows dropout=0.2 \
                    poison=unseen call_q=65
                shape=1x1x20x16 skv=70 dtype=bf16 nan=v causal=yes window_left=9 align=30 seed=4",
        },
        Suspect {
            name: "flash on tensor cores in f32",
            kernel: KernelKind::Flash,
            operation: Operation::FlashForward,
            tiles: CUDA_TF32_TILES[..2].to_vec(),
            uncalled: &[],
            cases: "
                shape=1x1x130x8 skv=300 window_left=40 align=100
                shape=1x1x130x8 skv=300 causal=yes align=60
                shape=1x1x20x16 skv=70 nan=v dropout=0.4
                shape=1x2x140x20 hkv=1 skv=150 causal=yes align=bottom-right
                shape=2x2x70x32 skv=150 dv=72 window_left=30 window_right=5 kv_lens=150:20 \
                    poison=unseen
                shape=2x2x66x26 skv=140 dv=31 mask=f32:1hqk:blocks dropout=0.3 softcap=4.0 \
                    causal=yes align=40 poison=unseen
                shape=1x2x9x17 skv=140 dv=70 out=99999:3020:320:1 window_left=40 \
                    align=bottom-right call_kv=139
                shape=2x1x66x5 skv=66 dv=7 mask=bool:b1qk:rows dropout=0.2 poison=unseen \
                    call_q=65
                shape=1x1x20x16 skv=70 nan=v causal=yes window_left=9 align=30 seed=4",
        },
        unfused(
            "unfused scores",
            Operation::UnfusedScores,
            &[TILES_VISITED, DROPOUT, PHILOX, VALUES, NEXT_VALUES, DIRTY],
        ),
        unfused("unfused softmax", Operation::UnfusedSoftmax, &[TILES_VISITED, VISIBLE]),
        unfused(
            "unfused values",
            Operation::UnfusedValues,
            &[TILES_VISITED, VISIBLE, DROPOUT, PHILOX, SCORES],
        ),
    ]
}

pub(super) fn tests() -> Vec<Test> {
    suspects()
        .into_iter()
        .map(|suspect| -> Test {
            (format!("mutants: {}", suspect.name), Box::new(move |e| find_all(e, &suspect)))
        })
        .collect()
}

/// Ends the part of a source that belongs to the device.
const DEVICE_END: &str = "#endif // FLASHTILE_EMULATED";

fn find_all(emulator: Arc<Emulator>, suspect: &Suspect) -> Result<(), String> {
    let operation = suspect.operation;
    let edit = move |variant: &CudaVariant, source: String| {
        if variant.operation == operation { mutate(&source, DEVICE_END).0 } else { source }
    };
    let backend =
        EmulatedCudaBackend::new(emulator, 80, ThreadOrder::Forward).with_source_edit(edit);
    let backends: Vec<EmulatedCudaBackend> = if suspect.tiles.is_empty() {
        vec![backend]
    } else {
        suspect.tiles.iter().map(|&tiles| backend.with_tiles(tiles)).collect()
    };
    let cases = prepare(suspect.cases)?;
    let find = |mutant: u32| {
        let runs = cases.iter().flat_map(|case| ThreadOrder::ALL.map(|order| (case, order)));
        runs.flat_map(|run| backends.iter().map(move |backend| (run, backend))).find_map(
            |((case, order), backend)| {
                let backend = backend.with_order(order).with_mutant(mutant);
                if !backend
                    .verdict(
                        &case.tensors().problem,
                        &flashtile_core::PlanOptions::new().kernel(suspect.kernel),
                    )
                    .runs()
                {
                    return None;
                }
                case.check(&backend, suspect.kernel).err()
            },
        )
    };
    if let Some(failure) = find(0) {
        return Err(format!("without a mistake: {failure}"));
    }
    let tiles =
        suspect.tiles.first().copied().unwrap_or(flashtile_shaders::cuda::CUDA_UNFUSED_TILES);
    let variant = CudaVariant::new(operation, cases[0].case().dtype, false, tiles);
    let mutants = mutate(&variant.source(), DEVICE_END).1;
    let mut survivors = Vec::new();
    let mut harmless = 0;
    for (n, mutant) in (1..).zip(&mutants) {
        if find(n).is_none() {
            if mutant.is_harmless(suspect.uncalled) {
                harmless += 1;
            } else {
                survivors.push(format!("{} | {}", mutant.what, mutant.line));
            }
        }
    }
    println!("{}: {} mutants, {harmless} of them harmless", suspect.name, mutants.len());
    if survivors.is_empty() {
        Ok(())
    } else {
        Err(format!("{} were not found\n{}", survivors.len(), survivors.join("\n")))
    }
}
