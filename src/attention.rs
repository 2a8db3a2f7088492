use crate::{Error, Report, session::Session};
use flashtile_core::{
    Backend, BackendKind, DeviceChoice, Explanation, HostArgs, KernelKind, KeySplit, MatrixUnits,
    PlanOptions, Problem, Reason, Verdict,
};
use std::{
    sync::{Arc, LazyLock},
    time::Instant,
};

/// What the caller insists on. The default takes the first backend and kernel that run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Choice {
    /// This backend and no other.
    pub backend: Option<BackendKind>,
    /// This kernel and no other.
    pub kernel: Option<KernelKind>,
    /// Whether kernels may, must not or must use matrix units.
    pub matrix_units: MatrixUnits,
    /// Whether the keys of a row are split among workgroups.
    pub key_split: KeySplit,
    /// Whether kernels may round q, k and v for matrix units.
    pub reduced_precision: bool,
}

impl Choice {
    /// The first that runs.
    pub const AUTO: Choice = Choice {
        backend: None,
        kernel: None,
        matrix_units: MatrixUnits::Auto,
        key_split: KeySplit::Auto,
        reduced_precision: false,
    };

    /// The first kernel of `backend` that runs.
    pub const fn backend(backend: BackendKind) -> Self {
        Choice { backend: Some(backend), ..Self::AUTO }
    }

    /// The first backend that runs `kernel`.
    pub const fn kernel(kernel: KernelKind) -> Self {
        Choice { kernel: Some(kernel), ..Self::AUTO }
    }

    /// `kernel` of `backend`, and nothing else.
    pub const fn exactly(backend: BackendKind, kernel: KernelKind) -> Self {
        Choice { backend: Some(backend), kernel: Some(kernel), ..Self::AUTO }
    }

    /// The same choice, where kernels may, must not or must use matrix units.
    #[must_use]
    pub const fn matrix_units(mut self, matrix_units: MatrixUnits) -> Self {
        self.matrix_units = matrix_units;
        self
    }

    /// The same choice, where the keys of a row are split among workgroups as `key_split` says.
    #[must_use]
    pub const fn key_split(mut self, key_split: KeySplit) -> Self {
        self.key_split = key_split;
        self
    }

    /// The same choice, where kernels may round q, k and v for matrix units; see
    /// [`PlanOptions::reduced_precision`].
    #[must_use]
    pub const fn reduced_precision(mut self, allowed: bool) -> Self {
        self.reduced_precision = allowed;
        self
    }

    /// What it asks of a plan, with this kernel.
    fn options(&self, kernel: Option<KernelKind>) -> PlanOptions {
        PlanOptions::new()
            .kernel(kernel)
            .matrix_units(self.matrix_units)
            .key_split(self.key_split)
            .reduced_precision(self.reduced_precision)
    }

    fn allows(&self, backend: BackendKind, kernel: KernelKind) -> bool {
        self.backend.is_none_or(|b| b == backend) && self.kernel.is_none_or(|k| k == kernel)
    }

    /// The first pair of `explanation` that runs, within this choice. The oracle has to be named:
    /// otherwise it is taken only if it is the first of all, which is where the caller put it, or
    /// if this build has no `cpu` backend.
    fn first(&self, explanation: &Explanation) -> Result<(BackendKind, KernelKind), Explanation> {
        let oracle = BackendKind::Reference;
        let first = explanation.verdicts.first().map(|(backend, ..)| *backend);
        if self.backend.is_some() || first == Some(oracle) || !cfg!(feature = "cpu") {
            return explanation.choose(self.backend, self.kernel);
        }
        let others = explanation.verdicts.iter().filter(|(backend, ..)| *backend != oracle);
        Explanation::new(others.cloned().collect()).choose(None, self.kernel)
    }
}

/// The backend and kernel that a choice led to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Decision {
    /// The backend.
    pub backend: BackendKind,
    /// Its kernel.
    pub kernel: KernelKind,
    /// Why these: they were requested, or what comes before them was refused. One line.
    pub why: String,
}

/// A session: opens a device when it is first needed, keeps it and its plans, and runs problems on
/// the best backend that can.
///
/// A real GPU comes first, by CUDA and then by wgpu; then the CPU, on all cores; then a GPU in
/// software. The float64 oracle has to be named.
///
/// Calls block until the result is there. A session can be shared between threads. If a device that
/// it opened is lost, the failing call reports it and the next call opens another.
#[derive(Debug)]
pub struct Attention {
    /// In the order in which they are tried, unless a GPU is in software.
    sessions: Vec<Session>,
    /// Whether the first session is the caller's device or choice.
    given: bool,
}

impl Default for Attention {
    fn default() -> Self {
        Self::new()
    }
}

