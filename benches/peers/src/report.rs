//! What is printed.

use crate::{contest::Outcome, peers::Kind};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

/// One line of `--json`.
pub(crate) fn json_line(outcome: &Outcome) -> Value {
    let Outcome { case, kind, result } = outcome;
    let mut line = json!({
        "case": case.name(),
        "causal": case.causal,
        "peer": kind.to_string(),
        "ms": null,
        "first_ms": null,
        "error": null,
    });
    match result {
        Ok(measured) => {
            line["ms"] = json!(measured.ms);
            line["first_ms"] = json!(measured.first_ms);
            // JSON has no infinity.
            line["error"] = json!(measured.error.min(f64::MAX));
            if measured.error.is_infinite() {
                line["note"] = json!("a number of the output is not finite, and should be");
            }
        }
        Err(why) => line["note"] = json!(why),
    }
    line
}

/// Why the run fails, if it does: flashtile did not run, or its result is wrong. What happens to
/// the peers is their affair.
pub(crate) fn failure(outcomes: &[Outcome]) -> Option<String> {
    outcomes.iter().filter(|outcome| outcome.kind == Kind::Flashtile).find_map(|outcome| {
        match &outcome.result {
            Err(why) => Some(format!("{}: flashtile failed: {why}", outcome.case)),
            Ok(measured) if measured.error > 1.0 => Some(format!(
                "{}: flashtile's error is {:.3} times the bound",
                outcome.case, measured.error
            )),
            Ok(_) => None,
        }
    })
}

/// Every outcome in a row, and under them what the columns mean.
pub(crate) fn table(outcomes: &[Outcome]) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["case", "causal", "peer", "time", "ratio", "first result", "ratio", "error"]);
    let mut notes = String::new();
    for outcome in outcomes {
        let ours = outcomes
            .iter()
            .find(|other| other.case == outcome.case && other.kind == Kind::Flashtile)
            .and_then(|other| other.result.as_ref().ok());
        let causal = if outcome.case.causal { "yes" } else { "no" };
        let mut row = vec![outcome.case.name(), causal.to_owned(), outcome.kind.to_string()];
        match &outcome.result {
            Ok(measured) => {
                let ratio = |part: fn(&crate::contest::Measured) -> f64| {
                    ours.map_or_else(String::new, |ours| {
                        format!("{:.2}", part(measured) / part(ours))
                    })
                };
                row.extend([
                    ms(measured.ms),
                    ratio(|m| m.ms),
                    ms(measured.first_ms),
                    ratio(|m| m.first_ms),
                    format!("{:.3}", measured.error),
                ]);
            }
            Err(why) => {
                row.push("failed".to_owned());
                notes += &format!("\n{}, {}: {why}", outcome.case, outcome.kind);
            }
        }
        table.add_row(row);
    }
    for column in 3..8 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!(
        "{table}\n\
         ratio: how many times flashtile's time that is\n\
         error: the largest error as a share of flashtile's error bound{notes}"
    )
}

/// A time in milliseconds, with three digits or so.
fn ms(t: f64) -> String {
    match t {
        t if t >= 99_950.0 => format!("{:.0} s", t / 1e3),
        t if t >= 999.5 => format!("{:.2} s", t / 1e3),
        t if t >= 99.95 => format!("{t:.0} ms"),
        t if t >= 9.995 => format!("{t:.1} ms"),
        t => format!("{t:.3} ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{case::QUICK, contest::Measured};

    fn outcome(kind: Kind, ms: f64, error: f64) -> Outcome {
        Outcome { case: QUICK, kind, result: Ok(Measured { ms, first_ms: 1e3 * ms, error }) }
    }

    fn failed(kind: Kind) -> Outcome {
        Outcome { case: QUICK, kind, result: Err("no kernel".to_owned()) }
    }

    #[test]
    fn lines_have_these_keys() {
        let line = json_line(&outcome(Kind::Burn, 2.5, 7.0));
        let expected = json!({
            "case": "1x4x512x64", "causal": true, "peer": "burn",
            "ms": 2.5, "first_ms": 2500.0, "error": 7.0,
        });
        assert_eq!(line, expected);
        let expected = json!({
            "case": "1x4x512x64", "causal": true, "peer": "cubek-unit",
            "ms": null, "first_ms": null, "error": null, "note": "no kernel",
        });
        assert_eq!(json_line(&failed(Kind::CubekUnit)), expected);
        let line = json_line(&outcome(Kind::Burn, 2.5, f64::INFINITY));
        assert_eq!(line["error"], json!(f64::MAX));
        assert!(line["note"].is_string());
    }

    #[test]
    fn only_flashtile_fails_the_run() {
        let right = outcome(Kind::Flashtile, 2.0, 0.5);
        assert_eq!(failure(&[right, failed(Kind::Burn), outcome(Kind::CubekUnit, 1.0, 9.0)]), None);
        assert!(failure(&[failed(Kind::Flashtile)]).is_some_and(|why| why.contains("no kernel")));
        for error in [1.001, f64::INFINITY] {
            assert!(failure(&[outcome(Kind::Flashtile, 2.0, error)]).is_some(), "{error}");
        }
    }

    #[test]
    fn the_table_has_ratios_and_reasons() {
        let outcomes = [
            outcome(Kind::Flashtile, 2.0, 0.5),
            outcome(Kind::Burn, 9.0, 12.5),
            failed(Kind::CubekUnit),
        ];
        let text = table(&outcomes);
        let rows: Vec<Vec<&str>> =
            text.lines().map(|line| line.split('|').map(str::trim).collect()).collect();
        let burn =
            ["", "1x4x512x64", "yes", "burn", "9.000 ms", "4.50", "9.00 s", "4.50", "12.500"];
        assert!(rows.iter().any(|row| row.starts_with(&burn)), "{text}");
        assert!(text.ends_with("1x4x512x64,causal, cubek-unit: no kernel"), "{text}");
        assert!(table(&outcomes[1..2]).contains("9.000 ms"), "without flashtile, without ratios");
    }
}
