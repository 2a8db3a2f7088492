//! `bench` on devices that are not real: what it reports of right and wrong results.

use super::{measure_all, questions::Answerer, *};
use crate::args::Cli;
use approx::assert_relative_eq;
use clap::Parser as _;
use flashtile::{
    Backend, BackendError, BackendPlan, BackendRun, HostArgs, KernelKind, PlanOptions, Problem,
    Timing, Verdict, reference::Reference,
};
use serde_json::Value;
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// What is wrong with a device.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// The last element of the output is off by a thousandth.
    LastElement,
    /// The last query of the first head is not written.
    NotWritten,
    /// Every run after the first is wrong.
    AfterTheFirst,
    /// Runs fail, and no later one can succeed.
    Lost,
}

/// The oracle with a fault.
#[derive(Clone, Debug)]
struct Faulty {
    fault: Fault,
    releases: Arc<AtomicUsize>,
}

impl Faulty {
    fn device(fault: Fault) -> Arc<dyn Backend> {
        Arc::new(Self { fault, releases: Arc::default() })
    }
}

impl Backend for Faulty {
    fn kind(&self) -> BackendKind {
        BackendKind::Wgpu
    }

    fn device_name(&self) -> String {
        format!("{:?}", self.fault)
    }

    fn verdict(&self, problem: &Problem, options: &PlanOptions) -> Verdict {
        Reference.verdict(problem, options)
    }

    fn plan(
        &self,
        problem: &Problem,
        options: &PlanOptions,
    ) -> Result<Arc<dyn BackendPlan>, BackendError> {
        Ok(Arc::new(FaultyPlan(Reference.plan(problem, options)?, self.fault)))
    }

