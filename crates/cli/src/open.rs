//! From the command line to open devices.

use crate::{args::ChoiceArgs, complain, pipelines};
use anyhow::{Result, ensure};
use flashtile::{
    Attention, Backend, BackendError, BackendKind, BackendPlan, DeviceChoice, KeySplit,
    MatrixUnits, PlanOptions, Problem, Verdict, cpu::Cpu, cuda, reference::Reference, wgpu,
};
use std::{fmt::Display, sync::Arc};

/// The device that `--adapter` names. A number is an index in the list of `flashtile devices`;
/// anything else is part of a name.
pub(crate) fn named(adapter: &str) -> DeviceChoice {
    match adapter.parse() {
        Ok(index) => DeviceChoice::new().index(index),
        Err(_) => DeviceChoice::new().name(adapter),
    }
}

/// A session that prefers the requested device. Without `--adapter`, the best devices. Adapters use
/// measured tile shapes as `--tuning` says, and the pipelines of earlier runs.
///
/// # Errors
/// If the requested threads cannot be started, and for a table that was named and is not there.
pub(crate) fn session(choice: &ChoiceArgs) -> Result<Attention> {
    choice.tuning.check()?;
    let session = match &choice.adapter {
        None => Attention::new(),
        Some(adapter) if choice.choice().backend == Some(BackendKind::Cuda) => {
            Attention::with_cuda_choice(named(adapter))
        }
        Some(adapter) => Attention::with_wgpu_choice(named(adapter)),
    };
    let tuning = choice.tuning.clone();
    let session = session.prepare_wgpu(move |context| pipelines::reuse(tuning.apply(context)));
    match threads(choice)? {
        None => Ok(session),
        Some(threads) => Ok(session.cpu_threads(threads)?),
    }
}

/// The threads that `--threads` asks for.
fn threads(choice: &ChoiceArgs) -> Result<Option<usize>> {
    ensure!(choice.threads != Some(0), "--threads must be at least 1, but is 0");
    Ok(choice.threads)
}

/// The CPU, with the threads that are requested.
fn cpu(choice: &ChoiceArgs) -> Result<Cpu> {
    Ok(match threads(choice)? {
        None => Cpu::new(),
        Some(threads) => Cpu::with_threads(threads)?,
    })
}

/// Opens every device that the arguments allow: NVIDIA GPUs by CUDA, adapters by wgpu, the CPU and
/// the reference. With `baseline`, adapters grant what a browser grants.
///
/// # Errors
/// Where the requested device does not open, or the table of measured tiles is not there. Other
/// devices that do not open are left out.
pub(crate) fn devices(choice: &ChoiceArgs, baseline: bool) -> Result<Vec<Arc<dyn Backend>>> {
    choice.tuning.check()?;
    let requested = choice.choice().backend;
    let allowed = |kind| requested.is_none_or(|requested| requested == kind);
    threads(choice)?;
    let mut devices = Vec::new();
    if allowed(BackendKind::Cuda) {
        devices.extend(gpus(choice)?);
    }
    if allowed(BackendKind::Wgpu) {
        devices.extend(adapters(choice, baseline)?);
    }
    if devices.is_empty() && requested.is_none() {
        complain("no GPU and no graphics adapter was found: only the CPU remains");
    }
    if allowed(BackendKind::Cpu) {
        devices.push(Arc::new(cpu(choice)?));
    }
    if allowed(BackendKind::Reference) {
        devices.push(Arc::new(Reference));
    }
    let (matrix_units, key_split) = (choice.matrix_units(), choice.split);
    if matrix_units != MatrixUnits::Auto || key_split != KeySplit::Auto {
        let forced =
            |device| -> Arc<dyn Backend> { Arc::new(Forced { device, matrix_units, key_split }) };
        devices = devices.into_iter().map(forced).collect();
    }
    Ok(devices)
}

/// A device whose plans use matrix units and split keys as the command line says, whatever they are
/// asked for.
#[derive(Debug)]
struct Forced {
    device: Arc<dyn Backend>,
    matrix_units: MatrixUnits,
    key_split: KeySplit,
}

impl Forced {
    fn options(&self, options: &PlanOptions) -> PlanOptions {
        options.matrix_units(self.matrix_units).key_split(self.key_split)
    }
}

