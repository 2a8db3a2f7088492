use crate::{
    BlockRun, CppCompiler, DeviceMemory, EmulatedKernel, EmulatorError, PtxKernel, TensorSums,
    ThreadOrder,
};
use flashtile_core::{
    Backend, BackendError, BackendKind, BackendPlan, DType, HostArgs, HostStats, KernelKind,
    PlanOptions, Problem, Reason, TensorView, Timing, Verdict, check_host_args,
};
use flashtile_cuda::{
    CudaTiles, CudaVariant, Launch, Machine, Pointers, Schedule, compile_to_ptx, schedule,
};
use flashtile_shaders::cuda::Arch;
use flashtile_testkit::cannot_plan;
use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

/// Compiles kernel sources with a C++ compiler, each source once.
pub struct Emulator {
    compiler: CppCompiler,
    kernels: Slots<String, Arc<EmulatedKernel>>,
}

/// A value per key. One thread makes it while others wait for it.
type Slots<K, T> = Mutex<HashMap<K, Arc<OnceLock<Result<T, Arc<EmulatorError>>>>>>;

fn make_once<K: Eq + Hash, T: Clone>(
    slots: &Slots<K, T>,
    key: K,
    make: impl FnOnce() -> Result<T, EmulatorError>,
) -> Result<T, Arc<EmulatorError>> {
    let slot = slots.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone();
    slot.get_or_init(|| make().map_err(Arc::new)).clone()
}

impl Emulator {
    /// An emulator that compiles with `compiler`.
    pub fn new(compiler: CppCompiler) -> Self {
        Self { compiler, kernels: Mutex::default() }
    }

    /// The compiler.
    pub fn compiler(&self) -> &CppCompiler {
        &self.compiler
    }

    /// The kernel `KERNEL(entry_point)` of `source`. The source defines `Params` and calls nothing
    /// but the primitives of `device.cuh`. Errors call the kernel `name`.
    ///
    /// # Errors
    /// [`EmulatorError::NoCompiler`], [`Compile`](EmulatorError::Compile),
    /// [`Cache`](EmulatorError::Cache), [`Load`](EmulatorError::Load).
    pub fn kernel(
        &self,
        name: &str,
        entry_point: &str,
        source: &str,
    ) -> Result<Arc<EmulatedKernel>, Arc<EmulatorError>> {
        make_once(&self.kernels, source.to_owned(), || {
            let library = self.compiler.compile(name, source)?;
            // SAFETY: the library was compiled from this source.
            Ok(Arc::new(unsafe { EmulatedKernel::load(&library, name, entry_point, source) }?))
        })
    }
}

/// Compiles kernels to PTX with NVRTC, each kernel once per compute capability.
#[derive(Clone, Default)]
pub struct PtxCompiler {
    ptx: Arc<Slots<(CudaVariant, Arch), String>>,
    kernels: Arc<Slots<(CudaVariant, Arch), Arc<PtxKernel>>>,
    edit: Option<PtxEdit>,
}

/// Changes PTX before it is parsed.
type PtxEdit = Arc<dyn Fn(String) -> String + Send + Sync>;

impl PtxCompiler {
    /// The same compiler, with kernels of its own whose PTX `edit` changes before they run: to
    /// check that tests notice a mistake.
    pub fn with_edit(&self, edit: impl Fn(String) -> String + Send + Sync + 'static) -> Self {
        Self { ptx: self.ptx.clone(), kernels: Arc::default(), edit: Some(Arc::new(edit)) }
    }

    /// The PTX that NVRTC writes for `variant`, without edits.
    ///
    /// # Errors
    /// [`EmulatorError::Nvrtc`].
    pub fn ptx(&self, variant: &CudaVariant, arch: Arch) -> Result<String, Arc<EmulatorError>> {
        make_once(&self.ptx, (*variant, arch), || Ok(compile_to_ptx(variant, arch)?))
    }

    /// The kernel that backends with this compiler run for `variant`.
    ///
    /// # Errors
    /// [`EmulatorError::Nvrtc`]; [`EmulatorError::Run`] if the PTX holds something that the
    /// interpreter does not support.
    pub fn kernel(
        &self,
        variant: &CudaVariant,
        arch: Arch,
    ) -> Result<Arc<PtxKernel>, Arc<EmulatorError>> {
        let ptx = self.ptx(variant, arch)?;
        make_once(&self.kernels, (*variant, arch), || {
            let ptx = self.edit.iter().fold(ptx, |ptx, edit| edit(ptx));
            let name = format!("{variant} for sm_{arch}");
            Ok(Arc::new(PtxKernel::parse(&name, variant.entry_point(), &ptx)?))
        })
    }
}

/// What runs the kernels.
#[derive(Clone)]
enum Engine {
    Source(Arc<Emulator>),
    Ptx(PtxCompiler),
}

