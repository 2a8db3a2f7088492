use crate::{
    args::RunArgs,
    input::{self, Input},
    open,
    output::{self, Destination},
    progress, text, verify,
};
use anyhow::{Context as _, Result, ensure};
use flashtile::{Attention, Choice, Report, zeroed_bytes};
use std::io::Write;

/// Runs attention on a file, writes the result to another, and prints what ran and how long it
/// took.
pub(crate) fn run(args: &RunArgs, stdout: &mut dyn Write) -> Result<()> {
    let bytes = input::load(&args.input)?;
    let input = Input::parse(&bytes, &args.layout, &args.attention)?;
    let destination = Destination::open(&args.output)?;
    let mut out = zeroed_bytes(&input.problem)?;
    let rows = input.problem.lse_shape().iter().product();
    let mut lse = if input.problem.lse() { zeroed_floats(rows)? } else { vec![] };

    let spinner = progress::spinner(format!("running {}", input.problem));
    let wanted_lse = input.problem.lse().then_some(&mut lse[..]);
    let (session, choice) = (open::session(&args.choice)?, args.choice.choice());
    let report = session.run(&input.problem, input.args(&mut out, wanted_lse), choice);
    spinner.finish_and_clear();
    let report = report?;
    let mut printed = Vec::new();
    print_report(&input, &report, &mut printed)?;
    if args.verify {
        let spinner = progress::spinner("running again, and comparing with the oracle".to_owned());
        let verified = run_again(&session, choice, &input, (&out, &lse), &mut printed)
            .and_then(|()| verify::verify(&input, &bytes, &out, &lse, &mut printed));
        spinner.finish_and_clear();
        verified?;
    }
    let lse_bytes: Vec<u8> = lse.iter().flat_map(|x| x.to_le_bytes()).collect();
    let lse_bytes = input.problem.lse().then_some(&lse_bytes[..]);
    destination.write(&output::serialize(&input.problem, input.layout, &out, lse_bytes)?)?;
    // The file is the result: it stays, even if stdout is closed.
    let _ = stdout.write_all(&printed);
    Ok(())
}

/// Runs a second time. The bits must be the same, and this time nothing is compiled.
fn run_again(
    session: &Attention,
    choice: Choice,
    input: &Input<'_>,
    (out, lse): (&[u8], &[f32]),
    printed: &mut Vec<u8>,
) -> Result<()> {
    let mut again_out = zeroed_bytes(&input.problem)?;
    let mut again_lse = lse.to_vec();
    let wanted_lse = input.problem.lse().then_some(&mut again_lse[..]);
    let report = session.run(&input.problem, input.args(&mut again_out, wanted_lse), choice)?;
    let same = lse.iter().zip(&again_lse).all(|(a, b)| a.to_bits() == b.to_bits());
    ensure!(same && again_out == out, "a second run gave other bits than the first");
    writeln!(
        printed,
        "          {}{} in a second run, which gave the same bits",
        text::time(report.timing.host),
        gpu_time(&report)
    )?;
    Ok(())
}

fn zeroed_floats(len: usize) -> Result<Vec<f32>> {
    let mut floats = Vec::new();
    floats.try_reserve_exact(len).context("lse does not fit into memory")?;
    floats.resize(len, 0.0);
    Ok(floats)
}

fn print_report(input: &Input<'_>, report: &Report, stdout: &mut dyn Write) -> Result<()> {
    writeln!(stdout, "problem   {}", input.problem)?;
    writeln!(stdout, "device    {}", report.device)?;
    writeln!(stdout, "kernel    {} {}: {}", report.backend, report.kernel, report.why)?;
    for (n, line) in report.plan.lines().enumerate() {
        writeln!(stdout, "{:10}{line}", if n == 0 { "plan" } else { "" })?;
    }
    let (used, workspace) = (text::bytes(report.peak_bytes), text::bytes(report.workspace_bytes));
    let scores = text::bytes(input.score_matrix_bytes());
    writeln!(
        stdout,
        "memory    {used}, of which workspace {workspace}; the score matrix would take {scores}"
    )?;
    let (first, host) = (text::time(report.first), text::time(report.timing.host));
    let gpu = gpu_time(report);
    writeln!(
        stdout,
        "time      {first} to the first result, with compilation and copies; \
         {host}{gpu} from submission to completion"
    )?;
    Ok(())
}

/// The time by the device's own clock, where it has one.
fn gpu_time(report: &Report) -> String {
    report
        .timing
        .gpu
        .map_or(String::new(), |gpu| format!(" ({} by GPU timestamps)", text::time(gpu)))
}
