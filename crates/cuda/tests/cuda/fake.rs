//! Builds the fake driver and the fake compiler, and runs each scenario on them in its own process.

use crate::{ignored, scenarios};
use libtest_mimic::{Failed, Trial};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::{Arc, OnceLock},
};

/// The variable that makes a process run a scenario.
pub(crate) const SCENARIO: &str = "FLASHTILE_CUDA_SCENARIO";

/// A test on the fake driver. It fails if it panics.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// Environment variables that change the fakes. Those that hold paths are relative to the
    /// directory of the fakes.
    pub(crate) settings: &'static [(&'static str, &'static str)],
    pub(crate) run: fn(),
}

pub(crate) fn run_scenario(name: &str) -> ExitCode {
    match scenarios::ALL.iter().find(|scenario| scenario.name == name) {
        Some(scenario) => {
            (scenario.run)();
            ExitCode::SUCCESS
        }
        None => ExitCode::FAILURE,
    }
}

pub(crate) fn trials() -> Vec<Trial> {
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let here = Command::new(&compiler)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success());
    let built: Arc<OnceLock<Result<Fakes, String>>> = Arc::default();
    let trial = |scenario: &'static Scenario| {
        let name = format!("fake_driver::{}", scenario.name);
        if !here {
            return ignored(&name, "no C compiler");
        }
        let (built, compiler) = (built.clone(), compiler.clone());
        Trial::test(name, move || {
            let fakes =
                built.get_or_init(|| Fakes::build(&compiler)).as_ref().map_err(Clone::clone)?;
            run_in_process(scenario, fakes).map_err(Failed::from)
        })
    };
    scenarios::ALL.iter().map(trial).collect()
}

/// The fake libraries, in a directory that is deleted with this value.
struct Fakes {
    directory: tempfile::TempDir,
}

impl Fakes {
    fn build(compiler: &str) -> Result<Self, String> {
        let directory = tempfile::tempdir().map_err(|e| e.to_string())?;
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda");
        for (source, library, option) in [
            ("driver.c", "whole/libcuda.so", None),
            ("driver.c", "incomplete/libcuda.so", Some("-DINCOMPLETE")),
            ("nvrtc.c", "old/libnvrtc.so.12", None),
            ("nvrtc.c", "new/libnvrtc.so.12", Some("-DMINOR=99")),
        ] {
            let to = directory.path().join(library);
            fs::create_dir_all(to.parent().unwrap()).map_err(|e| e.to_string())?;
            let mut command = Command::new(compiler);
            command
                .args(["-shared", "-fPIC", "-O1", "-o"])
                .arg(&to)
                .arg(sources.join(source))
                .args(option);
            let output = command.output().map_err(|e| e.to_string())?;
            if !output.status.success() {
                return Err(format!("{source}: {}", String::from_utf8_lossy(&output.stderr)));
            }
        }
        Ok(Self { directory })
    }
}

/// Runs a scenario in a process of its own.
fn run_in_process(scenario: &Scenario, fakes: &Fakes) -> Result<(), String> {
    let scratch = tempfile::tempdir().map_err(|e| e.to_string())?;
    let path = |name: &str| -> PathBuf { scratch.path().join(name) };
    let fake = |name: &str| fakes.directory.path().join(name);
    let fake_paths = |names: &str| env::join_paths(names.split(':').map(fake));
    let mut command = Command::new(env::current_exe().map_err(|e| e.to_string())?);
    command
        .env(SCENARIO, scenario.name)
        .env("LD_LIBRARY_PATH", fake("whole"))
        .env("FLASHTILE_NVRTC", fake("old/libnvrtc.so.12"))
        .env("FLASHTILE_CACHE_DIR", path("cache"))
        .env("FAKE_LOG", path("log"));
    for (name, value) in scenario.settings {
        match *name {
            "LD_LIBRARY_PATH" => command.env(name, fake_paths(value).map_err(|e| e.to_string())?),
            _ => command.env(name, value),
        };
    }
    let output = command.output().map_err(|e| e.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{}\n{}", output.status, String::from_utf8_lossy(&output.stderr)))
}