/// Changes a variant's source before it is compiled.
type SourceEdit = Arc<dyn Fn(&CudaVariant, String) -> String + Send + Sync>;

/// The launches that flashtile-cuda makes on a GPU of some compute capability, run by an
/// [`Emulator`] or as a [`PtxKernel`].
///
/// The schedules are flashtile-cuda's own. So are the kernel sources, unless
/// [`with_source_edit`](Self::with_source_edit) changes them.
#[derive(Clone)]
pub struct EmulatedCudaBackend {
    engine: Engine,
    machine: Machine,
    order: ThreadOrder,
    sums: TensorSums,
    tiles: Option<CudaTiles>,
    edit: Option<SourceEdit>,
    mutant: u32,
    /// Compiled kernels per variant. Clones with the same edit share them.
    kernels: Arc<Mutex<HashMap<CudaVariant, Arc<EmulatedKernel>>>>,
}

impl EmulatedCudaBackend {
    /// Runs the kernel sources as on a GPU of compute capability `arch`, with threads in `order`.
    /// Tensor cores round to nearest, unless [`with_sums`](Self::with_sums) changes that.
    pub fn new(emulator: Arc<Emulator>, arch: Arch, order: ThreadOrder) -> Self {
        Self::with_engine(Engine::Source(emulator), arch, order)
    }

    /// The same for the PTX that NVRTC writes.
    pub fn with_ptx(compiler: PtxCompiler, arch: Arch, order: ThreadOrder) -> Self {
        Self::with_engine(Engine::Ptx(compiler), arch, order)
    }

    fn with_engine(engine: Engine, arch: Arch, order: ThreadOrder) -> Self {
        let machine = Machine::of_arch(arch);
        Self {
            engine,
            machine,
            order,
            sums: TensorSums::default(),
            tiles: None,
            edit: None,
            mutant: 0,
            kernels: Arc::default(),
        }
    }

    /// The same GPU, with this tile shape forced on its flash kernel.
    pub fn with_tiles(&self, tiles: CudaTiles) -> Self {
        Self { tiles: Some(tiles), ..self.clone() }
    }

    /// The same GPU, with another order of threads.
    pub fn with_order(&self, order: ThreadOrder) -> Self {
        Self { order, ..self.clone() }
    }

    /// The same GPU, with another way to add products in tensor cores.
    pub fn with_sums(&self, sums: TensorSums) -> Self {
        Self { sums, ..self.clone() }
    }

    /// The same GPU, with kernel sources that `edit` changes before they are compiled: to check
    /// that tests notice a mistake. It has no effect on PTX; see [`PtxCompiler::with_edit`].
    pub fn with_source_edit(
        &self,
        edit: impl Fn(&CudaVariant, String) -> String + Send + Sync + 'static,
    ) -> Self {
        Self { edit: Some(Arc::new(edit)), kernels: Arc::default(), ..self.clone() }
    }

    /// The same GPU, with `is_mutant(n)` true in kernel sources. It has no effect on PTX.
    pub fn with_mutant(&self, n: u32) -> Self {
        Self { mutant: n, ..self.clone() }
    }

    fn schedule(&self, problem: &Problem, options: &PlanOptions) -> Result<Schedule, Vec<Reason>> {
        let kernel = options.kernel.unwrap_or(KernelKind::Flash);
        let tiles = self.tiles.filter(|_| kernel == KernelKind::Flash);
        schedule(problem, kernel, &options.for_tiles().tiles(tiles), &self.machine)
    }

    fn kernel(
        &self,
        emulator: &Emulator,
        variant: &CudaVariant,
    ) -> Result<Arc<EmulatedKernel>, Arc<EmulatorError>> {
        let known = || self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = known().get(variant) {
            return Ok(kernel.clone());
        }
        // device.cuh defines this for Turing's tensor cores.
        let depth = if self.machine.arch < 80 { "#define TENSOR_DEPTH_8\n" } else { "" };
        let source = depth.to_owned() + &variant.source();
        let source = self.edit.iter().fold(source, |source, edit| edit(variant, source));
        let kernel = emulator.kernel(&variant.to_string(), variant.entry_point(), &source)?;
        known().insert(*variant, kernel.clone());
        Ok(kernel)
    }

    fn launch(
        &self,
        launch: &Launch,
        memory: &mut [&mut DeviceMemory],
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        let Launch { variant, params, grid, .. } = launch;
        let run = BlockRun {
            grid: *grid,
            threads: [variant.tiles.tx, variant.tiles.ty],
            shared_bytes: variant.shared_bytes(),
            bf16: variant.dtype == DType::BF16,
            order: self.order,
            sums: self.sums,
            mutant: self.mutant,
        };
        match &self.engine {
            Engine::Source(emulator) => {
                let kernel = self.kernel(emulator, variant)?;
                // SAFETY: the parameters have this kernel's layout and point to `memory`.
                unsafe { kernel.run(&run, params, memory) }?;
            }
            Engine::Ptx(compiler) => {
                let kernel = compiler.kernel(variant, self.machine.arch)?;
                kernel.run(&run, bytemuck::bytes_of(params), memory)?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for EmulatedCudaBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.device_name())
    }
}

impl Backend for EmulatedCudaBackend {
    fn kind(&self) -> BackendKind {
        BackendKind::Cuda
    }

