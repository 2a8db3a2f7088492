use anyhow::{Context as _, Result, ensure};
use flashtile::{DType, Layout, Problem};
use safetensors::{Dtype, tensor::TensorView as Stored};
use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};
use tempfile::NamedTempFile;

/// Where the result goes. The file gets its name only when it is complete, so other programs see
/// the whole file or none.
#[derive(Debug)]
pub(crate) enum Destination {
    /// A new file, in the same folder as the file that it replaces.
    File { path: PathBuf, temporary: NamedTempFile },
    /// A pipe or a device. It must not be replaced.
    Stream { path: PathBuf },
}

impl Destination {
    /// Checks that `path` can be written, before anything is computed.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Self::create(path).with_context(|| format!("cannot write {}", path.display()))
    }

    fn create(path: &Path) -> Result<Self> {
        // A link stays a link: its target is replaced.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if let Ok(metadata) = fs::metadata(&path) {
            ensure!(!metadata.is_dir(), "it is a folder");
            if !metadata.is_file() {
                return Ok(Destination::Stream { path });
            }
            // A rename replaces even a read-only file.
            ensure!(!metadata.permissions().readonly(), "it is read-only");
        }
        ensure!(path.file_name().is_some(), "it names no file");
        let folder =
            path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        builder.prefix(".flashtile-");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            // As for any new file; the process's umask applies.
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let temporary = builder.tempfile_in(folder).map_err(plain)?;
        Ok(Destination::File { path, temporary })
    }

    /// Writes all bytes, or nothing.
    pub(crate) fn write(self, bytes: &[u8]) -> Result<()> {
        let (path, written) = match self {
            Destination::Stream { path } => {
                let written = fs::write(&path, bytes);
                (path, written)
            }
            Destination::File { path, temporary } => {
                let written = replace(&path, temporary, bytes);
                (path, written)
            }
        };
        written.with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Writes the temporary file, then renames it to `path`.
fn replace(path: &Path, mut temporary: NamedTempFile, bytes: &[u8]) -> io::Result<()> {
    temporary.write_all(bytes)?;
    temporary.persist(path).map_err(|e| e.error)?;
    Ok(())
}

/// The error without the path of the temporary file, which users do not know.
fn plain(e: io::Error) -> io::Error {
    let text = e.to_string();
    text.split_once(" at path ").map_or(e, |(reason, _)| io::Error::other(reason.to_owned()))
}

/// `out` and `lse` of `problem` as a safetensors file.
pub(crate) fn serialize(
    problem: &Problem,
    layout: Layout,
    out: &[u8],
    lse: Option<&[u8]>,
) -> Result<Vec<u8>> {
    let dtype = match problem.dtype() {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
    };
    let mut tensors = vec![("out", Stored::new(dtype, layout.dims(problem.out().shape), out)?)];
    if let Some(lse) = lse {
        tensors.push(("lse", Stored::new(Dtype::F32, problem.lse_shape().to_vec(), lse)?));
    }
    Ok(safetensors::serialize(tensors, None)?)
}
