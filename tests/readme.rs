//! The parts of documents that code decides: the README's example, the table of docs/SUPPORT.md and
//! the binding table of docs/ARCHITECTURE.md.
//!
//! Each part is generated here and compared with the text between its markers.
//! `UPDATE_README=1 cargo test --test readme` rewrites them.
#![cfg(all(feature = "wgpu", feature = "cuda", feature = "cpu"))]

use flashtile::{
    Align, Attention, BackendKind, Call, Choice, DType, KernelKind, Layout, Mask, MaskKind,
    Problem, ProblemBuilder, ProblemError, TensorView, Verdict,
    cuda::{Machine, PlanOptions, schedule},
    wgpu::{Error as WgpuError, export_baseline},
};
use flashtile_shaders::{Access, Operation, Slot, Variant};
use std::{env, fmt::Write as _, fs, path::Path};

// ---- Examples -----------------------------------------------------------------------------------

/// The code in README.md. Compiled but not run; the programs in examples/ run the same calls.
#[expect(dead_code, reason = "shown in a document, not called")]
mod readme {
    // <example>
    use flashtile::wgpu::{Args, Context, PlanOptions, wgpu};
    use flashtile::{DType, Problem, TensorView};

    fn attention(
        context: &Context, // Context::new_blocking(device, queue)?, once per device
        encoder: &mut wgpu::CommandEncoder,
        [q, k, v, out]: [&wgpu::Buffer; 4], // f16: batch 1, 1024 positions, 8 heads of width 64
    ) -> Result<(), Box<dyn std::error::Error>> {
        let view = TensorView::bshd(DType::F16, [1, 1024, 8, 64])?;
        let problem = Problem::builder(view, view, view).causal(true).build()?;
        let plan = context.plan_blocking(&problem, &PlanOptions::new())?; // keep one per problem
        plan.encode(encoder, &Args::new(q, k, v, out))?; // each call: records, never waits
        Ok(())
    }
    // </example>
}

/// The code in docs/COOKBOOK.md. Compiled but not run.
#[expect(dead_code, reason = "shown in a document, not called")]
mod cookbook {
    use flashtile::wgpu::{
        Args, Context, Plan, PlanOptions, Tiles, TuneOptions, Tuning, device_descriptor, wgpu,
    };
    use flashtile::{Align, Call, DType, HostArgs, PlanCache, Problem, TensorView};

    type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

    fn decode(
        context: &Context,
        encoder: &mut wgpu::CommandEncoder,
        [q, k_cache, v_cache, out]: [&wgpu::Buffer; 4],
        filled: usize,
    ) -> Result<()> {
        // <decode>
        let q_view = TensorView::bshd(DType::F16, [1, 1, 32, 128])?; // one query, 32 heads
        let cache = TensorView::bshd(DType::F16, [1, 8192, 8, 128])?; // 8192 keys, 8 kv heads
        let problem = Problem::builder(q_view, cache, cache)
            .causal(true)
            .align(Align::BottomRight)
            .build()?;
        let plan = context.plan_blocking(&problem, &PlanOptions::new())?; // once, for all layers

        // For each token and layer. `filled` keys are in the cache, the new one included.
        let call = Call::new().seq_kv(filled);
        plan.encode(encoder, &Args::new(q, k_cache, v_cache, out).call(call))?;
        // </decode>
        Ok(())
    }

    fn cache(context: &Context, problem: &Problem) -> Result<Plan> {
        // <cache>
        let plans: PlanCache<Plan, Tiles> = PlanCache::new(); // one per device
        let options = PlanOptions::new();
        let plan =
            plans.get_or_plan(problem, &options, || context.plan_blocking(problem, &options))?;
        // </cache>
        Ok(plan)
    }