impl Attention {
    /// A session on the best devices of this machine. None is opened before it is needed.
    pub fn new() -> Self {
        let best = |&kind: &BackendKind| Session::new(kind, DeviceChoice::new());
        Self { sessions: BackendKind::ALL.iter().map(best).collect(), given: false }
    }

    /// A session on a wgpu device that is already open. wgpu is then tried before other backends.
    #[cfg(feature = "wgpu")]
    pub fn with_wgpu(context: flashtile_wgpu::Context) -> Self {
        Self::with_device(Arc::new(context))
    }

    /// A session in a CUDA context that already exists. CUDA is then tried before other backends.
    #[cfg(feature = "cuda")]
    pub fn with_cuda(context: flashtile_cuda::Context) -> Self {
        Self::with_device(Arc::new(context))
    }

    /// A session on a wgpu adapter of the caller's choice. wgpu is then tried before other
    /// backends.
    #[cfg(feature = "wgpu")]
    pub fn with_wgpu_choice(choice: DeviceChoice) -> Self {
        Self::first(Session::new(BackendKind::Wgpu, choice))
    }

    /// A session on an NVIDIA GPU of the caller's choice. CUDA is then tried before other backends.
    #[cfg(feature = "cuda")]
    pub fn with_cuda_choice(choice: DeviceChoice) -> Self {
        Self::first(Session::new(BackendKind::Cuda, choice))
    }

    /// The same session, whose `cpu` backend has `threads` threads of its own. By default it works
    /// in the rayon pool of the thread that calls, or in rayon's global pool. The order of the
    /// backends stays as it is.
    ///
    /// # Errors
    /// For 0 threads, and where the system starts no more of them.
    #[cfg(feature = "cpu")]
    pub fn cpu_threads(mut self, threads: usize) -> Result<Self, flashtile_cpu::Error> {
        let cpu = Session::with_device(Arc::new(flashtile_cpu::Cpu::with_threads(threads)?));
        for session in &mut self.sessions {
            if session.kind() == BackendKind::Cpu {
                *session = cpu;
                break;
            }
        }
        Ok(self)
    }

    /// A session on a device of any backend that is already open. That backend is then tried before
    /// the others.
    pub fn with_device(device: Arc<dyn Backend>) -> Self {
        Self::first(Session::with_device(device))
    }

    /// The same session, which changes a wgpu context as `prepare` says when it has opened one: to
    /// one with measured tile shapes ([`with_tuning`](flashtile_wgpu::Context::with_tuning)), say.
    /// It does not concern devices that are open already.
    #[cfg(feature = "wgpu")]
    #[must_use]
    pub fn prepare_wgpu<F>(mut self, prepare: F) -> Self
    where
        F: Fn(flashtile_wgpu::Context) -> flashtile_wgpu::Context + Send + Sync + 'static,
    {
        let prepare = crate::backends::Prepare { wgpu: Some(Arc::new(prepare)) };
        for session in self.sessions.iter_mut().filter(|s| s.kind() == BackendKind::Wgpu) {
            session.prepare(prepare.clone());
        }
        self
    }

    /// `session` first, then the others in their usual order.
    fn first(session: Session) -> Self {
        let mut all = Self::new().sessions;
        all.retain(|other| other.kind() != session.kind());
        all.insert(0, session);
        Self { sessions: all, given: true }
    }

    /// The sessions within `choice`, in the order in which they are tried. GPUs in software come
    /// after the CPU, unless the caller gave them.
    fn in_order(&self, choice: Choice) -> Vec<&Session> {
        let mut order: Vec<&Session> = self
            .sessions
            .iter()
            .filter(|session| choice.backend.is_none_or(|kind| kind == session.kind()))
            .collect();
        let fixed = usize::from(self.given).min(order.len());
        let Some(cpu) = order.iter().position(|session| session.kind() == BackendKind::Cpu) else {
            return order;
        };
        if fixed < cpu {
            // A stable sort: the others keep their order.
            order[fixed..=cpu].sort_by_cached_key(|session| session.is_software());
        }
        order
    }

