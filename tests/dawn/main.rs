//! Tests on Dawn, Chromium's WebGPU. Its compiler and its validation differ from wgpu's and are
//! stricter, and browsers use them.
//!
//! These tests have their own harness, because they must show as ignored, with the reason, and
//! never as passed, if Node, npm's `webgpu` (Dawn for Node) or a Vulkan driver is absent. With
//! FLASHTILE_REQUIRE_DAWN=1 (as on CI) they fail instead.
//!
//! FLASHTILE_CASE="shape=..." replays one case.
#![allow(clippy::unwrap_used)]

mod backend;
mod cases;
mod compile;
mod node;

use cases::{FLASH, UNFUSED};
use flashtile_core::KernelKind;
use flashtile_testkit::{Case, Tally, catalogue, chosen_cases, run_case};
use libtest_mimic::{Arguments, Completion, Trial};
use node::{Dawn, Session};
use std::sync::{Arc, Mutex, OnceLock};

type Test = Box<dyn FnOnce(&Session<'_>) -> Result<(), String> + Send>;

fn main() {
    let mut arguments = Arguments::from_args();
    // Each thread has its own process, whose driver starts threads for all cores.
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    arguments.test_threads.get_or_insert(threads);
    let required = std::env::var("FLASHTILE_REQUIRE_DAWN").is_ok_and(|value| value == "1");
    let dawn = Arc::new(OnceLock::new());
    let tally = Arc::new(Mutex::new(Tally::default()));
    let trials = trials(&tally).into_iter().map(|(name, test)| {
        let dawn = dawn.clone();
        Trial::ignorable_test(name, move || match dawn.get_or_init(Dawn::open) {
            Ok(dawn) => test(&dawn.session()).map(|()| Completion::Completed).map_err(Into::into),
            Err(reason) if required => Err(reason.into()),
            Err(reason) => Ok(Completion::ignored_with(reason)),
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    let tally = tally.lock().unwrap();
    if tally.passed > 0 {
        eprintln!("cases: {tally}");
    }
    conclusion.exit()
}

fn trials(tally: &Arc<Mutex<Tally>>) -> Vec<(String, Test)> {
    let mut trials = Vec::new();
    let mut add = |kernel: KernelKind, group: &str, cases: Vec<Case>| {
        let tally = tally.clone();
        let test: Test = Box::new(move |session| run_all(session, kernel, &cases, &tally));
        trials.push((format!("{kernel}: {group}"), test));
    };
    if std::env::var_os("FLASHTILE_CASE").is_some() {
        for &kernel in KernelKind::ALL {
            let cases = chosen_cases().unwrap_or_else(|e| panic!("FLASHTILE_CASE: {e}"));
            add(kernel, "replayed", cases.into_iter().map(|(_, case)| case).collect());
        }
        return trials;
    }
    let catalogue = catalogue();
    for (kernel, groups) in [(KernelKind::Flash, FLASH), (KernelKind::Unfused, UNFUSED)] {
        for (group, lines) in groups {
            let case = |line: &&str| {
                let case = line.parse::<Case>().unwrap_or_else(|e| panic!("{line}: {e}"));
                let known = catalogue.iter().any(|(g, c)| g == group && *c == case);
                assert!(known, "not in the catalogue's group `{group}`: {line}");
                case
            };
            add(kernel, group, lines.iter().map(case).collect());
        }
    }
    trials.extend(compile::trials());
    trials
}

/// Compares every case with the oracle, and reports every failure.
fn run_all(
    session: &Session<'_>,
    kernel: KernelKind,
    cases: &[Case],
    all: &Mutex<Tally>,
) -> Result<(), String> {
    let backend = backend::DawnBackend(session);
    let mut tally = Tally::default();
    for case in cases {
        let result = run_case(&backend, kernel, case);
        all.lock().unwrap().add(case, result.clone());
        tally.add(case, result);
    }
    if tally.all_passed() { Ok(()) } else { Err(tally.to_string()) }
}
