//! Tests of the harness itself: it detects backends that misbehave in one way each, and a printed
//! failure can be replayed.
#![allow(clippy::unwrap_used)]

mod honest;

use flashtile_core::{
    Backend, BackendError, BackendKind, BackendPlan, HostArgs, HostStats, KernelKind, PlanOptions,
    Problem, Reason, Verdict,
};
use flashtile_reference::Reference;
use flashtile_testkit::{
    Case, Wrong, check_lengths, check_neighbours, check_repeats, run_case, run_cases, run_random,
};
use honest::{Honest, Sabotage};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The oracle, and then a fault in its results.
struct Misbehaving<F>(F);

impl<F> fmt::Debug for Misbehaving<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Misbehaving")
    }
}

impl<F: Fn(&Problem, &mut [u8], Option<&mut [f32]>) + Send + Sync> Backend for Misbehaving<F> {
    fn kind(&self) -> BackendKind {
        BackendKind::Reference
    }

    fn device_name(&self) -> String {
        "misbehaving".to_owned()
    }

    fn verdict(&self, _: &Problem, _: &PlanOptions) -> Verdict {
        Verdict::Runs(String::new())
    }

    fn plan(
        &self,
        problem: &Problem,
        _: &PlanOptions,
    ) -> Result<Arc<dyn BackendPlan>, BackendError> {
        Reference.plan(problem, &PlanOptions::new())
    }

    fn run(
        &self,
        problem: &Problem,
        options: &PlanOptions,
        mut args: HostArgs<'_>,
    ) -> Result<HostStats, BackendError> {
        let mut inner = HostArgs::new(args.q, args.k, args.v, &mut *args.out).call(args.call);
        inner.mask = args.mask;
        inner.kv_lens = args.kv_lens;
        inner.lse = args.lse.as_deref_mut();
        let stats = self.plan(problem, options)?.run(inner)?;
        (self.0)(problem, args.out, args.lse);
        Ok(stats)
    }
}

/// Rows of 3 with a gap of 1, in f16: elements 0 to 2 are a row, and element 3 is a gap. The
/// capacity is 4 queries, of which the call has 3.
fn case() -> Case {
    "shape=2x2x4x3 dtype=f16 out=32:16:4:1 call_q=3".parse().unwrap()
}

fn wrong(fault: impl Fn(&Problem, &mut [u8], Option<&mut [f32]>) + Send + Sync) -> String {
    run_case(&Misbehaving(fault), KernelKind::Flash, &case()).unwrap_err().wrong.to_string()
}

#[test]
fn faults_are_found() {
    assert!(
        run_case(
            &Misbehaving(|_: &_, _: &mut _, _: Option<&mut _>| {}),
            KernelKind::Flash,
            &case()
        )
        .is_ok()
    );
    let touched = |byte, buffer| {
        format!(
            "byte {byte} of {buffer} was written, but lies outside the result (between strides, \
             beyond the queries of the call, or after the end)"
        )
    };
    // A gap, a row beyond the call's queries, and memory after the end.
    assert_eq!(wrong(|_, out, _| out[6] = 0), touched(6, "out"));
    assert_eq!(wrong(|_, out, _| out[2 * 13] = 0), touched(26, "out"));
    assert_eq!(
        wrong(|_, out, _| *out.last_mut().unwrap() = 1),
        touched(2 * (32 + 16 + 12 + 3 + 3) - 1, "out")
    );
    assert_eq!(wrong(|_, _, lse| lse.unwrap()[3] = 0.0), touched(12, "lse"));
    assert_eq!(wrong(|_, _, lse| lse.unwrap()[16] = 0.0), touched(64, "lse"));
    // Not written: the contents are the same as before.
    let before = f32::from_bits(0x7FE5_7FE5);
    assert_eq!(
        wrong(|problem, out, _| {
            let at = 2 * problem.out().index(1, 0, 2, 1);
            out[at..at + 2].copy_from_slice(&[0xE5, 0x7F]);
        }),
        "out is not written at (b 1, h 0, i 2, d 1)"
    );
    assert_eq!(
        wrong(|_, _, lse| lse.unwrap()[4] = before),
        "lse is not written at (b 0, h 1, i 0)"
    );
    // Wrong numbers.
    let message = wrong(|problem, out, _| {
        let at = 2 * problem.out().index(1, 1, 0, 2);
        out[at + 1] ^= 0x80;
    });
    assert!(
        message.starts_with("out is at ") && message.contains("(b 1, h 1, i 0, d 2)"),
        "{message}"
    );
    let message = wrong(|_, _, lse| lse.unwrap()[5] = f32::NEG_INFINITY);
    assert!(
        message.starts_with("lse is at inf of the bound at (b 0, h 1, i 1, d 0): got -inf"),
        "{message}"
    );
}

