use crate::{args::ExplainArgs, input, open};
use anyhow::Result;
use flashtile::{Choice, Decision, Reason, Verdict};
use serde_json::json;
use std::io::Write;

/// Prints the verdict of every backend and kernel on the problem of a file. Runs nothing.
pub(crate) fn explain(args: &ExplainArgs, out: &mut dyn Write) -> Result<()> {
    let bytes = input::load(&args.input)?;
    let input = input::Input::parse(&bytes, &args.layout, &args.attention)?;
    let choice = args.choice.choice();
    let everything = Choice::AUTO.matrix_units(choice.matrix_units).key_split(choice.key_split);
    let session = open::session(&args.choice)?;
    let explanation = session.explain_within(&input.problem, everything);
    let chosen = session.decide(&explanation, choice).ok();
    if !args.json {
        writeln!(out, "{}", input.problem)?;
        writeln!(out, "{explanation}")?;
        match chosen {
            Some(Decision { backend, kernel, why, .. }) => {
                writeln!(out, "chosen: {backend} {kernel}: {why}")?;
            }
            None => writeln!(out, "chosen: nothing, because all that was requested is refused")?,
        }
        return Ok(());
    }
    let verdicts = explanation.verdicts.iter().map(|(backend, kernel, verdict)| {
        let (how, reasons) = match verdict {
            Verdict::Runs(how) => (Some(how), vec![]),
            Verdict::Refused(reasons) => (None, reasons.iter().map(Reason::to_string).collect()),
        };
        json!({
            "backend": backend.name(),
            "kernel": kernel.name(),
            "runs": verdict.runs(),
            "how": how,
            "reasons": reasons,
        })
    });
    let chosen = chosen.map(|Decision { backend, kernel, why, .. }| {
        json!({ "backend": backend.name(), "kernel": kernel.name(), "why": why })
    });
    let report = json!({
        "problem": input.problem.to_string(),
        "chosen": chosen,
        "verdicts": verdicts.collect::<Vec<_>>(),
    });
    writeln!(out, "{report}")?;
    Ok(())
}
