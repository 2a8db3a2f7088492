//! The PTX with one mistake at a time. The interpreter or the bound has to find each one. Mistakes
//! in `device.cuh` would look like these.

use crate::common::prepare;
use flashtile_core::{DType, KernelKind};
use flashtile_emulator::{EmulatedCudaBackend, PtxCompiler, ThreadOrder};
use flashtile_shaders::Operation;
use flashtile_shaders::cuda::{
    Arch, CUDA_MMA_TILES, CUDA_SIMT_TILES, CUDA_TF32_TILES, CUDA_UNFUSED_TILES, CudaTiles,
    CudaVariant,
};
use std::collections::HashSet;

/// A kernel, and the cases that find mistakes in it.
pub(super) struct Suspect {
    kernel: KernelKind,
    variant: CudaVariant,
    cases: &'static str,
}

pub(super) fn suspects() -> Vec<(&'static str, Arch, Suspect)> {
    let mma = |stages| {
        let of_64 = |tiles: &CudaTiles| tiles.head_dim == 64 && tiles.rows == 64;
        CUDA_MMA_TILES.into_iter().find(|tiles| of_64(tiles) && tiles.stages == stages)
    };
    let simt = CUDA_SIMT_TILES.into_iter().rev().find(|tiles| tiles.columns == 64);
    let suspect = |kernel, operation, dtype, tiles: Option<CudaTiles>, cases| {
        let variant =
            CudaVariant::new(operation, dtype, false, tiles.unwrap_or(CUDA_UNFUSED_TILES));
        Suspect { kernel, variant, cases }
    };
    let flash = |dtype, tiles, cases| {
        suspect(KernelKind::Flash, Operation::FlashForward, dtype, tiles, cases)
    };
    // Rows at multiples of 16, 4 and 2 bytes; NaN in masked and in visible places.
    let halves = "
        shape=1x1x70x64 skv=140 dtype=f16 causal=yes align=bottom-right
        shape=1x1x70x40 skv=140 dv=56 dtype=f16
        shape=1x2x67x22 hkv=1 skv=100 dv=18 dtype=f16
        shape=2x1x40x13 skv=130 dv=7 dtype=f16 window_left=40 align=60 poison=unseen
        shape=1x1x20x16 skv=70 dtype=f16 nan=v causal=yes window_left=9 align=30 seed=4";
    let singles = "
        shape=1x1x70x64 skv=140 causal=yes align=bottom-right
        shape=1x2x67x22 hkv=1 skv=100 dv=18
        shape=2x1x40x13 skv=130 dv=7 window_left=40 align=60 poison=unseen
        shape=1x1x20x16 skv=70 nan=v causal=yes window_left=9 align=30 seed=4";
    let tf32 = CUDA_TF32_TILES.into_iter().find(|tiles| tiles.stages == 2);
    vec![
        ("flash on tensor cores in f32", 90, flash(DType::F32, tf32, singles)),
        ("flash on tensor cores", 90, flash(DType::F16, mma(2), halves)),
        ("flash on Turing's tensor cores", 75, flash(DType::F16, mma(1), halves)),
        (
            "flash on f32 units",
            90,
            flash(
                DType::F32,
                simt,
                "
        shape=1x1x70x64 skv=140 causal=yes align=bottom-right
        shape=1x2x67x80 hkv=1 skv=70 dv=72
        shape=2x1x40x13 skv=130 dv=7 window_left=40 align=60 poison=unseen
        shape=2x1x40x77 skv=130 dv=69 window_left=40 align=60 poison=unseen
        shape=1x1x20x16 skv=70 nan=v causal=yes window_left=9 align=30 seed=4",
            ),
        ),
        (
            "unfused values",
            90,
            suspect(
                KernelKind::Unfused,
                Operation::UnfusedValues,
                DType::F32,
                None,
                "
        shape=1x1x70x64 skv=140 causal=yes
        shape=1x2x67x80 hkv=1 skv=70 dv=70
        shape=2x1x40x13 skv=130 dv=7 poison=unseen window_left=40 align=60
        shape=1x1x3x8 skv=130 nan=v causal=yes align=100",
            ),
        ),
    ]
}

/// A change of instructions: one at a time, or all of them at once.
enum Change {
    Each(fn(&str) -> Option<String>),
    All(fn(&str) -> Option<String>),
}

const CHANGES: [(&str, Change); 9] = [
    ("a barrier removed", Change::Each(|line| line.starts_with("bar.sync").then(String::new))),
    (
        "a wait removed",
        Change::Each(|line| line.starts_with("cp.async.wait_group").then(String::new)),
    ),
    (
        "a group left open",
        Change::Each(|line| line.starts_with("cp.async.commit_group").then(String::new)),
    ),
    (
        "matrices not transposed",
        Change::All(|line| line.contains(".x4.trans.").then(|| line.replace(".trans.", "."))),
    ),
    (
        "matrices transposed",
        Change::All(|line| line.contains(".x4.shared").then(|| line.replace(".x4.", ".x4.trans."))),
    ),
    (
        "words of A exchanged",
        Change::All(|line| exchange(line.starts_with("mma.sync").then_some(line)?, 1)),
    ),
    (
        "words of B exchanged",
        Change::All(|line| exchange(line.starts_with("mma.sync").then_some(line)?, 2)),
    ),
    (
        "the halves of a word exchanged",
        Change::All(|line| line.starts_with("cvt.rn.f16x2").then(|| swap_last(line))?),
    ),
    ("global memory one element further", Change::Each(one_further)),
];

