use crate::Error;
#[cfg(feature = "wgpu")]
use crate::adapter::Adapter;
#[cfg(feature = "cuda")]
use crate::card::Card;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use crate::session::Session;
use flashtile_core::{BackendKind, Explanation, HostArgs, KernelKind, Problem, Reason, Verdict};
use std::{sync::LazyLock, time::Instant};

/// What the caller insists on; the default leaves both to [`Attention::explain`]'s order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// This backend and no other.
    pub backend: Option<BackendKind>,
    /// This kernel and no other.
    pub kernel: Option<KernelKind>,
}

impl Choice {
    /// The first that runs.
    pub const AUTO: Choice = Choice { backend: None, kernel: None };

    /// The first kernel of `backend` that runs.
    pub const fn backend(backend: BackendKind) -> Self {
        Choice { backend: Some(backend), kernel: None }
    }

    /// The first backend that runs `kernel`.
    pub const fn kernel(kernel: KernelKind) -> Self {
        Choice { backend: None, kernel: Some(kernel) }
    }

    fn allows(&self, backend: BackendKind, kernel: KernelKind) -> bool {
        self.backend.is_none_or(|b| b == backend) && self.kernel.is_none_or(|k| k == kernel)
    }
}

/// What ran, where, why, and what it took.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// Who ran it.
    pub backend: BackendKind,
    /// How.
    pub kernel: KernelKind,
    /// Name of the device.
    pub device: String,
    /// The plan: tiles, dispatches and their reasons, over several lines.
    pub plan: String,
    /// Why this backend and kernel.
    pub why: String,
    /// Wall time of the whole call in ms: opening the device, planning and compiling too, where this call was the first to need them.
    pub first_ms: f64,
    /// Wall time of the kernels in ms: from submission to completion, without compiling and without copies to and from the device. (Drivers
    /// that compile when a kernel first runs do it in here.)
    pub run_ms: f64,
    /// The same by the device's own clock, from the first kernel's begin to the last one's end, where it has one.
    pub gpu_ms: Option<f64>,
    /// Bytes beside inputs and outputs that the backend needed.
    pub workspace_bytes: u64,
    /// Bytes of inputs, outputs and workspace together, where the backend keeps them.
    pub peak_bytes: u64,
}

/// A session: opens a device when first needed, keeps it and its plans, and runs problems on the best backend that can.
///
/// Calls block until the result is there. It may be shared between threads.
#[derive(Debug, Default)]
pub struct Attention {
    #[cfg(feature = "wgpu")]
    gpu: Session<Adapter>,
    #[cfg(feature = "cuda")]
    cuda: Session<Card>,
    /// The backend whose device the caller named or gave: it comes before all others.
    own: Option<BackendKind>,
}

#[allow(clippy::needless_update, reason = "other features bring other fields")]
impl Attention {
    /// A session on the first card, and on the best adapter. Nothing is opened before it is asked for.
    pub fn new() -> Self {
        Self::default()
    }

    /// A session on an adapter of the caller's choice. wgpu is then asked before all other backends.
    #[cfg(feature = "wgpu")]
    pub fn with_adapter(choice: flashtile_wgpu::AdapterChoice) -> Self {
        Self { gpu: Session::new(choice), own: Some(BackendKind::Wgpu), ..Self::default() }
    }

    /// A session on a device that is already open. wgpu is then asked before all other backends.
    #[cfg(feature = "wgpu")]
    pub fn with_context(context: flashtile_wgpu::Context) -> Self {
        Self {
            gpu: Session::with_context(context),
            own: Some(BackendKind::Wgpu),
            ..Self::default()
        }
    }

    /// A session on an NVIDIA card of the caller's choice.
    #[cfg(feature = "cuda")]
    pub fn with_card(choice: flashtile_cuda::DeviceChoice) -> Self {
        Self { cuda: Session::new(choice), own: Some(BackendKind::Cuda), ..Self::default() }
    }

    /// A session in a CUDA context that is already there.
    #[cfg(feature = "cuda")]
    pub fn with_cuda_context(context: flashtile_cuda::Context) -> Self {
        Self {
            cuda: Session::with_context(context),
            own: Some(BackendKind::Cuda),
            ..Self::default()
        }
    }

