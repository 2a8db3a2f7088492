//! The scenarios that run on the fake driver.

use crate::fake::Scenario;
use flashtile_core::{
    Argument, Call, DType, HostArgs, KernelKind, Layout, Problem, ProblemError, Reason, TensorView,
    Verdict,
};
use flashtile_cuda::{
    Args, Context, DeviceChoice, Error, HostRun, Input, Output, Plan, PlanOptions,
    cudarc::driver::{
        CudaContext, CudaSlice, CudaStream, DevicePtr,
        result::{self, stream::StreamKind},
        sys::{CUgraphInstantiate_flags, CUstreamCaptureMode},
    },
    devices, open,
};
use std::{env, fs, sync::Arc, thread};

pub(crate) const ALL: &[Scenario] = &[
    Scenario { name: "gpus_are_listed_and_opened", settings: &[], run: gpus },
    Scenario { name: "host_tensors_run", settings: &[], run: host_tensors },
    Scenario { name: "kernels_request_their_shared_memory", settings: &[], run: shared_memory },
    Scenario { name: "slices_views_and_addresses_launch", settings: &[], run: memory },
    Scenario { name: "bad_arguments_are_refused", settings: &[], run: bad_arguments },
    Scenario {
        name: "calls_that_share_a_workspace_do_not_interleave",
        settings: &[],
        run: workspaces,
    },
    Scenario { name: "slices_are_captured_into_a_graph", settings: &[], run: capture },
    Scenario {
        name: "a_capture_on_a_borrowed_stream_stays_valid",
        settings: &[],
        run: capture_on_borrowed_streams,
    },
    Scenario { name: "kernels_are_compiled_once", settings: &[], run: caches },
    Scenario { name: "no_gpu", settings: &[("FAKE_DEVICES", "0")], run: no_gpu },
    Scenario { name: "an_old_driver", settings: &[("FAKE_VERSION", "11080")], run: old_driver },
    Scenario {
        name: "an_incomplete_driver",
        settings: &[("LD_LIBRARY_PATH", "incomplete")],
        run: incomplete,
    },
    Scenario {
        name: "no_compiler",
        settings: &[("FLASHTILE_NVRTC", "/nowhere")],
        run: no_compiler,
    },
    Scenario {
        name: "the_named_compiler_is_used",
        settings: &[("LD_LIBRARY_PATH", "whole:new")],
        run: named_compiler,
    },
    Scenario {
        name: "the_newest_compiler_is_used_if_none_is_named",
        settings: &[("LD_LIBRARY_PATH", "whole:new:old"), ("FLASHTILE_NVRTC", "")],
        run: newest_compiler,
    },
    Scenario {
        name: "a_compiler_too_new_for_the_driver",
        settings: &[("FAKE_NEW_COMPILER", "1")],
        run: new_compiler,
    },
    Scenario {
        name: "a_compiler_as_new_as_the_driver",
        settings: &[("FAKE_NEW_COMPILER", "1"), ("FAKE_VERSION", "13000")],
        run: new_driver,
    },
    Scenario {
        name: "a_kernel_that_does_not_compile",
        settings: &[("FAKE_SYNTAX_ERROR", "1")],
        run: no_kernel,
    },
    Scenario { name: "no_memory", settings: &[("FAKE_MEMORY", "100")], run: no_memory },
    Scenario { name: "a_gpu_that_fails", settings: &[("FAKE_FAIL", "700")], run: failure },
];

const fn shared_between_threads<T: Send + Sync>() {}
const _: () = {
    shared_between_threads::<Context>();
    shared_between_threads::<Plan>();
    shared_between_threads::<HostRun>();
};

fn first() -> Context {
    open(&DeviceChoice::default()).unwrap()
}

/// One head, `seq` queries and keys, one column.
fn problem(seq: usize) -> Problem {
    let view = TensorView::from_bhsd_sizes(DType::F32, Layout::Bhsd, [1, 1, seq, 1]).unwrap();
    Problem::builder(view, view, view).build().unwrap()
}

fn plan(context: &Context, kernel: KernelKind) -> Plan {
    context.plan(&problem(4), &PlanOptions::new().kernel(kernel)).unwrap()
}

/// Memory for one tensor of [`problem`] with four queries, all zero.
fn zeros(stream: &Arc<CudaStream>) -> CudaSlice<f32> {
    stream.clone_htod(&[0f32; 4]).unwrap()
}

