//! `--cases`: measures one case per line of input, on devices that stay open.

use super::{
    cases::Case,
    json_line,
    measure::{Prepared, measure},
    target::Target,
};
use crate::args::{BackendArg, BenchArgs, ChoiceArgs, KernelArg, MatrixUnitsArg};
use crate::{open, tuning::TuningArg};
use anyhow::{Error, Result, bail, ensure};
use clap::ValueEnum as _;
use flashtile::{Attention, Backend, BackendError, BackendKind, Choice, KeySplit};
use serde_json::{Value, json};
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Write},
    path::Path,
    str::FromStr,
    sync::Arc,
};

/// One line: `BxHxSxD,dtype[,causal] BACKEND:KERNEL`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Question {
    case: Case,
    backend: BackendArg,
    kernel: KernelArg,
}

impl FromStr for Question {
    type Err = Error;

    fn from_str(line: &str) -> Result<Self> {
        let [case, target] = line.split_whitespace().collect::<Vec<_>>()[..] else {
            bail!("expected `BxHxSxD,dtype[,causal] BACKEND:KERNEL`, but got `{line}`");
        };
        let named = target.split_once(':').and_then(|(backend, kernel)| {
            let backend = BackendArg::named(backend)?;
            Some((backend, KernelArg::from_str(kernel, false).ok()?))
        });
        let Some((backend, kernel)) = named.filter(|(backend, _)| backend.0.is_some()) else {
            bail!("expected BACKEND:KERNEL such as cuda:flash or wgpu:auto, but got `{target}`");
        };
        Ok(Self { case: case.parse()?, backend, kernel })
    }
}

/// Opens the devices of a backend.
pub(super) type Open<'a> = dyn Fn(&ChoiceArgs) -> Result<Vec<Arc<dyn Backend>>> + 'a;

/// The devices that are open, and what the last case needed.
pub(super) struct Answerer<'a> {
    open: &'a Open<'a>,
    adapter: Option<String>,
    matrix_units: MatrixUnitsArg,
    split: KeySplit,
    tuning: TuningArg,
    seconds: f64,
    devices: Vec<(BackendKind, Vec<Arc<dyn Backend>>)>,
    /// The same case often follows for another backend.
    prepared: Option<(Case, Prepared)>,
    /// Questions that could not be answered as they should.
    failures: usize,
}

/// Answers every line of the file that `path` names, `-` for stdin.
///
/// # Errors
/// Input that cannot be read, and at the end the number of failures, if there were any.
pub(crate) fn answer_all(args: &BenchArgs, path: &Path, out: &mut dyn Write) -> Result<()> {
    let open = |choice: &ChoiceArgs| open::devices(choice, false);
    let adapter = args.choice.adapter.clone();
    let mut answerer = Answerer::new(&open, adapter, args.seconds);
    answerer.matrix_units = args.choice.matrix_units;
    answerer.split = args.choice.split;
    answerer.tuning = args.choice.tuning.clone();
    if path == Path::new("-") {
        answerer.answer_lines(io::stdin().lock(), out)
    } else {
        let file =
            File::open(path).map_err(|e| anyhow::anyhow!("cannot read {}: {e}", path.display()))?;
        answerer.answer_lines(BufReader::new(file), out)
    }
}

impl<'a> Answerer<'a> {
    pub(super) fn new(open: &'a Open<'a>, adapter: Option<String>, seconds: f64) -> Self {
        let (matrix_units, split) = (MatrixUnitsArg::Auto, KeySplit::Auto);
        let (tuning, devices, prepared) = (TuningArg::Auto, Vec::new(), None);
        let failures = 0;
        Self { open, adapter, matrix_units, split, tuning, seconds, devices, prepared, failures }
    }

