//! Attention that gives the same result on every GPU: through wgpu on Vulkan, Metal, DX12 and
//! WebGPU, and as CUDA kernels on NVIDIA GPUs. Where there is no GPU, it runs on all cores of the
//! CPU. All results are held to one float64 oracle by a bound on the error.
//!
//! ```
//! use flashtile::{Tensor, scaled_dot_product_attention};
//!
//! # fn main() -> Result<(), flashtile::Error> {
//! // One batch entry, one head, two queries over two keys of width 2.
//! let q = Tensor::new(&[8.0f32, 0.0, 0.0, 8.0], &[1, 1, 2, 2]);
//! let v = Tensor::new(&[1.0f32, 2.0, 3.0, 4.0], &[1, 1, 2, 2]);
//!
//! let out = scaled_dot_product_attention(q, q, v, None, 0.0, true, None, false)?;
//! assert_eq!(out.shape, [1, 1, 2, 2]);
//! assert_eq!(out.data[..2], [1.0, 2.0]); // causal: the first query sees only the first key
//! assert!((out.data[2] - 3.0).abs() < 1e-3); // the second sees almost only its own key
//! # Ok(())
//! # }
//! ```
//!
//! # The nouns
//!
//! - [`Problem`] is one attention configuration, described and checked once: dtypes, sizes, strides
//!   and features. It knows no device.
//! - [`TensorView`] is a shape (B, H, S, D) with strides; [`Layout`] names common orders of axes;
//!   [`Mask`] is an attention mask.
//! - [`HostArgs`] are the tensors of one call in host memory; [`Call`] holds what may change from
//!   call to call.
//! - [`Attention`] is a session: it opens a device once, keeps plans, and runs problems on the best
//!   backend that can.
//! - [`Explanation`] is the verdict of every backend and kernel on a problem: "runs", or all the
//!   reasons why not. [`Choice`] forces a backend or a kernel; the [`Report`] says what was chosen,
//!   and why.
//! - [`scaled_dot_product_attention`] is PyTorch's function over host slices, and
//!   [`scaled_dot_product_attention_with`] the same with [`SdpaOptions`].
//!
//! For tensors that are on a GPU already, use the backend crates: `flashtile::wgpu`
//! (flashtile-wgpu) plans once and encodes into the caller's encoder or pass; `flashtile::cuda`
//! (flashtile-cuda) plans once and launches on the caller's stream. `flashtile::cpu`
//! (flashtile-cpu) plans once and works on the caller's slices.
//!
//! # Features
//!
//! - Self- and cross-attention; GQA and MQA; any head_dim, and a head_dim_v that may differ (the
//!   flash kernels for GPUs take up to 512); f32, f16, bf16; any layout or strides.
//! - Causal masks, alignment, sliding windows, softcap, any finite scale, lengths per batch entry,
//!   bool and additive masks, dropout, log-sum-exp, in any combination.
//! - The kernel `flash` never stores the score matrix; `unfused` stores it, as a baseline.
//! - An error bound for each row, not a tolerance: see [`bound`].
//! - Masked means absent: a masked key contributes nothing, even if it holds NaN. A row without
//!   keys is 0 with log-sum-exp -inf.
//! - No silent fallback: forcing what cannot run is [`Error::Refused`], with every reason.
//!
//! # Non-features
//!
//! - Gradients, paged key-value caches and variable-length batches are not here yet.
//! - The `reference` backend is a float64 oracle: exact and slow. `auto` never takes it, unless the
//!   feature `cpu` is off and there is no GPU.
//! - Host slices are copied to a GPU and back on every call: right for tests, tools and small
//!   problems. The `cpu` backend copies nothing.
//!
//! # Cookbook
//!
//! What runs, and why the rest does not:
//!
//! ```
//! use flashtile::{Attention, BackendKind, DType, KernelKind, Problem, TensorView};
//!
//! # fn main() -> Result<(), flashtile::Error> {
//! let q = TensorView::bshd(DType::F16, [2, 128, 8, 64])?; // batch, sequence, heads, head_dim
//! let kv = TensorView::bshd(DType::F16, [2, 300, 2, 64])?;
//! let problem = Problem::builder(q, kv, kv).causal(true).build()?;
//! let explanation = Attention::new().explain(&problem);
//! println!("{explanation}");
//! let reference = explanation.verdict(BackendKind::Reference, KernelKind::Unfused);
//! assert!(reference.expect("every pair is listed").runs());
//! # Ok(())
//! # }
//! ```
//!
//! Lengths per batch entry and log-sum-exp, on a backend of your choice:
//!
//! ```
//! use flashtile::{
//!     Attention, BackendKind, Choice, DType, HostArgs, Problem, TensorView, bytes_of,
//!     bytes_of_mut,
//! };
//!
//! # fn main() -> Result<(), flashtile::Error> {
//! let x = TensorView::bshd(DType::F32, [2, 3, 1, 1])?;
//! let problem = Problem::builder(x, x, x).kv_lens(true).lse(true).build()?;
//! let data = [0.0f32, 0.0, 0.0, 2.0, 2.0, 2.0];
//! let (mut out, mut lse) = ([1.0f32; 6], [0.0f32; 6]);
//! let q = bytes_of(&data);
//! let args = HostArgs::new(q, q, q, bytes_of_mut(&mut out))
//!     .kv_lens(&[2, 0]) // the second entry has no keys at all
//!     .lse(&mut lse);
//! let report = Attention::new().run(&problem, args, Choice::backend(BackendKind::Reference))?;
//! assert_eq!(report.backend, BackendKind::Reference);
//! assert_eq!(out, [0.0; 6]);
//! approx::assert_abs_diff_eq!(lse[0], 2f32.ln(), epsilon = 5e-7);
//! assert_eq!(lse[3], f32::NEG_INFINITY);
//! # Ok(())
//! # }
//! ```
//!
//! A decode step over a key-value cache: the single query stands at the last key, so its alignment
//! is [`Align::BottomRight`]. (With the default, top-left, it would see key 0 alone.) Plan for the
//! capacity of the cache, and pass the number of keys that are filled with each call:
//!
//! ```
//! use flashtile::{Align, Call, DType, Problem, TensorView};
//!
//! # fn main() -> Result<(), flashtile::Error> {
//! let q = TensorView::bshd(DType::F16, [1, 1, 32, 128])?;
//! let cache = TensorView::bshd(DType::F16, [1, 4096, 8, 128])?; // capacity: 4096 keys
//! let problem =
//!     Problem::builder(q, cache, cache).causal(true).align(Align::BottomRight).build()?;
//! let call = Call::new().seq_kv(17); // 17 keys so far
//! # let _ = (problem, call);
//! # Ok(())
//! # }
//! ```
//!
//! [`concat_past`] puts a cache in front of new keys and values; [`merge`] combines results over
//! disjoint ranges of keys.
#![cfg_attr(docsrs, feature(doc_cfg))] // docs.rs shows which feature an item needs

