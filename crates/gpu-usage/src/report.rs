use crate::{
    Case, Gpu, Kernel, Usage,
    bars::violations,
    rdna::{HotLoop, Roof, hot_loops},
};
use anyhow::Result;
use flashtile_wgpu::{Plan, PlanOptions};

/// What the kernels of one case take on one GPU.
#[derive(Clone, Debug)]
pub struct Report {
    /// The GPU, by the name that scripts/with-gpu-compiler has for it.
    pub gpu: String,
    /// The problem.
    pub case: Case,
    /// Its kernels, in the order of the plan.
    pub kernels: Vec<KernelReport>,
    /// On RDNA, what limits the case as a whole.
    pub roof: Option<Roof>,
}

/// What one kernel takes.
#[derive(Clone, Debug, Default)]
pub struct KernelReport {
    /// The name of its variant.
    pub variant: String,
    /// `None` where the driver gives no statistics.
    pub usage: Option<Usage>,
    /// Its hot loops, on RDNA.
    pub loops: Vec<HotLoop>,
}

impl KernelReport {
    /// Reads what the driver says of a kernel.
    ///
    /// # Errors
    /// The driver's statistics are not those that this version knows.
    pub fn new(gpu: &Gpu, kernel: &Kernel) -> Result<Self> {
        let compiled = &kernel.compiled;
        let usage = Usage::of(compiled).map_err(anyhow::Error::msg)?;
        let loops = match (gpu.generation(), compiled.listing()) {
            (Some(generation), Some(listing)) => {
                hot_loops(listing, compiled.subgroup_size, generation)
            }
            _ => Vec::new(),
        };
        Ok(Self { variant: kernel.variant.clone(), usage, loops })
    }

    /// One line for the kernel, and one for each hot loop. `what` comes first in each of them.
    pub fn lines(&self, what: &str) -> Vec<String> {
        let variant = &self.variant;
        let mut lines = vec![match &self.usage {
            Some(usage) => format!("{what}, {variant}: {usage}"),
            None => format!("{what}, {variant}: the driver gives no statistics"),
        }];
        for (n, hot) in self.loops.iter().enumerate() {
            lines.push(format!("{what}, {variant}, loop {}: {hot}", n + 1));
        }
        lines
    }
}

impl Report {
    /// Plans a case and reads what its kernels take.
    ///
    /// # Errors
    /// The plan is refused, or a kernel does not compile.
    pub fn new(gpu: &Gpu, case: Case, options: &PlanOptions) -> Result<(Self, Plan, Vec<Kernel>)> {
        let problem = case.problem()?;
        let (plan, compiled) = gpu.plan(&problem, options)?;
        let kernels: Vec<_> =
            compiled.iter().map(|kernel| KernelReport::new(gpu, kernel)).collect::<Result<_>>()?;
        let hot: Vec<_> = kernels.iter().flat_map(|kernel| kernel.loops.clone()).collect();
        let roof = gpu.generation().and_then(|generation| Roof::new(generation, &hot, &problem));
        Ok((Self { gpu: gpu.name(), case, kernels, roof }, plan, compiled))
    }

    /// Its lines, as they stand in the file of record.
    pub fn lines(&self) -> Vec<String> {
        let what = format!("{} {}", self.gpu, self.case);
        let mut lines: Vec<_> =
            self.kernels.iter().flat_map(|kernel| kernel.lines(&what)).collect();
        lines.extend(self.roof.map(|roof| format!("{what}: {roof}")));
        lines
    }

    /// The bars that it misses, each as `GPU CASE: BAR (DETAIL)`.
    pub fn violations(&self) -> Vec<String> {
        violations(self)
            .into_iter()
            .map(|(bar, detail)| format!("{} {}: {bar} ({detail})", self.gpu, self.case))
            .collect()
    }
}
