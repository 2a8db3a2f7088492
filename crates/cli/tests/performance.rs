//! What docs/PERFORMANCE.md says of graphics cards, and what benches/results/ holds: the tables and pictures are made from the files, never typed.
//!
//! `UPDATE_README=1 cargo test -p flashtile-cli --test performance` writes them anew.

use std::{
    env,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

const BEGIN: &str = "<!-- cards: made by crates/cli/tests/performance.rs -->\n";
const END: &str = "<!-- cards: end -->\n";

/// The pictures of one file: a name's ending, and the options that narrow it.
const PICTURES: [(&str, &[&str]); 4] = [
    ("f16", &["--dtype", "f16"]),
    ("f16-causal", &["--dtype", "f16", "--causal"]),
    ("bf16", &["--dtype", "bf16"]),
    ("bf16-causal", &["--dtype", "bf16", "--causal"]),
];

/// What stands in docs/, and the pictures beside it by name.
struct Section {
    text: String,
    pictures: Vec<(String, String)>,
}

/// Tells every file of `results`, in the order of names.
fn section(results: &Path) -> Section {
    let mut section = Section { text: String::new(), pictures: Vec::new() };
    let files = match fs::read_dir(results) {
        Ok(entries) => entries.map(|entry| entry.expect("readable").path()).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(e) => panic!("{}: {e}", results.display()),
    };
    let mut files: Vec<PathBuf> =
        files.into_iter().filter(|path| path.extension().is_some_and(|e| e == "json")).collect();
    files.sort();
    if files.is_empty() {
        section.text =
            "Not yet measured on a graphics card. `scripts/gpu-check` is the command that does it.\n".to_owned();
    }
    for (n, file) in files.iter().enumerate() {
        let name = file.file_stem().expect("a name").to_string_lossy().into_owned();
        let gap = if n > 0 { "\n" } else { "" };
        writeln!(section.text, "{gap}### {name}\n\n{}", tables(file)).expect("strings take all");
        for (ending, options) in PICTURES {
            let picture = format!("bench-{name}-{ending}.svg");
            let Some(svg) = draw(file, options) else { continue };
            writeln!(section.text, "![Speed against sequence length, {ending}]({picture})")
                .expect("strings take all");
            section.pictures.push((picture, svg));
        }
    }
    section
}

/// `flashtile bench --from FILE`.
fn tables(file: &Path) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_flashtile"))
        .args(["bench", "--from"])
        .arg(file)
        .output()
        .expect("starts");
    assert!(
        output.status.success(),
        "{}: {}",
        file.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The picture that the options leave; none where nothing was measured of it.
fn draw(file: &Path, options: &[&str]) -> Option<String> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let svg = folder.path().join("picture.svg");
    let output = Command::new(env!("CARGO_BIN_EXE_flashtile"))
        .args(["bench", "--from"])
        .arg(file)
        .args(options)
        .arg("--plot")
        .arg(&svg)
        .output()
        .expect("starts");
    assert!(
        output.status.success(),
        "{}: {}",
        file.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    let drawn = fs::read_to_string(svg).expect("drawn");
    drawn.contains("<circle").then_some(drawn)
}

#[test]
fn the_document_tells_the_results() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let section = section(&root.join("benches/results"));
    let mut files: Vec<(PathBuf, String)> = section
        .pictures
        .into_iter()
        .map(|(name, svg)| (root.join("docs").join(name), svg))
        .collect();
    let document = root.join("docs/PERFORMANCE.md");
    let written = fs::read_to_string(&document).expect("the document is there");
    let (before, rest) = written.split_once(BEGIN).expect("the document has the marker `cards`");
    let (_, after) = rest.split_once(END).expect("the document has the end of `cards`");
    files.push((document, [before, BEGIN, &section.text, END, after].concat()));
    for (path, text) in files {
        if fs::read_to_string(&path).is_ok_and(|written| written == text) {
            continue;
        }
        if env::var("UPDATE_README").is_ok_and(|value| value == "1") {
            fs::write(&path, text).expect("the document can be written");
            continue;
        }
        panic!(
            "{} is out of date: UPDATE_README=1 cargo test -p flashtile-cli --test performance writes it anew",
            path.display()
        );
    }
}

/// Lines as scripts/gpu-check writes them; the numbers are made up.
const FIXTURE: &str = r#"{"gpu":"Made Up 1","date":"2026-01-02","driver":"1.2.3","clocks":"5 MHz under load, 6 at most","torch":"9.9"}
{"backend":"torch","case":"4x16x4096x128","causal":true,"clock":"gpu","device":"Made Up 1","dtype":"f16","first_ms":9.0,"gbps":1.0,"gflops":300000.0,"kernel":"flash_attention","ms":1.0,"peak_bytes":8}
{"backend":"cuda","case":"4x16x4096x128","causal":true,"clock":"gpu","device":"Made Up 1 (CUDA)","dtype":"f16","first_ms":9.0,"gbps":1.0,"gflops":240000.0,"kernel":"flash","ms":1.25,"peak_bytes":8}
{"backend":"cuda","case":"2x16x8192x128","causal":true,"clock":"gpu","device":"Made Up 1 (CUDA)","dtype":"f16","first_ms":9.0,"gbps":1.0,"gflops":250000.0,"kernel":"flash","ms":2.4,"peak_bytes":8}
"#;

#[test]
fn results_become_tables_and_pictures() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("made-up-1-2026-01-02.json"), FIXTURE).expect("writable");
    fs::write(folder.path().join("README.md"), "not results").expect("writable");
    let section = section(folder.path());
    assert_eq!(
        section.text,
        "### made-up-1-2026-01-02\n\n\
         Made Up 1, 2026-01-02, driver 1.2.3, SM clock 5 MHz under load, 6 at most, torch 9.9.\n\n\
         | f16, TFLOP/s | causal | cuda flash | torch flash | cuda flash : torch flash |\n\
         | --- | --- | ---: | ---: | ---: |\n\
         | 4x16x4096x128 | yes | 240 | 300 | 0.80 |\n\
         | 2x16x8192x128 | yes | 250 | | |\n\n\
         ![Speed against sequence length, f16-causal](bench-made-up-1-2026-01-02-f16-causal.svg)\n"
    );
    let [(name, svg)] = &section.pictures[..] else {
        panic!("one picture: nothing was measured of the others")
    };
    assert_eq!(name, "bench-made-up-1-2026-01-02-f16-causal.svg");
    assert!(
        svg.contains("Forward attention, f16, causal") && svg.contains("torch flash_attention"),
        "{svg}"
    );
}

#[test]
fn without_results_nothing_is_claimed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for results in [folder.path().to_owned(), folder.path().join("absent")] {
        let section = section(&results);
        assert!(
            section.text.starts_with("Not yet measured on a graphics card."),
            "{}",
            section.text
        );
        assert!(section.pictures.is_empty());
    }
}
