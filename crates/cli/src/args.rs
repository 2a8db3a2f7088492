use crate::{shape::Shape, tuning::TuningArg};
use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser},
};
use flashtile::{Align, BackendKind, Choice, DType, KernelKind, KeySplit, Layout, MatrixUnits};
use std::path::PathBuf;

/// Attention on any GPU, verified against a float64 oracle
#[derive(Debug, Parser)]
#[command(name = "flashtile", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Compute attention on the q, k and v of a safetensors file
    Run(RunArgs),
    /// List the GPUs, adapters and backends of this machine
    Devices(DevicesArgs),
    /// Report what would run, and why the rest would not
    Explain(ExplainArgs),
    /// Compare every backend of this machine with the oracle
    Check(CheckArgs),
    /// Measure which tile shapes are the fastest on an adapter, and keep them for later runs
    Tune(TuneArgs),
    /// Measure speed, memory and error of every backend of this machine
    Bench(BenchArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// File with q, k, v (F32, F16 or BF16) and optionally attn_mask, kv_lens, past_key, past_value
    pub(crate) input: PathBuf,
    /// File to write: `out` and, with --lse, `lse`
    #[arg(long)]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) choice: ChoiceArgs,
    #[command(flatten)]
    pub(crate) layout: LayoutArgs,
    #[command(flatten)]
    pub(crate) attention: AttentionArgs,
    /// Run twice and compare with the oracle: print the largest error as a share of the error bound
    /// (and against the tensor `expected`, if INPUT has it)
    #[arg(long)]
    pub(crate) verify: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// File as for `run`
    pub(crate) input: PathBuf,
    /// Ignored, because nothing is run
    #[arg(long)]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) choice: ChoiceArgs,
    #[command(flatten)]
    pub(crate) layout: LayoutArgs,
    #[command(flatten)]
    pub(crate) attention: AttentionArgs,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DevicesArgs {
    /// Print one JSON object per line instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) choice: ChoiceArgs,
    /// Run only the cases whose group or line contains this text
    #[arg(long)]
    pub(crate) filter: Option<String>,
    /// Run one case, given as the line that a failure prints
    #[arg(long, env = "FLASHTILE_CASE", value_name = "LINE")]
    pub(crate) case: Option<String>,
    /// Open wgpu adapters with WebGPU's default limits and no features, as a browser does
    #[arg(long)]
    pub(crate) baseline: bool,
    /// Print one JSON object per line instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(crate) choice: ChoiceArgs,
    /// Measure one case of this size, BxHxSxD, instead of the named ones
    ///
    /// Where k and v have other heads or another length than q, H is H/Hkv and S is Sq/Skv:
    /// `1x32/8x1/4096x128` is a decode step of 32 heads over 8. With --causal, the last query is at
    /// the last key.
    #[arg(long)]
    pub(crate) shape: Option<Shape>,
    /// Storage type [default: f32 with --shape, f32 and f16 without]
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<DTypeArg>,
    /// Measure only causal cases; with --shape, make that case causal
    #[arg(long)]
    pub(crate) causal: bool,
    /// Seconds of repetitions per case and kernel
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    pub(crate) seconds: f64,
    /// Print one JSON object per line instead of a table
    #[arg(long)]
    pub(crate) json: bool,
    /// Plot speed and memory against sequence length
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
    /// Measure nothing; print lines that --json wrote as tables. --plot then shows the rows of
    /// --dtype [default: f16], causal or not as --causal says
    #[arg(
        long,
        value_name = "RESULTS.json",
        conflicts_with_all = ["shape", "threads", "json", "backend", "kernel", "adapter"]
    )]
    pub(crate) from: Option<PathBuf>,
    /// Measure the cases of a file (`-`: of stdin), one per line, on devices that stay open
    ///
    /// A line is BxHxSxD,dtype[,causal] BACKEND:KERNEL, where KERNEL may be `auto` for every
    /// kernel: `1x8x1024x64,f16,causal cuda:flash`. Sizes are as for --shape. The answer to a line is one JSON object per
    /// measurement, and then the line `{}`. Where there is no measurement, the key `error` holds
    /// the reason as a string, and `refused` is true if the backend does not run such cases.
    /// Kernels stay compiled, so `first_ms` includes compilation only for the first case that needs
    /// a kernel.
    #[arg(
        long,
        value_name = "FILE",
        requires = "json",
        conflicts_with_all = [
            "shape", "dtype", "causal", "threads", "backend", "kernel", "plot", "from",
        ]
    )]
    pub(crate) cases: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct TuneArgs {
    /// Tune for this size, BxHxSxD, or with H/Hkv and Sq/Skv in place of H and S; may be repeated
    /// [default: usual widths, and a decode step]
    #[arg(long)]
    pub(crate) shape: Vec<Shape>,
    /// Queries of each head, where they are fewer than the keys: 1 for a decode step
    #[arg(long, requires = "shape")]
    pub(crate) queries: Option<usize>,
    /// Heads of k and v
    #[arg(long, requires = "shape")]
    pub(crate) kv_heads: Option<usize>,
    /// Storage type [default: f32 and f16]
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<DTypeArg>,
    /// Tune for causal attention [default: with --shape not causal, without both]
    #[arg(long)]
    pub(crate) causal: bool,
    /// Tune for the cases of a file, one per line: BxHxSxD,dtype[,causal]
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["shape", "queries", "kv_heads", "dtype", "causal"]
    )]
    pub(crate) cases: Option<PathBuf>,
    /// Seconds per case. A compilation that has begun is not interrupted
    #[arg(long, default_value_t = 20.0, value_parser = seconds)]
    pub(crate) seconds: f64,
    /// Adapter: its number in the list of `flashtile devices`, or part of its name
    #[arg(long, value_name = "NUMBER or NAME")]
    pub(crate) adapter: Option<String>,
    /// Whether shapes on matrix units are tried
    #[arg(long, value_enum, default_value_t = MatrixUnitsArg::Auto)]
    pub(crate) matrix_units: MatrixUnitsArg,
    /// Where the winners are kept: auto is the user's cache directory, off nowhere
    #[arg(long, value_name = "auto|off|FILE", default_value_t = TuningArg::Auto)]
    pub(crate) tuning: TuningArg,
    /// Print one JSON object per line instead of tables
    #[arg(long)]
    pub(crate) json: bool,
}