/// Arguments of [`problem`] whose scores are zero.
fn host_args<'a>(
    zeros: &'a [u8],
    values: &'a [u8],
    out: &'a mut [u8],
    seq_q: Option<usize>,
) -> HostArgs<'a> {
    let call = Call::new().seq_q(seq_q);
    HostArgs::new(zeros, zeros, values, out).call(call)
}

/// The lines with this start that the fakes have written so far.
fn log_lines(start: &str) -> Vec<String> {
    let log = fs::read_to_string(env::var_os("FAKE_LOG").unwrap()).unwrap_or_default();
    log.lines().filter(|line| line.starts_with(start)).map(str::to_owned).collect()
}

fn gpus() {
    let gpus = devices().unwrap();
    assert_eq!(gpus.iter().map(|gpu| gpu.name.as_str()).collect::<Vec<_>>(), ["Fake 0", "Fake 1"]);
    assert_eq!(
        (gpus[1].machine.arch, gpus[1].machine.shared_limit, gpus[1].index),
        (86, 99 << 10, 1)
    );
    assert_eq!(gpus[1].compiler_version(), Ok((12, 4)));
    let second = open(&DeviceChoice::new().index(1)).unwrap();
    assert_eq!(
        (second.name(), second.cuda().ordinal(), second.driver_version()),
        ("Fake 1", 1, 12040)
    );
    let none = open(&DeviceChoice::new().index(2).name("x")).unwrap_err();
    assert_eq!(
        none.to_string(),
        "no CUDA GPU number 2 with a name like `x`: found 0: Fake 0, 1: Fake 1"
    );
}

fn host_tensors() {
    let context = first();
    let verdict = context.verdict(&problem(4), &PlanOptions::new().kernel(KernelKind::Flash));
    assert!(matches!(&verdict, Verdict::Runs(how) if how.starts_with("Fake 0, Br")), "{verdict}");
    let plan = plan(&context, KernelKind::Flash);
    let text = plan.to_string();
    for part in [
        "on Fake 0 (CUDA, compute capability 8.6)",
        "flash: requested by name",
        "40 registers",
        "workspace 0 bytes",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let bytes =
        |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let (zeros, values, mut out) =
        (bytes(&[0.0; 4]), bytes(&[1.0, 2.0, 3.0, 6.0]), bytes(&[9.0; 5]));
    let stats = context.run_host(&plan, host_args(&zeros, &values, &mut out, Some(3))).unwrap();
    assert_eq!(out, bytes(&[3.0, 3.0, 3.0, 9.0, 9.0]), "the rows of the call only");
    assert_eq!((stats.device_bytes, stats.run.gpu.unwrap().as_micros()), (64, 1500));
    let short =
        context.run_host(&plan, host_args(&zeros, &values, &mut out[..15], Some(3))).unwrap_err();
    assert!(matches!(
        short,
        Error::Problem(ProblemError::TooShort { argument: Argument::Out, .. })
    ));
    let none = context.plan(&problem(0), &PlanOptions::new()).unwrap();
    let mut run =
        HostRun::upload(&none, &host_args(&zeros, &values, &mut out, Some(3))).unwrap_err();
    assert!(matches!(run, Error::Problem(ProblemError::BeyondCapacity { .. })));
    run = none
        .launch(
            context.stream(),
            &mut HostRun::upload(&plan, &host_args(&zeros, &values, &mut out, Some(3)))
                .unwrap()
                .args(),
        )
        .unwrap_err();
    assert!(matches!(run, Error::Problem(ProblemError::BeyondCapacity { .. })));
}

fn shared_memory() {
    let context = first();
    let plan = context.plan(&problem(100), &PlanOptions::new()).unwrap();
    assert!(plan.dispatches()[0].variant.shared_bytes() > 48 << 10);
    let (zeros, mut out) = ([0; 400], [9; 400]);
    // The fake refuses a launch with more shared memory than the function opted in to.
    context.run_host(&plan, host_args(&zeros, &zeros, &mut out, None)).unwrap();
    assert_eq!(out, zeros);
    assert_eq!(log_lines("carveout"), ["carveout flash_forward 100"]);

    // The softmax uses 128 bytes, and more of L1 serves it better.
    context.plan(&problem(4), &PlanOptions::new().kernel(KernelKind::Unfused)).unwrap();
    assert_eq!(
        log_lines("carveout")[1..],
        ["carveout unfused_scores 100", "carveout unfused_values 100"]
    );
}

fn memory() {
    let context = first();
    let stream = context.stream();
    let plan = plan(&context, KernelKind::Flash);
    let zeros = stream.clone_htod(&[0f32; 4]).unwrap();
    let values = stream.clone_htod(&[0f32, 0.0, 1.0, 2.0, 3.0, 6.0]).unwrap();
    let mut out = stream.clone_htod(&[9f32; 8]).unwrap();

    // A slice with an offset.
    let v = Input::from(&values).offset(8);
    plan.launch(stream, &mut Args::new(&zeros, &zeros, v, Output::from(&mut out).offset(4)))
        .unwrap();
    assert_eq!(stream.clone_dtoh(&out).unwrap(), [9.0, 3.0, 3.0, 3.0, 3.0, 9.0, 9.0, 9.0]);

    // Views.
    let view = values.slice(1..5);
    let mut place = out.slice_mut(4..);
    plan.launch(stream, &mut Args::new(&zeros, &zeros, &view, &mut place)).unwrap();
    assert_eq!(stream.clone_dtoh(&out).unwrap(), [9.0, 3.0, 3.0, 3.0, 1.5, 1.5, 1.5, 1.5]);

    // Addresses, on another stream of the context, from several threads.
    let other = context.cuda().new_stream().unwrap();
    let address = zeros.device_ptr(stream).0;
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut own = other.clone_htod(&[9f32; 4]).unwrap();
                // SAFETY: the slice outlives the call, and nothing writes it.
                let raw = || unsafe { Input::from_raw(address, 16) };
                plan.launch(&other, &mut Args::new(raw(), raw(), &values, &mut own)).unwrap();
                assert_eq!(other.clone_dtoh(&own).unwrap(), [0.75; 4]);
            });
        }
    });
}

