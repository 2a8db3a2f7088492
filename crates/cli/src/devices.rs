use crate::{args::DevicesArgs, text};
use anyhow::Result;
use serde_json::json;
use std::io::Write;

/// Lists the cards that CUDA finds, the adapters that wgpu finds, and the backends that need none.
pub(crate) fn devices(args: &DevicesArgs, out: &mut dyn Write) -> Result<()> {
    cards(args, out)?;
    let adapters = flashtile::wgpu::adapters_blocking();
    for (n, adapter) in adapters.iter().enumerate() {
        let info = &adapter.info;
        let [api, kind] = [format!("{:?}", info.backend), format!("{:?}", info.device_type)];
        if args.json {
            let driver = format!("{} {}", info.driver, info.driver_info);
            let line = json!({
                "backend": "wgpu", "index": n, "name": info.name, "api": api, "type": kind, "driver": driver.trim(),
                "bus": info.device_pci_bus_id,
            });
            writeln!(out, "{line}")?;
        } else {
            // Where the card sits is what tells twins apart.
            let bus = if info.device_pci_bus_id.is_empty() { "" } else { ", bus " };
            let (name, driver, version, at) =
                (&info.name, &info.driver, &info.driver_info, &info.device_pci_bus_id);
            writeln!(out, "wgpu       {n}: {name} ({api}, {kind}{bus}{at}; {driver} {version})")?;
        }
    }
    if adapters.is_empty() && !args.json {
        writeln!(out, "wgpu       no adapter: no Vulkan, Metal or DX12 driver was found")?;
    }
    if args.json {
        writeln!(out, "{}", json!({ "backend": "reference", "name": "CPU" }))?;
    } else {
        writeln!(out, "reference  CPU, in float64: the oracle, slow and right")?;
        writeln!(out, "cpu        not part of this version")?;
    }
    Ok(())
}

fn cards(args: &DevicesArgs, out: &mut dyn Write) -> Result<()> {
    let cards = match flashtile::cuda::devices() {
        Ok(cards) => cards,
        Err(e) if !args.json => return Ok(writeln!(out, "cuda       {e}")?),
        Err(_) => return Ok(()),
    };
    for card in &cards {
        let (index, name, machine) = (card.index, &card.name, &card.machine);
        let capability = format!("{}.{}", machine.arch / 10, machine.arch % 10);
        if args.json {
            let line = json!({
                "backend": "cuda", "index": index, "name": name, "compute_capability": capability,
                "memory_bytes": machine.memory, "multiprocessors": machine.multiprocessors,
            });
            writeln!(out, "{line}")?;
        } else {
            let (memory, units) = (text::bytes(machine.memory), machine.multiprocessors);
            writeln!(
                out,
                "cuda       {index}: {name} (compute capability {capability}, {units} multiprocessors, {memory})"
            )?;
        }
    }
    if cards.is_empty() && !args.json {
        writeln!(out, "cuda       no card: the driver finds none")?;
    }
    Ok(())
}