#[cfg(target_endian = "big")]
compile_error!(
    "flashtile passes slices to kernels as little-endian bytes; big-endian hosts are not supported"
);

mod attention;
mod backends;
mod error;
mod past;
mod report;
mod sdpa;
mod session;
mod tensor;

pub use attention::{Attention, Choice, Decision};
pub use error::Error;
pub use flashtile_core::{
    Align, Argument, Backend, BackendError, BackendKind, BackendPlan, BackendRun, CachedPlan, Call,
    Cost, DType, DeviceChoice, Explanation, HostArgs, HostInputs, HostStats, KernelKind, KeyChunks,
    KeySplit, Layout, MAX_SEQ, Mask, MaskKind, MatrixUnits, NoMatrixUnits, Partial, PlanCache,
    PlanOptions, Problem, ProblemBuilder, ProblemError, Reason, TensorView, Timing, Verdict, bound,
    check_host_args, merge,
};
pub use past::concat_past;
pub use report::Report;
pub use sdpa::{
    AttnMask, SdpaOptions, manual_seed, scaled_dot_product_attention,
    scaled_dot_product_attention_with,
};
pub use tensor::{Element, OwnedTensor, Tensor, bytes_of, bytes_of_mut, zeroed_bytes};

/// Attention on the CPU, on all cores: [`Cpu`](flashtile_cpu::Cpu) and
/// [`Plan`](flashtile_cpu::Plan).
#[cfg(feature = "cpu")]
pub use flashtile_cpu as cpu;
/// Attention in a CUDA context that the caller owns: [`Context`](flashtile_cuda::Context),
/// [`Plan`](flashtile_cuda::Plan), and cudarc itself.
#[cfg(feature = "cuda")]
pub use flashtile_cuda as cuda;
/// The oracle: naive attention in float64, which every result is held to.
pub use flashtile_reference as reference;
/// Attention on a wgpu device that the caller owns: [`Context`](flashtile_wgpu::Context),
/// [`Plan`](flashtile_wgpu::Plan), and wgpu itself.
#[cfg(feature = "wgpu")]
pub use flashtile_wgpu as wgpu;
