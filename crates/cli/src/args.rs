use clap::{Args, Parser, Subcommand, ValueEnum};
use flashtile::{Align, BackendKind, Choice, DType, KernelKind, Layout};
use std::path::PathBuf;

/// Attention on any GPU, held to one float64 oracle.
#[derive(Debug, Parser)]
#[command(name = "flashtile", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Attention on the q, k and v of a safetensors file
    Run(RunArgs),
    /// The adapters and backends of this machine
    Devices(DevicesArgs),
    /// What would run, and why the rest would not
    Explain(ExplainArgs),
    /// Every backend here against the oracle
    Check(CheckArgs),
    /// Speed and memory of every backend here
    Bench(BenchArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// File with q, k, v (F32, F16 or BF16) and, where wanted, attn_mask, kv_lens, past_key, past_value
    pub(crate) input: PathBuf,
    /// File for `out` and, with --lse, `lse`
    #[arg(long)]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) choice: ChoiceArgs,
    #[command(flatten)]
    pub(crate) layout: LayoutArgs,
    #[command(flatten)]
    pub(crate) attention: AttentionArgs,
    /// Run twice and ask the oracle: print the largest error as a share of the promised bound (`expected` in IN is compared as well)
    #[arg(long)]
    pub(crate) verify: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// File as for `run`
    pub(crate) input: PathBuf,
    /// Ignored: nothing is run
    #[arg(long)]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) choice: ChoiceArgs,
    #[command(flatten)]
    pub(crate) layout: LayoutArgs,
    #[command(flatten)]
    pub(crate) attention: AttentionArgs,
    /// One JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DevicesArgs {
    /// One JSON object a line instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) choice: ChoiceArgs,
    /// Only cases whose group or line contains this
    #[arg(long)]
    pub(crate) filter: Option<String>,
    /// One case, as a failure prints it
    #[arg(long, env = "FLASHTILE_CASE", value_name = "LINE")]
    pub(crate) case: Option<String>,
    /// Open adapters with WebGPU's default limits and no features, as a browser does
    #[arg(long)]
    pub(crate) baseline: bool,
    /// One JSON object a line instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(crate) choice: ChoiceArgs,
    /// One case of this size instead of the named ones: BxHxSxD
    #[arg(long, value_parser = shape)]
    pub(crate) shape: Option<[usize; 4]>,
    /// Storage type [default: f32 with --shape, f32 and f16 without]
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<DTypeArg>,
    /// Only causal cases; with --shape, that case causal
    #[arg(long)]
    pub(crate) causal: bool,
    /// Threads of the CPU backends
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Seconds that the repetitions of one case may take together
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    pub(crate) seconds: f64,
    /// One JSON object a line instead of a table
    #[arg(long)]
    pub(crate) json: bool,
    /// Draw speed and memory against sequence length
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
    /// Measure nothing: lines that --json wrote, as tables; with --plot, those of one dtype and of --causal or not [default: f16]
    #[arg(long, value_name = "RESULTS.json", conflicts_with_all = ["shape", "threads", "json", "backend", "kernel", "adapter"])]
    pub(crate) from: Option<PathBuf>,
}

/// Who should run it, and how.
#[derive(Debug, Args)]
pub(crate) struct ChoiceArgs {
    /// Who runs it
    #[arg(long, value_enum, default_value_t = BackendArg::Auto)]
    pub(crate) backend: BackendArg,
    /// Fused and tiled, or with stored scores
    #[arg(long, value_enum, default_value_t = KernelArg::Auto)]
    pub(crate) kernel: KernelArg,
    /// The wanted adapter's number, or a part of its name, as `devices` lists it; with `--backend cuda` the card's
    #[arg(long, value_name = "NUMBER or NAME")]
    pub(crate) adapter: Option<String>,
}

impl ChoiceArgs {
    pub(crate) fn choice(&self) -> Choice {
        let backend = match self.backend {
            // An adapter that was asked for is nothing that another backend could stand in for.
            BackendArg::Auto => self.adapter.as_ref().map(|_| BackendKind::Wgpu),
            BackendArg::Wgpu => Some(BackendKind::Wgpu),
            BackendArg::Cuda => Some(BackendKind::Cuda),
            BackendArg::Cpu => Some(BackendKind::Cpu),
            BackendArg::Reference => Some(BackendKind::Reference),
        };
        let kernel = match self.kernel {
            KernelArg::Auto => None,
            KernelArg::Flash => Some(KernelKind::Flash),
            KernelArg::Unfused => Some(KernelKind::Unfused),
        };
        Choice { backend, kernel }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum BackendArg {
    Auto,
    Wgpu,
    Cuda,
    Cpu,
    Reference,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum KernelArg {
    Auto,
    Flash,
    Unfused,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
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

/// How q, k, v and out lie in memory.
#[derive(Clone, Debug, Default, Args)]
pub struct LayoutArgs {
    /// Order of the axes of q, k, v and out: bshd, bhsd, hbsd or bsd (packed heads)
    #[arg(long, default_value_t)]
    pub layout: Layout,
    /// Heads of q; layout bsd needs it
    #[arg(long)]
    pub heads: Option<usize>,
    /// Heads of k and v; layout bsd needs it
    #[arg(long)]
    pub kv_heads: Option<usize>,
}

/// The kind of attention. Hyphens are allowed, so that values may be negative.
#[derive(Clone, Debug, Default, Args)]
pub struct AttentionArgs {
    /// Factor of q.k [default: 1/sqrt(head_dim)]
    #[arg(long, allow_hyphen_values = true)]
    pub scale: Option<f32>,
    /// Bound scores smoothly to this
    #[arg(long, allow_hyphen_values = true)]
    pub softcap: Option<f32>,
    /// Mask the keys after each query's position
    #[arg(long)]
    pub causal: bool,
    /// Where queries stand among the keys: top-left, bottom-right or an integer
    #[arg(long, allow_hyphen_values = true, default_value_t)]
    pub align: Align,
    /// Keys seen before each query's position [default: all]
    #[arg(long, allow_hyphen_values = true, value_parser = keys)]
    pub window_left: Option<usize>,
    /// Keys seen after each query's position [default: all]
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
    /// Put the log-sum-exp of each row into OUT too
    #[arg(long)]
    pub lse: bool,
}

/// Reads a window's width.
fn keys(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "expected how many keys, 0 or more".to_owned())
}

/// Reads a time.
fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|s: &f64| s.is_finite() && *s >= 0.0);
    seconds.ok_or_else(|| "expected seconds, 0 or more".to_owned())
}

/// Reads `BxHxSxD`.
pub(crate) fn shape(text: &str) -> Result<[usize; 4], String> {
    let sizes: Option<Vec<usize>> =
        text.split('x').map(|n| n.parse().ok().filter(|&n| n > 0)).collect();
    sizes
        .and_then(|sizes| sizes.try_into().ok())
        .ok_or_else(|| "expected BxHxSxD, four positive sizes such as 1x8x1024x64".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn shapes() {
        assert_eq!(shape("1x2x3x4"), Ok([1, 2, 3, 4]));
        for wrong in ["", "1x2x3", "1x2x3x4x5", "1x0x3x4", "1x-2x3x4", "axbxcxd", "1X2X3X4"] {
            assert!(shape(wrong).is_err(), "{wrong}");
        }
    }
}