    /// The session that [`scaled_dot_product_attention`](crate::scaled_dot_product_attention)
    /// shares across the process.
    pub fn global() -> &'static Attention {
        static GLOBAL: LazyLock<Attention> = LazyLock::new(Attention::new);
        &GLOBAL
    }

    /// The verdict of every backend and kernel on `problem`. Opens devices, runs nothing.
    pub fn explain(&self, problem: &Problem) -> Explanation {
        self.explain_within(problem, Choice::AUTO)
    }

    /// As [`explain`](Self::explain), within `choice`. A backend that it excludes is not asked, and
    /// its device is not opened.
    pub fn explain_within(&self, problem: &Problem, choice: Choice) -> Explanation {
        let order = self.in_order(choice).into_iter();
        let pairs = order.flat_map(|s| KernelKind::ALL.iter().map(move |&k| (s, k)));
        let asked = pairs.filter(|(session, kernel)| choice.allows(session.kind(), *kernel));
        let verdict = |(session, kernel): (&Session, KernelKind)| {
            (session.kind(), kernel, session.verdict(problem, &choice.options(Some(kernel))))
        };
        Explanation::new(asked.map(verdict).collect())
    }

    /// The first backend and kernel within `choice` that run, out of an explanation of this
    /// session's.
    ///
    /// # Errors
    /// Every entry that `choice` allows, each with its reasons.
    pub fn decide(
        &self,
        explanation: &Explanation,
        choice: Choice,
    ) -> Result<Decision, Explanation> {
        let (backend, kernel) = choice.first(explanation)?;
        let mut why = why(explanation, choice, backend, kernel);
        if backend == BackendKind::Cpu && choice.backend.is_none() {
            let place = |kind| explanation.verdicts.iter().position(|(b, ..)| *b == kind);
            let before = BackendKind::ALL.iter().take_while(|&&kind| kind != backend);
            for kind in before.filter(|&&kind| place(kind) > place(backend)) {
                why.push_str(&format!("; the GPU that {kind} finds is software"));
            }
        }
        Ok(Decision { backend, kernel, why })
    }

    /// Runs `problem` on tensors in host memory, with the first backend and kernel within `choice`
    /// that can.
    ///
    /// # Errors
    /// [`Error::Refused`] with all reasons if none can; [`Error::Problem`] for arguments that do
    /// not fit the problem; [`Error::Backend`] for failures of the device.
    pub fn run(
        &self,
        problem: &Problem,
        args: HostArgs<'_>,
        choice: Choice,
    ) -> Result<Report, Error> {
        let start = Instant::now();
        flashtile_core::check_host_args(problem, &args)?;
        let explanation = self.explain_within(problem, choice);
        let Decision { backend, kernel, why } =
            self.decide(&explanation, choice).map_err(Error::Refused)?;
        let session = self
            .sessions
            .iter()
            .find(|session| session.kind() == backend)
            .expect("only sessions were asked");
        let options = choice.options(choice.kernel.is_some().then_some(kernel));
        let mut report = session.run(problem, args, kernel, &options)?;
        report.why = why;
        report.first = start.elapsed();
        Ok(report)
    }
}

