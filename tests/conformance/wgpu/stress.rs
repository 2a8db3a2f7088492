//! Many threads on one device must not cause errors that a single thread would not see.

use crate::shared::{bytes, dense, floats, text};
use flashtile::{Attention, Choice};
use flashtile_core::{BackendKind, Call, HostArgs, KernelKind, Problem};
use flashtile_wgpu::{Context, HostRun, PlanOptions, wgpu};
use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

/// Eight threads plan, upload, run, download and poll: six of them work, and two poll without a
/// pause. FLASHTILE_STRESS_SECONDS sets the duration (default: 10).
///
/// The library once reported healthy devices as lost here, a hundred times a minute.
pub(super) fn threads(context: &Context) -> Result<(), String> {
    let session = Attention::with_wgpu(context.clone());
    let seconds = std::env::var("FLASHTILE_STRESS_SECONDS").ok().and_then(|n| n.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(10));
    let (done, calls) = (AtomicBool::new(false), AtomicUsize::new(0));
    let host = bytes(&floats(1, 2 * 40 * 16));
    // Two workers share one uploaded call, and download from it at the same time.
    let shared = problem(40, false)?;
    let plan = context.plan_blocking(&shared, &PlanOptions::new()).map_err(text)?;
    let mut nothing = vec![0; host.len()];
    let args = HostArgs::new(&host, &host, &host, &mut nothing);
    let uploaded = HostRun::upload_blocking(&plan, &args).map_err(text)?;
    let expected = run_on(context, &shared, &host)?;

    let work = |worker: usize| -> Result<(), String> {
        let mut round = worker;
        while Instant::now() < end {
            round += 1;
            calls.fetch_add(1, Ordering::Relaxed);
            let mut out = vec![0; host.len()];
            match worker {
                0 | 1 => {
                    uploaded.run_blocking().map_err(text)?;
                    let mut args = HostArgs::new(&host, &host, &host, &mut out);
                    uploaded.download_blocking(&mut args).map_err(text)?;
                    if out != expected {
                        return Err("a download of a shared call gave different bits".into());
                    }
                }
                2 | 3 => {
                    let problem = problem(17 + round % 24, round.is_multiple_of(2))?;
                    let got = run_on(context, &problem, &host)?;
                    if got != run_on(context, &problem, &host)? {
                        return Err("a second run gave different bits".into());
                    }
                }
                _ => {
                    let problem = problem(33 + round % 3, true)?;
                    let call = Call::new().seq_kv(1 + round % 33);
                    let args = HostArgs::new(&host, &host, &host, &mut out).call(call);
                    let kernel = KernelKind::ALL[round % 2];
                    let choice = Choice::exactly(BackendKind::Wgpu, kernel);
                    session.run(&problem, args, choice).map_err(text)?;
                }
            }
        }
        Ok(())
    };
    let poll = || -> Result<(), String> {
        while !done.load(Ordering::Relaxed) {
            context.device().poll(wgpu::PollType::Poll).map_err(text)?;
        }
        Ok(())
    };
    let results: Vec<Result<(), String>> = std::thread::scope(|scope| {
        let pollers: Vec<_> = (0..2).map(|_| scope.spawn(poll)).collect();
        let workers: Vec<_> = (0..6).map(|n| scope.spawn(move || work(n))).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| thread.join().expect("no panic");
        let worked: Vec<_> = workers.into_iter().map(join).collect();
        done.store(true, Ordering::Relaxed);
        worked.into_iter().chain(pollers.into_iter().map(join)).collect()
    });
    println!("{} calls on six workers and two pollers", calls.load(Ordering::Relaxed));
    results.into_iter().collect()
}

fn problem(seq: usize, causal: bool) -> Result<Problem, String> {
    let view = dense([1, 2, seq, 16]);
    Problem::builder(view, view, view).causal(causal).build().map_err(text)
}

fn run_on(context: &Context, problem: &Problem, host: &[u8]) -> Result<Vec<u8>, String> {
    let plan = context.plan_blocking(problem, &PlanOptions::new()).map_err(text)?;
    let mut out = vec![0; host.len()];
    let args = HostArgs::new(host, host, host, &mut out);
    context.run_host_blocking(&plan, args).map_err(text)?;
    Ok(out)
}