    fn tuned(
        context: Context,
        kept: &str,
        problem: &Problem,
        args: &HostArgs<'_>,
    ) -> Result<(Context, String)> {
        // <tune>
        // Once per adapter and driver: measure, and keep the text in a file, say.
        let found = context.tune_blocking(problem, args, TuneOptions::new())?;
        let mut table = Tuning::new(context.tuning_key());
        table.add(&found);
        let text = table.to_string();

        // At every start: plan with the table, or without one that is damaged or out of date.
        let context = match kept.parse().and_then(|table| context.with_tuning(table)) {
            Ok(tuned) => tuned,
            Err(error) => {
                eprintln!("ignored the measured tiles: {error}");
                context
            }
        };
        // </tune>
        Ok((context, text))
    }

    fn ahead(context: &Context, problems: &[Problem]) -> Result<Vec<Plan>> {
        // <ahead>
        let plans = context.compile_ahead_blocking(problems, &PlanOptions::new())?;
        // </ahead>
        Ok(plans)
    }

    fn cpu(pool: &rayon::ThreadPool, problem: &Problem, args: HostArgs<'_>) -> Result<()> {
        use flashtile::{PlanOptions, cpu::Cpu};
        // <cpu>
        let cpu = Cpu::new(); // works in the caller's rayon pool; `with_threads(n)` starts its own
        pool.install(|| {
            let plan = cpu.plan(problem, &PlanOptions::new())?; // once per configuration
            plan.run(args) // every call: HostArgs::new(&q, &k, &v, &mut out)
        })?;
        // </cpu>
        Ok(())
    }

    async fn device(adapter: wgpu::Adapter) -> Result<Context> {
        // <device>
        let (device, queue) = adapter.request_device(&device_descriptor(&adapter)).await?;
        let context = Context::new(device, queue).await?;
        // </device>
        Ok(context)
    }
}

#[test]
fn documents_show_the_examples_that_compile() {
    compare("README.md", "example", &code("example"));
    for name in ["decode", "cache", "tune", "cpu", "ahead", "device"] {
        compare("docs/COOKBOOK.md", name, &code(name));
    }
}

/// The lines between the tags `name` of this file, without their common indentation, as a block of
/// Markdown.
fn code(name: &str) -> String {
    let text = include_str!("readme.rs");
    let (_, text) = text.split_once(&format!("// <{name}>\n")).expect("the tag is in this file");
    let (text, _) = text.split_once(&format!("// </{name}>")).expect("the tag is closed");
    let indent = text.len() - text.trim_start().len();
    let lines: Vec<_> = text.lines().map(|line| line.get(indent..).unwrap_or("")).collect();
    format!("```rust\n{}\n```\n", lines.join("\n").trim_end())
}

// ---- What runs where ----------------------------------------------------------------------------