/// Why `choice` led to this pair: it was requested, or everything before it was refused.
fn why(
    explanation: &Explanation,
    choice: Choice,
    backend: BackendKind,
    kernel: KernelKind,
) -> String {
    let mut why = match (choice.backend, choice.kernel) {
        (Some(_), Some(_)) => "requested by name".to_owned(),
        (Some(_), None) => format!("backend requested; {kernel} is its first kernel that runs"),
        (None, Some(_)) => format!("kernel requested; {backend} is the first backend that runs it"),
        (None, None) => "first that runs".to_owned(),
    };
    let mut refused: Vec<String> = Vec::new();
    let before = explanation.verdicts.iter().take_while(|(b, k, _)| (*b, *k) != (backend, kernel));
    for (b, _, verdict) in before.filter(|(b, k, _)| choice.allows(*b, *k)) {
        if let Verdict::Refused(reasons) = verdict {
            // That a backend has only one kernel matters only to those who asked for the other.
            let relevant = |reason: &&Reason| {
                choice.kernel.is_some() || !matches!(reason, Reason::NoSuchKernel { .. })
            };
            let reasons: Vec<_> = reasons.iter().filter(relevant).map(Reason::to_string).collect();
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

#[cfg(test)]
mod tests {
    use super::*;
    use flashtile_core::{BackendError, BackendPlan, DType, TensorView};

    fn problem() -> Problem {
        let x = TensorView::bshd(DType::F32, [1; 4]).expect("small");
        Problem::builder(x, x, x).build().expect("valid")
    }

    fn run(choice: Choice) -> Result<Report, Error> {
        let mut out = [0; 4];
        let one = crate::bytes_of(&[1.0f32]);
        let args = HostArgs::new(one, one, one, &mut out);
        let report = Attention::global().run(&problem(), args, choice)?;
        assert_eq!(out, one);
        Ok(report)
    }

    #[test]
    fn auto_always_finds_a_backend_and_says_why() {
        let report = run(Choice::AUTO).expect("the CPU, at the least");
        assert!(report.why.starts_with("first that runs"), "{}", report.why);
        assert!(report.backend != BackendKind::Reference || !cfg!(feature = "cpu"));
    }

    /// A device that only says what it is: the first GPU or one in software.
    #[derive(Debug)]
    struct Gpu {
        software: bool,
    }

    impl Backend for Gpu {
        fn kind(&self) -> BackendKind {
            BackendKind::Wgpu
        }

        fn device_name(&self) -> String {
            "a GPU".to_owned()
        }

        fn is_software(&self) -> bool {
            self.software
        }

        fn verdict(&self, _: &Problem, _: &PlanOptions) -> Verdict {
            Verdict::Runs("as a test".to_owned())
        }

        fn plan(&self, _: &Problem, _: &PlanOptions) -> Result<Arc<dyn BackendPlan>, BackendError> {
            Err(BackendError::new(BackendKind::Wgpu, false, "there is no such device"))
        }
    }

    /// A machine with an adapter and without CUDA.
    fn machine(software: bool, given: bool) -> Attention {
        let mut sessions = Attention::new().sessions;
        sessions.retain(|session| session.kind() != BackendKind::Cuda);
        sessions[0] = Session::with_device(Arc::new(Gpu { software }));
        Attention { sessions, given }
    }

    #[test]
    #[cfg(feature = "cpu")]
    fn the_cpu_comes_between_real_gpus_and_software() {
        let decide = |session: &Attention, choice| {
            let explanation = session.explain_within(&problem(), choice);
            session.decide(&explanation, choice)
        };
        let chosen = |session: &Attention| {
            decide(session, Choice::AUTO).map(|decision| (decision.backend, decision.why))
        };
        let first = || "first that runs".to_owned();
        assert_eq!(chosen(&machine(false, false)), Ok((BackendKind::Wgpu, first())));
        assert_eq!(chosen(&machine(true, true)), Ok((BackendKind::Wgpu, first())));
        let software = first() + "; the GPU that wgpu finds is software";
        assert_eq!(chosen(&machine(true, false)), Ok((BackendKind::Cpu, software)));
        // Unfused: the CPU has no such kernel, and the software comes before the oracle.
        let unfused = Choice::kernel(KernelKind::Unfused);
        let decision = decide(&machine(true, false), unfused).expect("it runs");
        assert_eq!(decision.backend, BackendKind::Wgpu);
        // Without an adapter, the CPU is taken, and the oracle is not taken unasked.
        let mut none = machine(true, false);
        none.sessions.remove(0);
        assert_eq!(chosen(&none), Ok((BackendKind::Cpu, first())));
        let flash = decide(&none, Choice::kernel(KernelKind::Flash)).expect("it runs");
        assert_eq!((flash.backend, flash.kernel), (BackendKind::Cpu, KernelKind::Flash));
        assert!(decide(&none, unfused).is_err());
        let named = decide(&none, Choice::backend(BackendKind::Reference)).expect("it runs");
        assert_eq!(named.backend, BackendKind::Reference);
    }

    #[test]
    #[cfg(feature = "cpu")]
    fn threads_are_those_that_were_asked_for() {
        let session = Attention::new().cpu_threads(3).expect("three threads");
        let report = |session: &Attention| {
            let (one, mut out) = (crate::bytes_of(&[1.0f32]), [0; 4]);
            let args = HostArgs::new(one, one, one, &mut out);
            session.run(&problem(), args, Choice::backend(BackendKind::Cpu)).expect("it runs")
        };
        assert!(report(&session).device.contains("3 threads"));
        assert!(Attention::new().cpu_threads(0).is_err());
    }

    #[test]
    fn forcing_obeys_or_fails_with_every_reason() {
        let report = run(Choice::backend(BackendKind::Reference)).expect("runs anywhere");
        assert_eq!((report.backend, report.kernel), (BackendKind::Reference, KernelKind::Unfused));
        let unfused = Choice::exactly(BackendKind::Cpu, KernelKind::Unfused);
        let refused = run(unfused).expect_err("it has no such kernel");
        let message = if cfg!(feature = "cpu") {
            "refused: cpu unfused: the cpu backend has no unfused kernel"
        } else {
            "refused: cpu unfused: the cpu backend is not compiled in: enable the cargo feature \
             `cpu`"
        };
        assert_eq!(refused.to_string(), message);
        let choice = Choice::exactly(BackendKind::Reference, KernelKind::Flash);
        assert!(matches!(run(choice), Err(Error::Refused(e)) if e.verdicts.len() == 1));
    }

    #[test]
    fn every_pair_is_explained() {
        let explanation = Attention::global().explain(&problem());
        assert_eq!(explanation.verdicts.len(), BackendKind::ALL.len() * KernelKind::ALL.len());
    }

    #[test]
    fn a_given_device_comes_first() {
        let session = Attention::with_device(Arc::new(flashtile_reference::Reference));
        let first = session.explain(&problem()).verdicts[0].0;
        assert_eq!(first, BackendKind::Reference);
        assert_eq!(session.sessions.len(), BackendKind::ALL.len());
    }
}
