//! Speed and memory of every backend here.

mod cases;
mod measure;
mod plot;
mod results;
mod target;

use crate::{args::BenchArgs, complain, output::Destination, progress, text};
use anyhow::{Result, bail, ensure};
use cases::{Case, cases};
use comfy_table::{CellAlignment, Table, presets};
use flashtile::{BackendKind, DType};
use indicatif::ProgressBar;
use measure::{Row, Speed, measure};
use serde_json::json;
use std::io::Write;
use target::{Data, Target, targets};

/// Measures every case on every target, and prints a table, or lines of JSON as they come.
pub(crate) fn bench(args: &BenchArgs, out: &mut dyn Write) -> Result<()> {
    ensure!(args.threads != Some(0), "--threads must be at least 1, but is 0");
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
    if args.threads.is_some_and(|n| n > 1)
        && targets.iter().any(|t| t.backend == BackendKind::Reference)
    {
        complain("the reference runs on one thread, whatever --threads says");
    }
    let cases = cases(args);
    let bar = progress::bar((cases.len() * targets.len()) as u64);
    let rows = all(args, &targets, &cases, &bar, out);
    bar.finish_and_clear();
    let rows = rows?;
    if rows.is_empty() {
        bail!("nothing could be measured");
    }
    if !args.json {
        writeln!(out, "{}", table(&rows))?;
        writeln!(
            out,
            "clock: gpu is its own timestamps around the kernels, host is from submission to completion"
        )?;
    }
    if let Some(destination) = plot {
        let points: Vec<_> = rows.iter().filter(|row| row.case.on_curve).collect();
        destination.write(plot::svg(&points)?.as_bytes())?;
    }
    Ok(())
}

fn all(
    args: &BenchArgs,
    targets: &[Target],
    cases: &[Case],
    bar: &ProgressBar,
    out: &mut dyn Write,
) -> Result<Vec<Row>> {
    // Who names one shape and one backend has thought about how long it takes.
    let patient = args.shape.is_some() && args.choice.choice().backend.is_some();
    let mut rows = Vec::new();
    let mut speeds: Vec<Option<Speed>> = vec![None; targets.len()];
    for case in cases {
        let mut data = None;
        for (target, speed) in targets.iter().zip(&mut speeds) {
            let causal = if case.causal { " causal" } else { "" };
            let what = format!(
                "{} {}{causal}, {} on {}",
                case.name(),
                case.dtype,
                target.kernel,
                target.device
            );
            bar.set_message(what.clone());
            let known = match *speed {
                Some(speed) => speed,
                None if patient => Speed::default(),
                None => Speed::probe(target, case)?,
            };
            let skipped = match (target.refusal(&case.problem()?), known.too_long(case)?) {
                (Some(reasons), _) => Some(reasons),
                (None, Some(seconds)) if !patient => {
                    Some(format!("one run would take about {seconds:.0} s"))
                }
                _ => None,
            };
            let speed = speed.insert(known);
            if let Some(reason) = skipped {
                bar.suspend(|| complain(&format!("skipped {what}: {reason}")));
            } else {
                let data = data.get_or_insert_with(|| Data::new(case));
                let row = measure(target, case, data, args.seconds, speed)?;
                if args.json {
                    let line = json_line(&row);
                    bar.suspend(|| writeln!(out, "{line}").and_then(|()| out.flush()))?;
                }
                rows.push(row);
            }
            bar.inc(1);
        }
    }
    Ok(rows)
}

fn json_line(row: &Row) -> serde_json::Value {
    json!({
        "case": row.case.name(),
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
    })
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
        "GB/s",
        "peak memory",
        "first result",
        "device",
    ]);
    for row in rows {
        table.add_row([
            row.case.name(),
            row.case.dtype.to_string(),
            if row.case.causal { "yes" } else { "no" }.to_owned(),
            row.backend.clone(),
            row.kernel.clone(),
            text::ms(row.ms),
            row.clock.name().to_owned(),
            text::digits(row.gflops),
            text::digits(row.gbps),
            text::bytes(row.peak_bytes),
            text::ms(row.first_ms),
            row.device.clone(),
        ]);
    }
    for column in [5, 7, 8, 9, 10] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