    fn device_name(&self) -> String {
        let tiles = self.tiles.map(|tiles| format!(", {tiles}")).unwrap_or_default();
        let what = match self.engine {
            Engine::Source(_) => "emulated",
            Engine::Ptx(_) => "interpreted",
        };
        let sums = match self.sums {
            TensorSums::Nearest => String::new(),
            TensorSums::Truncated { products, extra_bits } => {
                format!(", sums of {products} truncated at {extra_bits} extra bits")
            }
        };
        format!("{what} as sm_{}, {:?}{sums}{tiles}", self.machine.arch, self.order)
    }

    fn verdict(&self, problem: &Problem, options: &PlanOptions) -> Verdict {
        match self.schedule(problem, options) {
            Ok(schedule) => Verdict::Runs(schedule.rationale.join("; ")),
            Err(reasons) => Verdict::Refused(reasons),
        }
    }

    fn plan(&self, _: &Problem, _: &PlanOptions) -> Result<Arc<dyn BackendPlan>, BackendError> {
        Err(cannot_plan(BackendKind::Cuda))
    }

    fn run(
        &self,
        problem: &Problem,
        options: &PlanOptions,
        args: HostArgs<'_>,
    ) -> Result<HostStats, BackendError> {
        let start = Instant::now();
        self.run_call(problem, options, args)
            .map_err(|e| BackendError::new(BackendKind::Cuda, false, e))?;
        let run = Timing::new(start.elapsed(), None);
        Ok(HostStats::new(run, 0))
    }
}

impl EmulatedCudaBackend {
    fn run_call(
        &self,
        problem: &Problem,
        options: &PlanOptions,
        args: HostArgs<'_>,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        let call = check_host_args(problem, &args)?;
        let schedule = self.schedule(problem, options).map_err(EmulatorError::Refused)?;
        let span = |view: &TensorView| view.byte_span().unwrap_or(0);
        let mask_span = problem.mask().and_then(|mask| mask.byte_span()).unwrap_or(0);
        let lse_rows: usize = problem.lse_shape().iter().product();
        let mut q = DeviceMemory::new("q", &args.q[..span(problem.q())]);
        let mut k = DeviceMemory::new("k", &args.k[..span(problem.k())]);
        let mut v = DeviceMemory::new("v", &args.v[..span(problem.v())]);
        let mut out = DeviceMemory::new("out", &args.out[..span(problem.out())]);
        let mut mask = args.mask.map(|mask| DeviceMemory::new("attn_mask", &mask[..mask_span]));
        let mut kv_lens = args
            .kv_lens
            .map(|lens| DeviceMemory::new("kv_lens", &words(lens, |n| n.to_le_bytes())));
        let mut lse = args
            .lse
            .as_deref()
            .map(|lse| DeviceMemory::new("lse", &words(&lse[..lse_rows], |x| x.to_le_bytes())));
        let mut scores = (schedule.workspace_bytes > 0)
            .then(|| DeviceMemory::poisoned("the workspace", schedule.workspace_bytes as usize));
        let address =
            |memory: &mut Option<DeviceMemory>| memory.as_mut().map_or(0, DeviceMemory::address);
        let pointers = Pointers::new(q.address(), k.address(), v.address(), out.address())
            .mask(address(&mut mask))
            .kv_lens(address(&mut kv_lens))
            .lse(address(&mut lse))
            .scores(address(&mut scores));
        let mut memory = vec![&mut q, &mut k, &mut v, &mut out];
        memory.extend([&mut mask, &mut kv_lens, &mut lse, &mut scores].into_iter().flatten());
        for launch in schedule
            .dispatches
            .iter()
            .filter_map(|step| schedule.launch(problem, step, &call, &pointers))
        {
            self.launch(&launch, &mut memory)?;
        }
        args.out[..out.content().len()].copy_from_slice(out.content());
        if let (Some(to), Some(lse)) = (args.lse, &lse) {
            for (to, from) in to.iter_mut().zip(lse.content().chunks_exact(4)) {
                *to = f32::from_le_bytes([from[0], from[1], from[2], from[3]]);
            }
        }
        Ok(())
    }
}

fn words<T: Copy>(values: &[T], bytes: impl Fn(T) -> [u8; 4]) -> Vec<u8> {
    values.iter().flat_map(|&value| bytes(value)).collect()
}
