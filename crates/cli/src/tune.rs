//! `flashtile tune`: finds the fastest tile shapes of an adapter, and keeps them for later runs.

use crate::{
    args::TuneArgs,
    bench::{cases::Case, inputs::Inputs, sample::Sample},
    complain, kept, open,
    output::Destination,
    progress,
    shape::Shape,
    text, tuning,
    tuning::TuningArg,
};
use anyhow::{Context as _, Result, anyhow, ensure};
use comfy_table::{CellAlignment, Table, presets};
use flashtile::{
    DType, DeviceChoice, KeySplit, PlanOptions,
    wgpu::{self, Context, Outcome, TuneOptions, TuneResult, Tuned, Tuning},
    zeroed_bytes,
};
use serde_json::json;
use std::{fs, io::Write, path::Path, time::Duration};

/// The cases that the arguments name, or those of usual models: as large as one GPU needs to be
/// busy, and smaller on a software adapter.
///
/// # Errors
/// A file that cannot be read.
fn cases(args: &TuneArgs, software: bool) -> Result<Vec<Case>> {
    if let Some(path) = &args.cases {
        let text = fs::read_to_string(path);
        let text = text.with_context(|| format!("cannot read {}", path.display()))?;
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        return lines.map(|line| line.trim().parse()).collect();
    }
    let dtypes = args.dtype.map_or(vec![DType::F32, DType::F16], |dtype| vec![dtype.dtype()]);
    let mut cases = Vec::new();
    for dtype in dtypes {
        for &shape in &args.shape {
            let seq_q = args.queries.unwrap_or(shape.seq_q);
            let kv_heads = args.kv_heads.unwrap_or(shape.kv_heads);
            cases.push(Case::new(Shape { seq_q, kv_heads, ..shape }, dtype, args.causal));
        }
        if args.shape.is_empty() {
            let [batch, heads, seq] = if software { [1, 4, 512] } else { [4, 16, 2048] };
            for dim in [64, 128] {
                for causal in [false, true] {
                    if causal || !args.causal {
                        let shape = Shape::of_self([batch, heads, seq, dim]);
                        cases.push(Case::new(shape, dtype, causal));
                    }
                }
            }
            let long = Shape::of_self([1, 32, 4096, 128]);
            cases.push(Case::new(Shape { seq_q: 1, kv_heads: 8, ..long }, dtype, false));
        }
    }
    Ok(cases)
}

/// Tunes an adapter for every case, and keeps what it found after each.
///
/// # Errors
/// An adapter that does not open, a file that cannot be written, and at the end shapes whose
/// results were wrong.
pub(crate) fn tune(args: &TuneArgs, out: &mut dyn Write) -> Result<()> {
    let adapter = args.adapter.as_deref().map_or(DeviceChoice::new(), open::named);
    let context = wgpu::open_blocking(&adapter)?;
    let cases = cases(args, context.is_software())?;
    let file = args.tuning.file(&context)?;
    let mut table = Tuning::new(context.tuning_key());
    if let Some(path) = &file {
        // Before anything is measured.
        kept::check_writable(path)?;
        match tuning::load(path, &context) {
            Ok(Some(before)) => table = before,
            Ok(None) => {}
            Err(e) => complain(&format!("replacing {}: {e:#}", path.display())),
        }
    }
    let mut report = Report { json: args.json, out, wrong: 0 };
    let mut tuned = 0;
    for case in &cases {
        let Some(found) = tune_case(args, &context, case)? else { continue };
        tuned += 1;
        report.case(case, &found)?;
        table.add(&found);
        if let Some(path) = &file {
            keep(&args.tuning, path, &table)?;
        }
    }
    ensure!(tuned > 0, "nothing was tuned: the flash kernel runs none of the cases here");
    report.end(&context, file.as_deref(), &table)?;
    let wrong = report.wrong;
    ensure!(wrong == 0, "shapes with wrong results, which were not kept: {wrong}");
    Ok(())
}

fn keep(setting: &TuningArg, path: &Path, table: &Tuning) -> Result<()> {
    let text = table.to_string();
    match setting {
        TuningArg::File(_) => Destination::open(path)?.write(text.as_bytes()),
        TuningArg::Auto | TuningArg::Off => kept::write(path, text.as_bytes()),
    }
}

/// `None` where the flash kernel cannot run the case.
fn tune_case(args: &TuneArgs, context: &Context, case: &Case) -> Result<Option<TuneResult>> {
    let problem = case.problem()?;
    let plan = PlanOptions::new().matrix_units(args.matrix_units.matrix_units());
    if let flashtile::Verdict::Refused(reasons) = context.verdict(&problem, &plan.for_tiles()) {
        let reasons: Vec<_> = reasons.iter().map(ToString::to_string).collect();
        complain(&format!("skipped {case}: {}", reasons.join("; ")));
        return Ok(None);
    }
    let within = Duration::from_secs_f64(args.seconds);
    let bar = progress::time_bar(within);
    bar.set_message(format!("{case}: running the oracle"));
    let inputs = Inputs::new(case);
    let sample = Sample::new(case, &inputs)?;
    let mut bytes = zeroed_bytes(&problem)?;
    let mut verify = |out: &[u8]| {
        let worst = sample.worst(out);
        if worst.share <= 1.0 { Ok(()) } else { Err(worst.to_string()) }
    };
    let mut step = |progress: &wgpu::TuneProgress<'_>| {
        bar.set_position(progress.elapsed.as_millis() as u64);
        bar.set_message(format!("{case}: {}", progress.choice.tiles.name()));
    };
    let options = TuneOptions::new()
        .within(within)
        .plan(plan.for_tiles())
        .verify(&mut verify)
        .progress(&mut step);
    let found = context.tune_blocking(&problem, &inputs.args(&mut bytes), options);
    bar.finish_and_clear();
    Ok(Some(found.map_err(|e| anyhow!(e)).with_context(|| case.to_string())?))
}