/// Problems that differ from one plain problem in the way that their label says.
fn problems() -> Result<Vec<(&'static str, Problem)>, ProblemError> {
    let dense = |dtype, layout, shape| TensorView::from_bhsd_sizes(dtype, layout, shape);
    let square =
        |dtype, shape| dense(dtype, Layout::Bhsd, shape).map(|x| Problem::builder(x, x, x));
    let plain = || square(DType::F16, [2, 8, 1024, 64]);
    // q and out are (B, H, Sq, ..), k and v (B, Hkv, Skv, ..).
    let shaped =
        |layout, [b, h, hkv, sq, skv, d, dv]: [usize; 7]| -> Result<ProblemBuilder, ProblemError> {
            let view = |shape| dense(DType::F16, layout, shape);
            Ok(Problem::builder(
                view([b, h, sq, d])?,
                view([b, hkv, skv, d])?,
                view([b, hkv, skv, dv])?,
            ))
        };
    let bhsd = |sizes| shaped(Layout::Bhsd, sizes);
    let mask = |kind, dims: &[usize]| Mask::contiguous(kind, dims);
    // Rows of an odd number of 16-bit elements, gaps between them, and every second head left out.
    let odd = TensorView::strided(DType::F16, [2, 8, 33, 5], [8 * 2 * 33 * 7, 2 * 33 * 7, 7, 1]);
    let everything = bhsd([2, 8, 2, 1000, 1024, 80, 96])?
        .causal(true)
        .align(Align::BottomRight)
        .window_left(300)
        .softcap(30.0)
        .mask(mask(MaskKind::Additive(DType::F32), &[2, 1, 1000, 1024])?)
        .kv_lens(true)
        .dropout_p(0.1)
        .lse(true);
    let rows: Vec<(&str, ProblemBuilder)> = vec![
        ("f32", square(DType::F32, [2, 8, 1024, 64])?),
        ("f16", plain()?),
        ("bf16", square(DType::BF16, [2, 8, 1024, 64])?),
        ("layout bshd", shaped(Layout::Bshd, [2, 8, 8, 1024, 1024, 64, 64])?),
        ("strides, odd rows with gaps", Problem::builder(odd, odd, odd).out(odd)),
        ("cross-attention, 77 keys", bhsd([2, 8, 8, 1024, 77, 64, 64])?),
        ("GQA, 32 heads over 8", bhsd([1, 32, 8, 1024, 1024, 128, 128])?),
        ("MQA, 32 heads over 1", bhsd([1, 32, 1, 1024, 1024, 128, 128])?),
        ("decode, 1 query over 8192 keys", bhsd([1, 32, 8, 1, 8192, 128, 128])?),
        ("head_dim 1", square(DType::F16, [2, 8, 1024, 1])?),
        ("head_dim 33", square(DType::F16, [2, 8, 1024, 33])?),
        ("head_dim 128", square(DType::F16, [2, 8, 1024, 128])?),
        ("head_dim 256", square(DType::F16, [2, 8, 1024, 256])?),
        ("head_dim 512", square(DType::F16, [2, 8, 1024, 512])?),
        ("head_dim 192, head_dim_v 128", bhsd([2, 8, 8, 1024, 1024, 192, 128])?),
        ("head_dim 576, head_dim_v 512", bhsd([2, 8, 8, 1024, 1024, 576, 512])?),
        ("head_dim_v 513", bhsd([2, 8, 8, 1024, 1024, 512, 513])?),
        ("causal", plain()?.causal(true)),
        (
            "causal, bottom-right",
            bhsd([2, 8, 8, 100, 1024, 64, 64])?.causal(true).align(Align::BottomRight),
        ),
        ("window of 256 keys", plain()?.window_left(255).window_right(0)),
        ("softcap", plain()?.softcap(30.0)),
        (
            "bool mask of keys, (B, 1, 1, Skv)",
            plain()?.mask(mask(MaskKind::Bool, &[2, 1, 1, 1024])?),
        ),
        ("additive f32 mask, (H, Sq, Skv)", {
            plain()?.mask(mask(MaskKind::Additive(DType::F32), &[8, 1024, 1024])?)
        }),
        ("additive f16 mask, (Sq, Skv)", {
            plain()?.mask(mask(MaskKind::Additive(DType::F16), &[1024, 1024])?)
        }),
        ("kv_lens", plain()?.kv_lens(true)),
        ("dropout", plain()?.dropout_p(0.1)),
        ("log-sum-exp", plain()?.lse(true)),
        ("all of these at once", everything),
        ("no keys at all", bhsd([2, 8, 8, 1024, 0, 64, 64])?),
        ("70000 batch entries", square(DType::F16, [70_000, 1, 16, 64])?),
        ("8 heads, 32768 long", square(DType::F16, [1, 8, 32_768, 64])?),
        ("8 heads of 512 in bhsd, 24576 long", bhsd([1, 8, 8, 24_576, 24_576, 512, 512])?),
        (
            "8 heads of 512 in bshd, 24576 long",
            shaped(Layout::Bshd, [1, 8, 8, 24_576, 24_576, 512, 512])?,
        ),
        ("one head of 128, a million keys", bhsd([1, 1, 1, 1024, 1 << 20, 128, 128])?),
        ("32 heads of 128, 65536 queries", bhsd([1, 32, 32, 65_536, 1024, 128, 128])?),
    ];
    rows.into_iter().map(|(label, problem)| Ok((label, problem.build()?))).collect()
}