/// The requested backend, kernel and device.
#[derive(Debug, Args)]
pub(crate) struct ChoiceArgs {
    /// Backend. With auto, `run` takes the first that runs; `check` and `bench` take all
    #[arg(long, value_parser = BackendArg::parser(), default_value = BackendArg::AUTO)]
    pub(crate) backend: BackendArg,
    /// Kernel. flash is fused and tiled, unfused stores the score matrix; auto is as for --backend
    #[arg(long, value_enum, default_value_t = KernelArg::Auto)]
    pub(crate) kernel: KernelArg,
    /// Tensor cores, cooperative matrices, simdgroup matrices: require refuses what cannot use them
    #[arg(long, value_enum, default_value_t = MatrixUnitsArg::Auto)]
    pub(crate) matrix_units: MatrixUnitsArg,
    /// Split the keys of a row among workgroups: auto, off, or the keys of a chunk, a power of two
    #[arg(long, value_name = "auto|off|N", default_value_t = KeySplit::Auto)]
    pub(crate) split: KeySplit,
    /// Measured tile shapes of wgpu: auto takes what `flashtile tune` kept for the adapter, off
    /// leaves the choice to the planner
    #[arg(long, value_name = "auto|off|FILE", default_value_t = TuningArg::Auto)]
    pub(crate) tuning: TuningArg,
    /// Device: its number in the list of `flashtile devices`, or part of its name. It is an adapter
    /// of wgpu, or with `--backend cuda` an NVIDIA GPU
    #[arg(long, value_name = "NUMBER or NAME")]
    pub(crate) adapter: Option<String>,
    /// Threads of the cpu backend [default: one per core]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
}

impl ChoiceArgs {
    pub(crate) fn choice(&self) -> Choice {
        let mut choice = Choice::AUTO;
        // No other backend can replace the requested adapter.
        choice.backend = self.backend.0.or(self.adapter.as_ref().map(|_| BackendKind::Wgpu));
        choice.kernel = match self.kernel {
            KernelArg::Auto => None,
            KernelArg::Flash => Some(KernelKind::Flash),
            KernelArg::Unfused => Some(KernelKind::Unfused),
        };
        choice.matrix_units(self.matrix_units()).key_split(self.split)
    }

