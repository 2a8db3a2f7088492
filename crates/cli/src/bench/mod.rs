//! Speed, memory and error of every backend of this machine.

pub(crate) mod cases;
pub(crate) mod inputs;
mod measure;
mod plot;
mod questions;
mod results;
pub(crate) mod sample;
mod target;

use crate::{args::BenchArgs, complain, open, output::Destination, progress, shape::Shape, text};
use anyhow::{Error, Result, bail, ensure};
use cases::{Case, cases};
use comfy_table::{CellAlignment, Table, presets};
use flashtile::{Attention, BackendKind, DType};
use indicatif::ProgressBar;
use measure::{Prepared, Row, Speed, measure, title};
use questions::is_device_lost;
use serde_json::json;
use std::io::Write;
use target::Target;

#[cfg(test)]
mod tests;

/// Measures every case on every target. Prints a table, or lines of JSON as soon as they are
/// measured.
///
/// # Errors
/// A case that fails or whose result is wrong has no row. The others are measured all the same.
pub(crate) fn bench(args: &BenchArgs, out: &mut dyn Write) -> Result<()> {
    if let Some(path) = &args.cases {
        return questions::answer_all(args, path, out);
    }
    let plot = args.plot.as_deref().map(Destination::open).transpose()?;
    if let Some(file) = &args.from {
        let results = results::read(file)?;
        write!(out, "{results}")?;
        if let Some(destination) = plot {
            let dtype = args.dtype.map_or(DType::F16, |dtype| dtype.dtype());
            destination.write(results.svg(dtype, args.causal)?.as_bytes())?;
        }
        return Ok(());
    }
    let targets = targets(args)?;
    let on_reference = |target: &Target| target.device.kind() == BackendKind::Reference;
    if args.choice.threads.is_some_and(|n| n > 1) && targets.iter().any(on_reference) {
        complain("the reference always runs on one thread; --threads does not change that");
    }
    let cases = cases(args);
    let bar = progress::bar((cases.len() * targets.len()) as u64);
    let measured = measure_all(args, &targets, &cases, &bar, out);
    bar.finish_and_clear();
    let Measured { rows, mut failures } = measured?;
    if !args.json && !rows.is_empty() {
        writeln!(out, "{}\n{NOTES}", table(&rows))?;
    }
    if let Some(last) = failures.pop() {
        failures.iter().for_each(|failure| complain(&format!("{failure:#}")));
        return Err(last);
    }
    ensure!(!rows.is_empty(), "nothing could be measured: every case was skipped");
    if let Some(destination) = plot {
        let points: Vec<_> = rows.iter().filter(|row| row.case.on_curve).collect();
        destination.write(plot::svg(&points)?.as_bytes())?;
    }
    Ok(())
}

const NOTES: &str = "\
clock: gpu is the time of the kernels by GPU timestamps, host the time from submission to completion
of peak: of the CPU's f32 peak, which a probe of multiplications and additions measures in the same \
run
error: the largest error of the verified rows as a share of the error bound, at most 1; \
a sample of rows is verified";

/// Every kernel that the arguments allow, on every device that they allow.
///
/// # Errors
/// All reasons, where there is none.
fn targets(args: &BenchArgs) -> Result<Vec<Target>> {
    let choice = args.choice.choice();
    let targets = Target::all(&open::devices(&args.choice, false)?, choice.kernel)?;
    if targets.is_empty() {
        let smallest = Case::new(Shape::of_self([1; 4]), DType::F32, false).problem()?;
        bail!(flashtile::Error::Refused(Attention::new().explain_within(&smallest, choice)));
    }
    Ok(targets)
}

/// What came out of all measurements.
struct Measured {
    rows: Vec<Row>,
    /// Failed runs and wrong results.
    failures: Vec<Error>,
}

fn measure_all(
    args: &BenchArgs,
    targets: &[Target],
    cases: &[Case],
    bar: &ProgressBar,
    out: &mut dyn Write,
) -> Result<Measured> {
    let mut measured = Measured { rows: Vec::new(), failures: Vec::new() };
    // A caller who names one shape and one backend accepts that it takes long.
    let patient = args.shape.is_some() && args.choice.choice().backend.is_some();
    let mut speeds: Vec<Option<Speed>> = vec![patient.then(Speed::default); targets.len()];
    for case in cases {
        let problem = case.problem()?;
        let mut prepared = None;
        for (target, speed) in targets.iter().zip(&mut speeds) {
            let title = title(target, case);
            bar.set_message(title.clone());
            let mut attempt = || -> Result<Result<Row, String>> {
                if let Some(reasons) = target.refusal(&problem) {
                    return Ok(Err(reasons));
                }
                let speed = match speed {
                    Some(speed) => speed,
                    None => speed.insert(Speed::probe(target, case)?),
                };
                if let Some(seconds) = speed.too_long(case)?.filter(|_| !patient) {
                    return Ok(Err(format!("one run would take about {seconds:.0} s")));
                }
                let prepared = match &mut prepared {
                    Some(prepared) => prepared,
                    None => prepared.insert(Prepared::new(case)?),
                };
                // Each case reports the time to the first result as its first user would see it,
                // with compilation. (CUDA kernels may be on disk.)
                target.device.release_kernels();
                let row = measure(target, case, prepared, args.seconds)?;
                speed.observe(&row);
                Ok(Ok(row))
            };
            match attempt() {
                Ok(Ok(row)) => {
                    if args.json {
                        let line = json_line(&row);
                        bar.suspend(|| writeln!(out, "{line}").and_then(|()| out.flush()))?;
                    }
                    measured.rows.push(row);
                }
                Ok(Err(reason)) => bar.suspend(|| complain(&format!("skipped {title}: {reason}"))),
                Err(failure) => {
                    let lost = is_device_lost(&failure);
                    measured.failures.push(failure);
                    if lost {
                        return Ok(measured);
                    }
                }
            }
            bar.inc(1);
        }
    }
    Ok(measured)
}

fn json_line(row: &Row) -> serde_json::Value {
    let mut line = json!({
        "case": row.case.shape.to_string(),
        "backend": row.backend,
        "kernel": row.kernel,
        "dtype": row.case.dtype.to_string(),
        "causal": row.case.causal,
        "ms": row.ms,
        "clock": row.clock.name(),
        "gflops": row.gflops,
        "gbps": row.gbps,
        "peak_bytes": row.peak_bytes,
        "first_ms": row.first_ms,
        "device": row.device,
    });
    if let Some(error) = row.error {
        line["error"] = json!(error);
    }
    if let Some(peak) = row.peak_gflops {
        line["peak_gflops"] = json!(peak);
    }
    line
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header([
        "case",
        "dtype",
        "causal",
        "backend",
        "kernel",
        "time",
        "clock",
        "GFLOP/s",
        "of peak",
        "GB/s",
        "peak memory",
        "first result",
        "error",
        "device",
    ]);
    for row in rows {
        table.add_row([
            row.case.shape.to_string(),
            row.case.dtype.to_string(),
            if row.case.causal { "yes" } else { "no" }.to_owned(),
            row.backend.clone(),
            row.kernel.clone(),
            text::ms(row.ms),
            row.clock.name().to_owned(),
            text::digits(row.gflops),
            row.peak_gflops.map_or_else(String::new, |peak| {
                format!("{:.0} %", 100.0 * row.gflops / peak.max(1e-9))
            }),
            text::digits(row.gbps),
            text::bytes(row.peak_bytes),
            text::ms(row.first_ms),
            row.error.map_or_else(String::new, text::digits),
            row.device.clone(),
        ]);
    }
    for column in [5, 7, 8, 9, 10, 11, 12] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