fn bad_arguments() {
    let context = first();
    let stream = context.stream();
    let plan = plan(&context, KernelKind::Flash);
    let x = zeros(stream);
    let mut out = zeros(stream);
    let elsewhere = CudaContext::new(1).unwrap().default_stream();
    let there = zeros(&elsewhere);

    let launch = |args: &mut Args<'_>| plan.launch(stream, args).unwrap_err();
    let other = plan.launch(&elsewhere, &mut Args::new(&x, &x, &x, &mut out)).unwrap_err();
    assert_eq!(other, Error::OtherContext { what: "the stream".into() });
    assert_eq!(
        launch(&mut Args::new(&x, &there, &x, &mut out)),
        Error::OtherContext { what: "k".into() }
    );
    let short = launch(&mut Args::new(&x, &x, Input::from(&x).offset(4), &mut out));
    assert_eq!(
        short,
        ProblemError::TooShort { argument: Argument::V, expected: 20, given: 16 }.into()
    );
    let unexpected = launch(&mut Args::new(&x, &x, &x, &mut out).mask(&x));
    assert_eq!(unexpected, ProblemError::Unexpected { argument: Argument::AttnMask }.into());
    // SAFETY: refused before anything is written.
    let overlapping = unsafe { Output::from_raw(x.device_ptr(stream).0 + 12, 16) };
    let aliased = launch(&mut Args::new(&x, &x, &x, overlapping));
    assert_eq!(aliased, Error::Aliased { written: Argument::Out, other: Argument::Q });
    // SAFETY: as above.
    let odd = unsafe { Output::from_raw(0x1002, 16) };
    assert_eq!(
        launch(&mut Args::new(&x, &x, &x, odd)),
        Error::Misaligned { argument: Argument::Out, address: 0x1002, size: 4 }
    );
    assert!(log_lines("launched").is_empty());
}

