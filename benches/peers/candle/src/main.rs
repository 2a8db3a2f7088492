//! Times candle's attention on the CPU: `flashtile-peer-candle IN OUT SECONDS [causal]`.
//!
//! IN has f32 tensors q, k and v, (B, H, S, D), in the format of safetensors. The program runs
//! candle's flash attention for SECONDS, prints the median time of a call in milliseconds, and
//! writes `out`, (B, H, S, D), to OUT. `benches/peers/cpu.py` calls it, and compares `out`.

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor, safetensors};
use candle_nn::attention::{AttnMask, flash_attn};
use std::collections::HashMap;
use std::time::{Duration, Instant};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (given, written, seconds, causal) = match &arguments[..] {
        [given, written, seconds] => (given, written, seconds, false),
        [given, written, seconds, word] if word == "causal" => (given, written, seconds, true),
        _ => bail!("usage: flashtile-peer-candle IN OUT SECONDS [causal]"),
    };
    let tensors = safetensors::load(given, &Device::Cpu)?;
    // candle takes (B, S, H, D).
    let tensor = |name: &str| -> Result<Tensor> {
        let tensor = tensors.get(name).with_context(|| format!("{given} has no {name}"))?;
        Ok(tensor.transpose(1, 2)?.contiguous()?)
    };
    let [q, k, v] = [tensor("q")?, tensor("k")?, tensor("v")?];
    let scale = 1.0 / (q.dim(3)? as f32).sqrt();
    let mask = || if causal { AttnMask::causal() } else { AttnMask::None };
    let run = || flash_attn::<f32>(&q, &k, &v, scale, mask(), None, None);

    let out = run()?;
    let end = Instant::now() + Duration::from_secs_f64(seconds.parse()?);
    let mut times = Vec::new();
    while times.len() < 3 || Instant::now() < end {
        let start = Instant::now();
        run()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    println!("{}", times[times.len() / 2]);
    safetensors::save(&HashMap::from([("out", out)]), written)?;
    Ok(())
}
