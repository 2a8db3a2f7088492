//! Tests of the error rule itself. A correct float32 kernel must stay within the bound everywhere,
//! and a kernel with a fault must exceed it wherever the fault matters. A rule that fails the first
//! test is unfair; a rule that fails the second is worthless.
#![allow(clippy::unwrap_used)]

mod honest;

use flashtile_core::KernelKind;
use flashtile_testkit::{Case, Prepared, catalogue, random_case};
use honest::{Functions, Honest, Sabotage};

const KERNELS: [Honest; 5] = [
    Honest::PLAIN,
    Honest { tile: 8, ..Honest::PLAIN },
    Honest { tile: 128, stored_weights: true, ..Honest::PLAIN },
    Honest { functions: Functions::Wgsl, ..Honest::PLAIN },
    Honest { tile: 16, stored_weights: true, functions: Functions::Wgsl, sabotage: None },
];

/// Checks every honest kernel by the rule and returns the number of rows.
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
                    let shares = [Some(outcome.out), outcome.lse]
                        .map(|worst| worst.map_or(0.0, |worst| worst.share));
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
        println!(
            "{kernel:?}\n    out {:.3} in {}\n    lse {:.3} in {}",
            out.0, out.1, lse.0, lse.1
        );
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

/// Problems in which a fault matters. The test adds a dtype and a seed to each line.
struct Fault {
    sabotage: Sabotage,
    lines: &'static [&'static str],
    /// Storage types that do not hide the fault. A coarse type may hide it.
    dtypes: &'static [&'static str],
}

const ALL: &[&str] = &["f32", "f16", "bf16"];

