//! The program `flashtile`. All of its code is in the library, where tests and fuzz targets reach
//! it.

fn main() -> std::process::ExitCode {
    flashtile_cli::main()
}
