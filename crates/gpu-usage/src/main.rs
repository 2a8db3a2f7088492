//! Prints what the kernels of flashtile-wgpu take on the GPU whose driver it runs with.

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("gpu-usage runs on Linux only, because the drivers do");
    std::process::exit(1);
}

#[cfg(target_os = "linux")]
mod program;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    match program::run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gpu-usage: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
