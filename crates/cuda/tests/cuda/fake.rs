//! Builds the fake driver and compiler, and plays scenarios on them in processes of their own.

use crate::{ignored, scenarios};
use libtest_mimic::{Failed, Trial};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::{Arc, OnceLock},
};

/// The variable that tells a process to play a scenario.
pub(crate) const SCENARIO: &str = "FLASHTILE_CUDA_SCENARIO";

/// A scenario: its name, what differs from a whole driver, and what it does.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) settings: &'static [(&'static str, &'static str)],
    pub(crate) play: fn(),
}

pub(crate) fn play(name: &str) -> ExitCode {
    match scenarios::ALL.iter().find(|scenario| scenario.name == name) {
        Some(scenario) => {
            (scenario.play)();
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
            run(scenario, fakes).map_err(Failed::from)
        })
    };
    scenarios::ALL.iter().map(trial).collect()
}

/// The libraries, in a directory that goes with them.
struct Fakes {
    directory: tempfile::TempDir,
}

impl Fakes {
    fn build(compiler: &str) -> Result<Self, String> {
        let directory = tempfile::tempdir().map_err(|e| e.to_string())?;
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda");
        for (source, library, more) in [
            ("driver.c", "whole/libcuda.so", None),
            ("driver.c", "incomplete/libcuda.so", Some("-DINCOMPLETE")),
            ("nvrtc.c", "libnvrtc.so.12", None),
        ] {
            let to = directory.path().join(library);
            fs::create_dir_all(to.parent().unwrap()).map_err(|e| e.to_string())?;
            let mut command = Command::new(compiler);
            command
                .args(["-shared", "-fPIC", "-O1", "-o"])
                .arg(&to)
                .arg(sources.join(source))
                .args(more);
            let output = command.output().map_err(|e| e.to_string())?;
            if !output.status.success() {
                return Err(format!("{source}: {}", String::from_utf8_lossy(&output.stderr)));
            }
        }
        Ok(Self { directory })
    }
}

/// Plays a scenario in a process of its own, which fails where it panics.
fn run(scenario: &Scenario, fakes: &Fakes) -> Result<(), String> {
    let scratch = tempfile::tempdir().map_err(|e| e.to_string())?;
    let path = |name: &str| -> PathBuf { scratch.path().join(name) };
    let fake = |name: &str| fakes.directory.path().join(name);
    let mut command = Command::new(env::current_exe().map_err(|e| e.to_string())?);
    command
        .env(SCENARIO, scenario.name)
        .env("LD_LIBRARY_PATH", fake("whole"))
        .env("FLASHTILE_NVRTC", fake("libnvrtc.so.12"))
        .env("FLASHTILE_CACHE_DIR", path("cache"))
        .env("FAKE_LOG", path("log"));
    for (name, value) in scenario.settings {
        match *name {
            "LD_LIBRARY_PATH" => command.env(name, fake(value)),
            _ => command.env(name, value),
        };
    }
    let output = command.output().map_err(|e| e.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{}\n{}", output.status, String::from_utf8_lossy(&output.stderr))),
    }
}