    /// The session that [`scaled_dot_product_attention`](crate::scaled_dot_product_attention) shares through the process.
    pub fn global() -> &'static Attention {
        static GLOBAL: LazyLock<Attention> = LazyLock::new(Attention::new);
        &GLOBAL
    }

    /// What every backend and kernel has to say to `problem`. Opens the device, runs nothing.
    pub fn explain(&self, problem: &Problem) -> Explanation {
        self.explain_within(problem, Choice::AUTO)
    }

    /// As [`explain`](Self::explain), for what `choice` leaves. A backend that it leaves out is not asked, and its device not opened.
    pub fn explain_within(&self, problem: &Problem, choice: Choice) -> Explanation {
        let mut backends = BackendKind::ALL;
        backends.sort_by_key(|&backend| self.own != Some(backend));
        let pairs =
            backends.into_iter().flat_map(|b| KernelKind::ALL.iter().copied().map(|k| (b, k)));
        let asked = pairs.filter(|&(b, k)| choice.allows(b, k));
        Explanation { verdicts: asked.map(|(b, k)| (b, k, self.verdict(problem, b, k))).collect() }
    }

    #[cfg_attr(
        not(any(feature = "wgpu", feature = "cuda")),
        expect(unused_variables, reason = "the others run anything")
    )]
    fn verdict(&self, problem: &Problem, backend: BackendKind, kernel: KernelKind) -> Verdict {
        match (backend, kernel) {
            #[cfg(feature = "wgpu")]
            (BackendKind::Wgpu, _) => self.gpu.verdict(problem, kernel),
            #[cfg(not(feature = "wgpu"))]
            (BackendKind::Wgpu, _) => Verdict::Refused(vec![Reason::FeatureOff { backend }]),
            #[cfg(feature = "cuda")]
            (BackendKind::Cuda, _) => self.cuda.verdict(problem, kernel),
            #[cfg(not(feature = "cuda"))]
            (BackendKind::Cuda, _) => Verdict::Refused(vec![Reason::FeatureOff { backend }]),
            (BackendKind::Reference, KernelKind::Unfused) => Verdict::Runs(reference_plan()),
            (BackendKind::Reference, _) => {
                Verdict::Refused(vec![Reason::NoSuchKernel { backend, kernel }])
            }
            _ => Verdict::Refused(vec![Reason::NotBuilt { backend }]),
        }
    }

    /// Runs `problem` on tensors in host memory, with the first backend and kernel of what `choice` leaves that can.
    ///
    /// # Errors
    /// [`Error::Refused`] with all reasons where nothing can; [`Error::Problem`] for arguments that do not fit the problem; failures of the
    /// device.
    pub fn run(
        &self,
        problem: &Problem,
        args: HostArgs<'_>,
        choice: Choice,
    ) -> Result<Report, Error> {
        let begin = Instant::now();
        flashtile_core::check_host_args(problem, &args)?;
        let explanation = self.explain_within(problem, choice);
        let (backend, kernel) =
            explanation.choose(choice.backend, choice.kernel).map_err(Error::Refused)?;
        let why = why(&explanation, choice, backend, kernel);
        let mut report = match backend {
            #[cfg(feature = "wgpu")]
            BackendKind::Wgpu => self.gpu.run(problem, args, kernel, choice.kernel.is_some())?,
            #[cfg(feature = "cuda")]
            BackendKind::Cuda => self.cuda.run(problem, args, kernel, choice.kernel.is_some())?,
            _ => run_reference(problem, args)?,
        };
        report.why = why;
        report.first_ms = begin.elapsed().as_secs_f64() * 1e3;
        Ok(report)
    }
}

/// Why `choice` came to this pair: it was asked for, or what stands before it was refused.
fn why(
    explanation: &Explanation,
    choice: Choice,
    backend: BackendKind,
    kernel: KernelKind,
) -> String {
    let mut why = match (choice.backend, choice.kernel) {
        (Some(_), Some(_)) => "asked for by name".to_owned(),
        (Some(_), None) => format!("backend asked for; {kernel} is its first kernel that runs"),
        (None, Some(_)) => format!("kernel asked for; {backend} is the first backend that runs it"),
        (None, None) if backend == BackendKind::Cuda => {
            "first that runs: NVIDIA cards have kernels of their own".to_owned()
        }
        (None, None) => "first that runs".to_owned(),
    };
    let mut refused: Vec<String> = Vec::new();
    for (b, _, verdict) in
        explanation.verdicts.iter().take_while(|(b, k, _)| (*b, *k) != (backend, kernel))
    {
        if let Verdict::Refused(reasons) = verdict {
            // That a backend has but one kernel is no news where nobody asked for the other.
            let told = |reason: &&Reason| {
                choice.kernel.is_some() || !matches!(reason, Reason::NoSuchKernel { .. })
            };
            let reasons: Vec<_> = reasons.iter().filter(told).map(Reason::to_string).collect();
            if reasons.is_empty() {
                continue;
            }
            let text = format!("{b}: {}", reasons.join(", "));
            if !refused.contains(&text) {
                refused.push(text);
            }
        }
    }
    if !refused.is_empty() {
        why.push_str(&format!(" ({})", refused.join("; ")));
    }
    why
}

