//! burn's attention.
//!
//! Its autotuner tries a fallback of several kernels, which stores the score matrix, and the flash
//! kernels of cubek-attention, and keeps the fastest that runs. An explicit scale would rule the
//! flash kernels out, so it is left to its default, which is the same as flashtile's.

use super::{Peer, Prepared, adapter};
use crate::case::Inputs;
use anyhow::{Result, anyhow};
use burn::tensor::{Device, Tensor, TensorData, module::attention, ops::AttentionModuleOptions};

pub(super) fn open() -> Result<(String, Box<dyn Peer>)> {
    let (name, setup) = adapter::open_for_cubecl()?;
    let device = Device::wgpu_options().setup(setup).init()?;
    Ok((name, Box::new(Burn { device })))
}

struct Burn {
    device: Device,
}

struct Uploaded {
    device: Device,
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    causal: bool,
    out: Option<Tensor<4>>,
}

impl Peer for Burn {
    fn prepare(&self, inputs: &Inputs) -> Result<Box<dyn Prepared>> {
        let upload = |numbers: &Vec<f32>| {
            let data = TensorData::new(numbers.clone(), inputs.case.shape);
            Tensor::<4>::from_data(data, &self.device)
        };
        let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(upload);
        let (device, causal) = (self.device.clone(), inputs.case.causal);
        let mut uploaded = Uploaded { device, q, k, v, causal, out: None };
        uploaded.run(1)?;
        uploaded.output()?;
        Ok(Box::new(uploaded))
    }
}

impl Prepared for Uploaded {
    fn run(&mut self, times: usize) -> Result<()> {
        for _ in 0..times {
            let options =
                AttentionModuleOptions { scale: None, softcap: None, is_causal: self.causal };
            let [q, k, v] = [&self.q, &self.k, &self.v].map(Clone::clone);
            self.out = Some(attention(q, k, v, None, None, options));
        }
        self.device.sync().map_err(|e| anyhow!("{e}"))
    }

    fn output(&mut self) -> Result<Vec<f32>> {
        let out = self.out.clone().ok_or_else(|| anyhow!("nothing has run"))?;
        let data = out.try_into_data().map_err(|e| anyhow!("{e}"))?;
        Ok(data.as_slice::<f32>().map_err(|e| anyhow!("{e:?}"))?.to_vec())
    }
}