/// At most about this many places per change are tried.
const MOST_PLACES: usize = 20;

/// Exchanges the first and the last operand of a list in braces.
fn exchange(line: &str, list: usize) -> Option<String> {
    let start = line.match_indices('{').nth(list)?.0 + 1;
    let end = start + line[start..].find('}')?;
    let mut words: Vec<&str> = line[start..end].split(',').map(str::trim).collect();
    let last = words.len() - 1;
    if last == 0 {
        return None;
    }
    words.swap(0, last);
    Some(format!("{}{}{}", &line[..start], words.join(", "), &line[end..]))
}

fn swap_last(line: &str) -> Option<String> {
    let (head, last) = line.trim_end_matches(';').rsplit_once(',')?;
    let (head, first) = head.rsplit_once(',')?;
    Some(format!("{head}, {}, {};", last.trim(), first.trim()))
}

/// Moves an access to global memory to the next element.
fn one_further(line: &str) -> Option<String> {
    let name = line.split_whitespace().next()?;
    let global = line.starts_with("ld.global")
        || line.starts_with("st.global")
        || line.starts_with("cp.async.c");
    let end = line.rfind(']').filter(|_| global)?;
    let bytes = match name.rsplit('.').next()? {
        "u8" => 1,
        "u16" => 2,
        "global" if line.contains("], 16,") => 16,
        _ => 4,
    };
    let bytes = if name.contains(".v4.") { 4 * bytes } else { bytes };
    // The address may already have an offset.
    let (head, offset) =
        line[..end].rsplit_once('+').map_or((&line[..end], 0), |(head, offset)| {
            match offset.parse::<i64>() {
                Ok(offset) => (head, offset),
                Err(_) => (&line[..end], 0),
            }
        });
    Some(format!("{head}+{}{}", offset + bytes, &line[end..]))
}

pub(super) fn find_all(
    compiler: &PtxCompiler,
    arch: Arch,
    suspect: &Suspect,
) -> Result<(), String> {
    let cases = prepare(suspect.cases)?;
    // Kernels of its own, so that other tests do not mark lines as executed.
    let compiler = &compiler.with_edit(|ptx| ptx);
    let find = |compiler: &PtxCompiler| {
        cases.iter().find_map(|case| {
            let backend =
                EmulatedCudaBackend::with_ptx(compiler.clone(), arch, ThreadOrder::Shuffled(3));
            let flash = suspect.kernel == KernelKind::Flash;
            let backend = if flash { backend.with_tiles(suspect.variant.tiles) } else { backend };
            case.check(&backend, suspect.kernel).err().map(|failure| failure.to_string())
        })
    };
    if let Some(failure) = find(compiler) {
        return Err(format!("without a mistake: {failure}"));
    }
    let ptx = compiler.ptx(&suspect.variant, arch).map_err(|e| e.to_string())?;
    // A mistake on a line that no case executes cannot be found.
    let kernel = compiler.kernel(&suspect.variant, arch).map_err(|e| e.to_string())?;
    let executed: HashSet<usize> =
        kernel.executed().map(|executed| executed.line as usize - 1).collect();
    let (mut found, mut survivors) = (0, Vec::new());
    for (what, change) in &CHANGES {
        let (Change::Each(edit) | Change::All(edit)) = change;
        let places: Vec<usize> = (0..)
            .zip(ptx.lines())
            .filter(|(_, line)| edit(line.trim()).is_some())
            .filter(|(n, _)| executed.contains(n))
            .map(|(n, _)| n)
            .collect();
        let mistakes: Vec<Vec<usize>> = match change {
            _ if places.is_empty() => Vec::new(),
            Change::Each(_) => {
                let step = places.len().div_ceil(MOST_PLACES);
                places.into_iter().step_by(step).map(|place| vec![place]).collect()
            }
            Change::All(_) => vec![places],
        };
        for places in mistakes {
            let (original, edit, first) = (ptx.clone(), *edit, places[0]);
            let mistaken = compiler.with_edit(move |ptx| {
                if ptx != original {
                    return ptx;
                }
                let edited = ptx.lines().enumerate().map(|(n, line)| match places.contains(&n) {
                    true => edit(line.trim()).unwrap_or_default() + "\n",
                    false => line.to_owned() + "\n",
                });
                edited.collect()
            });
            match find(&mistaken) {
                Some(_) => found += 1,
                None => survivors.push(format!(
                    "{what}, line {}: {}",
                    first + 1,
                    ptx.lines().nth(first).unwrap_or_default().trim()
                )),
            }
        }
    }
    println!("{found} mistakes found");
    if survivors.is_empty() {
        Ok(())
    } else {
        Err(format!("{} were not found\n{}", survivors.len(), survivors.join("\n")))
    }
}