impl Backend for Forced {
    fn kind(&self) -> BackendKind {
        self.device.kind()
    }

    fn device_name(&self) -> String {
        let Forced { device, matrix_units, key_split } = self;
        format!("{}, matrix units {matrix_units}, split {key_split}", device.device_name())
    }

    fn is_software(&self) -> bool {
        self.device.is_software()
    }

    fn measure_peak_flops(&self) -> Option<f64> {
        self.device.measure_peak_flops()
    }

    fn verdict(&self, problem: &Problem, options: &PlanOptions) -> Verdict {
        self.device.verdict(problem, &self.options(options))
    }

    fn plan(
        &self,
        problem: &Problem,
        options: &PlanOptions,
    ) -> Result<Arc<dyn BackendPlan>, BackendError> {
        self.device.plan(problem, &self.options(options))
    }

    fn release_kernels(&self) {
        self.device.release_kernels();
    }
}

/// The requested NVIDIA GPU, or all of them. A machine without a driver has none.
fn gpus(choice: &ChoiceArgs) -> Result<Vec<Arc<dyn Backend>>> {
    if let Some(adapter) = &choice.adapter {
        return Ok(vec![Arc::new(cuda::open(&named(adapter))?)]);
    }
    let found = match cuda::devices() {
        Err(_) if choice.choice().backend.is_none() => Vec::new(),
        found => found?,
    };
    Ok(open_each(found.into_iter().map(|gpu| gpu.index), cuda::open))
}

/// The requested adapter, or all of them.
fn adapters(choice: &ChoiceArgs, baseline: bool) -> Result<Vec<Arc<dyn Backend>>> {
    // A table was measured with all that the adapter offers.
    let open = |device: &DeviceChoice| match baseline {
        true => wgpu::open_baseline_blocking(device),
        false => wgpu::open_blocking(device).map(|context| choice.tuning.apply(context)),
    };
    if let Some(adapter) = &choice.adapter {
        return Ok(vec![Arc::new(open(&named(adapter))?)]);
    }
    let found: Vec<_> =
        wgpu::adapters_blocking().into_iter().map(|a| (a.info.name, a.info.backend)).collect();
    Ok(open_each(once_each(&found).into_iter(), open))
}

/// Opens the devices at these indices. One that does not open is reported and left out.
fn open_each<D: Backend + 'static, E: Display>(
    indices: impl Iterator<Item = usize>,
    open: impl Fn(&DeviceChoice) -> Result<D, E>,
) -> Vec<Arc<dyn Backend>> {
    let mut devices: Vec<Arc<dyn Backend>> = Vec::new();
    for index in indices {
        match open(&DeviceChoice::new().index(index)) {
            Ok(device) => devices.push(Arc::new(device)),
            Err(e) => complain(&format!("skipped device {index}: {e}")),
        }
    }
    devices
}

/// Indices of the adapters, without those that show a GPU again through another graphics API. Two
/// entries of the same name and API are two GPUs.
fn once_each<Api: PartialEq>(adapters: &[(String, Api)]) -> Vec<usize> {
    let first_api =
        |name: &String| adapters.iter().find(|(other, _)| other == name).map(|(_, api)| api);
    (0..adapters.len()).filter(|&n| first_api(&adapters[n].0) == Some(&adapters[n].1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_indices_and_words_are_names() {
        assert_eq!(named("1"), DeviceChoice::new().index(1));
        for name in ["rtx 4090", "-1", "1.0", ""] {
            assert_eq!(named(name), DeviceChoice::new().name(name));
        }
    }

    #[test]
    fn twins_are_two_gpus_and_one_gpu_under_two_apis_is_one() {
        let adapters = [
            ("A", "Vulkan"),
            ("A", "Vulkan"),
            ("B", "Gl"),
            ("A", "Dx12"),
            ("C", "Vulkan"),
            ("C", "Gl"),
        ]
        .map(|(name, api)| (name.to_owned(), api));
        assert_eq!(once_each(&adapters), [0, 1, 2, 4]);
    }

    #[test]
    fn devices_that_do_not_open_are_left_out() {
        let open = |choice: &DeviceChoice| match choice.index {
            Some(1) => Err("it is broken"),
            _ => Ok(Reference),
        };
        assert_eq!(open_each(0..3, open).len(), 2);
    }
}