fn workspaces() {
    let context = first();
    let plan = plan(&context, KernelKind::Unfused);
    assert_eq!(plan.workspace_bytes(), 4 * 4 * 4);
    let stream = context.stream();
    let x = zeros(stream);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let stream = context.cuda().new_stream().unwrap();
                let mut out = zeros(&stream);
                for _ in 0..20 {
                    plan.launch(&stream, &mut Args::new(&x, &x, &x, &mut out)).unwrap();
                }
            });
        }
    });
    let launches = log_lines("launched");
    assert_eq!(launches.len(), 4 * 20 * 3);
    for call in launches.chunks(3) {
        let starts =
            ["launched unfused_scores", "launched unfused_softmax", "launched unfused_values"];
        assert!(call.iter().zip(starts).all(|(line, start)| line.starts_with(start)), "{call:?}");
    }

    // A workspace of the caller's own.
    let mut out = zeros(stream);
    let mut own = stream.clone_htod(&[0f32; 16]).unwrap();
    let address = own.device_ptr(stream).0;
    plan.launch(stream, &mut Args::new(&x, &x, &x, &mut out).workspace(&mut own)).unwrap();
    assert!(
        log_lines("launched")[240..]
            .iter()
            .all(|line| line.ends_with(&format!("scores {address:#x}")))
    );
    let short = plan
        .launch(stream, &mut Args::new(&x, &x, &x, &mut out).workspace(&mut own.slice_mut(1..)))
        .unwrap_err();
    assert_eq!(
        short,
        ProblemError::TooShort { argument: Argument::Workspace, expected: 64, given: 60 }.into()
    );
}

const MODE: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;

fn end_capture(stream: &Arc<CudaStream>) {
    assert!(stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().is_some());
}

fn capture() {
    let context = first();
    // If a program creates streams, cudarc orders slices by events, for which a captured stream
    // cannot wait.
    let [stream, other] = [0, 1].map(|_| context.cuda().new_stream().unwrap());
    let (x, mut out) = (zeros(&other), zeros(&stream));
    let [flash, unfused] =
        [KernelKind::Flash, KernelKind::Unfused].map(|kernel| plan(&context, kernel));
    stream.begin_capture(MODE).unwrap();
    let recorded = log_lines("recorded").len();
    for plan in [&flash, &unfused] {
        plan.launch(&stream, &mut Args::new(&x, &x, &x, &mut out)).unwrap();
        let (view, mut out) = (x.slice(..), out.slice_mut(..));
        plan.launch(&stream, &mut Args::new(&view, &x, &x, &mut out)).unwrap();
    }
    assert_eq!(log_lines("launched").len(), 8);
    assert_eq!(
        log_lines("recorded").len(),
        recorded,
        "other streams wait for the events as they were recorded before the capture"
    );
    end_capture(&stream);

    // Every stream can use the slices, because their events are not part of the graph.
    for stream in [&other, &stream, context.stream()] {
        flash.launch(stream, &mut Args::new(&x, &x, &x, &mut out)).unwrap();
    }
    assert_eq!(context.cuda().check_err(), Ok(()));
    assert_eq!(log_lines("launched").len(), 11);

    // A tensor that is made within the capture belongs to it, and a stream that waits for it joins.
    stream.begin_capture(MODE).unwrap();
    let mut made = zeros(&stream);
    for _ in 0..2 {
        flash.launch(&stream, &mut Args::new(&x, &x, &x, &mut made)).unwrap();
    }
    end_capture(&stream);
    assert_eq!(context.cuda().check_err(), Ok(()));
}

/// cudarc did not create these streams, so its `new_stream` would wait for the GPU, which is not
/// allowed during a capture.
fn capture_on_borrowed_streams() {
    let context = first();
    let cuda = context.cuda();
    let flash = plan(&context, KernelKind::Flash);
    let raw = result::stream::create(StreamKind::NonBlocking).unwrap();
    // SAFETY: the stream is never destroyed.
    let wrapped = unsafe { cuda.wrap_borrowed_stream(raw) };
    for stream in [cuda.per_thread_stream(), wrapped] {
        let (x, mut out) = (zeros(&stream), zeros(&stream));
        stream.begin_capture(MODE).unwrap();
        for _ in 0..2 {
            flash.launch(&stream, &mut Args::new(&x, &x, &x, &mut out)).unwrap();
        }
        end_capture(&stream);
    }
    assert_eq!(log_lines("launched").len(), 4);
    assert!(!cuda.is_in_multi_stream_mode(), "a launch changed the mode of the caller's context");
    assert_eq!(cuda.check_err(), Ok(()));
}

