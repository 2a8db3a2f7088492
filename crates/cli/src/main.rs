//! The program `flashtile`; everything is in the library beside it, where tests and fuzzers reach it.

fn main() -> std::process::ExitCode {
    flashtile_cli::main()
}
