//! Measures one case on every peer, in turns.

use crate::{
    case::{Case, Inputs},
    peers::Kind,
    remote::Remote,
    verify::Oracle,
};
use anyhow::{Context as _, Result, ensure};
use std::time::{Duration, Instant};

/// Rounds before those that count: an idle device is slow at first.
const WARM_UPS: usize = 3;
/// Rounds that count, at most and at least.
const ROUNDS: usize = 30;
const FEWEST: usize = 5;
/// Seconds that the rounds of one case may take, beyond the fewest.
const BUDGET_S: f64 = 60.0;
/// Milliseconds of the slowest peer's turn, and runs in a turn at most. Runs of one turn are queued
/// together, so that short kernels do not measure how long the host waits. Every peer has the same
/// number.
const TURN_MS: f64 = 50.0;
const MOST_RUNS: f64 = 20.0;

/// What one peer achieved in one case.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) case: Case,
    pub(crate) kind: Kind,
    /// The measurement, or why there is none.
    pub(crate) result: Result<Measured, String>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Measured {
    /// One run, the median over the rounds.
    pub(crate) ms: f64,
    /// From tensors in host memory to the first result in host memory.
    pub(crate) first_ms: f64,
    /// The largest share of the error bound, over the whole output.
    pub(crate) error: f64,
}

/// A peer in a case.
struct Contestant {
    kind: Kind,
    /// Its process, or why it is out.
    remote: Result<Remote, String>,
    first_ms: f64,
    times: Vec<f64>,
}

impl Contestant {
    /// Lets the peer do something, if it is still in. A failure puts it out.
    fn turn<T>(&mut self, act: impl FnOnce(&mut Remote) -> Result<T>) -> Option<T> {
        match act(self.remote.as_mut().ok()?) {
            Ok(value) => Some(value),
            Err(error) => {
                let why = format!("{error:#}");
                eprintln!("  {} is out: {why}", self.kind);
                self.remote = Err(why);
                None
            }
        }
    }
}

/// Measures `case` on each of `kinds`. `limit` is for each answer of a peer; the first result takes
/// longest.
///
/// # Errors
/// If the case is not valid. Failures of peers are outcomes.
pub(crate) fn hold(case: Case, kinds: &[Kind], limit: Duration) -> Result<Vec<Outcome>> {
    eprintln!("{case}: the oracle computes");
    let oracle = Oracle::new(&Inputs::new(case)?)?;
    let mut adapter = None;
    let mut contestants: Vec<_> =
        kinds.iter().map(|&kind| prepare(case, kind, &mut adapter, limit)).collect();

    let slowest = warm_up(&mut contestants, limit);
    let times = (TURN_MS / slowest).clamp(1.0, MOST_RUNS) as usize;
    eprintln!("{case}: up to {ROUNDS} rounds; runs per turn: {times}");
    let start = Instant::now();
    for round in 0..ROUNDS {
        if round >= FEWEST && start.elapsed().as_secs_f64() > BUDGET_S {
            break;
        }
        for contestant in &mut contestants {
            if let Some(ms) = contestant.turn(|remote| remote.run(times, limit)) {
                contestant.times.push(ms);
            }
        }
    }

    let finish = |mut contestant: Contestant| {
        let error = contestant.turn(|remote| oracle.error(&remote.output(limit)?));
        let Contestant { kind, remote, first_ms, mut times } = contestant;
        let result = remote.and_then(|_| {
            let error = error.ok_or("it has no output")?;
            Ok(Measured { ms: median(&mut times), first_ms, error })
        });
        Outcome { case, kind, result }
    };
    Ok(contestants.into_iter().map(finish).collect())
}

/// Starts a peer, and waits for its first result. The first peer's adapter is everyone's.
fn prepare(case: Case, kind: Kind, adapter: &mut Option<String>, limit: Duration) -> Contestant {
    eprintln!("{case}: {kind} compiles and runs for the first time");
    let remote = Remote::start(kind, case).map_err(|e| format!("{e:#}"));
    let mut contestant = Contestant { kind, remote, first_ms: 0.0, times: Vec::new() };
    let first = contestant.turn(|remote| {
        let opened = remote.adapter(limit)?;
        let expected = adapter.get_or_insert_with(|| opened.clone());
        ensure!(opened == *expected, "it opened {opened} instead of {expected}");
        remote.first_ms(limit).context("first result")
    });
    if let Some(first_ms) = first {
        eprintln!("  {first_ms:.0} ms on {}", adapter.as_deref().unwrap_or_default());
        contestant.first_ms = first_ms;
    }
    contestant
}

/// Runs every peer [`WARM_UPS`] times. Returns the milliseconds of the slowest's last run.
fn warm_up(contestants: &mut [Contestant], limit: Duration) -> f64 {
    let mut slowest = f64::MIN_POSITIVE;
    for round in 1..=WARM_UPS {
        for contestant in &mut *contestants {
            if let Some(ms) = contestant.turn(|remote| remote.run(1, limit))
                && round == WARM_UPS
            {
                slowest = slowest.max(ms);
            }
        }
    }
    slowest
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    let middle = times.len() / 2;
    match times.len() {
        0 => 0.0,
        even if even.is_multiple_of(2) => (times[middle - 1] + times[middle]) / 2.0,
        _ => times[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&mut [3.0]), 3.0);
        assert_eq!(median(&mut [9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 9.0]), 3.0);
    }
}
