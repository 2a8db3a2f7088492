use crate::case::Case;
use crate::catalogue::catalogue;
use crate::check::{Failure, Outcome, Worst, Wrong, run_case};
use crate::random::random_case;
use crate::shrink::minimise;
use crate::text::ParseCaseError;
use flashtile_core::{Backend, KernelKind};
use std::fmt;
use std::ops::Range;

/// The sum of many cases on one kernel of a backend.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Cases within the bound.
    pub passed: usize,
    /// Cases that the backend refuses, each with its reasons.
    pub refused: Vec<Failure>,
    /// Cases that went wrong.
    pub failures: Vec<Failure>,
    /// The output nearest to its bound among the cases that passed.
    pub out: Option<(Worst, Case)>,
    /// The lse nearest to its bound among the cases that passed.
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

    /// True where every case ran and none went wrong.
    pub fn all_passed(&self) -> bool {
        self.failures.is_empty() && self.refused.is_empty()
    }
}

/// A line of counts and one for each thing worth seeing again.
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

/// Runs `cases` and tells `each` of every result, so that a program can show how far it is.
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

/// Runs a random case for each of `seeds`; the first failure is made as small as it can be.
///
/// # Errors
/// The failure, whose case replays it. Cases that the backend refuses are counted, not failed.
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

/// The case in the environment variable `FLASHTILE_CASE` alone, or the whole catalogue.
///
/// # Errors
/// Where the variable does not hold a case.
pub fn chosen_cases() -> Result<Vec<(&'static str, Case)>, ParseCaseError> {
    match std::env::var("FLASHTILE_CASE") {
        Ok(line) => Ok(vec![("replayed", line.parse()?)]),
        Err(_) => Ok(catalogue()),
    }
}
