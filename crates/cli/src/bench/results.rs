//! Earlier results: read from the lines that `--json` wrote, and printed as tables.

use super::{cases::Case, measure::Row, plot, target::Clock};
use crate::{shape::Shape, text};
use anyhow::{Context as _, Result, anyhow, ensure};
use flashtile::{BackendKind, DType};
use serde_json::Value;
use std::{fmt, fs, path::Path};

/// batch * seq and heads * head_dim of every point on the curves of `scripts/gpu-check`. They are
/// those of FlashAttention's own benchmark.
const CURVE: [usize; 2] = [16_384, 2048];
/// The head dims that have curves.
const HEAD_DIMS: [usize; 2] = [64, 128];

/// The lines of one file.
#[derive(Debug)]
pub(crate) struct Results {
    /// What the first line says about the machine, in the order of [`HEADER`]: a prefix and a
    /// value.
    header: Vec<(&'static str, String)>,
    rows: Vec<Row>,
}

/// The keys that the first line may have, and the prefix of each value in print.
const HEADER: [(&str, &str); 10] = [
    ("gpu", ""),
    ("date", ""),
    ("driver", "driver "),
    ("nvrtc", "NVRTC "),
    ("clocks", "SM clock "),
    ("copy", "copy "),
    ("flashtile", "flashtile "),
    ("torch", "torch "),
    ("cuda", "CUDA "),
    ("cudnn", "cuDNN "),
];

/// One column: a kernel of a backend.
#[derive(Clone, PartialEq)]
struct Column<'a> {
    backend: &'a str,
    kernel: &'a str,
}

pub(crate) fn read(path: &Path) -> Result<Results> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| format!("{} holds no results", path.display()))
}

fn parse(text: &str) -> Result<Results> {
    let mut results = Results { header: Vec::new(), rows: Vec::new() };
    for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = || format!("line {}", n + 1);
        let value: Value = serde_json::from_str(line).with_context(wrong)?;
        if n == 0 && value.get("case").is_none() {
            let known = |(key, prefix)| Some((prefix, value.get(key)?.as_str()?.to_owned()));
            results.header = HEADER.into_iter().filter_map(known).collect();
        } else {
            results.rows.push(row(&value).with_context(wrong)?);
        }
    }
    ensure!(!results.rows.is_empty(), "nothing was measured");
    Ok(results)
}

/// The inverse of `json_line`.
fn row(value: &Value) -> Result<Row> {
    let field = |key: &str| value.get(key).ok_or_else(|| anyhow!("`{key}` is missing"));
    let text = |key| {
        field(key)?.as_str().map(str::to_owned).ok_or_else(|| anyhow!("`{key}` is not a string"))
    };
    let number = |key| {
        let number = field(key)?.as_f64().filter(|n| n.is_finite() && *n >= 0.0);
        number.ok_or_else(|| anyhow!("`{key}` is not a number of at least 0"))
    };
    let shape: Shape = text("case")?.parse().map_err(|e| anyhow!("`case`: {e}"))?;
    let dtype = text("dtype")?;
    let clock = text("clock")?;
    let Shape { batch, heads, seq_q, head_dim, .. } = shape;
    let sizes = [batch.saturating_mul(seq_q), heads.saturating_mul(head_dim)];
    Ok(Row {
        case: Case {
            shape,
            dtype: DType::ALL
                .iter()
                .copied()
                .find(|known| known.to_string() == dtype)
                .ok_or_else(|| anyhow!("`dtype` {dtype} is not known"))?,
            causal: field("causal")?
                .as_bool()
                .ok_or_else(|| anyhow!("`causal` is neither true nor false"))?,
            on_curve: shape.is_of_self() && sizes == CURVE,
        },
        backend: text("backend")?,
        kernel: text("kernel")?,
        device: text("device")?,
        ms: number("ms")?,
        clock: Clock::ALL
            .into_iter()
            .find(|known| known.name() == clock)
            .ok_or_else(|| anyhow!("`clock` {clock} is not known"))?,
        gflops: number("gflops")?,
        gbps: number("gbps")?,
        peak_bytes: number("peak_bytes")? as u64,
        first_ms: number("first_ms")?,
        error: value.get("error").map(|_| number("error")).transpose()?,
        peak_gflops: value.get("peak_gflops").map(|_| number("peak_gflops")).transpose()?,
    })
}

impl Results {
    /// Plots speed against length for both head dims.
    pub(crate) fn svg(&self, dtype: DType, causal: bool) -> Result<String> {
        let shown =
            |row: &&Row| row.case.on_curve && row.case.dtype == dtype && row.case.causal == causal;
        let rows: Vec<&Row> = self.rows.iter().filter(shown).collect();
        plot::speed_svg(&rows, dtype, causal, HEAD_DIMS)
    }

