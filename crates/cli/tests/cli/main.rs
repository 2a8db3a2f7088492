//! The program as other programs see it: processes, files, exit codes and the one line on stderr.
//!
//! The expected numbers were worked out by hand. Most runs are on the reference, so that these
//! tests need no GPU, and test the program and not the kernels. `auto` runs too, on whatever it
//! finds.

#[path = "../common/mod.rs"]
mod common;
mod errors;
mod reports;
mod results;

use common::{Scene, Tensor, stderr, stdout, tensor};
use safetensors::{Dtype, SafeTensors};
use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

impl Scene {
    /// `flashtile run in.safetensors --output out.safetensors ARGS`.
    fn run(&self, args: &[&str]) -> Output {
        let mut all = vec!["run", "in.safetensors", "--output", "out.safetensors"];
        all.extend(args);
        self.flashtile(&all)
    }

    /// A tensor of out.safetensors, if it was written.
    fn out(&self, name: &str) -> Option<(Dtype, Vec<usize>, Vec<f64>)> {
        let bytes = fs::read(self.path("out.safetensors")).ok()?;
        let file = SafeTensors::deserialize(&bytes).expect("a valid file");
        let stored = file.tensor(name).ok()?;
        let chunks = stored.data().chunks(stored.dtype().bitsize() / 8);
        let values = chunks.map(|b| match stored.dtype() {
            Dtype::F32 => f32::from_le_bytes(b.try_into().expect("4 bytes")).into(),
            Dtype::F16 => half::f16::from_le_bytes(b.try_into().expect("2 bytes")).to_f64(),
            Dtype::BF16 => half::bf16::from_le_bytes(b.try_into().expect("2 bytes")).to_f64(),
            other => panic!("{name} is {other}"),
        });
        Some((stored.dtype(), stored.shape().to_vec(), values.collect()))
    }

    /// Names of the files in the folder.
    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).expect("readable");
        let mut names: Vec<_> = entries
            .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

/// `flashtile ARGS` in `folder`, with `input` on stdin.
fn flashtile_with_input(folder: &Path, args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_flashtile"))
        .args(args)
        .current_dir(folder)
        .env("FLASHTILE_CACHE_DIR", "")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(input.as_bytes()).expect("the program reads");
    drop(stdin);
    child.wait_with_output().expect("the program ends")
}

/// One query and three keys of width 1, with scores 0, ln 2 and ln 5 and values 8, 16 and 24. Over
/// all keys the output is (8 + 32 + 120) / 8 = 20, and the lse is ln 8.
fn three_keys() -> Vec<Tensor> {
    vec![
        tensor("q", Dtype::F32, &[1, 1, 1, 1], &[1.0]),
        tensor("k", Dtype::F32, &[1, 3, 1, 1], &[0.0, 2f64.ln(), 5f64.ln()]),
        tensor("v", Dtype::F32, &[1, 3, 1, 1], &[8.0, 16.0, 24.0]),
    ]
}
