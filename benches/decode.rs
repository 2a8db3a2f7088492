//! One decode step on the CPU: a query over a long cache of keys and values, beside a copy of as
//! many bytes on as many threads.
//!
//! Such a step reads K and V once and little else. criterion's GiB/s count the bytes of K and V for
//! a step, and for a copy what it reads and what it writes.

use criterion::{BenchmarkId, Criterion, Throughput};
use flashtile::cpu::Cpu;
use flashtile::{DType, HostArgs, Layout, PlanOptions, Problem, TensorView, zeroed_bytes};
use std::{error::Error, thread, time::Duration};

const KEYS: usize = 8192;
const HEAD_DIM: usize = 128;

/// Heads of q, and of k and v.
const HEADS: [[usize; 2]; 2] = [[32, 8], [32, 32]];

const LAYOUTS: [Layout; 2] = [Layout::Bhsd, Layout::Bshd];

fn main() -> Result<(), Box<dyn Error>> {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    let cpu = Cpu::new();
    let threads = cpu.threads();
    for [heads, kv_heads] in HEADS {
        let mut group = criterion.benchmark_group(format!("{heads} heads over {kv_heads}"));
        let problem = problem([heads, kv_heads], Layout::Bhsd)?;
        let [q, k, v] = [problem.q(), problem.k(), problem.v()].map(numbers);
        let mut out = zeroed_bytes(&problem)?;
        group.throughput(Throughput::Bytes((k.len() + v.len()) as u64));
        for layout in LAYOUTS {
            // Dense tensors have as many bytes in every layout.
            let plan = cpu.plan(&self::problem([heads, kv_heads], layout)?, &PlanOptions::new())?;
            group.bench_function(BenchmarkId::from_parameter(layout), |b| {
                b.iter(|| plan.run(HostArgs::new(&q, &k, &v, &mut out)).expect("it runs"));
            });
        }
        let mut copy = vec![0; k.len()];
        let part = k.len().div_ceil(threads);
        group.bench_function("copy", |b| {
            b.iter(|| {
                thread::scope(|scope| {
                    for (to, from) in copy.chunks_mut(part).zip(k.chunks(part)) {
                        scope.spawn(|| to.copy_from_slice(from));
                    }
                });
            });
        });
        group.finish();
    }
    criterion.final_summary();
    Ok(())
}

fn problem([heads, kv_heads]: [usize; 2], layout: Layout) -> Result<Problem, Box<dyn Error>> {
    let view = |heads, seq| {
        let shape = [1, heads, seq, HEAD_DIM];
        TensorView::from_bhsd_sizes(DType::F32, layout, shape)
    };
    let (q, kv) = (view(heads, 1)?, view(kv_heads, KEYS)?);
    Ok(Problem::builder(q, kv, kv).build()?)
}

fn numbers(view: &TensorView) -> Vec<u8> {
    let mut bytes = vec![0; view.byte_span().unwrap_or(0)];
    let count = bytes.len() / view.dtype.size();
    (0..count).for_each(|n| view.dtype.write(&mut bytes, n, (n as f64 * 0.37).sin()));
    bytes
}
