//! The oracle as a backend passes the whole catalogue: its rounded results are within its own
//! bound, it writes nothing else, and places that no query sees do not affect it.

use flashtile_core::KernelKind;
use flashtile_reference::Reference;
use flashtile_testkit::{catalogue, check_neighbours, check_repeats, run_case, run_random};

#[test]
fn the_oracle_passes_its_own_catalogue() {
    let (mut out, mut lse) = (0.0f64, 0.0f64);
    for (group, case) in catalogue() {
        match run_case(&Reference, KernelKind::Unfused, &case) {
            Ok(outcome) => {
                out = out.max(outcome.out.share);
                lse = lse.max(outcome.lse.map_or(0.0, |worst| worst.share));
            }
            Err(failure) => panic!("{group}: {failure}"),
        }
    }
    println!("worst shares: out {out:.3}, lse {lse:.3}");
    assert!(out <= 0.5 && lse <= 0.5, "rounding once is half an ulp: {out} {lse}");
}

#[test]
fn the_oracle_repeats_its_bits_with_any_neighbours() {
    for (group, case) in
        catalogue().into_iter().filter(|(_, case)| case.batch > 1 && case.flops() < 1_000_000)
    {
        for check in [check_repeats, check_neighbours] {
            check(&Reference, KernelKind::Unfused, &case)
                .unwrap_or_else(|failure| panic!("{group}: {failure}"));
        }
    }
}

#[test]
fn the_oracle_passes_random_problems() {
    match run_random(&Reference, KernelKind::Unfused, 0..300) {
        Ok(tally) => println!("{tally}"),
        Err(failure) => panic!("{failure}"),
    }
}