/// What is printed.
struct Report<'a> {
    json: bool,
    out: &'a mut dyn Write,
    /// Shapes with wrong results.
    wrong: usize,
}

impl Report<'_> {
    fn case(&mut self, case: &Case, found: &TuneResult) -> Result<()> {
        for shape in &found.shapes {
            if let Outcome::Wrong(why) = &shape.outcome {
                self.wrong += 1;
                complain(&format!(
                    "wrong result, {case}, tiles {}: {why}",
                    shape.choice.tiles.name()
                ));
            }
        }
        if self.json { self.json_lines(case, found) } else { self.table(case, found) }
    }

    fn json_lines(&mut self, case: &Case, found: &TuneResult) -> Result<()> {
        let winner = found.winner().map(|shape| shape.choice);
        for shape in &found.shapes {
            let mut line = json!({
                "case": case.shape.to_string(),
                "dtype": case.dtype.to_string(),
                "causal": case.causal,
                "kind": found.kind.to_string(),
                "tiles": shape.choice.tiles.name(),
                "split": split(shape),
                "planned": shape.planned,
                "won": winner == Some(shape.choice),
            });
            match &shape.outcome {
                Outcome::Measured { time, speedup, rounds, ahead, compile } => {
                    line["ms"] = json!(time.as_secs_f64() * 1e3);
                    line["compile_ms"] = json!(compile.as_secs_f64() * 1e3);
                    line["speedup"] = json!(speedup);
                    line["rounds"] = json!(rounds);
                    line["ahead"] = json!(ahead);
                }
                other => line["error"] = json!(reason(other)),
            }
            writeln!(self.out, "{line}")?;
        }
        Ok(self.out.flush()?)
    }

    fn table(&mut self, case: &Case, found: &TuneResult) -> Result<()> {
        let winner = found.winner().map(|shape| shape.choice);
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header([
            "tiles",
            "split",
            "time",
            "speedup",
            "ahead",
            "rounds",
            "compiled in",
            "",
        ]);
        for shape in &found.shapes {
            let mut notes = Vec::new();
            if shape.planned {
                notes.push("planned".to_owned());
            }
            if winner == Some(shape.choice) {
                notes.push("kept".to_owned());
            }
            let numbers = match &shape.outcome {
                Outcome::Measured { time, speedup, rounds, ahead, compile } => [
                    text::time(*time),
                    text::digits(*speedup),
                    format!("{:.0}%", ahead * 100.0),
                    rounds.to_string(),
                    text::time(*compile),
                ],
                other => {
                    notes.push(reason(other));
                    Default::default()
                }
            };
            let [time, speedup, ahead, rounds, compile] = numbers;
            let name = shape.choice.tiles.name();
            let notes = notes.join(", ");
            table.add_row([name, split(shape), time, speedup, ahead, rounds, compile, notes]);
        }
        for column in 2..7 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        writeln!(self.out, "{case}: {}\n{table}", found.kind)?;
        Ok(self.out.flush()?)
    }

    fn end(&mut self, context: &Context, file: Option<&Path>, table: &Tuning) -> Result<()> {
        if self.json {
            let line =
                json!({ "adapter": context.tuning_key(), "file": file, "kinds": table.len() });
            return Ok(writeln!(self.out, "{line}")?);
        }
        writeln!(
            self.out,
            "speedup: the time of the planned tiles over the time of these, the median of rounds; \
             ahead: the share of rounds in which these were faster"
        )?;
        match file {
            Some(path) => {
                let (kinds, path) = (table.len(), path.display());
                let s = if kinds == 1 { "" } else { "s" };
                Ok(writeln!(self.out, "kept in {path}, with {kinds} kind{s} of problem")?)
            }
            None => Ok(writeln!(self.out, "nothing was kept")?),
        }
    }
}

/// The chunks of the plan, where the planner split the keys by itself.
fn split(shape: &Tuned) -> String {
    match (shape.choice.key_split, shape.chunks) {
        (KeySplit::Auto, Some(chunks)) => format!("auto ({})", chunks.keys()),
        (split, _) => split.to_string(),
    }
}

fn reason(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Wrong(why) => format!("wrong: {why}"),
        Outcome::Failed(why) => format!("failed: {why}"),
        Outcome::Skipped(why) => format!("skipped: {why}"),
        other => format!("{other:?}"),
    }
}
