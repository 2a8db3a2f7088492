//! Tables of measured tile shapes: where they are kept, and when they are used.

use crate::{complain, kept};
use anyhow::{Context as _, Result, anyhow, ensure};
use flashtile::wgpu::{Context, Tuning};
use std::{
    convert::Infallible,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

/// The longest text that is read as a table.
const MOST_BYTES: u64 = 1 << 20;

/// What `--tuning` says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum TuningArg {
    /// The table that `flashtile tune` kept for the adapter, if there is one.
    Auto,
    /// No table.
    Off,
    /// The table in a file.
    File(PathBuf),
}

impl FromStr for TuningArg {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "auto" => TuningArg::Auto,
            "off" => TuningArg::Off,
            path => TuningArg::File(path.into()),
        })
    }
}

impl fmt::Display for TuningArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TuningArg::Auto => f.write_str("auto"),
            TuningArg::Off => f.write_str("off"),
            TuningArg::File(path) => path.display().fmt(f),
        }
    }
}

impl TuningArg {
    /// # Errors
    /// A file that was named and is not there.
    pub(crate) fn check(&self) -> Result<()> {
        match self {
            TuningArg::Auto | TuningArg::Off => Ok(()),
            TuningArg::File(path) => {
                ensure!(path.exists(), "cannot read {}: there is no such file", path.display());
                Ok(())
            }
        }
    }

    /// The file of the table for `context`; `None` where none is used.
    ///
    /// # Errors
    /// There is no directory for it.
    pub(crate) fn file(&self, context: &Context) -> Result<Option<PathBuf>> {
        match self {
            TuningArg::Off => Ok(None),
            TuningArg::File(path) => Ok(Some(path.clone())),
            TuningArg::Auto => {
                let path = kept::path("tuning.txt", &context.tuning_key());
                let none =
                    "there is no cache directory; name a file with --tuning, or --tuning off";
                Ok(Some(path.ok_or_else(|| anyhow!(none))?))
            }
        }
    }

    /// `context`, with the table for its adapter. A table that cannot be used is reported and
    /// ignored: it could only change the speed.
    pub(crate) fn apply(&self, context: Context) -> Context {
        let Ok(Some(path)) = self.file(&context) else { return context };
        let tuned = load(&path, &context).and_then(|table| match table {
            Some(table) => Ok(context.with_tuning(table)?),
            None => Ok(context.clone()),
        });
        tuned.unwrap_or_else(|e| {
            complain(&format!("ignored the measured tiles in {}: {e:#}", path.display()));
            context
        })
    }
}

/// The table in a file; `None` if there is no file.
///
/// # Errors
/// A file that cannot be read, is no table, or was measured on something else than `context`.
pub(crate) fn load(path: &Path, context: &Context) -> Result<Option<Tuning>> {
    let Some(bytes) = kept::read(path, MOST_BYTES)? else { return Ok(None) };
    let text = String::from_utf8(bytes).context("it is no text")?;
    let table: Tuning = text.parse()?;
    table.check(&context.tuning_key())?;
    Ok(Some(table))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_read_back() {
        for text in ["auto", "off", "some/file"] {
            let Ok(setting) = text.parse::<TuningArg>();
            assert_eq!(setting.to_string(), text);
        }
        assert!(TuningArg::File("no/such/file".into()).check().is_err());
        assert!(TuningArg::Auto.check().is_ok() && TuningArg::Off.check().is_ok());
    }
}
