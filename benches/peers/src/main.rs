//! Compares flashtile with other attention kernels in Rust, side by side in one run.

mod case;
mod contest;
mod peers;
mod remote;
mod report;
mod verify;
mod worker;

use anyhow::{Result, bail};
use case::Case;
use clap::{ArgAction, Parser};
use peers::Kind;
use std::{
    io::{self, Write as _},
    time::Duration,
};

/// Compares flashtile with other attention kernels in Rust: burn's attention and
/// cubek-attention's unit kernel, on the same adapter, with the same f32 inputs.
///
/// Every peer runs in a process of its own. After three warm-up runs they take turns; the median
/// counts, by the host's clock, from the first submission of a turn until the device is idle. The
/// whole output of each is compared with the float64 oracle. Only a failure of flashtile, or a
/// result of it outside its error bound, makes the exit status non-zero.
///
/// On a software adapter the first result of burn and of cubek-attention takes 300 to 460 s each,
/// and much longer on a busy machine. So `--quick` takes about 15 minutes there, and a whole run
/// several hours. Progress is on stderr. The peers run with the drivers' caches of compiled
/// shaders off; MESA_SHADER_CACHE_DISABLE=false turns Mesa's on.
#[derive(Debug, Parser)]
#[command(name = "flashtile-peers", version = None)]
struct Args {
    /// Print one JSON object per case and peer instead of a table: `case`, `causal`, `peer`, `ms`
    /// (median), `first_ms` (plan, compile, first result), `error` (largest share of flashtile's
    /// error bound), and `note` where something went wrong
    #[arg(long)]
    json: bool,

    /// Measure 1x4x512x64 causal alone
    #[arg(long, conflicts_with = "shape")]
    quick: bool,

    /// Measure one case alone: BxHxSxD, or BxHxSxD,causal
    #[arg(long, value_name = "CASE")]
    shape: Option<Case>,

    /// Let only these take part; may be repeated
    #[arg(long = "peer", value_enum, value_name = "PEER")]
    peers: Vec<Kind>,

    /// Seconds that a peer may take for its first result, or for any other answer
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    limit: u64,

    /// Be the process of one peer for one case
    #[arg(long, hide = true, num_args = 2, value_names = ["PEER", "CASE"], action = ArgAction::Set)]
    worker: Option<Vec<String>>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some([kind, case]) = args.worker.as_deref() {
        let kind = <Kind as clap::ValueEnum>::from_str(kind, false).map_err(anyhow::Error::msg)?;
        worker::work(kind, case.parse()?);
    }
    let cases = match args.shape {
        Some(case) => vec![case],
        None if args.quick => vec![case::QUICK],
        None => case::all(),
    };
    // In this order, flashtile first: its adapter is everyone's.
    let named = |kind: &Kind| args.peers.is_empty() || args.peers.contains(kind);
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(named).collect();

    let mut outcomes = Vec::new();
    for case in cases {
        let held = contest::hold(case, &kinds, Duration::from_secs(args.limit))?;
        if args.json {
            let mut out = io::stdout().lock();
            held.iter().try_for_each(|outcome| writeln!(out, "{}", report::json_line(outcome)))?;
            out.flush()?;
        }
        outcomes.extend(held);
    }
    if !args.json {
        println!("{}", report::table(&outcomes));
    }
    match report::failure(&outcomes) {
        Some(why) => bail!(why),
        None => Ok(()),
    }
}