const FAULTS: &[Fault] = &[
    Fault {
        sabotage: Sabotage::SkippedKey,
        lines: &[
            "shape=1x2x40x64",
            "shape=1x2x100x32 causal=yes",
            "shape=1x1x20x128 skv=65",
            "shape=2x2x50x16 window_left=9",
        ],
        dtypes: ALL,
    },
    Fault {
        sabotage: Sabotage::MissedRescale,
        lines: &[
            "shape=1x2x70x64",
            "shape=1x2x100x32 causal=yes",
            "shape=1x2x20x16 skv=200",
            "shape=1x2x70x32 values=large",
        ],
        dtypes: ALL,
    },
    Fault {
        sabotage: Sabotage::MissedSumRescale,
        lines: &[
            "shape=1x2x70x64",
            "shape=1x2x100x32 causal=yes",
            "shape=1x2x20x16 skv=200",
            "shape=1x2x70x32 values=large",
        ],
        dtypes: ALL,
    },
    Fault {
        sabotage: Sabotage::F16Scores,
        lines: &[
            "shape=1x2x40x64",
            "shape=1x2x100x32 causal=yes",
            "shape=1x2x30x128 values=large",
            "shape=1x2x30x64 softcap=30.0",
        ],
        dtypes: ALL,
    },
    Fault {
        sabotage: Sabotage::Bf16Scores,
        lines: &[
            "shape=1x2x40x64",
            "shape=1x2x100x32 causal=yes",
            "shape=1x2x30x128 values=large",
            "shape=1x2x30x64 softcap=30.0",
        ],
        dtypes: ALL,
    },
    Fault {
        sabotage: Sabotage::F16Sums,
        lines: &[
            "shape=1x2x40x64",
            "shape=1x2x100x32 causal=yes",
            "shape=1x2x20x32 skv=600 values=positive",
        ],
        dtypes: &["f32"],
    },
    Fault {
        sabotage: Sabotage::Bf16Sums,
        lines: &[
            "shape=1x2x40x64",
            "shape=1x2x100x32 causal=yes",
            "shape=1x2x20x32 skv=600 values=positive",
        ],
        dtypes: &["f32"],
    },
    Fault {
        sabotage: Sabotage::F16Sums,
        lines: &["shape=1x2x20x32 skv=600 values=positive", "shape=1x2x40x16 skv=1000"],
        dtypes: &["f16"],
    },
    Fault {
        sabotage: Sabotage::Bf16Sums,
        lines: &["shape=1x2x20x32 skv=600 values=positive", "shape=1x2x40x16 skv=1000"],
        dtypes: &["f16", "bf16"],
    },
    Fault {
        sabotage: Sabotage::OneLongSum,
        lines: &[
            "shape=1x1x32x16 skv=9000 values=positive",
            "shape=1x1x16x16 skv=20000 values=positive",
        ],
        dtypes: &["f32"],
    },
    Fault {
        sabotage: Sabotage::WrongScale,
        lines: &[
            "shape=1x2x40x64",
            "shape=1x2x70x32 causal=yes",
            "shape=1x2x30x128 values=large scale=-0.1",
        ],
        dtypes: ALL,
    },
    Fault {
        sabotage: Sabotage::CausalOffByOne,
        lines: &[
            "shape=1x2x40x64 causal=yes",
            "shape=1x2x20x32 skv=70 causal=yes align=bottom-right",
            "shape=1x2x70x16 causal=yes window_left=5",
        ],
        dtypes: ALL,
    },
    Fault {
        sabotage: Sabotage::WrongKeyHead,
        lines: &["shape=1x4x40x64 hkv=2", "shape=2x6x9x16 hkv=3 skv=33"],
        dtypes: ALL,
    },
    Fault {
        sabotage: Sabotage::SoftcapAfterMask,
        lines: &[
            "shape=1x2x40x64 softcap=2.0 mask=f32:qk:random",
            "shape=1x2x40x32 softcap=5.0 mask=f16:11qk:alibi",
        ],
        dtypes: ALL,
    },
    Fault {
        sabotage: Sabotage::MaskInLog2,
        lines: &[
            "shape=1x2x40x64 mask=f32:qk:lowest",
            "shape=1x2x40x64 mask=bf16:hqk:lowest lse=no",
        ],
        dtypes: ALL,
    },
    Fault {
        sabotage: Sabotage::DropoutInSum,
        lines: &["shape=1x2x40x64 dropout=0.1", "shape=1x2x70x16 dropout=0.5 causal=yes"],
        dtypes: ALL,
    },
    Fault {
        sabotage: Sabotage::DropoutUnscaled,
        lines: &["shape=1x2x40x64 dropout=0.1", "shape=1x2x70x16 dropout=0.5 causal=yes"],
        dtypes: ALL,
    },
    Fault {
        sabotage: Sabotage::MaskByArithmetic,
        lines: &[
            "shape=1x2x40x64 mask=bool:k:random poison=unseen",
            "shape=2x2x40x16 kv_lens=30:9 poison=unseen mask=f32:k:random",
        ],
        dtypes: ALL,
    },
];

/// Every fault is caught in at least 19 of 20 problems in which it matters.
#[test]
fn faulty_kernels_fail() {
    let mut missed = Vec::new();
    for fault in FAULTS {
        for dtype in fault.dtypes {
            let mut shares = Vec::new();
            for (line, seed) in
                fault.lines.iter().flat_map(|line| (0..8).map(move |seed| (line, seed)))
            {
                let case: Case = format!("{line} dtype={dtype} seed={seed}").parse().unwrap();
                let prepared = Prepared::new(&case).unwrap();
                let tile = [16, 32][seed % 2];
                prepared.check(&Honest { tile, ..Honest::PLAIN }, KernelKind::Flash).unwrap();
                let faulty = Honest { tile, sabotage: Some(fault.sabotage), ..Honest::PLAIN };
                let outcome = prepared.measure(&faulty, KernelKind::Flash).unwrap();
                shares.push(outcome.out.share.max(outcome.lse.map_or(0.0, |worst| worst.share)));
            }
            shares.sort_by(f64::total_cmp);
            let caught = shares.iter().filter(|&&share| share > 1.0).count();
            let line = format!(
                "{:?} in {dtype}: caught {caught} of {}, shares {:.2e} to {:.2e}, median {:.2e}",
                fault.sabotage,
                shares.len(),
                shares[0],
                shares[shares.len() - 1],
                shares[shares.len() / 2]
            );
            println!("{line}");
            if 20 * caught < 19 * shares.len() {
                missed.push(line);
            }
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}
