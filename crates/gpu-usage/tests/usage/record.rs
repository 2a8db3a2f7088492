use crate::{document, drivers};
use libtest_mimic::{Failed, Trial};
use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

/// The GPUs on record.
const GPUS: [&str; 7] = ["rdna2", "rdna3", "rdna4", "ampere", "ada", "m1", "adreno7"];

/// What marks a missed bar in the program's output.
const BAR: &str = "bar: ";

/// The lines of one GPU, read once for its trials.
type Lines = Arc<OnceLock<Result<Vec<String>, String>>>;

/// Trials run in parallel and share the files.
static FILES: Mutex<()> = Mutex::new(());

pub(crate) fn trials() -> Vec<Trial> {
    let required = env::var_os("FLASHTILE_REQUIRE_GPU_COMPILERS").is_some_and(|value| value == "1");
    let names = GPUS.iter().flat_map(|gpu| [reach(gpu), recorded(gpu)]);
    if let Err(why) = drivers::present()
        && !required
    {
        let names = names.chain([SAME.to_owned()]);
        return names.map(|name| ignored(&name, &why)).collect();
    }
    let mesa = drivers::lines("rdna3", &["--driver"]);
    let mut trials = Vec::new();
    for gpu in GPUS {
        let lines = Lines::default();
        let shared = lines.clone();
        trials.push(Trial::test(reach(gpu), move || reaches_the_bars(gpu, &shared)));
        trials.push(match &mesa {
            Ok(mesa) if !updating() && mesa[0] != recorded_mesa() => {
                ignored(&recorded(gpu), &format!("usage.txt is of {}", recorded_mesa()))
            }
            _ => {
                let mesa = mesa.clone();
                Trial::test(recorded(gpu), move || is_as_recorded(gpu, mesa, &lines))
            }
        });
    }
    trials.push(Trial::test(SAME, statistics_are_those_of_plain_pipelines));
    trials
}

fn reach(gpu: &str) -> String {
    format!("{gpu}_kernels_reach_the_bars")
}

fn recorded(gpu: &str) -> String {
    format!("{gpu}_kernels_take_what_is_recorded")
}

fn ignored(name: &str, why: &str) -> Trial {
    Trial::test(format!("{name} ({why})"), || Ok(())).with_ignored_flag(true)
}

fn updating() -> bool {
    env::var_os("UPDATE_USAGE").is_some()
}

fn read(lines: &Lines, gpu: &str) -> Result<Vec<String>, String> {
    lines.get_or_init(|| drivers::lines(gpu, &["--bars"])).clone()
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/usage").join(name)
}

/// The version of Mesa in the first line of usage.txt, `# Mesa 26.2.6-1`.
fn recorded_mesa() -> String {
    let text = fs::read_to_string(file("usage.txt")).unwrap_or_default();
    text.lines().next().unwrap_or_default().trim_start_matches("# ").to_owned()
}

fn of_gpu(line: &str, gpu: &str) -> bool {
    line.split(' ').next() == Some(gpu)
}

/// Missed bars are those that exceptions.txt lists, and no others.
fn reaches_the_bars(gpu: &str, lines: &Lines) -> Result<(), Failed> {
    let lines = read(lines, gpu)?;
    // `rdna3 f32 1x8x1024x64 causal: occupancy (4, not 6)`, with the detail in parentheses.
    let missed: BTreeMap<&str, &str> = lines
        .iter()
        .filter_map(|line| line.strip_prefix(BAR)?.split_once(" ("))
        .map(|(bar, detail)| (bar, detail.trim_end_matches(')')))
        .collect();
    let _guard = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    let text = fs::read_to_string(file("exceptions.txt")).unwrap();
    let excepted: Vec<&str> = text.lines().filter(|line| of_gpu(line, gpu)).collect();
    let not_needed: Vec<&str> =
        excepted.iter().copied().filter(|line| !missed.contains_key(line)).collect();
    if updating() {
        let kept: Vec<&str> = text.lines().filter(|line| !not_needed.contains(line)).collect();
        fs::write(file("exceptions.txt"), kept.join("\n") + "\n").unwrap();
    }
    let mut failures: Vec<String> = missed
        .iter()
        .filter(|(bar, _)| !excepted.contains(bar))
        .map(|(bar, detail)| format!("misses a bar: {bar} ({detail})"))
        .collect();
    if !updating() {
        failures.extend(
            not_needed.iter().map(|line| format!("not needed in exceptions.txt any more: {line}")),
        );
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n").into()) }
}

/// The lines of usage.txt are those that the program prints.
fn is_as_recorded(
    gpu: &str,
    mesa: Result<Vec<String>, String>,
    lines: &Lines,
) -> Result<(), Failed> {
    let mesa = mesa?.swap_remove(0);
    let lines = read(lines, gpu)?;
    let new: Vec<&str> =
        lines.iter().map(String::as_str).filter(|line| !line.starts_with(BAR)).collect();
    let _guard = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    let text = fs::read_to_string(file("usage.txt")).unwrap_or_default();
    let old: Vec<&str> = text.lines().filter(|line| of_gpu(line, gpu)).collect();
    if updating() {
        let mut all = format!("# {mesa}\n");
        for other in GPUS {
            let of_other = text.lines().filter(|line| other != gpu && of_gpu(line, other));
            let of_this = new.iter().copied().filter(|_| other == gpu);
            for line in of_other.chain(of_this) {
                all += line;
                all.push('\n');
            }
        }
        fs::write(file("usage.txt"), all).unwrap();
        document::update();
        return Ok(());
    }
    let added = new.iter().filter(|line| !old.contains(line));
    let gone = old.iter().filter(|line| !new.contains(line));
    let differences: Vec<String> = gone
        .map(|line| format!("only in usage.txt: {line}"))
        .chain(added.map(|line| format!("not in usage.txt: {line}")))
        .collect();
    if differences.is_empty() { Ok(()) } else { Err(differences.join("\n").into()) }
}

const SAME: &str = "statistics_are_those_of_plain_pipelines";

/// Asking for statistics changes nothing: RADV prints the same of pipelines for which nobody asks,
/// as it does for any application.
fn statistics_are_those_of_plain_pipelines() -> Result<(), Failed> {
    let case = ["--shape", "1x8x1024x64", "--causal"];
    let asked = drivers::lines("rdna3", &[&case[..], &["--statistics"]].concat())?;
    let asked: BTreeMap<&str, &str> =
        asked.iter().filter_map(|line| line.strip_prefix("    ")?.split_once(": ")).collect();
    let plain = drivers::run(
        "rdna3",
        &[&case[..], &["--uncaptured"]].concat(),
        &[("RADV_DEBUG", "shaderstats")],
    );
    let text = String::from_utf8_lossy(&plain.stderr).into_owned();
    // wgpu's own pipelines come first. The kernel's statistics are the last that are printed.
    let printed = text.rsplit("*** SHADER STATS ***").next().unwrap_or_default();
    let mut compared = 0;
    for line in printed.lines() {
        let Some((name, value)) = line.split_once(": ") else { continue };
        // The hash also covers what was asked for.
        if name.contains("hash") || name == "Hash" {
            continue;
        }
        if asked.get(name) != Some(&value) {
            let asked = asked.get(name);
            return Err(format!("{name}: {value} printed, {asked:?} when asked").into());
        }
        compared += 1;
    }
    if !asked.contains_key("VGPRs") || compared < 15 {
        return Err(format!("only {compared} statistics were compared:\n{text}").into());
    }
    Ok(())
}