    /// The kernels that ran anything of `dtype`: flashtile first, and flash first.
    fn columns(&self, dtype: DType) -> Vec<Column<'_>> {
        let mut columns: Vec<Column<'_>> = Vec::new();
        for row in self.rows.iter().filter(|row| row.case.dtype == dtype) {
            let column = Column { backend: &row.backend, kernel: &row.kernel };
            if !columns.contains(&column) {
                columns.push(column);
            }
        }
        columns.sort_by_key(Column::rank);
        columns
    }

    /// The last measurement of a case in a column.
    fn find(&self, case: &Case, column: &Column<'_>) -> Option<&Row> {
        let is = |row: &&Row| {
            row.case == *case && row.backend == column.backend && row.kernel == column.kernel
        };
        self.rows.iter().rev().find(is)
    }

    /// The cases of `dtype`: those of the curves by head dim and length, then the others by size.
    fn cases(&self, dtype: DType) -> Vec<Case> {
        let mut cases: Vec<Case> = Vec::new();
        for row in self.rows.iter().filter(|row| row.case.dtype == dtype) {
            if !cases.contains(&row.case) {
                cases.push(row.case);
            }
        }
        cases.sort_by_key(|case| {
            let Shape { seq_kv, head_dim, .. } = case.shape;
            let size = if case.on_curve { seq_kv } else { case.shape.work() };
            (!case.on_curve, if case.on_curve { head_dim } else { 0 }, case.causal, size)
        });
        cases
    }

    fn table(&self, dtype: DType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.columns(dtype);
        // flashtile is compared with torch's fused kernel, which is another one for f32.
        let cuda = |kernel| columns.iter().find(|c| c.backend == "cuda" && c.kernel == kernel);
        let torch = ["flash_attention", "efficient_attention"]
            .into_iter()
            .find_map(|kernel| columns.iter().find(|c| c.backend == "torch" && c.kernel == kernel));
        let ratios: Vec<(String, &Column<'_>, &Column<'_>)> = [
            cuda("flash")
                .zip(torch)
                .map(|(ours, theirs)| (format!("{ours} : {theirs}"), ours, theirs)),
            cuda("flash")
                .zip(cuda("unfused"))
                .map(|(ours, theirs)| (format!("{ours} : {}", theirs.kernel), ours, theirs)),
        ]
        .into_iter()
        .flatten()
        .collect();
        // TFLOP/s for a GPU, GFLOP/s for a software adapter.
        let fastest = self.rows.iter().map(|row| row.gflops).fold(0.0, f64::max);
        let (unit, scale) = if fastest < 1e3 { ("GFLOP/s", 1.0) } else { ("TFLOP/s", 1e3) };
        write!(f, "| {dtype}, {unit} | causal |")?;
        columns.iter().try_for_each(|column| write!(f, " {column} |"))?;
        ratios.iter().try_for_each(|(name, ..)| write!(f, " {name} |"))?;
        write!(f, "\n| --- | --- |{}", " ---: |".repeat(columns.len() + ratios.len()))?;
        for case in self.cases(dtype) {
            write!(f, "\n| {} | {} |", case.shape, if case.causal { "yes" } else { "no" })?;
            for column in &columns {
                match self.find(&case, column) {
                    Some(row) => write!(f, " {} |", text::digits(row.gflops / scale))?,
                    None => write!(f, " |")?,
                }
            }
            for (_, ours, theirs) in &ratios {
                match self.find(&case, ours).zip(self.find(&case, theirs)) {
                    Some((ours, theirs)) => write!(f, " {:.2} |", theirs.ms / ours.ms)?,
                    None => write!(f, " |")?,
                }
            }
        }
        writeln!(f)
    }
}

impl Column<'_> {
    fn rank(&self) -> (usize, usize) {
        let place = |list: &[&str], name: &str| {
            list.iter().position(|known| *known == name).unwrap_or(list.len())
        };
        // Other libraries come last.
        let backend = BackendKind::ALL.iter().position(|kind| kind.name() == self.backend);
        (
            backend.unwrap_or(BackendKind::ALL.len()),
            place(
                &[
                    "flash",
                    "unfused",
                    "flash_attention",
                    "cudnn_attention",
                    "efficient_attention",
                    "math",
                ],
                self.kernel,
            ),
        )
    }
}

impl fmt::Display for Column<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kernel = self.kernel.strip_suffix("_attention").unwrap_or(self.kernel);
        write!(f, "{} {kernel}", self.backend)
    }
}

