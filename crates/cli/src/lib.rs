//! The program `flashtile`: computes attention on safetensors files, and tests and measures the
//! backends of a machine.
//!
//! ```text
//! flashtile run IN.safetensors --output OUT.safetensors
//! flashtile devices | explain IN.safetensors | check | tune | bench
//! ```
//!
//! This library exists for the program's own tests and fuzz targets. Use the crate `flashtile`
//! instead.

mod args;
mod bench;
mod check;
mod devices;
mod explain;
pub mod input;
mod kept;
mod open;
mod output;
mod pipelines;
mod progress;
mod run;
mod shape;
mod text;
mod tune;
mod tuning;
mod verify;

use args::{Cli, Command};
use clap::{Parser as _, error::ErrorKind};
use std::{
    io::{self, Write as _},
    panic,
    process::ExitCode,
};

pub use args::{AttentionArgs, LayoutArgs};

/// Runs the program on the process's arguments. The exit code is 0, or 1 (2 for wrong usage) with
/// one line on stderr.
pub fn main() -> ExitCode {
    // A panic is a bug, but callers still get one line.
    panic::set_hook(Box::new(|info| {
        complain(&format!("internal error, please report it: {info}"))
    }));
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return usage(&e),
    };
    let mut stdout = io::stdout().lock();
    let done = match cli.command {
        Command::Run(args) => run::run(&args, &mut stdout),
        Command::Devices(args) => devices::devices(&args, &mut stdout),
        Command::Explain(args) => explain::explain(&args, &mut stdout),
        Command::Check(args) => check::check(&args, &mut stdout),
        Command::Tune(args) => tune::tune(&args, &mut stdout),
        Command::Bench(args) => bench::bench(&args, &mut stdout),
    };
    pipelines::keep();
    match done.and_then(|()| Ok(stdout.flush()?)) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader closed the pipe, as `head` does.
        Err(e)
            if e.downcast_ref::<io::Error>()
                .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) =>
        {
            ExitCode::SUCCESS
        }
        Err(e) => {
            complain(&format!("{e:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Help and version go to stdout; anything else is an error of one line.
fn usage(e: &clap::Error) -> ExitCode {
    match e.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = e.print();
            return ExitCode::SUCCESS;
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            complain(
                "a command is missing: run, devices, explain, check, tune or bench (see --help)",
            );
        }
        _ => {
            let text = e.render().to_string();
            let wanted = |line: &&str| {
                !line.starts_with("Usage:") && !line.starts_with("For more information")
            };
            let lines: Vec<_> = text
                .lines()
                .map(str::trim)
                .take_while(wanted)
                .filter(|line| !line.is_empty())
                .collect();
            complain(lines.join(" ").trim_start_matches("error: "));
        }
    }
    ExitCode::from(2)
}

/// Writes `message` to stderr as one line. If that fails, nothing else can report it.
pub(crate) fn complain(message: &str) {
    let _ = writeln!(io::stderr(), "flashtile: {}", text::one_line(message));
}
