//! Every backend of this machine against the oracle.

use crate::{args::CheckArgs, open, progress, text};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use comfy_table::{CellAlignment, Table, presets};
use flashtile::{
    Attention, Backend, BackendKind, DType, KernelKind, MatrixUnits, PlanOptions, Problem,
    TensorView,
};
use flashtile_testkit::{Case, Failure, Prepared, Wrong, catalogue};
use serde_json::json;
use std::{io::Write, sync::Arc};

/// Failures that the text report lists; it always gives their number.
const LISTED: usize = 20;

/// How one kernel of one device did.
struct Tally {
    device: Arc<dyn Backend>,
    /// The backend, the device, and `baseline` where that was requested.
    name: String,
    kernel: KernelKind,
    passed: usize,
    refused: usize,
    failed: usize,
    /// Largest share of the bound, of out and of lse.
    worst: [f64; 2],
    /// The case of the larger of the two.
    worst_case: String,
}

/// Compares every kernel that the arguments allow with the oracle, over the catalogue.
pub(crate) fn check(args: &CheckArgs, out: &mut dyn Write) -> Result<()> {
    let cases = cases(args)?;
    let mut tallies = tallies(args)?;
    let mut failures: Vec<Failure> = Vec::new();
    let bar = progress::bar(cases.len() as u64);
    for (group, case) in &cases {
        bar.set_message(*group);
        // The oracle computes each case once for all kernels.
        let prepared =
            Prepared::new(case).with_context(|| format!("the case `{case}` is not valid"))?;
        for tally in &mut tallies {
            match prepared.check(&*tally.device, tally.kernel) {
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
    if args.json {
        report_json(&tallies, &failures, out)?;
    } else {
        report_text(&tallies, &failures, out)?;
    }
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
        let mut groups: Vec<_> = cases.iter().map(|(group, _)| *group).collect();
        groups.dedup();
        cases.retain(|(group, case)| {
            group.contains(part.as_str()) || case.to_string().contains(part.as_str())
        });
        ensure!(
            !cases.is_empty(),
            "no case contains `{part}`; the groups are {}",
            groups.join(", ")
        );
    }
    Ok(cases)
}

/// An empty tally for each kernel of each device.
///
/// # Errors
/// All reasons, where no kernel runs even the smallest problem.
fn tallies(args: &CheckArgs) -> Result<Vec<Tally>> {
    let choice = args.choice.choice();
    // Matrix units multiply f16, wherever there are any.
    let required = choice.matrix_units == MatrixUnits::Require;
    let dtype = if required { DType::F16 } else { DType::F32 };
    let x = TensorView::bshd(dtype, [1; 4])?;
    let problem = Problem::builder(x, x, x).build()?;
    let mut tallies = Vec::new();
    for device in open::devices(&args.choice, args.baseline)? {
        let baseline =
            if args.baseline && device.kind() == BackendKind::Wgpu { ", baseline" } else { "" };
        let name = format!("{} {}{baseline}", device.kind(), device.device_name());
        let allowed = |kernel: &KernelKind| choice.kernel.is_none_or(|wanted| *kernel == wanted);
        for &kernel in KernelKind::ALL.iter().filter(|kernel| allowed(kernel)) {
            if device.verdict(&problem, &PlanOptions::new().kernel(kernel)).runs() {
                tallies.push(Tally {
                    device: device.clone(),
                    name: name.clone(),
                    kernel,
                    passed: 0,
                    refused: 0,
                    failed: 0,
                    worst: [0.0; 2],
                    worst_case: String::new(),
                });
            }
        }
    }
    if tallies.is_empty() {
        bail!(flashtile::Error::Refused(Attention::new().explain_within(&problem, choice)));
    }
    Ok(tallies)
}

fn report_json(tallies: &[Tally], failures: &[Failure], out: &mut dyn Write) -> Result<()> {
    for tally in tallies {
        let line = json!({
            "backend": tally.device.kind().name(),
            "name": tally.name,
            "kernel": tally.kernel.name(),
            "passed": tally.passed,
            "refused": tally.refused,
            "failed": tally.failed,
            "worst_out": tally.worst[0],
            "worst_lse": tally.worst[1],
            "worst_case": tally.worst_case,
        });
        writeln!(out, "{line}")?;
    }
    for failure in failures {
        let line = json!({
            "failure": failure.wrong.to_string(),
            "name": failure.backend,
            "kernel": failure.kernel.name(),
            "case": failure.case.to_string(),
        });
        writeln!(out, "{line}")?;
    }
    Ok(())
}

fn report_text(tallies: &[Tally], failures: &[Failure], out: &mut dyn Write) -> Result<()> {
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
            tally.name.clone(),
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
        "worst out, worst lse: the largest error as a share of the error bound; \
         at most 1 is within the bound"
    )?;
    for Failure { backend, kernel, wrong, case } in failures.iter().take(LISTED) {
        let wrong = text::one_line(&wrong.to_string());
        writeln!(out, "FAILED {backend}, {kernel}: {wrong}")?;
        writeln!(out, "    replay with: flashtile check --case \"{case}\"")?;
    }
    if failures.len() > LISTED {
        writeln!(out, "and {} more failures", failures.len() - LISTED)?;
    }
    Ok(())
}
