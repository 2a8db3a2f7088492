//! The process of one peer for one case.
//!
//! Each peer has a process of its own. A panic, a lost device or a crash in a driver then ends that
//! peer alone, and every first result is that of a process that has compiled nothing.
//!
//! The protocol: one JSON object per line on stdout. The process first says which `adapter` it
//! opened, then after how many milliseconds it had a first result, `first_ms`. Then it answers
//! lines on stdin:
//!
//! - `run N` runs N times, and answers `ms`: the milliseconds of all of them.
//! - `output PATH` writes the output of the last run to a file, as f32 numbers, and answers `{}`.
//!
//! An answer with `failed` is the last one, and says why.

use crate::{
    case::{Case, Inputs},
    peers::Kind,
};
use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::{Value, json};
use std::{
    any::Any,
    fs,
    io::{self, Write as _},
    panic::{AssertUnwindSafe, catch_unwind},
    process,
    time::Instant,
};

/// Works until stdin ends, and never returns: the threads of libraries need not end in order.
pub(crate) fn work(kind: Kind, case: Case) -> ! {
    let failed = match catch_unwind(AssertUnwindSafe(|| serve(kind, case))) {
        Ok(Ok(())) => process::exit(0),
        Ok(Err(error)) => format!("{error:#}"),
        Err(panic) => format!("it panicked: {}", message(&*panic)),
    };
    // The parent may be gone, and then there is nobody to answer.
    let _ = answer(&json!({ "failed": failed }));
    process::exit(1)
}

fn serve(kind: Kind, case: Case) -> Result<()> {
    let inputs = Inputs::new(case)?;
    let (adapter, peer) = kind.open()?;
    answer(&json!({ "adapter": adapter }))?;
    let start = Instant::now();
    let mut prepared = peer.prepare(&inputs)?;
    answer(&json!({ "first_ms": ms(start) }))?;
    for line in io::stdin().lines() {
        let line = line?;
        let reply = match line.split_once(' ') {
            Some(("run", times)) => {
                let times = times.parse().with_context(|| format!("`{line}`"))?;
                let start = Instant::now();
                prepared.run(times)?;
                json!({ "ms": ms(start) })
            }
            Some(("output", path)) => {
                let numbers = prepared.output()?;
                fs::write(path, bytemuck::cast_slice::<f32, u8>(&numbers))
                    .with_context(|| format!("cannot write {path}"))?;
                json!({})
            }
            _ => bail!("`{line}` is no command"),
        };
        answer(&reply)?;
    }
    Ok(())
}

fn answer(value: &Value) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{value}")?;
    out.flush().map_err(|e| anyhow!(e))
}

fn ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}