/// Markdown: the machine, then one table per dtype.
impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header: Vec<String> =
            self.header.iter().map(|(prefix, value)| format!("{prefix}{value}")).collect();
        if !header.is_empty() {
            writeln!(f, "{}.\n", header.join(", "))?;
        }
        let dtypes = [DType::F16, DType::BF16, DType::F32];
        let present =
            dtypes.into_iter().filter(|&dtype| self.rows.iter().any(|row| row.case.dtype == dtype));
        for (n, dtype) in present.enumerate() {
            if n > 0 {
                writeln!(f)?;
            }
            self.table(dtype, f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn line(case: &str, backend: &str, kernel: &str, dtype: &str, ms: f64) -> String {
        json!({
            "case": case, "backend": backend, "kernel": kernel, "dtype": dtype, "causal": true,
            "ms": ms, "clock": "gpu", "gflops": 2e6 / ms, "gbps": 1.0, "peak_bytes": 4096,
            "first_ms": 9.5, "device": "a GPU", "error": 0.25,
        })
        .to_string()
    }

    #[test]
    fn results_become_tables_beside_torch() {
        let header = json!({
            "gpu": "A GPU", "date": "2026-01-02", "driver": "1.2", "nvrtc": "12.9", "cuda": "13.0",
            "clocks": "5 MHz", "copy": "9 GB/s", "torch": "2.9", "other": 1,
        });
        let lines = [
            header.to_string(),
            line("1x16x16384x128", "torch", "flash_attention", "f16", 10.0),
            line("1x16x16384x128", "torch", "math", "f16", 200.0),
            line("1x16x16384x128", "wgpu", "flash", "f16", 40.0),
            line("1x16x16384x128", "cuda", "flash", "f16", 12.5),
            line("4x16x4096x128", "cuda", "flash", "f16", 2.0),
            line("4x16x4096x128", "cuda", "unfused", "f16", 8.0),
            line("1x4x256x64", "cuda", "flash", "f32", 1.0),
            line("1x4x256x64", "torch", "efficient_attention", "f32", 1.5),
        ];
        let results = parse(&lines.join("\n")).expect("results");
        assert_eq!(
            results.to_string(),
            "A GPU, 2026-01-02, driver 1.2, NVRTC 12.9, SM clock 5 MHz, copy 9 GB/s, torch 2.9, CUDA 13.0.\n\n\
             | f16, TFLOP/s | causal | cuda flash | cuda unfused | wgpu flash | \
             torch flash | torch math | cuda flash : torch flash | cuda flash : unfused |\n\
             | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n\
             | 4x16x4096x128 | yes | 1000 | 250 | | | | | 4.00 |\n\
             | 1x16x16384x128 | yes | 160 | | 50.0 | 200 | 10.0 | 0.80 | |\n\n\
             | f32, TFLOP/s | causal | cuda flash | torch efficient | \
             cuda flash : torch efficient |\n\
             | --- | --- | ---: | ---: | ---: |\n\
             | 1x4x256x64 | yes | 2000 | 1333 | 1.50 |\n"
        );
        let svg = results.svg(DType::F16, true).expect("draws");
        for text in [
            "Forward attention, f16, causal",
            "head_dim 128, TFLOP/s",
            "cuda flash, a GPU",
            "torch math, a GPU",
        ] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(!svg.contains("efficient"));
    }

    #[test]
    fn what_bench_writes_is_what_is_read() {
        for case in ["1x2x3x4", "1x32/8x1/4096x128"] {
            let written = line(case, "wgpu", "unfused", "bf16", 0.25);
            let read = row(&serde_json::from_str(&written).expect("JSON")).expect("a row");
            assert_eq!(super::super::json_line(&read).to_string(), written);
        }
    }

    #[test]
    fn errors_name_the_line_and_the_key() {
        let good = line("1x2x3x4", "wgpu", "flash", "f32", 1.0);
        for (text, error) in [
            (String::new(), "nothing was measured"),
            ("{}".to_owned(), "nothing was measured"),
            ("nonsense".to_owned(), "line 1"),
            (format!("{good}\n{{}}"), "line 2: `case` is missing"),
            (good.replace("f32", "f8"), "`dtype` f8"),
            (good.replace("1x2x3x4", "1x2"), "`case`"),
            (good.replace("\"ms\":1.0", "\"ms\":-1.0"), "`ms` is not a number of at least 0"),
            (good.replace("true", "1"), "`causal`"),
        ] {
            let message = format!("{:#}", parse(&text).expect_err("refused"));
            assert!(message.contains(error), "{message}");
        }
    }
}