    pub(super) fn answer_lines(&mut self, input: impl BufRead, out: &mut dyn Write) -> Result<()> {
        for line in input.lines() {
            let line = line?;
            if line.trim().is_empty() {
                continue;
            }
            if let Err(e) = self.answer(&line, out) {
                // The reader is gone: no answer can reach it.
                if e.downcast_ref::<io::Error>().is_some() {
                    return Err(e);
                }
                self.failures += 1;
                let case = line.split([',', ' ']).next().unwrap_or_default();
                print(out, &json!({ "case": case, "error": format!("{e:#}") }))?;
            }
            print(out, &json!({}))?;
        }
        ensure!(self.failures == 0, "failed measurements: {}", self.failures);
        Ok(())
    }

    /// Prints a line for each kernel of each device.
    ///
    /// # Errors
    /// A line that cannot be read, a backend without devices, and output that cannot be written.
    fn answer(&mut self, line: &str, out: &mut dyn Write) -> Result<()> {
        let question: Question = line.parse()?;
        let case = question.case;
        let problem = case.problem()?;
        for target in self.targets(&question)? {
            if let Some(reasons) = target.refusal(&problem) {
                let mut answer = unmeasured(&target, &case, reasons);
                answer["refused"] = json!(true);
                print(out, &answer)?;
                continue;
            }
            let seconds = self.seconds;
            let row = self.prepared(&case).and_then(|it| measure(&target, &case, it, seconds));
            let answer = match row {
                Ok(row) => json_line(&row),
                Err(e) => {
                    self.failures += 1;
                    if is_device_lost(&e) {
                        self.devices.retain(|(kind, _)| *kind != target.device.kind());
                    }
                    unmeasured(&target, &case, format!("{e:#}"))
                }
            };
            print(out, &answer)?;
        }
        Ok(())
    }

    fn targets(&mut self, question: &Question) -> Result<Vec<Target>> {
        let choice = ChoiceArgs {
            backend: question.backend,
            kernel: question.kernel,
            matrix_units: self.matrix_units,
            split: self.split,
            tuning: self.tuning.clone(),
            adapter: self.adapter.clone(),
            threads: None,
        };
        let Choice { backend, kernel, .. } = choice.choice();
        let devices = self.devices(&choice, backend)?;
        let targets = match kernel {
            // Also one that the backend does not have: it is refused by name.
            Some(kernel) => {
                devices.iter().map(|device| Target { device: device.clone(), kernel }).collect()
            }
            None => Target::all(devices, None)?,
        };
        if targets.is_empty() {
            let explanation =
                Attention::new().explain_within(&question.case.problem()?, choice.choice());
            bail!(flashtile::Error::Refused(explanation));
        }
        Ok(targets)
    }

    /// The devices of one backend, opened for the first question that names it.
    fn devices(
        &mut self,
        choice: &ChoiceArgs,
        backend: Option<BackendKind>,
    ) -> Result<&[Arc<dyn Backend>]> {
        let found = self.devices.iter().position(|(kind, _)| Some(*kind) == backend);
        let at = match (found, backend) {
            (Some(at), _) => at,
            (None, Some(kind)) => {
                self.devices.push((kind, (self.open)(choice)?));
                self.devices.len() - 1
            }
            (None, None) => return Ok(&[]),
        };
        Ok(&self.devices[at].1)
    }

    fn prepared(&mut self, case: &Case) -> Result<&Prepared> {
        if self.prepared.as_ref().is_none_or(|(last, _)| last != case) {
            self.prepared = None; // Two cases may not fit into memory.
            self.prepared = Some((*case, Prepared::new(case)?));
        }
        let (_, prepared) = self.prepared.as_ref().expect("it was just made");
        Ok(prepared)
    }
}

/// Whether no later measurement on the device can succeed.
pub(crate) fn is_device_lost(e: &Error) -> bool {
    e.downcast_ref::<BackendError>().is_some_and(BackendError::is_device_lost)
}

fn unmeasured(target: &Target, case: &Case, error: String) -> Value {
    json!({
        "case": case.shape.to_string(),
        "backend": target.device.kind().name(),
        "kernel": target.kernel.name(),
        "dtype": case.dtype.to_string(),
        "causal": case.causal,
        "device": target.device.device_name(),
        "error": error,
    })
}

/// One line, at once: the reader waits for it.
fn print(out: &mut dyn Write, line: &Value) -> Result<()> {
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
