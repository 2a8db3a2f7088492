//! Attention in an application that already owns a wgpu device: on its buffers, in its encoder and
//! compute pass, with its submission.
//!
//! The device has WebGPU's default limits and no optional feature, as in a browser. Queries, keys
//! and values are interleaved in one buffer after a header, as a fused projection writes them. Two
//! plans share one pass: one processes the whole prompt; the other is planned once for a cache of
//! 48 keys and recorded for several lengths of it.
//!
//! `cargo run --release --example own_device`, or with `scripts/with-vulkan` in front if the
//! machine has no Vulkan driver.

use approx::assert_abs_diff_eq;
use flashtile::wgpu::{Args, Context, PlanOptions, wgpu};
use flashtile::{
    Align, Call, DType, HostInputs, Problem, TensorView, bound, bytes_of, reference::attention,
};
use std::error::Error;

const TOKENS: usize = 48;
const HEADS: usize = 4;
/// Numbers in a head's query, key or value.
const WIDTH: usize = 32;
/// Words in front of the tensors: only the alignment of an element is required.
const HEADER: usize = 3;

fn main() -> Result<(), Box<dyn Error>> {
    pollster::block_on(run())
}

async fn run() -> Result<(), Box<dyn Error>> {
    // The application's own device, created long before attention is needed. An application that
    // can choose requests `flashtile::wgpu::device_descriptor(&adapter)`: subgroups make kernels
    // faster.
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

    // One token is [q of all heads, k of all heads, v of all heads]. A view of one of the three
    // strides over the other two.
    let view = |seq| {
        TensorView::strided(
            DType::F32,
            [1, HEADS, seq, WIDTH],
            [TOKENS * 3 * HEADS * WIDTH, WIDTH, 3 * HEADS * WIDTH, 1],
        )
    };
    // The two attention configurations, checked without a device. A token's query stands at the
    // last key of the cache.
    let prompt = Problem::builder(view(TOKENS), view(TOKENS), view(TOKENS))
        .out(TensorView::bshd(DType::F32, [1, TOKENS, HEADS, WIDTH])?)
        .causal(true)
        .build()?;
    let token = Problem::builder(view(1), view(TOKENS), view(TOKENS))
        .causal(true)
        .align(Align::BottomRight)
        .build()?;

    // One context per device, and one plan per attention configuration, shared by all layers.
    let context = Context::new(device.clone(), queue.clone()).await?;
    let read_prompt = context.plan(&prompt, &PlanOptions::new()).await?;
    let read_token = context.plan(&token, &PlanOptions::new()).await?;
    println!("{read_prompt}\n\n{read_token}\n");

    let numbers: Vec<f32> =
        (0..HEADER + TOKENS * 3 * HEADS * WIDTH).map(|n| (n as f32 * 0.7).sin()).collect();
    let qkv = buffer(&device, "qkv", numbers.len(), wgpu::BufferUsages::COPY_DST);
    queue.write_buffer(&qkv, 0, bytes_of(&numbers));
    // Outputs of different calls may share a buffer. An input of the same call may not.
    let lengths = [16, 32, 48];
    let prompt_len = TOKENS * HEADS * WIDTH;
    let out_len = prompt_len + lengths.len() * HEADS * WIDTH;
    let out = buffer(&device, "out", out_len, wgpu::BufferUsages::COPY_SRC);

    // Where q, k and v of a token start, in elements. Buffers are addressed in bytes.
    let [q, k, v] = [0, 1, 2].map(|which| HEADER + which * HEADS * WIDTH);
    let query_of = |token: usize| q + token * 3 * HEADS * WIDTH;
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        read_prompt
            .encode_in_pass(&mut pass, &Args::new(at(&qkv, q), at(&qkv, k), at(&qkv, v), &out))?;
        for (n, length) in lengths.into_iter().enumerate() {
            // The last of `length` tokens attends to all of them.
            let call = Call::new().seq_kv(length);
            let result = at(&out, prompt_len + n * HEADS * WIDTH);
            let args = Args::new(at(&qkv, query_of(length - 1)), at(&qkv, k), at(&qkv, v), result)
                .call(call);
            read_token.encode_in_pass(&mut pass, &args)?;
        }
    }
    // Nothing has waited so far, and the application continues in the same encoder.
    let readback = device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("readback"),
        size: out.size(),
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    encoder.copy_buffer_to_buffer(&out, 0, &readback, 0, out.size());
    queue.submit([encoder.finish()]);
    let got = read(&device, &readback)?;

    // The same in float64. Each row must be within its error bound.
    let (of_prompt, of_tokens) = got.split_at(prompt_len);
    let slice = |element: usize| bytes_of(&numbers[element..]);
    let inputs = |query: usize, call| HostInputs::new(slice(query), slice(k), slice(v)).call(call);
    let share = largest_share(&prompt, &inputs(q, Call::default()), of_prompt)?;
    println!("prompt of {TOKENS}: largest error is {share:.2} of the bound");
    assert!(share <= 1.0);
    for (length, got) in lengths.into_iter().zip(of_tokens.chunks_exact(HEADS * WIDTH)) {
        let call = Call::new().seq_kv(length);
        let share = largest_share(&token, &inputs(query_of(length - 1), call), got)?;
        println!("token {}: largest error is {share:.2} of the bound", length - 1);
        assert!(share <= 1.0);
        // The prompt's causal rows are the same attention.
        let row = &of_prompt[(length - 1) * HEADS * WIDTH..][..HEADS * WIDTH];
        assert_abs_diff_eq!(row, got, epsilon = 1e-5);
    }
    Ok(())
}

fn buffer(
    device: &wgpu::Device,
    label: &str,
    elements: usize,
    also: wgpu::BufferUsages,
) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor {
        label: Some(label),
        size: 4 * elements as u64,
        usage: wgpu::BufferUsages::STORAGE | also,
        mapped_at_creation: false,
    })
}

/// The part of `buffer` that starts at an f32.
fn at(buffer: &wgpu::Buffer, element: usize) -> wgpu::BufferSlice<'_> {
    buffer.slice(4 * element as u64..)
}

/// Waits for the GPU and copies the numbers out.
fn read(device: &wgpu::Device, buffer: &wgpu::Buffer) -> Result<Vec<f32>, Box<dyn Error>> {
    let (done, mapped) = std::sync::mpsc::channel();
    buffer.map_async(wgpu::MapMode::Read, .., move |result| drop(done.send(result)));
    device.poll(wgpu::PollType::wait_indefinitely())?;
    mapped.recv()??;
    let view = buffer.get_mapped_range(..)?;
    Ok(view.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
}

/// The largest error of `got` (B, S, H, D) as a share of its row's bound.
fn largest_share(
    problem: &Problem,
    inputs: &HostInputs<'_>,
    got: &[f32],
) -> Result<f64, Box<dyn Error>> {
    let answer = attention(problem, inputs)?;
    let mut largest = 0.0;
    for (row, terms) in answer.rows.iter().enumerate() {
        let (head, query) = (row / problem.seq_q(), row % problem.seq_q());
        let bound = terms.out_bound(problem.dtype(), problem.head_dim());
        for d in 0..WIDTH {
            let (got, expected) =
                (got[(query * HEADS + head) * WIDTH + d], answer.out[row * WIDTH + d]);
            largest = f64::max(largest, bound::share(got.into(), expected, bound, problem.dtype()));
        }
    }
    Ok(largest)
}
