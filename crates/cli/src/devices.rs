use crate::{args::DevicesArgs, text};
use anyhow::Result;
use flashtile::cpu::Cpu;
use serde_json::json;
use std::io::Write;

/// Lists the GPUs that CUDA finds, the adapters of wgpu, and the backends that need neither.
pub(crate) fn devices(args: &DevicesArgs, out: &mut dyn Write) -> Result<()> {
    gpus(args, out)?;
    let adapters = flashtile::wgpu::adapters_blocking();
    for (n, adapter) in adapters.iter().enumerate() {
        let info = &adapter.info;
        let [api, kind] = [format!("{:?}", info.backend), format!("{:?}", info.device_type)];
        if args.json {
            let driver = format!("{} {}", info.driver, info.driver_info);
            let line = json!({
                "backend": "wgpu", "index": n, "name": info.name, "api": api, "type": kind,
                "driver": driver.trim(), "bus": info.device_pci_bus_id,
            });
            writeln!(out, "{line}")?;
        } else {
            // The bus address distinguishes two GPUs of the same name.
            let bus = if info.device_pci_bus_id.is_empty() { "" } else { ", bus " };
            let (name, driver, version, at) =
                (&info.name, &info.driver, &info.driver_info, &info.device_pci_bus_id);
            writeln!(out, "wgpu       {n}: {name} ({api}, {kind}{bus}{at}; {driver} {version})")?;
        }
    }
    if adapters.is_empty() && !args.json {
        writeln!(out, "wgpu       no adapter: no Vulkan, Metal or DX12 driver was found")?;
    }
    let cpu = Cpu::new();
    let (threads, instructions) = (cpu.threads(), cpu.instructions());
    if args.json {
        let line = json!({
            "backend": "cpu", "name": "CPU", "threads": threads, "instructions": instructions,
        });
        writeln!(out, "{line}")?;
        writeln!(out, "{}", json!({ "backend": "reference", "name": "CPU" }))?;
    } else {
        writeln!(out, "cpu        CPU, {threads} threads, {instructions}")?;
        writeln!(out, "reference  CPU, in float64: the oracle, exact and slow")?;
    }
    Ok(())
}

fn gpus(args: &DevicesArgs, out: &mut dyn Write) -> Result<()> {
    let gpus = match flashtile::cuda::devices() {
        Ok(gpus) => gpus,
        Err(e) if !args.json => return Ok(writeln!(out, "cuda       {e}")?),
        Err(_) => return Ok(()),
    };
    for gpu in &gpus {
        let (index, name, machine) = (gpu.index, &gpu.name, &gpu.machine);
        let capability = format!("{}.{}", machine.arch / 10, machine.arch % 10);
        let compiler = gpu.compiler_version();
        if args.json {
            let nvrtc = compiler.ok().map(|(major, minor)| format!("{major}.{minor}"));
            let line = json!({
                "backend": "cuda", "index": index, "name": name, "compute_capability": capability,
                "memory_bytes": machine.memory, "multiprocessors": machine.multiprocessors,
                "nvrtc": nvrtc,
            });
            writeln!(out, "{line}")?;
        } else {
            let (memory, units) = (text::bytes(machine.memory), machine.multiprocessors);
            writeln!(
                out,
                "cuda       {index}: {name} (compute capability {capability}, \
                 {units} multiprocessors, {memory})"
            )?;
            match compiler {
                Ok((major, minor)) => writeln!(out, "           compiler: NVRTC {major}.{minor}")?,
                Err(e) => writeln!(out, "           {e}")?,
            }
        }
    }
    if gpus.is_empty() && !args.json {
        writeln!(out, "cuda       no GPU: the driver finds none")?;
    }
    Ok(())
}
