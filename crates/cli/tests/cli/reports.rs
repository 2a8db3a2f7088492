//! The output of `explain`, `devices`, `check` and `bench`.

use crate::{Scene, flashtile_with_input, stderr, stdout, three_keys};
use serde_json::Value;
use std::{
    fs,
    process::{Command, Stdio},
};

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect()
}

#[test]
fn explain_lists_every_backend_and_kernel_with_verdicts() {
    let scene = Scene::new(&three_keys());
    let output = scene.flashtile(&[
        "explain",
        "in.safetensors",
        "--causal",
        "--json",
        "--output",
        "ignored",
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    let report = &lines(&stdout(&output))[0];
    assert!(report["problem"].as_str().expect("text").contains("causal"));
    let verdicts = report["verdicts"].as_array().expect("a list");
    let named = |backend: &str, kernel: &str| {
        let found = verdicts.iter().find(|v| v["backend"] == backend && v["kernel"] == kernel);
        found.unwrap_or_else(|| panic!("{backend} {kernel} is missing"))
    };
    for backend in ["cuda", "wgpu", "cpu", "reference"] {
        for kernel in ["flash", "unfused"] {
            let verdict = named(backend, kernel);
            let reasons = verdict["reasons"].as_array().expect("a list");
            assert_eq!(verdict["runs"] == true, reasons.is_empty(), "{verdict}");
            assert_eq!(verdict["runs"] == true, verdict["how"].is_string(), "{verdict}");
        }
    }
    assert_eq!(named("reference", "unfused")["runs"], true);
    let chosen = &report["chosen"];
    let first = verdicts.iter().find(|v| v["runs"] == true).expect("the CPU, at the least");
    assert_eq!((&chosen["backend"], &chosen["kernel"]), (&first["backend"], &first["kernel"]));
    assert!(chosen["why"].as_str().expect("text").starts_with("first that runs"), "{chosen}");
    assert_eq!(scene.files(), ["in.safetensors"], "nothing was run or written");
}

#[test]
fn explain_prints_text_with_refusals() {
    let scene = Scene::new(&three_keys());
    let cpu_unfused = ["explain", "in.safetensors", "--backend", "cpu", "--kernel", "unfused"];
    let output = scene.flashtile(&cpu_unfused);
    assert!(output.status.success(), "{}", stderr(&output));
    let printed = stdout(&output);
    assert!(
        printed.contains("cpu unfused: refused: the cpu backend has no unfused kernel"),
        "{printed}"
    );
    assert!(printed.contains("reference unfused: runs"), "{printed}");
    assert!(printed.contains("chosen: nothing, because all that was requested"), "{printed}");
    let output = scene.flashtile(&cpu_unfused[..4]);
    let printed = stdout(&output);
    let chosen = "chosen: cpu flash: backend requested; flash is its first kernel that runs";
    assert!(printed.contains(chosen), "{printed}");
}

#[test]
fn devices_always_has_the_cpu_and_the_reference() {
    let scene = Scene::new(&three_keys());
    let output = scene.flashtile(&["devices", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    for backend in ["cpu", "reference"] {
        assert!(lines(&stdout(&output)).iter().any(|device| device["backend"] == backend));
    }
    let output = scene.flashtile(&["devices"]);
    assert!(stdout(&output).contains("reference"), "{}", stdout(&output));
}

#[test]
fn bench_of_one_shape_is_one_case() {
    let scene = Scene::new(&three_keys());
    for (more, causal, dtype) in [
        (&[][..], false, "f32"),
        (&["--causal", "--dtype", "bf16", "--threads", "1"], true, "bf16"),
    ] {
        let args = [
            "bench",
            "--json",
            "--shape",
            "1x2x64x16",
            "--backend",
            "reference",
            "--kernel=unfused",
        ];
        let output = scene.flashtile(&[&args[..], more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        let rows = lines(&stdout(&output));
        assert_eq!(rows.len(), 1, "exactly one case");
        let row = &rows[0];
        for (key, value) in [
            ("case", "1x2x64x16"),
            ("backend", "reference"),
            ("kernel", "unfused"),
            ("dtype", dtype),
            ("clock", "host"),
        ] {
            assert_eq!(row[key], value, "{row}");
        }
        assert_eq!(row["causal"], causal);
        for key in ["ms", "gflops", "gbps", "peak_bytes", "first_ms"] {
            assert!(row[key].as_f64().expect("a number") > 0.0, "{key} of {row}");
        }
        assert!(row["peak_bytes"].is_u64() && row["device"].is_string(), "{row}");
        let error = row["error"].as_f64().expect("a number");
        // The oracle's own result, rounded to the storage type.
        assert!(error > 0.0 && error <= 0.5, "{row}");
    }
}

#[test]
fn bench_prints_a_table_and_draws() {
    let scene = Scene::new(&three_keys());
    let output = scene.flashtile(&[
        "bench",
        "--shape",
        "1x1x32x8",
        "--backend",
        "reference",
        "--plot",
        "curves.svg",
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    let printed = stdout(&output);
    assert!(printed.starts_with("| case ") && printed.contains("| 1x1x32x8 |"), "{printed}");
    assert!(printed.contains("| error |"), "{printed}");
    let svg = fs::read_to_string(scene.path("curves.svg")).expect("drawn");
    assert!(svg.starts_with("<svg") && svg.contains("reference unfused"), "{svg}");
}

#[test]
fn bench_answers_one_question_per_line() {
    let scene = Scene::new(&three_keys());
    let questions = "1x2x64x16,f16,causal reference:unfused\n\
                     1x2x64x16,f16 reference:flash\n\
                     1x2x64x16,f16 wgpu\n\
                     1x1x3x5,f32 reference:auto\n";
    let args = ["bench", "--json", "--seconds", "0.01", "--cases", "-"];
    let output = flashtile_with_input(scene.folder.path(), &args, questions);
    let answers = lines(&stdout(&output));
    assert_eq!(answers.len(), 8, "{answers:?}");
    for end in [1, 3, 5, 7] {
        assert_eq!(answers[end], serde_json::json!({}));
    }
    let row = &answers[0];
    assert_eq!((&row["case"], &row["dtype"]), (&"1x2x64x16".into(), &"f16".into()));
    assert_eq!((&row["causal"], &row["kernel"]), (&true.into(), &"unfused".into()));
    assert!(row["error"].as_f64().is_some_and(|error| error <= 1.0), "{row}");
    let refused = &answers[2];
    assert_eq!(refused["error"], "the reference backend has no flash kernel");
    assert_eq!((&refused["refused"], &refused["backend"]), (&true.into(), &"reference".into()));
    let unread = &answers[4];
    assert!(unread["error"].as_str().is_some_and(|e| e.contains("BACKEND:KERNEL")), "{unread}");
    assert!(unread.get("refused").is_none());
    assert_eq!((&answers[6]["case"], &answers[6]["causal"]), (&"1x1x3x5".into(), &false.into()));
    // The question that could not be read is a failure; the refusal is not.
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), "flashtile: failed measurements: 1\n");
}

#[test]
fn bench_reads_questions_from_a_file() {
    let scene = Scene::new(&three_keys());
    fs::write(scene.path("cases"), "1x1x8x8,bf16 reference:auto").expect("writable");
    let args = ["bench", "--json", "--seconds", "0.01", "--cases", "cases"];
    let output = scene.flashtile(&args);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(lines(&stdout(&output)).len(), 2);
}

#[test]
fn help_and_version_are_not_errors() {
    let scene = Scene::new(&three_keys());
    for args in [
        &["--help"][..],
        &["run", "--help"],
        &["bench", "--help"],
        &["tune", "--help"],
        &["help"],
        &["--version"],
    ] {
        let output = scene.flashtile(args);
        assert!(output.status.success() && output.stderr.is_empty(), "{args:?}");
        assert!(stdout(&output).contains("flashtile"), "{args:?}");
    }
}

#[test]
fn a_closed_pipe_is_not_an_error() {
    let scene = Scene::new(&three_keys());
    let mut child = Command::new(env!("CARGO_BIN_EXE_flashtile"))
        .args(["explain", "in.safetensors"])
        .current_dir(scene.folder.path())
        .env("FLASHTILE_CACHE_DIR", "")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
}

#[test]
fn check_finds_the_reference_within_the_bound() {
    let scene = Scene::new(&three_keys());
    let output =
        scene.flashtile(&["check", "--backend", "reference", "--filter", "dropout", "--json"]);
    assert!(output.status.success() && stderr(&output).is_empty(), "{}", stderr(&output));
    let rows = lines(&stdout(&output));
    assert_eq!(rows.len(), 1);
    assert!(rows[0]["passed"].as_u64() > Some(10) && rows[0]["failed"] == 0, "{}", rows[0]);
    let output = scene.flashtile(&[
        "check",
        "--backend",
        "reference",
        "--case",
        "shape=1x4x17x64 hkv=2 causal=yes",
    ]);
    let printed = stdout(&output);
    assert!(
        output.status.success() && printed.contains("| reference CPU | unfused |      1 |"),
        "{printed}"
    );
}
