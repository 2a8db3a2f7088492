//! `tune`, and the tables and pipelines that the program keeps from one run to the next.
//!
//! These tests need a wgpu adapter, and have their own harness: where there is none they show as
//! ignored, with the reason. With FLASHTILE_REQUIRE_GPU=1 (as on CI) they fail instead.

#[path = "../common/mod.rs"]
mod common;

use common::{Scene, stderr, stdout, tensor};
use libtest_mimic::{Arguments, Trial};
use safetensors::Dtype;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Output, Stdio},
    time::{Duration, Instant},
};

/// A name, a test, and the graphics API that it needs.
type Test = (&'static str, fn(), Option<&'static str>);

const TESTS: [Test; 6] = [
    ("tune keeps the winner, and later runs take it", keeps_the_winner, None),
    ("another case is added to the same table", adds_a_case, None),
    ("a table that cannot be used is ignored with a message", ignores_bad_tables, None),
    ("tune says at once where it cannot keep the winner", needs_a_place, None),
    ("an interrupted search leaves no broken file", survives_interruption, None),
    ("runs keep pipelines and survive damaged ones", keeps_pipelines, Some("Vulkan")),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let required = std::env::var_os("FLASHTILE_REQUIRE_GPU").is_some_and(|value| value == "1");
    // Whatever is only listed needs no adapter.
    let api = if arguments.list { None } else { api_of_first_adapter() };
    let trials = TESTS.map(|(name, test, needed)| {
        let why = match (&api, needed) {
            _ if arguments.list => None,
            (None, _) if !required => Some("no graphics adapter".to_owned()),
            (Some(api), Some(needed)) if api != needed => Some(format!("it runs on {api}")),
            (None | Some(_), _) => None,
        };
        match why {
            Some(why) => {
                Trial::test(format!("{name} ({why})"), || Err(why.into())).with_ignored_flag(true)
            }
            None => Trial::test(name, move || {
                test();
                Ok(())
            }),
        }
    });
    libtest_mimic::run(&arguments, trials.into()).exit_code()
}

/// `Vulkan`, say; `None` where the program finds no adapter.
fn api_of_first_adapter() -> Option<String> {
    let devices = lines(&many_queries().flashtile(&["devices", "--json"]));
    let first = devices.iter().find(|device| device["backend"] == "wgpu")?;
    first["api"].as_str().map(str::to_owned)
}

/// Kinds that take little to compile, and little time for each.
const TUNE: [&str; 8] =
    ["tune", "--shape", "1x2x96x16", "--dtype", "f32", "--causal", "--seconds", "0.5"];

/// A problem of the kind that is tuned.
fn many_queries() -> Scene {
    let values: Vec<_> = (0..2 * 80 * 16).map(|n| f64::from(n % 7) - 3.0).collect();
    let x = |name| tensor(name, Dtype::F32, &[1, 80, 2, 16], &values);
    Scene::new(&[x("q"), x("k"), x("v")])
}

/// A command that keeps its files in `cache`, a folder of the scene.
fn command(scene: &Scene, cache: &Path, args: &[&str]) -> Command {
    let mut command = scene.command(args);
    command.env("FLASHTILE_CACHE_DIR", cache);
    command
}

fn run(scene: &Scene, cache: &Path, args: &[&str]) -> Output {
    command(scene, cache, args).output().expect("the program starts")
}

fn lines(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", stderr(output));
    let text = stdout(output);
    text.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect()
}

/// The kept files whose names start with `kind`.
fn kept(cache: &Path, kind: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(cache) else { return Vec::new() };
    let paths = entries.map(|entry| entry.expect("readable").path());
    let named = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(kind))
    };
    paths.filter(named).collect()
}

/// How wgpu's flash kernel would run the file, and what stderr says.
fn explained(scene: &Scene, cache: &Path, more: &[&str]) -> (String, String) {
    let args =
        [&["explain", "in.safetensors", "--causal", "--adapter", "0", "--json"], more].concat();
    let output = run(scene, cache, &args);
    let report = &lines(&output)[0];
    let verdicts = report["verdicts"].as_array().expect("a list");
    let flash = verdicts.iter().find(|v| v["backend"] == "wgpu" && v["kernel"] == "flash");
    let how = flash.expect("it is listed")["how"].as_str().expect("it runs");
    (how.to_owned(), stderr(&output))
}

