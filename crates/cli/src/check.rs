//! Every backend here against the oracle.

use crate::{
    adapters::{card_name, cards, contexts_with, device_name},
    args::CheckArgs,
    complain, progress, text,
};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use comfy_table::{CellAlignment, Table, presets};
use flashtile::{
    Attention, BackendKind, Choice, DType, HostArgs, KernelKind, Layout, Problem, TensorView,
    Verdict,
};
use flashtile_testkit::{Backend, Case, Failure, Prepared, Wrong, catalogue};
use serde_json::json;
use std::{error::Error, io::Write};

/// Failures that are told in full; their number is always told.
const TOLD: usize = 20;

/// A backend of the facade, as the testkit runs it.
struct Session {
    backend: BackendKind,
    name: String,
    attention: Attention,
}

impl Backend for Session {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn verdict(&self, problem: &Problem, kernel: KernelKind) -> Verdict {
        let choice = Choice { backend: Some(self.backend), kernel: Some(kernel) };
        let explanation = self.attention.explain_within(problem, choice);
        explanation.verdict(self.backend, kernel).cloned().unwrap_or(Verdict::Refused(Vec::new()))
    }

    fn run(
        &self,
        problem: &Problem,
        kernel: KernelKind,
        args: HostArgs<'_>,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        let choice = Choice { backend: Some(self.backend), kernel: Some(kernel) };
        self.attention.run(problem, args, choice)?;
        Ok(())
    }
}

/// One kernel of one backend, and how it did.
struct Tally {
    session: usize,
    kernel: KernelKind,
    passed: usize,
    refused: usize,
    failed: usize,
    /// Largest share of the bound, of out and of lse.
    worst: [f64; 2],
    /// The case of the larger of the two.
    worst_case: String,
}

