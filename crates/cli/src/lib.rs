//! The program `flashtile`: attention on safetensors files, and what shows that it is right and fast.
//!
//! ```text
//! flashtile run IN.safetensors --output OUT.safetensors
//! flashtile devices | explain IN.safetensors | check | bench
//! ```
//!
//! The library exists for the program's own tests and fuzz targets; use the crate `flashtile` instead.

mod adapters;
mod args;
mod bench;
mod check;
mod devices;
mod explain;
pub mod input;
mod output;
mod progress;
mod run;
mod text;
mod verify;

use args::{Cli, Command};
use clap::{Parser as _, error::ErrorKind};
use std::{
    io::{self, Write as _},
    panic,
    process::ExitCode,
};

pub use args::{AttentionArgs, LayoutArgs};

/// Runs the program on the process's arguments. Exit code 0; or 1 (2 for usage) and one line on stderr.
pub fn main() -> ExitCode {
    // A panic is a bug, but even then whoever called the program gets one line.
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
        Command::Bench(args) => bench::bench(&args, &mut stdout),
    };
    match done.and_then(|()| Ok(stdout.flush()?)) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough.
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
                "a command is missing: run, devices, explain, check or bench (--help tells more)",
            );
        }
        _ => {
            let text = e.render().to_string();
            let told = |line: &&str| {
                !line.starts_with("Usage:") && !line.starts_with("For more information")
            };
            let lines: Vec<_> = text
                .lines()
                .map(str::trim)
                .take_while(told)
                .filter(|line| !line.is_empty())
                .collect();
            complain(lines.join(" ").trim_start_matches("error: "));
        }
    }
    ExitCode::from(2)
}

/// One line on stderr, whatever is in `message`; where even that fails nobody is listening.
pub(crate) fn complain(message: &str) {
    let _ = writeln!(io::stderr(), "flashtile: {}", text::one_line(message));
}
