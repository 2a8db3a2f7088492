//! What a call costs the host: the price in an application's frame or in a decode loop, besides the
//! GPU's work.
//!
//! Each iteration records one call of a compiled plan: into a compute pass of its own, into one
//! that is already open, and there with wgpu's own share, which is due when the encoder is
//! finished. The calls go round 1, 16 or 128 sets of buffers, as the layers of a model do. Nothing
//! is submitted, so neither the driver nor the GPU is measured. `plan` is planning with compiled
//! pipelines.

use criterion::Criterion;
use flashtile::wgpu::{Args, Context, DeviceChoice, Plan, PlanOptions, open_blocking, wgpu};
use flashtile::{Align, Call, DType, Problem, TensorView};
use std::{
    error::Error,
    hint::black_box,
    time::{Duration, Instant},
};

/// Calls recorded into one encoder.
const CALLS: u64 = 256;

/// Sets of buffers that calls go round: one layer, a small model, more layers than a large one has.
const SETS: [usize; 3] = [1, 16, 128];

/// Records so many calls, and returns the time that it took.
type Record = fn(&Bench, wgpu::CommandEncoder, u64) -> Duration;

/// A plan and the buffers of its calls: q, k, v and out of each set.
struct Bench {
    name: String,
    plan: Plan,
    sets: Vec<[wgpu::Buffer; 4]>,
}

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
    let mut benches = Vec::new();
    for sets in SETS {
        benches.push(bench(&context, "flash", 64, 64, sets)?);
        benches.push(bench(&context, "decode", 1, 256, sets)?);
    }
    let mut criterion =
        Criterion::default().measurement_time(Duration::from_secs(2)).configure_from_args();
    for bench in &benches {
        let mut group = criterion.benchmark_group(&bench.name);
        let record: [(_, Record); 3] = [
            ("encode", Bench::encode),
            ("encode_in_pass", Bench::encode_in_pass),
            ("encode_in_pass and finish", Bench::encode_in_pass_and_finish),
        ];
        for (what, record) in record {
            group.bench_function(what, |b| {
                b.iter_custom(|calls| bench.measure(&context, calls, record));
            });
        }
        group.finish();
    }
    let problem = benches[0].plan.problem().clone();
    let options = PlanOptions::new();
    criterion.bench_function("plan", |b| {
        b.iter(|| {
            context.plan_blocking(black_box(&problem), &options).expect("it was planned before")
        });
    });
    criterion.final_summary();
    Ok(())
}

fn bench(
    context: &Context,
    name: &str,
    seq_q: usize,
    seq_kv: usize,
    sets: usize,
) -> Result<Bench, Box<dyn Error>> {
    let view = |seq| TensorView::bshd(DType::F32, [1, seq, 1, 32]);
    let (q, kv) = (view(seq_q)?, view(seq_kv)?);
    let problem = Problem::builder(q, kv, kv).causal(true).align(Align::BottomRight).build()?;
    let buffer = |view: &TensorView| {
        context.device().create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: view.byte_span().unwrap_or(0) as u64,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: false,
        })
    };
    let set = |_| [&q, &kv, &kv, problem.out()].map(buffer);
    Ok(Bench {
        name: format!("{name}, {sets} buffer sets"),
        plan: context.plan_blocking(&problem, &PlanOptions::new())?,
        sets: (0..sets).map(set).collect(),
    })
}

impl Bench {
    /// The arguments of one call. All layers of a token see the same length of the cache; the next
    /// token sees another.
    fn args(&self, call: u64) -> Args<'_> {
        let (token, layer) = (call as usize / self.sets.len(), call as usize % self.sets.len());
        let [q, k, v, out] = &self.sets[layer];
        let keys = self.plan.problem().seq_kv() - token % 8;
        Args::new(q, k, v.slice(..), out).call(Call::new().seq_kv(keys))
    }

    fn measure(&self, context: &Context, calls: u64, record: Record) -> Duration {
        let mut took = Duration::ZERO;
        for first in (0..calls).step_by(CALLS as usize) {
            let encoder =
                context.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            took += record(self, encoder, CALLS.min(calls - first));
            // The recording has been dropped. Parameters that were written reach the device with
            // any submission.
            context.queue().submit([]);
            context
                .device()
                .poll(wgpu::PollType::wait_indefinitely())
                .expect("the device is there");
        }
        took
    }

    fn encode(&self, mut encoder: wgpu::CommandEncoder, calls: u64) -> Duration {
        let start = Instant::now();
        for call in 0..calls {
            self.plan.encode(&mut encoder, &black_box(self.args(call))).expect("the call is valid");
        }
        start.elapsed()
    }

    fn encode_in_pass(&self, mut encoder: wgpu::CommandEncoder, calls: u64) -> Duration {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        let start = Instant::now();
        for call in 0..calls {
            self.plan
                .encode_in_pass(&mut pass, &black_box(self.args(call)))
                .expect("the call is valid");
        }
        start.elapsed()
    }

    fn encode_in_pass_and_finish(&self, mut encoder: wgpu::CommandEncoder, calls: u64) -> Duration {
        let start = Instant::now();
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for call in 0..calls {
                self.plan
                    .encode_in_pass(&mut pass, &black_box(self.args(call)))
                    .expect("the call is valid");
            }
        }
        black_box(encoder.finish());
        start.elapsed()
    }
}