    pub(crate) fn matrix_units(&self) -> MatrixUnits {
        self.matrix_units.matrix_units()
    }
}

/// The backend of that name; `None` is `auto`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct BackendArg(pub(crate) Option<BackendKind>);

impl BackendArg {
    const AUTO: &str = "auto";

    /// `auto`, or a backend by its name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let kind = || BackendKind::ALL.iter().find(|kind| kind.name() == name);
        if name == Self::AUTO { Some(Self(None)) } else { kind().map(|&kind| Self(Some(kind))) }
    }

    fn parser() -> impl TypedValueParser<Value = Self> {
        let names = BackendKind::ALL.iter().map(|kind| kind.name());
        PossibleValuesParser::new(std::iter::once(Self::AUTO).chain(names))
            .map(|name| Self::named(&name).expect("only these names are possible"))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum KernelArg {
    Auto,
    Flash,
    Unfused,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum MatrixUnitsArg {
    Auto,
    Off,
    Require,
}

impl MatrixUnitsArg {
    pub(crate) fn matrix_units(self) -> MatrixUnits {
        match self {
            MatrixUnitsArg::Auto => MatrixUnits::Auto,
            MatrixUnitsArg::Off => MatrixUnits::Off,
            MatrixUnitsArg::Require => MatrixUnits::Require,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum DTypeArg {
    F32,
    F16,
    Bf16,
}

impl DTypeArg {
    pub(crate) fn dtype(self) -> DType {
        match self {
            DTypeArg::F32 => DType::F32,
            DTypeArg::F16 => DType::F16,
            DTypeArg::Bf16 => DType::BF16,
        }
    }
}

/// The memory layout of q, k, v and out.
#[derive(Clone, Debug, Default, Args)]
pub struct LayoutArgs {
    /// Order of the axes of q, k, v and out: bshd, bhsd, hbsd or bsd (packed heads)
    #[arg(long, default_value_t)]
    pub layout: Layout,
    /// Heads of q; required by layout bsd
    #[arg(long)]
    pub heads: Option<usize>,
    /// Heads of k and v; required by layout bsd
    #[arg(long)]
    pub kv_heads: Option<usize>,
}

/// The options of attention. Values may be negative, so they may start with a hyphen.
#[derive(Clone, Debug, Default, Args)]
pub struct AttentionArgs {
    /// Multiplies q.k [default: 1/sqrt(head_dim)]
    #[arg(long, allow_hyphen_values = true)]
    pub scale: Option<f32>,
    /// Bound scores smoothly to this number
    #[arg(long, allow_hyphen_values = true)]
    pub softcap: Option<f32>,
    /// Mask the keys after each query's position
    #[arg(long)]
    pub causal: bool,
    /// Position of the first query among the keys: top-left, bottom-right or an integer
    #[arg(long, allow_hyphen_values = true, default_value_t)]
    pub align: Align,
    /// Keys that a query sees before its position [default: all]
    #[arg(long, allow_hyphen_values = true, value_parser = keys)]
    pub window_left: Option<usize>,
    /// Keys that a query sees after its position [default: all]
    #[arg(long, allow_hyphen_values = true, value_parser = keys)]
    pub window_right: Option<usize>,
    /// Probability that a weight is dropped
    #[arg(long, allow_hyphen_values = true, default_value_t)]
    pub dropout_p: f64,
    /// Key of the dropout generator
    #[arg(long, allow_hyphen_values = true, default_value_t)]
    pub seed: u64,
    /// Counter of the dropout generator
    #[arg(long, allow_hyphen_values = true, default_value_t)]
    pub offset: u32,
    /// Also write the log-sum-exp of each row to OUTPUT
    #[arg(long)]
    pub lse: bool,
}

/// Parses the width of a window.
fn keys(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "expected a number of keys, 0 or more".to_owned())
}

/// Parses a time in seconds.
fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|s: &f64| s.is_finite() && *s >= 0.0);
    seconds.ok_or_else(|| "expected a number of seconds, 0 or more".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }
}