fn caches() {
    for _ in 0..2 {
        let context = first();
        plan(&context, KernelKind::Unfused);
        plan(&context, KernelKind::Unfused);
        assert_eq!(context.kernel_count(), 3);
    }
    assert_eq!(
        log_lines("compiled"),
        ["compiled --gpu-architecture=sm_86"; 3],
        "the second context reads the kernels of the first from disk"
    );
    assert_eq!(log_lines("unloaded").len(), 6);
}

fn no_gpu() {
    assert_eq!(devices().unwrap(), []);
    let error = open(&DeviceChoice::default()).unwrap_err();
    assert_eq!(error.to_string(), "no CUDA GPU: the driver finds none");
}

fn old_driver() {
    assert_eq!(devices().unwrap_err(), Error::OldDriver(11080));
    let error = open(&DeviceChoice::default()).unwrap_err().to_string();
    assert!(error.starts_with("the CUDA driver supports CUDA 11.8 at most; CUDA 12.0"), "{error}");
}

fn incomplete() {
    let error = open(&DeviceChoice::default()).unwrap_err();
    assert!(
        matches!(&error, Error::NoDriver(why) if why.ends_with("it lacks cuLaunchKernel")),
        "{error}"
    );
}

fn no_compiler() {
    let context = first();
    let refused = context.verdict(&problem(4), &PlanOptions::new().kernel(KernelKind::Flash));
    assert!(
        matches!(&refused, Verdict::Refused(why) if matches!(why[..], [Reason::NoCompiler(_)])),
        "{refused}"
    );
    let error = context.plan(&problem(4), &PlanOptions::new()).unwrap_err();
    assert!(
        matches!(
            error,
            Error::NoCompiler { arch: 86, command: "pip install nvidia-cuda-nvrtc-cu12", .. }
        ),
        "{error}"
    );
}

fn named_compiler() {
    assert_eq!(devices().unwrap()[0].compiler_version(), Ok((12, 4)));
}

fn newest_compiler() {
    assert_eq!(devices().unwrap()[0].compiler_version(), Ok((12, 99)));
}

fn new_compiler() {
    // The driver's version limits the compiler, also in the list of devices.
    assert!(matches!(devices().unwrap()[0].compiler_version(), Err(Error::NoCompiler { .. })));
    let context = first();
    let refused = context.verdict(&problem(4), &PlanOptions::new().kernel(KernelKind::Flash));
    assert!(
        matches!(&refused, Verdict::Refused(why) if matches!(why[..], [Reason::NoCompiler(_)])),
        "{refused}"
    );
    let error = context.plan(&problem(4), &PlanOptions::new()).unwrap_err();
    let Error::NoCompiler { arch: 86, reason, command: "pip install nvidia-cuda-nvrtc-cu12" } =
        &error
    else {
        panic!("{error}");
    };
    assert!(
        reason.starts_with("NVRTC 13.4 at ") && reason.contains("the driver supports CUDA 12"),
        "{error}"
    );
}

fn new_driver() {
    plan(&first(), KernelKind::Flash);
    assert_eq!(log_lines("compiled").len(), 1);
}

fn no_kernel() {
    let error = first().plan(&problem(4), &PlanOptions::new()).unwrap_err();
    assert!(
        matches!(&error, Error::Compile { arch: 86, message, .. } if message.contains("ptxas")),
        "{error}"
    );
}

fn no_memory() {
    let context = first();
    let plan = |seq, kernel| context.plan(&problem(seq), &PlanOptions::new().kernel(kernel));
    let error = plan(50, KernelKind::Unfused).unwrap_err();
    assert_eq!(error, Error::OutOfMemory { what: "10400 bytes of scores".into() });
    let zeros = [0; 200];
    let mut out = zeros;
    let args = host_args(&zeros, &zeros, &mut out, None);
    let error = context.run_host(&plan(50, KernelKind::Flash).unwrap(), args).unwrap_err();
    assert_eq!(error, Error::OutOfMemory { what: "200 bytes of q".into() });
}

fn failure() {
    let context = first();
    let zeros = [0; 16];
    let mut out = zeros;
    let args = host_args(&zeros, &zeros, &mut out, None);
    let error = context.run_host(&plan(&context, KernelKind::Flash), args).unwrap_err();
    assert!(matches!(&error, Error::DeviceLost(why) if why.contains("ILLEGAL_ADDRESS")), "{error}");
}