/// Holds every kernel that the arguments leave to the oracle's bound over the catalogue.
pub(crate) fn check(args: &CheckArgs, out: &mut dyn Write) -> Result<()> {
    let cases = cases(args)?;
    let sessions = sessions(args)?;
    let mut tallies = tallies(args, &sessions)?;
    let mut failures: Vec<Failure> = Vec::new();
    let bar = progress::bar(cases.len() as u64);
    for (group, case) in &cases {
        bar.set_message(*group);
        // The oracle is asked once for all.
        let prepared =
            Prepared::new(case).with_context(|| format!("the case `{case}` is not valid"))?;
        for tally in &mut tallies {
            match prepared.check(&sessions[tally.session], tally.kernel) {
                Ok(outcome) => {
                    tally.passed += 1;
                    let shares = [outcome.out.share, outcome.lse.map_or(0.0, |lse| lse.share)];
                    if shares[0].max(shares[1]) > tally.worst[0].max(tally.worst[1]) {
                        tally.worst_case = case.to_string();
                    }
                    tally.worst = [tally.worst[0].max(shares[0]), tally.worst[1].max(shares[1])];
                }
                Err(Failure { wrong: Wrong::Refused(_), .. }) => tally.refused += 1,
                Err(failure) => {
                    tally.failed += 1;
                    failures.push(failure);
                }
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    tell(args, &sessions, &tallies, &failures, out)?;
    let checks: usize = tallies.iter().map(|t| t.passed + t.failed).sum();
    ensure!(failures.is_empty(), "{} of {checks} checks failed", failures.len());
    Ok(())
}

fn cases(args: &CheckArgs) -> Result<Vec<(&'static str, Case)>> {
    if let Some(line) = &args.case {
        let case = line.parse().map_err(|e| anyhow!("the case `{line}` cannot be read: {e}"))?;
        return Ok(vec![("replay", case)]);
    }
    let mut cases = catalogue();
    if let Some(part) = &args.filter {
        cases.retain(|(group, case)| {
            group.contains(part.as_str()) || case.to_string().contains(part.as_str())
        });
        ensure!(!cases.is_empty(), "no case contains `{part}`");
    }
    Ok(cases)
}

/// A session on every device that the arguments leave, and the reference.
fn sessions(args: &CheckArgs) -> Result<Vec<Session>> {
    let wanted = |backend| args.choice.choice().backend.is_none_or(|b| b == backend);
    let mut sessions = Vec::new();
    if wanted(BackendKind::Cuda) {
        for context in cards(&args.choice)? {
            sessions.push(Session {
                backend: BackendKind::Cuda,
                name: format!("cuda, {}", card_name(&context)),
                attention: Attention::with_cuda_context(context),
            });
        }
    }
    if wanted(BackendKind::Wgpu) {
        for context in contexts_with(&args.choice, args.baseline)? {
            let limits = if args.baseline { ", baseline" } else { "" };
            sessions.push(Session {
                backend: BackendKind::Wgpu,
                name: format!("wgpu, {}{limits}", device_name(&context)),
                attention: Attention::with_context(context),
            });
        }
    }
    if sessions.is_empty() && args.choice.choice().backend.is_none() {
        complain("no card and no graphics adapter was found: only the reference is checked");
    }
    if wanted(BackendKind::Reference) {
        let (backend, name) = (BackendKind::Reference, "reference".to_owned());
        sessions.push(Session { backend, name, attention: Attention::new() });
    }
    Ok(sessions)
}

/// Every kernel that exists; where there is none, the reasons.
fn tallies(args: &CheckArgs, sessions: &[Session]) -> Result<Vec<Tally>> {
    let choice = args.choice.choice();
    let x = TensorView::from_bhsd_sizes(DType::F32, Layout::Bshd, [1; 4])?;
    let problem = Problem::builder(x, x, x).build()?;
    let mut tallies = Vec::new();
    for (session, backend) in sessions.iter().enumerate() {
        for &kernel in KernelKind::ALL
            .iter()
            .copied()
            .filter(|&k| choice.kernel.is_none_or(|wanted| k == wanted))
        {
            if backend.verdict(&problem, kernel).runs() {
                let worst_case = String::new();
                tallies.push(Tally {
                    session,
                    kernel,
                    passed: 0,
                    refused: 0,
                    failed: 0,
                    worst: [0.0; 2],
                    worst_case,
                });
            }
        }
    }
    if tallies.is_empty() {
        bail!(flashtile::Error::Refused(Attention::new().explain_within(&problem, choice)));
    }
    Ok(tallies)
}

fn tell(
    args: &CheckArgs,
    sessions: &[Session],
    tallies: &[Tally],
    failures: &[Failure],
    out: &mut dyn Write,
) -> Result<()> {
    if args.json {
        for tally in tallies {
            let line = json!({
                "backend": sessions[tally.session].backend.name(), "name": sessions[tally.session].name,
                "kernel": tally.kernel.name(), "passed": tally.passed, "refused": tally.refused, "failed": tally.failed,
                "worst_out": tally.worst[0], "worst_lse": tally.worst[1], "worst_case": tally.worst_case,
            });
            writeln!(out, "{line}")?;
        }
        for failure in failures {
            let (case, wrong) = (failure.case.to_string(), failure.wrong.to_string());
            let line = json!({ "failure": wrong, "name": failure.backend, "kernel": failure.kernel.name(), "case": case });
            writeln!(out, "{line}")?;
        }
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header([
        "backend",
        "kernel",
        "passed",
        "refused",
        "failed",
        "worst out",
        "worst lse",
        "worst case",
    ]);
    for tally in tallies {
        table.add_row([
            sessions[tally.session].name.clone(),
            tally.kernel.to_string(),
            tally.passed.to_string(),
            tally.refused.to_string(),
            tally.failed.to_string(),
            text::digits(tally.worst[0]),
            text::digits(tally.worst[1]),
            tally.worst_case.clone(),
        ]);
    }
    for column in 2..7 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    writeln!(out, "{table}")?;
    writeln!(
        out,
        "worst out, worst lse: the largest error as a share of the promised bound; at most 1 passes"
    )?;
    for failure in failures.iter().take(TOLD) {
        writeln!(
            out,
            "FAILED {}, {}: {}",
            failure.backend,
            failure.kernel,
            text::one_line(&failure.wrong.to_string())
        )?;
        writeln!(out, "    flashtile check --case \"{}\"", failure.case)?;
    }
    if failures.len() > TOLD {
        writeln!(out, "and {} more", failures.len() - TOLD)?;
    }
    Ok(())
}
