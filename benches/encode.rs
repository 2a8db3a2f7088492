//! What encoding a plan costs the host: the price of a call in an app's frame or in a decode loop, besides what the GPU does.
//!
//! Each iteration records one call of a plan that is compiled and whose bind groups are cached: into a compute pass of its own,
//! into one that is open already, and there with wgpu's own share, which comes when the encoder is finished. Nothing is
//! submitted, so that neither the driver nor the GPU is measured.

use criterion::Criterion;
use flashtile::wgpu::{
    AdapterChoice, Args, BufferView, Context, Plan, PlanOptions, open_blocking, wgpu,
};
use flashtile::{Align, Call, DType, Layout, Problem, TensorView};
use std::{
    error::Error,
    hint::black_box,
    time::{Duration, Instant},
};

/// Calls recorded into one encoder: fewer than there are parameter slots.
const CALLS: u64 = 256;

/// Records so many calls; the time it took.
type Record = fn(&Bench, wgpu::CommandEncoder, u64) -> Duration;

/// A plan and the buffers of its calls.
struct Bench {
    name: &'static str,
    plan: Plan,
    q: wgpu::Buffer,
    k: wgpu::Buffer,
    v: wgpu::Buffer,
    out: wgpu::Buffer,
}

fn main() -> Result<(), Box<dyn Error>> {
    let context = match open_blocking(&AdapterChoice::default()) {
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
    let benches = [bench(&context, "flash", 64, 64)?, bench(&context, "decode", 1, 256)?];
    let mut criterion =
        Criterion::default().measurement_time(Duration::from_secs(2)).configure_from_args();
    for bench in &benches {
        let mut group = criterion.benchmark_group(bench.name);
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
    criterion.final_summary();
    Ok(())
}

fn bench(
    context: &Context,
    name: &'static str,
    seq_q: usize,
    seq_kv: usize,
) -> Result<Bench, Box<dyn Error>> {
    let view = |seq| TensorView::from_bhsd_sizes(DType::F32, Layout::Bshd, [1, 1, seq, 32]);
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
    let plan = context.plan_blocking(&problem, &PlanOptions::default())?;
    Ok(Bench {
        name,
        plan,
        q: buffer(&q),
        k: buffer(&kv),
        v: buffer(&kv),
        out: buffer(problem.out()),
    })
}

impl Bench {
    /// The arguments of one call; each looks at another length of the cache, as in a decode loop.
    fn args(&self, call: u64) -> Args<'_> {
        let problem = self.plan.problem();
        let seq_kv = Some(problem.seq_kv() - (call as usize % 8));
        let call = Call::new().seq_kv(seq_kv);
        Args::new(&self.q, &self.k, BufferView::new(&self.v, 0), &self.out).call(call)
    }

    fn measure(&self, context: &Context, calls: u64, record: Record) -> Duration {
        let mut took = Duration::ZERO;
        for begin in (0..calls).step_by(CALLS as usize) {
            let encoder =
                context.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            took += record(self, encoder, CALLS.min(calls - begin));
            // What was recorded is dropped by now. The parameters that were written go to the device with any submission.
            context.queue().submit([]);
            context
                .device()
                .poll(wgpu::PollType::wait_indefinitely())
                .expect("the device is there");
        }
        took
    }

    fn encode(&self, mut encoder: wgpu::CommandEncoder, calls: u64) -> Duration {
        let begin = Instant::now();
        for call in 0..calls {
            self.plan.encode(&mut encoder, &black_box(self.args(call))).expect("the call is valid");
        }
        begin.elapsed()
    }

    fn encode_in_pass(&self, mut encoder: wgpu::CommandEncoder, calls: u64) -> Duration {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        let begin = Instant::now();
        for call in 0..calls {
            self.plan
                .encode_in_pass(&mut pass, &black_box(self.args(call)))
                .expect("the call is valid");
        }
        begin.elapsed()
    }

    fn encode_in_pass_and_finish(&self, mut encoder: wgpu::CommandEncoder, calls: u64) -> Duration {
        let begin = Instant::now();
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for call in 0..calls {
                self.plan
                    .encode_in_pass(&mut pass, &black_box(self.args(call)))
                    .expect("the call is valid");
            }
        }
        black_box(encoder.finish());
        begin.elapsed()
    }
}
