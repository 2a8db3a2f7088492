//! The catalogue: small cases that cover every option of a problem, alone and in combination.
//!
//! To add a case, add a line to the group it belongs to, or a group to [`catalogue`].

mod few_queries;
mod options;
mod tensors;

use crate::case::Case;

/// Every case with the name of its group: a few hundred cases, under 3 GFLOP in total.
pub fn catalogue() -> Vec<(&'static str, Case)> {
    let groups: Vec<(&'static str, Vec<String>)> = vec![
        ("lengths", tensors::lengths()),
        ("head dims", tensors::head_dims()),
        ("values", tensors::values()),
        ("layouts", tensors::layouts()),
        ("strides", tensors::strides()),
        ("heads", tensors::heads()),
        ("bands", options::bands()),
        ("softcap", options::softcap()),
        ("scale", options::scale()),
        ("lengths of a call", options::call_lengths()),
        ("mask contents", options::mask_contents()),
        ("mask shapes", options::mask_shapes()),
        ("dropout", options::dropout()),
        ("decode", tensors::decode()),
        ("empty", tensors::empty()),
        ("unseen", options::unseen()),
        ("not a number", options::not_a_number()),
        ("few queries", few_queries::few_queries()),
        ("long", tensors::long()),
        ("long keys", tensors::long_keys()),
        ("together", options::together()),
    ];
    let parse =
        |line: String| line.parse::<Case>().expect("a test reads every line of the catalogue");
    groups
        .into_iter()
        .flat_map(|(group, lines)| lines.into_iter().map(move |line| (group, parse(line))))
        .collect()
}

const DTYPES: [&str; 3] = ["f32", "f16", "bf16"];

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, HashSet};

    #[test]
    fn every_case_is_valid_and_unique() {
        let cases = catalogue();
        let mut lines = HashSet::new();
        for (group, case) in &cases {
            let line = case.to_string();
            assert_eq!(line.parse().as_ref(), Ok(case));
            if let Err(error) = case.build() {
                panic!("{group}: {line}: {error}");
            }
            assert!(lines.insert(line), "{group}: duplicate: {case}");
        }
        assert!(cases.len() > 300, "{}", cases.len());
    }

    /// A software GPU runs the catalogue in about a minute.
    #[test]
    fn the_total_cost_is_small() {
        let mut groups = BTreeMap::<&str, (usize, u64)>::new();
        for (group, case) in catalogue() {
            let entry = groups.entry(group).or_default();
            entry.0 += 1;
            entry.1 += case.flops();
        }
        let (cases, flops) =
            groups.values().fold((0, 0), |(n, f), (cases, flops)| (n + cases, f + flops));
        for (group, (cases, flops)) in groups {
            println!("{group:20} {cases:4} cases {:8.1} MFLOP", flops as f64 / 1e6);
        }
        println!("{:20} {cases:4} cases {:8.1} MFLOP", "all", flops as f64 / 1e6);
        assert!(flops < 3_000_000_000);
    }
}
