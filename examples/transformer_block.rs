//! A small causal transformer block (GPT-2's) end to end on the GPU, with attention as one step
//! among the application's own:
//!
//!     h = x + attention(layer_norm(x) Wqkv) Wo
//!     y = h + gelu(layer_norm(h) Wup) Wdown
//!
//! All seven steps are recorded into one compute pass, and no tensor leaves the GPU in between. The
//! other kernels are in transformer_block.wgsl. The result is compared with the same block in
//! float64.
//!
//! `cargo run --release --example transformer_block`, or with `scripts/with-vulkan` in front if the
//! machine has no Vulkan driver.

use approx::assert_abs_diff_eq;
use flashtile::wgpu::{Args, Context, PlanOptions, wgpu};
use flashtile::{DType, Problem, TensorView, bytes_of};
use std::error::Error;
use wgpu::util::DeviceExt as _;

const TOKENS: usize = 40;
const HEADS: usize = 4;
const WIDTH: usize = 16;
const EMBED: usize = HEADS * WIDTH;
const MLP: usize = 4 * EMBED;

fn main() -> Result<(), Box<dyn Error>> {
    pollster::block_on(run())
}

async fn run() -> Result<(), Box<dyn Error>> {
    let instance =
        wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    let adapter = match instance.request_adapter(&wgpu::RequestAdapterOptions::default()).await {
        Ok(adapter) => adapter,
        Err(error)
            if std::env::var_os("FLASHTILE_REQUIRE_GPU").is_some_and(|value| value == "1") =>
        {
            return Err(error.into());
        }
        Err(error) => {
            eprintln!("nothing to run without a GPU: {error}");
            return Ok(());
        }
    };
    let (device, queue) = adapter.request_device(&wgpu::DeviceDescriptor::default()).await?;
    let block = Block::new();
    let x = random(1, TOKENS * EMBED, 1.0);

    // The projection writes q, k and v of a token side by side. Attention reads them there and
    // writes (token, head, width).
    let view = TensorView::strided(
        DType::F32,
        [1, HEADS, TOKENS, WIDTH],
        [TOKENS * 3 * EMBED, WIDTH, 3 * EMBED, 1],
    );
    let problem = Problem::builder(view, view, view).causal(true).build()?;
    let context = Context::new(device.clone(), queue.clone()).await?;
    let attention = context.plan(&problem, &PlanOptions::new()).await?;
    println!("{attention}\n");

    // The application's own steps, ready to be recorded.
    let gpu = Gpu::new(&device);
    let [normed, attended, h, h_normed] = [(); 4].map(|()| gpu.tensor(TOKENS * EMBED));
    let [qkv, up] = [3 * EMBED, MLP].map(|width| gpu.tensor(TOKENS * width));
    let (x_buffer, y) = (gpu.upload(&x), gpu.tensor(TOKENS * EMBED));
    let Block { norm_1, qkv: w_qkv, out: w_out, norm_2, up: w_up, down: w_down } = &block;
    let steps_before = [
        gpu.step("layer_norm", norm_1, &x_buffer, None, &normed),
        gpu.step("linear", w_qkv, &normed, None, &qkv),
    ];
    let steps_after = [
        gpu.step("linear_residual", w_out, &attended, Some(&x_buffer), &h),
        gpu.step("layer_norm", norm_2, &h, None, &h_normed),
        gpu.step("linear_gelu", w_up, &h_normed, None, &up),
        gpu.step("linear_residual", w_down, &up, Some(&h), &y),
    ];

    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        steps_before.iter().for_each(|step| step.record(&mut pass));
        let [q, k, v] = [0, 1, 2].map(|which| qkv.slice((which * EMBED * 4) as u64..));
        attention.encode_in_pass(&mut pass, &Args::new(q, k, v, &attended))?;
        steps_after.iter().for_each(|step| step.record(&mut pass));
    }
    queue.submit([encoder.finish()]);
    let (done, read) = std::sync::mpsc::channel();
    wgpu::util::DownloadBuffer::read_buffer(&device, &queue, &y.slice(..), move |result| {
        drop(done.send(result))
    });
    device.poll(wgpu::PollType::wait_indefinitely())?;
    let got = read.recv()??;
    let got: &[f32] = bytemuck::cast_slice(&got);

    // Numbers are of the order of 1, and sums have up to 256 terms, each rounded to 2^-24 of
    // itself: 1e-5 leaves a margin over what rounding explains, and any mistake is far above it.
    let expected = block.in_float64(&x);
    let got: Vec<f64> = got.iter().copied().map(f64::from).collect();
    assert_abs_diff_eq!(got[..], expected[..], epsilon = 1e-5);
    println!("{TOKENS} tokens of width {EMBED} agree with float64 to 1e-5");
    Ok(())
}

/// The block's weights: a matrix (rows of x, columns of y) and a bias each; two vectors for a layer
/// norm.
struct Block {
    norm_1: Weights,
    qkv: Weights,
    out: Weights,
    norm_2: Weights,
    up: Weights,
    down: Weights,
}