/// A backend's verdict on a problem: wgpu on a device with WebGPU's default limits and no features,
/// CUDA on a GPU of compute capability 8.6, the others as on any machine.
fn verdict(problem: &Problem, backend: BackendKind, kernel: KernelKind) -> Verdict {
    if backend == BackendKind::Wgpu {
        return match export_baseline(problem, kernel, &Call::default()) {
            Ok(call) => {
                let of_a_part = if kernel == KernelKind::Flash { 1 } else { 3 };
                // A merge belongs to the parts before it.
                let is_part = |variant: &&Variant| variant.operation != Operation::FlashMerge;
                let parts = call.variants.iter().filter(is_part).count() / of_a_part;
                Verdict::Runs(if parts > 1 {
                    format!("yes, in {parts} parts")
                } else {
                    "yes".to_owned()
                })
            }
            Err(WgpuError::Refused { reasons, .. }) => Verdict::Refused(reasons),
            Err(error) => panic!("{problem}: {error}"),
        };
    }
    if backend == BackendKind::Cuda {
        return match schedule(problem, kernel, &PlanOptions::default(), &Machine::of_arch(86)) {
            Ok(plan) if plan.tiles.engine.is_matrix() => {
                Verdict::Runs("yes, on tensor cores".to_owned())
            }
            Ok(_) => Verdict::Runs("yes".to_owned()),
            Err(reasons) => Verdict::Refused(reasons),
        };
    }
    // Forced by name, so that no device is opened.
    let choice = Choice::exactly(backend, kernel);
    match Attention::new().explain_within(problem, choice).verdict(backend, kernel) {
        Some(Verdict::Refused(reasons)) => Verdict::Refused(reasons.clone()),
        _ => Verdict::Runs("yes".to_owned()),
    }
}

#[test]
fn the_support_table_says_what_runs_where() {
    let problems = problems().expect("valid problems");
    let mut notes: Vec<String> = Vec::new();
    let mut columns: Vec<(String, Vec<String>)> = Vec::new();
    for &backend in BackendKind::ALL {
        let of_backend = [KernelKind::Flash, KernelKind::Unfused].map(|kernel| {
            let cells =
                problems.iter().map(|(_, problem)| match verdict(problem, backend, kernel) {
                    Verdict::Runs(how) => how,
                    Verdict::Refused(reasons) => {
                        let reasons: Vec<_> = reasons.iter().map(ToString::to_string).collect();
                        let reasons = reasons.join("; ");
                        let number =
                            notes.iter().position(|note| *note == reasons).unwrap_or_else(|| {
                                notes.push(reasons);
                                notes.len() - 1
                            });
                        format!("no [{}]", number + 1)
                    }
                });
            (kernel, cells.collect::<Vec<_>>())
        });
        // A backend whose kernels always agree gets one column.
        if of_backend[0].1 == of_backend[1].1 {
            columns.push((backend.to_string(), of_backend[0].1.clone()));
        } else {
            columns
                .extend(of_backend.map(|(kernel, cells)| (format!("{backend} {kernel}"), cells)));
        }
    }
    // A column that refuses everything for the same reason becomes a line below the table.
    let refused =
        |cells: &[String]| cells[0].starts_with("no") && cells.iter().all(|cell| *cell == cells[0]);
    let (never, columns): (Vec<_>, Vec<_>) =
        columns.into_iter().partition(|(_, cells)| refused(cells));
    let mut table = String::from("| problem |");
    columns.iter().for_each(|(name, _)| table += &format!(" {name} |"));
    table += "\n| --- |";
    columns.iter().for_each(|_| table += " --- |");
    for (n, (label, _)) in problems.iter().enumerate() {
        table += &format!("\n| {label} |");
        columns.iter().for_each(|(_, cells)| table += &format!(" {} |", cells[n]));
    }
    table += "\n\nRefused for every problem:";
    for (n, (name, cells)) in never.iter().enumerate() {
        table += &format!("{} {name} {}", if n > 0 { "," } else { "" }, &cells[0]["no ".len()..]);
    }
    table += ". The reasons are those that the program prints:\n\n";
    for (n, note) in notes.iter().enumerate() {
        writeln!(table, "{}. {note}", n + 1).expect("strings take all");
    }
    compare("docs/SUPPORT.md", "what runs where", &table);
}