    fn release_kernels(&self) {
        self.releases.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct FaultyPlan(Arc<dyn BackendPlan>, Fault);

impl fmt::Display for FaultyPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl BackendPlan for FaultyPlan {
    fn problem(&self) -> &Problem {
        self.0.problem()
    }

    fn kernel(&self) -> KernelKind {
        self.0.kernel()
    }

    fn dispatch_count(&self) -> usize {
        self.0.dispatch_count()
    }

    fn workspace_bytes(&self) -> u64 {
        self.0.workspace_bytes()
    }

    fn upload(&self, args: &HostArgs<'_>) -> Result<Box<dyn BackendRun>, BackendError> {
        Ok(Box::new(FaultyRun {
            inner: self.0.upload(args)?,
            problem: self.0.problem().clone(),
            fault: self.1,
            runs: AtomicUsize::new(0),
        }))
    }
}

struct FaultyRun {
    inner: Box<dyn BackendRun>,
    problem: Problem,
    fault: Fault,
    runs: AtomicUsize,
}

impl BackendRun for FaultyRun {
    fn run(&self) -> Result<Timing, BackendError> {
        if self.fault == Fault::Lost {
            return Err(BackendError::new(BackendKind::Wgpu, true, "the device was lost"));
        }
        self.runs.fetch_add(1, Ordering::Relaxed);
        self.inner.run()
    }

    fn download(&self, args: &mut HostArgs<'_>) -> Result<(), BackendError> {
        let unwritten = args.out.to_vec();
        self.inner.download(args)?;
        let (problem, dtype) = (&self.problem, self.problem.dtype());
        let [batch, heads, seq, width] = problem.out().shape;
        let last = problem.out().index(batch - 1, heads - 1, seq - 1, width - 1);
        let wrong = match self.fault {
            Fault::None | Fault::Lost => return Ok(()),
            Fault::LastElement => last,
            Fault::AfterTheFirst if self.runs.load(Ordering::Relaxed) == 1 => return Ok(()),
            Fault::AfterTheFirst => 0,
            Fault::NotWritten => {
                let row = problem.out().index(0, 0, seq - 1, 0) * dtype.size();
                let bytes = row..row + width * dtype.size();
                args.out[bytes.clone()].copy_from_slice(&unwritten[bytes]);
                return Ok(());
            }
        };
        let value = dtype.read(args.out, wrong);
        dtype.write(args.out, wrong, value + 1e-3);
        Ok(())
    }

    fn device_bytes(&self) -> u64 {
        self.inner.device_bytes()
    }
}

fn args(more: &[&str]) -> BenchArgs {
    let args = [&["flashtile", "bench", "--json", "--seconds", "0.01"], more].concat();
    match Cli::parse_from(args).command {
        crate::args::Command::Bench(args) => args,
        _ => panic!("that is bench"),
    }
}

/// Measures one small case on devices with these faults.
fn measure_on(faults: &[Fault]) -> (Measured, Vec<Value>) {
    let args = args(&["--shape", "2x2x40x8", "--causal", "--backend", "wgpu"]);
    let devices: Vec<_> = faults.iter().map(|&fault| Faulty::device(fault)).collect();
    let targets = Target::all(&devices, None).expect("valid");
    let mut out = Vec::new();
    let bar = ProgressBar::hidden();
    let measured =
        measure_all(&args, &targets, &cases(&args), &bar, &mut out).expect("out can be written");
    (measured, lines(&out))
}

fn lines(out: &[u8]) -> Vec<Value> {
    let text = str::from_utf8(out).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn a_right_result_is_a_row_with_its_error() {
    let (Measured { rows, failures }, lines) = measure_on(&[Fault::None]);
    assert!(failures.is_empty(), "{failures:?}");
    assert_eq!((rows.len(), lines.len()), (1, 1));
    let error = lines[0]["error"].as_f64().expect("a number");
    // The oracle, rounded to f32, is within half an ulp.
    assert!(error > 0.0 && error <= 0.5, "{error}");
    assert_relative_eq!(error, rows[0].error.expect("verified"));
    let printed = table(&rows).to_string();
    assert!(printed.contains("| error |") && printed.contains(&text::digits(error)), "{printed}");
}

#[test]
fn a_wrong_result_is_an_error_and_no_row() {
    for fault in [Fault::LastElement, Fault::NotWritten, Fault::AfterTheFirst] {
        let (Measured { rows, failures }, lines) = measure_on(&[fault]);
        assert!(rows.is_empty() && lines.is_empty(), "{fault:?}: {lines:?}");
        let [failure] = &failures[..] else { panic!("{fault:?}: {failures:?}") };
        let message = format!("{failure:#}");
        let title = format!("2x2x40x8 f32 causal, unfused on wgpu {fault:?}: wrong result, ");
        assert!(message.starts_with(&title) && message.contains("of the bound"), "{message}");
    }
}

#[test]
fn other_devices_are_measured_after_a_wrong_result_but_not_after_a_loss() {
    let (Measured { rows, failures }, _) = measure_on(&[Fault::LastElement, Fault::None]);
    assert_eq!((rows.len(), failures.len()), (1, 1));
    assert_eq!(rows[0].device, "None");
    let (Measured { rows, failures }, _) = measure_on(&[Fault::Lost, Fault::None]);
    assert_eq!((rows.len(), failures.len()), (0, 1));
}

#[test]
fn a_wrong_result_of_the_probe_counts_too() {
    let args = args(&[]);
    let targets = Target::all(&[Faulty::device(Fault::LastElement)], None).expect("valid");
    let case = Case::new(Shape::of_self([1, 1, 8, 8]), DType::F16, false);
    let bar = ProgressBar::hidden();
    let measured =
        measure_all(&args, &targets, &[case], &bar, &mut Vec::new()).expect("out can be written");
    assert_eq!((measured.rows.len(), measured.failures.len()), (0, 1));
    let message = format!("{:#}", measured.failures[0]);
    assert!(message.starts_with("1x2x128x64 f16, unfused on wgpu"), "{message}");
}

#[test]
fn each_case_starts_without_compiled_kernels() {
    let args = args(&["--shape", "1x1x8x8", "--backend", "wgpu"]);
    let releases = Arc::<AtomicUsize>::default();
    let device: Arc<dyn Backend> =
        Arc::new(Faulty { fault: Fault::None, releases: releases.clone() });
    let targets = Target::all(&[device], None).expect("valid");
    let twice = [cases(&args), cases(&args)].concat();
    let bar = ProgressBar::hidden();
    measure_all(&args, &targets, &twice, &bar, &mut Vec::new()).expect("out can be written");
    assert_eq!(releases.load(Ordering::Relaxed), 2);
}

/// The answers to `questions` by a device with a fault, and how it ends.
fn answers(fault: Fault, questions: &str) -> (Vec<Value>, Result<()>, usize) {
    let opened = AtomicUsize::new(0);
    let open = |_: &crate::args::ChoiceArgs| {
        opened.fetch_add(1, Ordering::Relaxed);
        Ok(vec![Faulty::device(fault)])
    };
    let mut out = Vec::new();
    let end = Answerer::new(&open, None, 0.01).answer_lines(questions.as_bytes(), &mut out);
    (lines(&out), end, opened.load(Ordering::Relaxed))
}

#[test]
fn questions_are_answered_on_one_device_each_with_an_end() {
    let questions = "1x1x8x8,f32 wgpu:unfused\n\n1x4/2x3/8x8,f16,causal wgpu:auto\n";
    let (lines, end, opened) = answers(Fault::None, questions);
    assert!(end.is_ok() && opened == 1, "{end:?} {opened}");
    let [first, end, second, end_of_second] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!((end, end_of_second), (&json!({}), &json!({})));
    assert_eq!((&first["dtype"], &first["causal"]), (&json!("f32"), &json!(false)));
    assert_eq!((&second["dtype"], &second["causal"]), (&json!("f16"), &json!(true)));
    assert_eq!((&first["case"], &second["case"]), (&json!("1x1x8x8"), &json!("1x4/2x3/8x8")));
    for row in [first, second] {
        assert!(row["error"].as_f64().expect("a number") <= 1.0, "{row}");
    }
}

#[test]
fn refusals_failures_and_unreadable_questions_are_answers() {
    let (lines, end, _) = answers(Fault::None, "1x1x8x8,f32 wgpu:flash\n");
    assert!(end.is_ok(), "a refusal is no failure: {end:?}");
    assert_eq!((&lines[0]["refused"], &lines[0]["kernel"]), (&json!(true), &json!("flash")));
    assert_eq!(lines[0]["error"], "the reference backend has no flash kernel");

    let (lines, end, _) = answers(Fault::LastElement, "1x1x8x8,f32 wgpu:auto\n");
    assert_eq!(lines.len(), 2, "{lines:?}");
    let error = lines[0]["error"].as_str().expect("a message");
    assert!(error.contains("wrong result") && lines[0].get("ms").is_none(), "{error}");
    assert!(lines[0].get("refused").is_none());
    assert_eq!(end.expect_err("failed").to_string(), "failed measurements: 1");

    for (question, error) in [
        ("1x1x8x8,f32", "expected `BxHxSxD,dtype[,causal] BACKEND:KERNEL`"),
        ("1x1x8,f32 wgpu:auto", "expected BxHxSxD"),
        ("1x1x8x8,f32 wgpu", "expected BACKEND:KERNEL"),
        ("1x1x8x8,f32 auto:auto", "expected BACKEND:KERNEL"),
        ("1x1x8x8,f32 wgpu:fast", "expected BACKEND:KERNEL"),
    ] {
        let (lines, end, _) = answers(Fault::None, question);
        let message = lines[0]["error"].as_str().expect("a message");
        assert!(message.contains(error) && end.is_err(), "{message}");
        assert_eq!(lines[1..], [json!({})]);
    }
}

#[test]
fn a_lost_device_is_opened_again_for_the_next_question() {
    let questions = "1x1x8x8,f32 wgpu:auto\n1x1x8x8,f32 wgpu:auto\n";
    let (lines, end, opened) = answers(Fault::Lost, questions);
    assert_eq!((lines.len(), opened), (4, 2));
    assert!(lines[0]["error"].as_str().is_some_and(|e| e.contains("the device was lost")));
    assert!(end.is_err());
}
