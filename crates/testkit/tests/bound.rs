//! The error rule itself: an honest float32 kernel stays within it everywhere, and one with a fault does not, wherever the fault matters.
//! A rule that fails the first part is unfair, one that fails the second is worthless.
#![allow(clippy::unwrap_used)]

mod honest;

use flashtile_core::{DType, KernelKind};
use flashtile_testkit::{Case, Prepared, catalogue, random_case};
use honest::{Functions, Honest, Sabotage};

const KERNELS: [Honest; 5] = [
    Honest::PLAIN,
    Honest { tile: 8, ..Honest::PLAIN },
    Honest { tile: 128, stored_weights: true, ..Honest::PLAIN },
    Honest { functions: Functions::Wgsl, ..Honest::PLAIN },
    Honest { tile: 16, stored_weights: true, functions: Functions::Wgsl, sabotage: None },
];

/// Holds every honest kernel to the rule and returns the number of rows.
fn all_pass(cases: impl Iterator<Item = Case>) -> usize {
    let mut rows = 0;
    let mut worst = KERNELS.map(|_| [(0.0, String::new()), (0.0, String::new())]);
    let mut failures = Vec::new();
    for case in cases {
        let prepared = Prepared::new(&case).unwrap();
        rows += prepared.answer().rows.len();
        for (kernel, worst) in KERNELS.iter().zip(&mut worst) {
            match prepared.check(kernel, KernelKind::Flash) {
                Ok(outcome) => {
                    let shares = [Some(outcome.out), outcome.lse].map(|worst| worst.map_or(0.0, |worst| worst.share));
                    for (worst, share) in worst.iter_mut().zip(shares) {
                        if share > worst.0 {
                            *worst = (share, case.to_string());
                        }
                    }
                }
                Err(failure) => failures.push(failure.to_string()),
            }
        }
    }
    for (kernel, [out, lse]) in KERNELS.iter().zip(&worst) {
        println!("{kernel:?}\n    out {:.3} in {}\n    lse {:.3} in {}", out.0, out.1, lse.0, lse.1);
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    rows
}

#[test]
fn honest_kernels_pass_the_catalogue() {
    let rows = all_pass(catalogue().into_iter().map(|(_, case)| case));
    assert!(rows > 10_000, "{rows}");
}

#[test]
fn honest_kernels_pass_random_problems() {
    let rows = all_pass((0..400).map(random_case));
    assert!(rows > 10_000, "{rows}");
}