#[test]
fn errors_and_refusals_are_reported() {
    let refused = run_case(&Reference, KernelKind::Flash, &case()).unwrap_err();
    let Wrong::Refused(reasons) = &refused.wrong else { panic!("{refused}") };
    let (backend, kernel) = (BackendKind::Reference, KernelKind::Flash);
    assert_eq!(reasons[..], [Reason::NoSuchKernel { backend, kernel }]);
    let tally =
        run_cases(&Reference, KernelKind::Flash, [&case()], |_, result| assert!(result.is_err()));
    assert!(!tally.all_passed() && tally.failures.is_empty() && tally.refused.len() == 1);
    let invalid: Case = "shape=1x3x4x4 hkv=2".parse().unwrap();
    let failure = run_case(&Reference, KernelKind::Unfused, &invalid).unwrap_err();
    assert_eq!(
        failure.to_string(),
        "reference CPU, unfused: the case is not valid: q has 3 heads, which is not a multiple of \
         the 2 heads of k\n    \
         replay with FLASHTILE_CASE=\"shape=1x3x4x4 hkv=2\""
    );
}

#[test]
fn different_bits_are_found() {
    let runs = AtomicUsize::new(0);
    let restless = Misbehaving(|_: &Problem, out: &mut [u8], _: Option<&mut [f32]>| {
        out[0] ^= (runs.fetch_add(1, Ordering::Relaxed) % 2) as u8;
    });
    let failure = check_repeats(&restless, KernelKind::Flash, &case()).unwrap_err();
    assert!(matches!(failure.wrong, Wrong::NotRepeated { at: [0, 0, 0, 0] }), "{failure}");
    let failure = check_lengths(&restless, KernelKind::Flash, &case()).unwrap_err();
    assert!(matches!(failure.wrong, Wrong::Lengths { at: [0, 0, 0, 0] }), "{failure}");
    let looks_around = Misbehaving(|problem: &Problem, out: &mut [u8], _: Option<&mut [f32]>| {
        out[2 * problem.out().index(problem.batch() - 1, 1, 2, 0)] ^= problem.batch() as u8 - 1;
    });
    assert!(check_repeats(&looks_around, KernelKind::Flash, &case()).is_ok());
    let failure = check_neighbours(&looks_around, KernelKind::Flash, &case()).unwrap_err();
    assert!(matches!(failure.wrong, Wrong::Neighbours { at: [1, 1, 2, 0] }), "{failure}");
}

/// A fault is found in random problems and minimised, and the printed line reproduces it.
#[test]
fn a_printed_failure_replays() {
    for sabotage in [
        Sabotage::WrongKeyHead,
        Sabotage::MissedRescale,
        Sabotage::CausalOffByOne,
        Sabotage::SoftcapAfterMask,
    ] {
        let faulty = Honest { sabotage: Some(sabotage), ..Honest::PLAIN };
        let failure = run_random(&faulty, KernelKind::Flash, 0..200).unwrap_err();
        let text = failure.to_string();
        let line = text.split('"').nth(1).unwrap();
        println!("{sabotage:?}: {line}");
        let again = run_case(&faulty, KernelKind::Flash, &line.parse().unwrap()).unwrap_err();
        assert_eq!(again.to_string(), text);
        assert!(line.len() < 120, "not small: {line}");
    }
}