fn reference_plan() -> String {
    "one score at a time in float64, on one CPU thread".to_owned()
}

/// What the oracle keeps in float64: q, k, v, out, and seven numbers a row for its bound.
fn reference_workspace(problem: &Problem) -> u64 {
    let count =
        |shape: &[usize; 4]| shape.iter().fold(1u64, |n, &size| n.saturating_mul(size as u64));
    let tensors = [problem.q(), problem.k(), problem.v(), problem.out()];
    let rows: u64 = problem.lse_shape().iter().map(|&n| n as u64).product();
    tensors
        .iter()
        .fold(rows.saturating_mul(8), |n, view| n.saturating_add(count(&view.shape)))
        .saturating_mul(8)
}

fn run_reference(problem: &Problem, args: HostArgs<'_>) -> Result<Report, Error> {
    let begin = Instant::now();
    let given = [
        args.q.len(),
        args.k.len(),
        args.v.len(),
        args.out.len(),
        args.mask.map_or(0, <[u8]>::len),
    ];
    let lse = args.lse.as_ref().map_or(0, |lse| lse.len() * 4);
    // Without queries there may still be 2^40 heads, each of which the oracle would visit in vain.
    if !problem.is_empty() {
        flashtile_reference::run(problem, args)?;
    }
    let workspace_bytes = reference_workspace(problem);
    Ok(Report {
        backend: BackendKind::Reference,
        kernel: KernelKind::Unfused,
        device: "CPU".to_owned(),
        plan: reference_plan(),
        why: String::new(),
        first_ms: 0.0,
        run_ms: begin.elapsed().as_secs_f64() * 1e3,
        gpu_ms: None,
        workspace_bytes,
        peak_bytes: (given.iter().sum::<usize>() + lse) as u64 + workspace_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashtile_core::{Call, DType, Layout, TensorView};

    fn run(choice: Choice) -> Result<Report, Error> {
        let x = TensorView::from_bhsd_sizes(DType::F32, Layout::Bhsd, [1, 1, 1, 1]).expect("small");
        let problem = Problem::builder(x, x, x).build().expect("valid");
        let mut out = [0; 4];
        let one = crate::bytes_of(&[1.0f32]);
        let (mask, kv_lens, lse) = (None, None, None);
        let args = HostArgs::new(one, one, one, &mut out).mask(mask).kv_lens(kv_lens).lse(lse);
        let report = Attention::global().run(&problem, args, choice)?;
        assert_eq!(out, one);
        Ok(report)
    }

    #[test]
    fn auto_always_finds_somebody_and_says_why() {
        let report = run(Choice::AUTO).expect("the reference, at the least");
        assert!(report.why.starts_with("first that runs"), "{}", report.why);
    }

    #[test]
    fn forcing_obeys_or_fails_with_every_reason() {
        let report = run(Choice::backend(BackendKind::Reference)).expect("runs anywhere");
        assert_eq!((report.backend, report.kernel), (BackendKind::Reference, KernelKind::Unfused));
        let refused = run(Choice::backend(BackendKind::Cpu)).expect_err("not built");
        assert_eq!(
            refused.to_string(),
            "refused: cpu flash: the cpu backend is not part of this version; \
             cpu unfused: the cpu backend is not part of this version"
        );
        let choice =
            Choice { backend: Some(BackendKind::Reference), kernel: Some(KernelKind::Flash) };
        assert!(matches!(run(choice), Err(Error::Refused(e)) if e.verdicts.len() == 1));
    }

    #[test]
    fn every_pair_is_explained() {
        let x = TensorView::from_bhsd_sizes(DType::F32, Layout::Bhsd, [1, 1, 1, 1]).expect("small");
        let problem = Problem::builder(x, x, x).build().expect("valid");
        let explanation = Attention::global().explain(&problem);
        assert_eq!(explanation.verdicts.len(), BackendKind::ALL.len() * KernelKind::ALL.len());
    }
}
