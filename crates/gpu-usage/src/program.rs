use anyhow::{Context as _, Result, bail};
use clap::Parser;
use flashtile_core::{DType, KernelKind};
use flashtile_gpu_usage::{Case, Gpu, Kernel, KernelReport, Report, Source, capture, tuned};
use flashtile_wgpu::{PlanOptions, Tiles, wgpu};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Prints what kernels take on the GPU whose driver it runs with, one line per kernel.
///
/// Run it under scripts/with-gpu-compiler. Without a case and without a file, it prints the cases
/// that are on record.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Plan a problem of this size, BxHxSxD
    #[arg(long, value_parser = shape)]
    shape: Option<[usize; 4]>,
    /// Heads of keys and values [default: H]
    #[arg(long, requires = "shape")]
    kv_heads: Option<usize>,
    /// Keys [default: S]
    #[arg(long, requires = "shape")]
    seq_kv: Option<usize>,
    /// Storage type: f32, f16 or bf16
    #[arg(long, default_value = "f32", value_parser = dtype)]
    dtype: DType,
    /// Causal, with the last query at the last key
    #[arg(long, requires = "shape")]
    causal: bool,
    /// Force a kernel: flash or unfused
    #[arg(long, requires = "shape", value_parser = kernel)]
    kernel: Option<KernelKind>,
    /// Force the tile shape of the kernel variant whose name contains this text; `list` prints the
    /// names
    #[arg(long, requires = "shape", value_name = "VARIANT")]
    tiles: Option<String>,
    /// Compile this WGSL file instead, with the bindings of the product's kernels
    #[arg(long, value_name = "FILE", conflicts_with = "shape", requires = "entry")]
    wgsl: Option<PathBuf>,
    /// The entry point in the file
    #[arg(long, value_name = "NAME")]
    entry: Option<String>,
    /// A pipeline-overridable constant of the file, NAME=VALUE
    #[arg(long = "constant", value_name = "NAME=VALUE", value_parser = constant)]
    constants: Vec<(String, f64)>,
    /// Keep wgpu's runtime checks in the file's kernel
    #[arg(long)]
    checked: bool,
    /// Print also the bars that a kernel misses, in lines that start with `bar:`
    #[arg(long)]
    bars: bool,
    /// Print only the version of the driver
    #[arg(long)]
    driver: bool,
    /// Do not ask the driver for statistics. With RADV_DEBUG=shaderstats it prints them by itself,
    /// which shows that asking changes nothing
    #[arg(long)]
    uncaptured: bool,
    /// Print every statistic of the driver
    #[arg(long)]
    statistics: bool,
    /// Print the machine code, where the driver gives it
    #[arg(long)]
    listing: bool,
    /// Print the plan of each problem, with its reasons
    #[arg(long)]
    plan: bool,
}

pub(crate) fn run() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.tiles.as_deref() == Some("list") {
        for variant in flashtile_shaders::Variant::all() {
            println!("{variant}");
        }
        return Ok(());
    }
    if arguments.uncaptured {
        capture::disable();
    }
    if let Some(file) = &arguments.wgsl {
        return compile_file(&arguments, file);
    }
    let gpu = Gpu::open(wgpu::Features::empty())?;
    if arguments.driver {
        println!("{}", gpu.info().driver_info);
        return Ok(());
    }
    let cases = match arguments.shape {
        Some(shape) => {
            let mut case = Case::new(shape, arguments.dtype, arguments.causal);
            case.kv_heads = arguments.kv_heads.unwrap_or(case.kv_heads);
            case.seq_kv = arguments.seq_kv.unwrap_or(case.seq_kv);
            vec![case]
        }
        None => tuned(),
    };
    let mut options = PlanOptions::new().kernel(arguments.kernel);
    if let Some(name) = &arguments.tiles {
        options = options.tiles(tiles(name)?);
    }
    for case in cases {
        let (report, plan, kernels) = Report::new(&gpu, case, &options)?;
        if arguments.plan {
            println!("{plan}");
        }
        for line in report.lines() {
            println!("{line}");
        }
        if arguments.bars {
            for line in report.violations() {
                println!("bar: {line}");
            }
        }
        for kernel in kernels {
            print_details(&arguments, &kernel)?;
        }
    }
    Ok(())
}

fn compile_file(arguments: &Arguments, file: &Path) -> Result<()> {
    let wgsl = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let constants: Vec<_> =
        arguments.constants.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let entry_point = arguments.entry.as_deref().context("--wgsl needs --entry")?;
    let gpu = Gpu::open(
        wgpu::Features::SUBGROUP
            | wgpu::Features::SHADER_F16
            | wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX,
    )?;
    let compiled = gpu.compile(&Source {
        wgsl: &wgsl,
        entry_point,
        constants: &constants,
        checked: arguments.checked,
    })?;
    let kernel = Kernel { variant: entry_point.to_owned(), compiled };
    let file = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy();
    for line in KernelReport::new(&gpu, &kernel)?.lines(&format!("{} {file}", gpu.name())) {
        println!("{line}");
    }
    print_details(arguments, &kernel)
}

fn print_details(arguments: &Arguments, kernel: &Kernel) -> Result<()> {
    if arguments.statistics {
        for (name, value) in &kernel.compiled.statistics {
            println!("    {name}: {value}");
        }
    }
    if arguments.listing {
        match kernel.compiled.listing() {
            Some(listing) => println!("{listing}"),
            None => bail!("the driver gives no listing"),
        }
    }
    Ok(())
}

fn tiles(name: &str) -> Result<Tiles> {
    flashtile_shaders::Variant::all()
        .find(|variant| variant.to_string().contains(name))
        .map(|variant| variant.tiles)
        .with_context(|| format!("no variant has '{name}' in its name; --tiles list prints them"))
}

fn shape(text: &str) -> Result<[usize; 4], String> {
    let sizes: Result<Vec<usize>, _> = text.split('x').map(str::parse).collect();
    sizes
        .ok()
        .and_then(|sizes| sizes.try_into().ok())
        .ok_or_else(|| "expected BxHxSxD, four sizes such as 1x8x1024x64".to_owned())
}

fn dtype(text: &str) -> Result<DType, String> {
    let found = DType::ALL.iter().find(|dtype| dtype.to_string() == text);
    found.copied().ok_or_else(|| "expected f32, f16 or bf16".to_owned())
}

fn kernel(text: &str) -> Result<KernelKind, String> {
    match text {
        "flash" => Ok(KernelKind::Flash),
        "unfused" => Ok(KernelKind::Unfused),
        _ => Err("expected flash or unfused".to_owned()),
    }
}

fn constant(text: &str) -> Result<(String, f64), String> {
    text.split_once('=')
        .and_then(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
        .ok_or_else(|| "expected NAME=VALUE, such as BY_FOUR=1".to_owned())
}