fn keeps_the_winner() {
    let scene = many_queries();
    let cache = scene.path("cache");
    assert!(!explained(&scene, &cache, &[]).0.contains("measured"));
    let output = run(&scene, &cache, &[&TUNE[..], &["--json"]].concat());
    let mut shapes = lines(&output);
    assert_eq!(stderr(&output), "", "no progress bar where stderr is no terminal");
    let end = shapes.pop().expect("a line about the file");
    let [file] = &kept(&cache, "")[..] else { panic!("{:?}", kept(&cache, "")) };
    assert_eq!(end["file"], file.to_str().expect("UTF-8"));
    assert_eq!(end["kinds"], 1);

    let planned: Vec<_> = shapes.iter().filter(|shape| shape["planned"] == true).collect();
    assert_eq!(planned.len(), 1, "{shapes:?}");
    assert_eq!((&planned[0]["speedup"], &planned[0]["case"]), (&1.0.into(), &"1x2x96x16".into()));
    assert!(planned[0]["ms"].as_f64().is_some_and(|ms| ms > 0.0), "{}", planned[0]);
    assert_eq!(shapes.iter().filter(|shape| shape["won"] == true).count(), 1, "{shapes:?}");
    assert!(shapes.len() > 5, "every shape is listed, measured or not");

    let (how, complaints) = explained(&scene, &cache, &[]);
    assert!(how.contains(", measured") && complaints.is_empty(), "{how}; {complaints}");
    let (how, _) = explained(&scene, &cache, &["--tuning", "off"]);
    assert!(!how.contains("measured"), "{how}");
    let file = file.to_str().expect("UTF-8");
    let (how, _) = explained(&scene, Path::new(""), &["--tuning", file]);
    assert!(how.contains(", measured"), "{how}");

    let args = ["run", "in.safetensors", "--output", "out.safetensors", "--causal", "--verify"];
    let output = run(&scene, &cache, &[&args[..], &["--adapter", "0"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains("measured to be the fastest here"), "{}", stdout(&output));
}

fn adds_a_case() {
    let scene = many_queries();
    let cache = scene.path("cache");
    let decode = ["tune", "--shape", "1x4x300x16", "--queries", "1", "--kv-heads", "2"];
    let decode = [&decode[..], &["--dtype", "f32", "--seconds", "0"]].concat();
    let [one, two] = ["with 1 kind of problem\n", "with 2 kinds of problem\n"];
    for (args, kinds) in [(&TUNE[..], one), (&decode, two), (&TUNE[..], two)] {
        let output = run(&scene, &cache, args);
        assert!(output.status.success(), "{}", stderr(&output));
        let printed = stdout(&output);
        assert!(printed.contains(kinds), "{printed}");
        assert!(printed.contains("| tiles ") && printed.contains(" planned"), "{printed}");
    }
    assert_eq!(kept(&cache, "").len(), 1);
}

fn ignores_bad_tables() {
    let scene = many_queries();
    let cache = scene.path("cache");
    let args: Vec<_> = TUNE[..6].iter().copied().chain(["--seconds", "0"]).collect();
    let output = run(&scene, &cache, &args);
    assert!(output.status.success(), "{}", stderr(&output));
    let file = kept(&cache, "tuning").pop().expect("kept");
    let text = fs::read_to_string(&file).expect("text");
    let stale = text.replacen("flashtile 0.", "flashtile 9.", 1);
    assert_ne!(stale, text);
    let cut = text[..text.len() - 6].to_owned();
    for (contents, why) in [
        (stale.into_bytes(), "it was measured on another adapter, driver or version"),
        (cut.into_bytes(), "is not understood"),
        (vec![0xFF; 9], "it is no text"),
        (vec![b'x'; 2 << 20], "it has more than 1048576 bytes"),
    ] {
        fs::write(&file, contents).expect("writable");
        let (how, complaints) = explained(&scene, &cache, &[]);
        assert!(!how.contains("measured"), "{how}");
        let expected = format!("flashtile: ignored the measured tiles in {}: ", file.display());
        assert!(complaints.starts_with(&expected) && complaints.contains(why), "{complaints}");
        assert_eq!(complaints.lines().count(), 1);
        // The same for a file that was named.
        let named = file.to_str().expect("UTF-8");
        assert!(explained(&scene, &cache, &["--tuning", named]).1.contains(why));
    }
    // Tuning replaces it.
    let output = run(&scene, &cache, &args);
    assert!(output.status.success() && stderr(&output).contains("replacing "));
    assert!(explained(&scene, &cache, &[]).0.contains("measured"));
}

fn needs_a_place() {
    let scene = many_queries();
    // A file stands where the directory should be: that stops root, too.
    let file = scene.path("file");
    fs::write(&file, "").expect("writable");
    for (cache, message) in [
        (file.as_path(), "cannot write "),
        (Path::new(""), "there is no cache directory; name a file with --tuning"),
    ] {
        let output = run(&scene, cache, &TUNE);
        let printed = stderr(&output);
        assert_eq!(output.status.code(), Some(1));
        assert!(printed.starts_with("flashtile: ") && printed.contains(message), "{printed}");
        assert!(output.stdout.is_empty() && printed.lines().count() == 1, "{printed}");
    }
    // Other commands neither need the directory nor complain.
    let (how, complaints) = explained(&scene, &file.join("below"), &[]);
    assert!(!how.contains("measured"), "{how}");
    assert!(complaints.lines().count() <= 1, "{complaints}");
    let missing = ["explain", "in.safetensors", "--tuning", "no/such/file"];
    let output = run(&scene, Path::new(""), &missing);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("cannot read no/such/file"), "{}", stderr(&output));
}

fn survives_interruption() {
    let scene = many_queries();
    let cache = scene.path("cache");
    // A file is written after every case. The process is killed soon after the first.
    let cases = "1x2x96x16,f32\n1x2x80x16,f32,causal\n";
    fs::write(scene.path("cases"), cases.repeat(50)).expect("writable");
    let args = ["tune", "--seconds", "0", "--json", "--cases", "cases"];
    let mut child = command(&scene, &cache, &args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    let start = Instant::now();
    while kept(&cache, "tuning").is_empty() && start.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(50));
    child.kill().expect("it still runs");
    child.wait().expect("it ends");
    let file = kept(&cache, "tuning").pop().expect("the first case was kept");
    let text = fs::read_to_string(file).expect("text");
    assert!(text.ends_with("end\n"), "{text}");
    let (_, complaints) = explained(&scene, &cache, &[]);
    assert_eq!(complaints, "");
}

/// Pipelines are kept where the driver gives them out, and a damaged file is replaced.
fn keeps_pipelines() {
    let scene = many_queries();
    let cache = scene.path("cache");
    let args =
        ["run", "in.safetensors", "--output", "out.safetensors", "--adapter", "0", "--verify"];
    let mut first = Vec::new();
    for n in 0..3 {
        let output = run(&scene, &cache, &args);
        assert!(output.status.success() && stderr(&output).is_empty(), "{}", stderr(&output));
        let file = kept(&cache, "pipelines").pop().expect("they are kept");
        let bytes = fs::read(&file).expect("readable");
        assert!(bytes.starts_with(b"flashtile pipelines 1\n") && bytes.len() > 100);
        match n {
            0 => first = bytes,
            1 => fs::write(&file, &first[..first.len() - 1]).expect("writable"),
            _ => assert_eq!(bytes.len(), first.len(), "it was replaced"),
        }
    }
    // Nothing is kept of a command that compiles nothing.
    let (_, complaints) = explained(&scene, &scene.path("other"), &[]);
    assert!(complaints.is_empty() && kept(&scene.path("other"), "").is_empty());
}
