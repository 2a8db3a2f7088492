//! What the tests of the program share: files, and runs of the program in a folder of their own.

use safetensors::{Dtype, tensor::TensorView};
use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};
use tempfile::TempDir;

/// A tensor of a file.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: &'static str,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// `values` as a tensor of floats, I32, I64, BOOL or anything of one byte.
pub(crate) fn tensor(name: &'static str, dtype: Dtype, shape: &[usize], values: &[f64]) -> Tensor {
    let bytes = values.iter().flat_map(|&x| match dtype {
        Dtype::F32 => (x as f32).to_le_bytes().to_vec(),
        Dtype::F16 => half::f16::from_f64(x).to_le_bytes().to_vec(),
        Dtype::BF16 => half::bf16::from_f64(x).to_le_bytes().to_vec(),
        Dtype::F64 => x.to_le_bytes().to_vec(),
        Dtype::I32 => (x as i32).to_le_bytes().to_vec(),
        Dtype::I64 => (x as i64).to_le_bytes().to_vec(),
        _ => vec![x as u8],
    });
    Tensor { name, dtype, shape: shape.to_vec(), bytes: bytes.collect() }
}

/// A folder for one run of the program: its input, and all that it writes.
pub(crate) struct Scene {
    pub(crate) folder: TempDir,
}

impl Scene {
    pub(crate) fn new(tensors: &[Tensor]) -> Self {
        let views = tensors.iter().map(|t| {
            (
                t.name,
                TensorView::new(t.dtype, t.shape.clone(), &t.bytes).expect("bytes fit the shape"),
            )
        });
        Self::with_bytes(&safetensors::serialize(views, None).expect("a valid file"))
    }

    pub(crate) fn with_bytes(bytes: &[u8]) -> Self {
        let scene = Self { folder: tempfile::tempdir().expect("a temporary folder") };
        fs::write(scene.path("in.safetensors"), bytes).expect("writable");
        scene
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `flashtile ARGS` in the scene's folder.
    pub(crate) fn flashtile(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the program starts")
    }

    /// The same, before it starts.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flashtile"));
        command.args(args).current_dir(self.folder.path());
        // What this machine's user keeps must not decide a test, and no test changes it.
        command.env("FLASHTILE_CACHE_DIR", "");
        command
    }
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}
