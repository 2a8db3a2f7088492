//! cubek-attention's flash kernel for units, which needs no matrix units and computes in f32.

use super::{Peer, Prepared, adapter};
use crate::case::{Inputs, numbers};
use anyhow::{Result, anyhow};
use cubecl::{
    client::Client,
    future::block_on,
    prelude::Scalar as _,
    server::Handle,
    std::tensor::TensorHandle,
    wgpu::{RuntimeOptions, try_init_device},
};
use cubek_attention::forward::{
    definition::{AttentionGlobalTypes, AttentionOptions},
    launch::{BlueprintStrategy, Strategy, launch_ref},
};

pub(super) fn open() -> Result<(String, Box<dyn Peer>)> {
    let (name, setup) = adapter::open_for_cubecl()?;
    let device = try_init_device(setup, RuntimeOptions::try_default()?)?;
    Ok((name, Box::new(Cubek { client: cubecl::Device::Wgpu(device).client() })))
}

struct Cubek {
    client: Client,
}

struct Uploaded {
    client: Client,
    shape: [usize; 4],
    q: Handle,
    k: Handle,
    v: Handle,
    out: Handle,
    causal: bool,
}

impl Peer for Cubek {
    fn prepare(&self, inputs: &Inputs) -> Result<Box<dyn Prepared>> {
        let client = self.client.clone();
        let upload = |numbers: &Vec<f32>| client.create_from_slice(bytemuck::cast_slice(numbers));
        let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(upload);
        let out = upload(&vec![f32::NAN; inputs.q.len()]);
        let (shape, causal) = (inputs.case.shape, inputs.case.causal);
        let mut uploaded = Uploaded { client, shape, q, k, v, out, causal };
        uploaded.run(1)?;
        uploaded.output()?;
        Ok(Box::new(uploaded))
    }
}

impl Prepared for Uploaded {
    fn run(&mut self, times: usize) -> Result<()> {
        let f32_type = f32::elem_type_native();
        let dtypes = AttentionGlobalTypes::from_single_float_dtype(
            f32_type,
            AttentionGlobalTypes::mask_dtype(&self.client),
        );
        let binding = |handle: &Handle| {
            TensorHandle::new_contiguous(self.shape, handle.clone(), f32_type).binding()
        };
        for _ in 0..times {
            launch_ref(
                Strategy::Unit(BlueprintStrategy::Inferred(())),
                &self.client,
                binding(&self.q),
                binding(&self.k),
                binding(&self.v),
                None,
                binding(&self.out),
                &dtypes,
                AttentionOptions { causal: self.causal, ..AttentionOptions::default() },
            )
            .map_err(|e| anyhow!("{e:?}"))?;
        }
        block_on(self.client.sync()).map_err(|e| anyhow!("{e}"))
    }

    fn output(&mut self) -> Result<Vec<f32>> {
        let bytes = self.client.read_one(self.out.clone()).map_err(|e| anyhow!("{e}"))?;
        Ok(numbers(&bytes))
    }
}