struct Weights {
    inner: usize,
    columns: usize,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Block {
    fn new() -> Self {
        let norm = |seed| Weights {
            inner: EMBED,
            columns: EMBED,
            weight: random(seed, EMBED, 0.2).iter().map(|w| 1.0 + w).collect(),
            bias: random(seed + 1, EMBED, 0.2),
        };
        // Scaled so that numbers keep their size from layer to layer.
        let matrix = |seed, inner: usize, columns| Weights {
            inner,
            columns,
            weight: random(seed, inner * columns, (3.0 / inner as f32).sqrt()),
            bias: random(seed + 1, columns, 0.1),
        };
        Self {
            norm_1: norm(10),
            qkv: matrix(20, EMBED, 3 * EMBED),
            out: matrix(30, EMBED, EMBED),
            norm_2: norm(40),
            up: matrix(50, EMBED, MLP),
            down: matrix(60, MLP, EMBED),
        }
    }

    /// The whole block, as plainly as it can be written.
    fn in_float64(&self, x: &[f32]) -> Vec<f64> {
        let x: Vec<f64> = x.iter().map(|&x| x.into()).collect();
        let qkv = self.qkv.product(&self.norm_1.normed(&x));
        let number = |which: usize, token: usize, head: usize, d: usize| {
            qkv[token * 3 * EMBED + which * EMBED + head * WIDTH + d]
        };
        let mut attended = vec![0.0; TOKENS * EMBED];
        for (token, head) in (0..TOKENS).flat_map(|token| (0..HEADS).map(move |head| (token, head)))
        {
            let dot = |key| -> f64 {
                (0..WIDTH).map(|d| number(0, token, head, d) * number(1, key, head, d)).sum()
            };
            let weights: Vec<f64> =
                (0..=token).map(|key| (dot(key) / (WIDTH as f64).sqrt()).exp()).collect();
            let total: f64 = weights.iter().sum();
            for d in 0..WIDTH {
                let sum: f64 = weights
                    .iter()
                    .enumerate()
                    .map(|(key, weight)| weight * number(2, key, head, d))
                    .sum();
                attended[token * EMBED + head * WIDTH + d] = sum / total;
            }
        }
        let add =
            |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a + b).collect() };
        let h = add(&x, &self.out.product(&attended));
        let mut up = self.up.product(&self.norm_2.normed(&h));
        for z in &mut up {
            *z *= 0.5
                * (1.0
                    + ((2.0 / std::f64::consts::PI).sqrt() * (*z + 0.044715 * z.powi(3))).tanh());
        }
        add(&h, &self.down.product(&up))
    }
}

impl Weights {
    fn product(&self, x: &[f64]) -> Vec<f64> {
        let number = |row: &[f64], c: usize| {
            let products = row
                .iter()
                .enumerate()
                .map(|(n, x)| x * f64::from(self.weight[n * self.columns + c]));
            products.sum::<f64>() + f64::from(self.bias[c])
        };
        x.chunks_exact(self.inner)
            .flat_map(|row| (0..self.columns).map(move |c| number(row, c)))
            .collect()
    }

    fn normed(&self, x: &[f64]) -> Vec<f64> {
        let normed = |row: &[f64]| -> Vec<f64> {
            let mean = row.iter().sum::<f64>() / EMBED as f64;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / EMBED as f64;
            let scale = |(c, x): (usize, &f64)| {
                (x - mean) / (variance + 1e-5).sqrt() * f64::from(self.weight[c])
                    + f64::from(self.bias[c])
            };
            row.iter().enumerate().map(scale).collect()
        };
        x.chunks_exact(EMBED).flat_map(normed).collect()
    }
}

/// The app's own kernels.
struct Gpu<'a> {
    device: &'a wgpu::Device,
    module: wgpu::ShaderModule,
}

/// One of the app's own dispatches.
struct Step {
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
    workgroups: u32,
}

impl<'a> Gpu<'a> {
    fn new(device: &'a wgpu::Device) -> Self {
        Self {
            device,
            module: device.create_shader_module(wgpu::include_wgsl!("transformer_block.wgsl")),
        }
    }

    fn tensor(&self, elements: usize) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 4 * elements as u64,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        })
    }

    fn upload(&self, numbers: &[f32]) -> wgpu::Buffer {
        let (contents, usage) = (bytes_of(numbers), wgpu::BufferUsages::STORAGE);
        self.device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: None,
            contents,
            usage,
        })
    }

    /// The step `kernel` from `x` to `y`. A kernel's bind group holds only the bindings that it
    /// uses.
    fn step(
        &self,
        kernel: &str,
        weights: &Weights,
        x: &wgpu::Buffer,
        residual: Option<&wgpu::Buffer>,
        y: &wgpu::Buffer,
    ) -> Step {
        let sizes = [TOKENS, weights.inner, weights.columns].map(|n| n as u32);
        let sizes_buffer = self.device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: None,
            contents: bytemuck::bytes_of(&sizes),
            usage: wgpu::BufferUsages::UNIFORM,
        });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel),
            layout: None,
            module: &self.module,
            entry_point: Some(kernel),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        });
        let (weight, bias) = (self.upload(&weights.weight), self.upload(&weights.bias));
        let bound = [Some(&sizes_buffer), Some(x), Some(&weight), Some(&bias), residual, Some(y)];
        let resources = bound.iter().map(|buffer| buffer.map(wgpu::Buffer::as_entire_binding));
        let entry =
            |(binding, resource)| Some(wgpu::BindGroupEntry { binding, resource: resource? });
        let entries: Vec<_> = (0..).zip(resources).filter_map(entry).collect();
        let group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(kernel),
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        let threads = if kernel == "layer_norm" { TOKENS } else { TOKENS * weights.columns };
        Step { pipeline, group, workgroups: threads.div_ceil(64) as u32 }
    }
}

impl Step {
    fn record(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.group, &[]);
        pass.dispatch_workgroups(self.workgroups, 1, 1);
    }
}

/// Numbers in [-size, size), the same for the same seed (xorshift).
fn random(seed: u64, count: usize, size: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next() * size).collect()
}
