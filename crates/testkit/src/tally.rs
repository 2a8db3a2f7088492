use crate::case::Case;
use crate::catalogue::catalogue;
use crate::check::{Failure, Outcome, Worst, Wrong, run_case};
use crate::random::random_case;
use crate::shrink::minimise;
use crate::text::ParseCaseError;
use flashtile_core::{Backend, KernelKind};
use std::fmt;
use std::ops::Range;

/// The results of many cases on one kernel of a backend.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Cases within the bound.
    pub passed: usize,
    /// Cases that the backend refuses, each with its reasons.
    pub refused: Vec<Failure>,
    /// Cases that failed.
    pub failures: Vec<Failure>,
    /// The output with the largest share of its bound among the cases that passed.
    pub out: Option<(Worst, Case)>,
    /// The lse with the largest share of its bound among the cases that passed.
    pub lse: Option<(Worst, Case)>,
}

impl Tally {
    /// Counts one case.
    pub fn add(&mut self, case: &Case, result: Result<Outcome, Failure>) {
        let worse = |worst: &mut Option<(Worst, Case)>, other: Worst| {
            if worst.as_ref().is_none_or(|(worst, _)| other.share > worst.share) {
                *worst = Some((other, case.clone()));
            }
        };
        match result {
            Ok(outcome) => {
                self.passed += 1;
                worse(&mut self.out, outcome.out);
                outcome.lse.into_iter().for_each(|lse| worse(&mut self.lse, lse));
            }
            Err(failure) if matches!(failure.wrong, Wrong::Refused(_)) => {
                self.refused.push(failure)
            }
            Err(failure) => self.failures.push(failure),
        }
    }

    /// True if every case ran and passed.
    pub fn all_passed(&self) -> bool {
        self.failures.is_empty() && self.refused.is_empty()
    }
}

/// One line of counts, then the worst results and every failure.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} refused, {} failed",
            self.passed,
            self.refused.len(),
            self.failures.len()
        )?;
        for (name, worst) in [("out", &self.out), ("lse", &self.lse)] {
            if let Some((worst, case)) = worst {
                write!(f, "\nworst {name}: {worst}\n    in {case}")?;
            }
        }
        for failure in self.failures.iter().chain(&self.refused) {
            write!(f, "\n{failure}")?;
        }
        Ok(())
    }
}

/// Runs `cases` and calls `each` with every result, so that a program can show its progress.
pub fn run_cases<'a>(
    backend: &dyn Backend,
    kernel: KernelKind,
    cases: impl IntoIterator<Item = &'a Case>,
    mut each: impl FnMut(&Case, &Result<Outcome, Failure>),
) -> Tally {
    let mut tally = Tally::default();
    for case in cases {
        let result = run_case(backend, kernel, case);
        each(case, &result);
        tally.add(case, result);
    }
    tally
}

/// Runs a random case for each of `seeds`, and minimises the first failure.
///
/// # Errors
/// The first failure, with the case that replays it. A case that the backend refuses is counted,
/// and is not a failure.
pub fn run_random(
    backend: &dyn Backend,
    kernel: KernelKind,
    seeds: Range<u64>,
) -> Result<Tally, Failure> {
    let mut tally = Tally::default();
    for seed in seeds {
        let case = random_case(seed);
        tally.add(&case, run_case(backend, kernel, &case));
        if let Some(failure) = tally.failures.pop() {
            let mut last = failure;
            minimise(&case, |smaller| match run_case(backend, kernel, smaller) {
                Err(failure) if !matches!(failure.wrong, Wrong::Refused(_)) => {
                    last = failure;
                    true
                }
                _ => false,
            });
            return Err(last);
        }
    }
    Ok(tally)
}

/// Only the case in the environment variable `FLASHTILE_CASE` if that is set, else the catalogue.
///
/// # Errors
/// If the variable does not hold a case.
pub fn chosen_cases() -> Result<Vec<(&'static str, Case)>, ParseCaseError> {
    match std::env::var("FLASHTILE_CASE") {
        Ok(line) => Ok(vec![("replayed", line.parse()?)]),
        Err(_) => Ok(catalogue()),
    }
}