// ---- Bindings -----------------------------------------------------------------------------------

#[test]
fn the_binding_table_is_what_variants_bind() {
    let slots = [
        (Slot::Params, "params: sizes, strides, options"),
        (Slot::Q, "q"),
        (Slot::K, "k"),
        (Slot::V, "v"),
        (Slot::Mask, "mask"),
        (Slot::Aux, "aux: small integer inputs (kv_lens)"),
        (Slot::Out, "out"),
        (Slot::Lse, "lse"),
        (Slot::Workspace, "workspace: scores, or partial results of a split"),
    ];
    let mut table = String::from("| binding | what |");
    Operation::ALL.iter().for_each(|operation| table += &format!(" {operation} |"));
    table += "\n| --- | --- |";
    Operation::ALL.iter().for_each(|_| table += " --- |");
    let all: Vec<Variant> = Variant::all().collect();
    let of = |operation| all.iter().filter(move |variant| variant.operation == operation);
    for (slot, what) in slots {
        table += &format!("\n| {} | {what} |", slot as u32);
        for &operation in Operation::ALL {
            let uses: Vec<Access> = of(operation)
                .filter_map(|variant| {
                    variant.bindings().into_iter().find(|b| b.slot == slot).map(|b| b.access)
                })
                .collect();
            let cell = match uses.first() {
                None => String::new(),
                Some(access) => {
                    assert!(
                        uses.iter().all(|other| other == access),
                        "{slot:?} of {operation} is used in one way"
                    );
                    let how = match access {
                        Access::Uniform => "uniform",
                        Access::Read => "read",
                        Access::ReadWrite => "read, write",
                    };
                    if uses.len() == of(operation).count() {
                        how.to_owned()
                    } else {
                        format!("{how}, optional")
                    }
                }
            };
            table += &format!(" {cell} |");
        }
    }
    table += "\n| | storage buffers at most |";
    for &operation in Operation::ALL {
        let storage = |variant: &Variant| {
            variant.bindings().iter().filter(|b| b.access != Access::Uniform).count()
        };
        let most = of(operation).map(storage).max().unwrap_or(0);
        assert!(most <= 8, "WebGPU gives a stage 8 storage buffers: {operation} has {most}");
        table += &format!(" {most} |");
    }
    table += &format!("\n\n{} variants in all.\n", all.len());
    compare("docs/ARCHITECTURE.md", "bindings", &table);
}

// ---- Markers ------------------------------------------------------------------------------------

/// Fails if the text between the markers `name` of a document is not `text`, or writes it there.
fn compare(document: &str, name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(document);
    let (begin, end) =
        (format!("<!-- {name}: made by tests/readme.rs -->\n"), format!("<!-- {name}: end -->\n"));
    let _guard = LOCK.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let written = fs::read_to_string(&path).expect("the document is there");
    let (before, rest) = written
        .split_once(&begin)
        .unwrap_or_else(|| panic!("{document} lacks the marker `{name}`"));
    let (old, after) =
        rest.split_once(&end).unwrap_or_else(|| panic!("{document} lacks the end of `{name}`"));
    if old == text {
        return;
    }
    if env::var("UPDATE_README").is_ok_and(|value| value == "1") {
        fs::write(&path, [before, &begin, text, &end, after].concat())
            .expect("the document can be written");
        return;
    }
    panic!(
        "`{name}` in {document} is out of date; UPDATE_README=1 cargo test --test readme rewrites \
         it.\nIt should be:\n\n{text}"
    );
}

/// Tests run in parallel, and several may write one document.
static LOCK: std::sync::Mutex<()> = std::sync::Mutex::new(());
