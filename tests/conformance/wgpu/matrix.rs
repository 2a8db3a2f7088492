//! The kernel on matrix units, over the whole catalogue in f16, and in f32 and bf16 with inputs
//! rounded to f16. Where the adapter has no matrix units that a kernel uses, the tests are ignored.

use super::Devices;
use crate::{
    harness::{Test, is_required},
    shared::{SameBits, cases_of_batches, cases_of_short_calls, report},
};
use flashtile_core::{DType, KernelKind, MatrixUnits, NoMatrixUnits, Problem, Reason, TensorView};
use flashtile_core::{PlanOptions, Verdict};
use flashtile_testkit::{
    Case, Failure, Prepared, Wrong, check_lengths, check_neighbours, check_repeats, run_case,
};

/// The widest heads that kernels on matrix units support.
const WIDEST: usize = 256;

/// These cases in f16, each once.
pub(super) fn in_f16(cases: &[Case]) -> Vec<Case> {
    let mut in_f16: Vec<Case> = Vec::new();
    for case in cases {
        let case = Case { dtype: DType::F16, ..case.clone() };
        if !in_f16.contains(&case) {
            in_f16.push(case);
        }
    }
    in_f16
}

/// Every case of a group, in f16 and with matrix units required.
pub(super) fn group(group: &str, cases: &[Case]) -> Test<Devices> {
    let in_f16 = in_f16(cases);
    Test::new(format!("matrix flash: {group}"), move |d: &Devices| run(d, &in_f16)).unless(missing)
}

/// Every third case of a group, in f32 or bf16 in turns, with matrix units required and reduced
/// precision allowed.
pub(super) fn rounded(group: &str, cases: &[Case]) -> Test<Devices> {
    let in_turns = |(n, case): (usize, Case)| {
        let dtype = [DType::F32, DType::BF16][n % 2];
        Case { dtype, ..case }
    };
    let cases: Vec<Case> = in_f16(cases).into_iter().step_by(3).enumerate().map(in_turns).collect();
    let run = move |d: &Devices| {
        let backend = d.full.with_matrix_units(MatrixUnits::Require).with_reduced_precision();
        let check = |case: &Case| {
            let prepared = Prepared::rounded_to_f16(case)
                .map_err(|error| Failure::new(&backend, KernelKind::Flash, case, error.into()))?;
            prepared.check(&backend, KernelKind::Flash)
        };
        report(cases.iter().filter_map(|case| {
            let failure = check(case).err()?;
            (!is_too_wide(case, &failure)).then_some(failure)
        }))
    };
    Test::new(format!("matrix flash, rounded: {group}"), run).unless(missing)
}

/// Why the adapter cannot run these tests. With FLASHTILE_REQUIRE_MATRIX_UNITS=1 they run, and fail
/// where it cannot.
pub(super) fn missing(devices: &Devices) -> Option<String> {
    if is_required("FLASHTILE_REQUIRE_MATRIX_UNITS") {
        return None;
    }
    let view = TensorView::bshd(DType::F16, [1; 4]).expect("small");
    let problem = Problem::builder(view, view, view).build().expect("valid");
    let options = PlanOptions::new().matrix_units(MatrixUnits::Require);
    match devices.full.context().verdict(&problem, &options.for_tiles()) {
        Verdict::Runs(_) => None,
        Verdict::Refused(reasons) => {
            let reasons: Vec<_> = reasons.iter().map(Reason::to_string).collect();
            Some(reasons.join("; "))
        }
    }
}

/// A row has the same bits in a second run, whatever the batch, and however many keys lie beyond
/// those that it sees.
pub(super) fn same_bits() -> Vec<Test<Devices>> {
    let kernel = KernelKind::Flash;
    let test = |name: &str, check: SameBits, cases: Vec<Case>| {
        let cases = in_f16(&cases);
        let run = move |d: &Devices| {
            let backend = d.full.with_matrix_units(MatrixUnits::Require);
            report(cases.iter().filter_map(|case| check(&backend, kernel, case).err()))
        };
        Test::new(format!("matrix flash: same bits {name}"), run).unless(missing)
    };
    vec![
        test("in a second run", check_repeats, cases_of_batches()),
        test("beside other batch entries", check_neighbours, cases_of_batches()),
        test("for calls of any length", check_lengths, cases_of_short_calls()),
    ]
}

fn run(devices: &Devices, cases: &[Case]) -> Result<(), String> {
    let backend = devices.full.with_matrix_units(MatrixUnits::Require);
    report(cases.iter().filter_map(|case| {
        let failure = run_case(&backend, KernelKind::Flash, case).err()?;
        (!is_too_wide(case, &failure)).then_some(failure)
    }))
}

/// Whether a case is refused for the width of its heads, as it should be, and for nothing else.
fn is_too_wide(case: &Case, failure: &Failure) -> bool {
    let Wrong::Refused(reasons) = &failure.wrong else { return false };
    let by_width = |reason: &Reason| {
        matches!(
            reason,
            Reason::MatrixUnits(NoMatrixUnits::Axis { axis: "head_dim" | "head_dim_v", .. })
        )
    };
    case.head_dim.max(case.head_dim_v) > WIDEST && reasons.iter().all(by_width)
}
