//! The kernels on the best adapter, flash beside unfused, without compiling and copying: by GPU
//! timestamps where the device has them, else from submission to completion.
//!
//! A few shapes that are small enough for a software adapter. `flashtile bench` measures the shapes
//! of known models, memory, and every backend.

use criterion::{BenchmarkId, Criterion, Throughput};
use flashtile::wgpu::{Context, DeviceChoice, HostRun, PlanOptions, open_blocking};
use flashtile::{
    Align, Call, Cost, DType, HostArgs, KernelKind, Problem, TensorView, zeroed_bytes,
};
use std::{error::Error, time::Duration};

/// Name, (B, H, Sq, D), Skv, dtype, causal.
type Shape = (&'static str, [usize; 4], usize, DType, bool);

const SHAPES: [Shape; 4] = [
    ("encoder", [2, 4, 128, 32], 128, DType::F32, false),
    ("causal", [1, 4, 256, 64], 256, DType::F32, true),
    ("causal f16", [1, 4, 256, 64], 256, DType::F16, true),
    ("decode", [4, 8, 1, 64], 1024, DType::F32, true),
];

fn main() -> Result<(), Box<dyn Error>> {
    let context = match open_blocking(&DeviceChoice::new()) {
        Ok(context) => context,
        Err(error)
            if std::env::var_os("FLASHTILE_REQUIRE_GPU").is_some_and(|value| value == "1") =>
        {
            return Err(error.into());
        }
        Err(error) => {
            eprintln!("nothing to measure: {error}");
            return Ok(());
        }
    };
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    for shape in SHAPES {
        let problem = problem(shape)?;
        let cost = Cost::new(&problem, &Call::default().resolve(&problem)?, 1, 1, None);
        let mut group = criterion.benchmark_group(shape.0);
        // An element is a floating-point operation: criterion's Gelem/s reads as GFLOP/s.
        group.throughput(Throughput::Elements(cost.flops));
        for &kernel in KernelKind::ALL {
            let run = upload(&context, &problem, kernel)?;
            group.bench_function(BenchmarkId::from_parameter(kernel), |b| {
                b.iter_custom(|runs| {
                    (0..runs).map(|_| run.run_blocking().expect("it runs").best()).sum()
                });
            });
        }
        group.finish();
    }
    criterion.final_summary();
    Ok(())
}

fn problem((_, [b, h, seq_q, d], seq_kv, dtype, causal): Shape) -> Result<Problem, Box<dyn Error>> {
    let q = TensorView::bshd(dtype, [b, seq_q, h, d])?;
    let kv = TensorView::bshd(dtype, [b, seq_kv, h, d])?;
    Ok(Problem::builder(q, kv, kv).causal(causal).align(Align::BottomRight).build()?)
}

fn upload(
    context: &Context,
    problem: &Problem,
    kernel: KernelKind,
) -> Result<HostRun, Box<dyn Error>> {
    let plan = context.plan_blocking(problem, &PlanOptions::new().kernel(kernel))?;
    let numbers = |view: &TensorView| {
        let mut bytes = vec![0; view.byte_span().unwrap_or(0)];
        let count = bytes.len() / view.dtype.size();
        (0..count).for_each(|n| view.dtype.write(&mut bytes, n, (n as f64 * 0.37).sin()));
        bytes
    };
    let [q, k, v] = [problem.q(), problem.k(), problem.v()].map(numbers);
    let mut out = zeroed_bytes(problem)?;
    let args = HostArgs::new(&q, &k, &v, &mut out);
    Ok(HostRun::upload_blocking(&plan, &args)?)
}
