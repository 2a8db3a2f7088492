//! A call from within a rayon pool works on the threads of that pool, and on no others.
//!
//! The test is alone in its process: it shows that rayon's global pool was never started, and any
//! other test could start it.

use flashtile_core::{DType, HostArgs, PlanOptions, Problem, TensorView};
use flashtile_cpu::Cpu;
use std::{
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

const THREADS: usize = 3;
const SIZE: [usize; 4] = [1, 256, 4, 64];

#[test]
fn work_runs_in_the_callers_pool_and_nowhere_else() {
    // Threads that this test starts, so that it can wait for their end. Each leaves its time.
    let times = Arc::<Mutex<Vec<u64>>>::default();
    let mut threads = Vec::new();
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(THREADS)
        .spawn_handler(|worker| {
            let times = times.clone();
            threads.push(thread::Builder::new().spawn(move || {
                worker.run();
                times.lock().expect("no thread panics").push(time_of_this_thread());
            })?);
            Ok(())
        })
        .build()
        .expect("three threads");

    let view = TensorView::bshd(DType::F32, SIZE).expect("small");
    let problem = Problem::builder(view, view, view).build().expect("valid");
    let values = vec![0; 4 * SIZE.iter().product::<usize>()];
    pool.install(|| {
        let cpu = Cpu::new();
        assert_eq!(cpu.threads(), THREADS);
        let plan = cpu.plan(&problem, &PlanOptions::new()).expect("it runs");
        let mut out = vec![9; values.len()];
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(1) {
            plan.run(HostArgs::new(&values, &values, &values, &mut out)).expect("it runs");
        }
        assert_eq!(out, values, "the values are all 0");
    });
    drop(pool);
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));

    // Starting it succeeds only if nothing has started it before.
    let global = rayon::ThreadPoolBuilder::new().num_threads(1).build_global();
    assert!(global.is_ok(), "work was given to rayon's global pool");
    let times = times.lock().expect("no thread panics");
    assert_eq!(times.len(), THREADS);
    if cfg!(target_os = "linux") {
        assert!(times.iter().all(|&time| time > 0), "not every thread worked: {times:?}");
    }
}

/// The processor time of the calling thread in ticks of usually 10 ms; 0 on systems other than
/// Linux.
fn time_of_this_thread() -> u64 {
    let Ok(stat) = std::fs::read_to_string("/proc/thread-self/stat") else { return 0 };
    // The name in parentheses may hold spaces. Fields 14 and 15 are the times in user mode and in
    // the kernel.
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    after_name.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum()
}
