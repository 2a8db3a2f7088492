//! Attention that runs the same everywhere: on any GPU through wgpu, and on the CPU where there is none, held to one float64 oracle.
//!
//! ```
//! use flashtile::{Tensor, scaled_dot_product_attention};
//!
//! # fn main() -> Result<(), flashtile::Error> {
//! // One batch entry, one head, two queries over two keys of width 2: (B, H, S, D) = (1, 1, 2, 2).
//! let q = Tensor { data: &[8.0f32, 0.0, 0.0, 8.0], shape: &[1, 1, 2, 2] };
//! let v = Tensor { data: &[1.0f32, 2.0, 3.0, 4.0], shape: &[1, 1, 2, 2] };
//!
//! let out = scaled_dot_product_attention(q, q, v, None, 0.0, true, None, false)?;
//! assert_eq!(out.shape, [1, 1, 2, 2]);
//! assert_eq!(out.data[..2], [1.0, 2.0]); // causal: the first query sees only the first key
//! assert!((out.data[2] - 3.0).abs() < 1e-3); // the second looks at its own key almost alone
//! # Ok(())
//! # }
//! ```
//!
//! # The nouns
//!
//! - [`Problem`] is one kind of attention, described and checked once: dtypes, sizes, strides and which features are on. It knows no device.
//! - [`TensorView`] is a shape (B, H, S, D) with strides; [`Layout`] names the usual orders of axes; [`Mask`] is an attention mask.
//! - [`HostArgs`] are the tensors of one call in host memory; [`Call`] holds what may change from call to call.
//! - [`Attention`] is a session: it opens a device once, keeps plans, and runs problems on the best backend that can.
//! - [`Explanation`] is what every backend and kernel has to say to a problem, "runs" or all the reasons why not.
//!   [`Choice`] forces a backend or a kernel; what was chosen, and why, is in the [`Report`].
//! - [`scaled_dot_product_attention`] is PyTorch's function over host slices.
//!
//! Memory that already lies on a GPU is not for this crate's own functions: the module `wgpu` (crate flashtile-wgpu) plans once and encodes into
//! the caller's own encoder or pass, on the caller's buffers; the module `cuda` (crate flashtile-cuda) plans once and launches on the caller's own
//! stream, on slices, views or addresses of device memory.
//!
//! # Features
//!
//! - Self- and cross-attention; GQA and MQA; head widths from 1 to 512, odd and unequal; f32, f16, bf16; any layout or strides.
//! - Causal, alignment, sliding windows, softcap, any finite scale, lengths per batch entry, bool and additive masks, dropout, log-sum-exp.
//!   All of them together.
//! - The scores are never stored (kernel `flash`); or stored, as a baseline (kernel `unfused`).
//! - An error bound for each row, not a tolerance: see [`bound`].
//! - Masked means absent: a masked key contributes nothing, even if it holds NaN; a row without keys is 0 with log-sum-exp -inf.
//! - No silent fallback: forcing what cannot run is [`Error::Refused`], with every reason.
//!
//! # Non-features
//!
//! - Gradients, and key caches in pages, are not here yet.
//! - The `reference` backend, which `auto` takes where there is no GPU, is an oracle in float64: right, and slow.
//! - Host slices cross the bus both ways on every call: right for tests, tools and small problems.
//!
//! # Cookbook
//!
//! What runs, and why the rest does not:
//!
//! ```
//! use flashtile::{Attention, BackendKind, DType, KernelKind, Layout, Problem, TensorView};
//!
//! # fn main() -> Result<(), flashtile::Error> {
//! let q = TensorView::from_bhsd_sizes(DType::F16, Layout::Bshd, [2, 8, 128, 64])?;
//! let kv = TensorView::from_bhsd_sizes(DType::F16, Layout::Bshd, [2, 2, 300, 64])?;
//! let problem = Problem::builder(q, kv, kv).causal(true).build()?;
//! let explanation = Attention::new().explain(&problem);
//! println!("{explanation}");
//! let reference = explanation.verdict(BackendKind::Reference, KernelKind::Unfused).expect("every pair is listed");
//! assert!(reference.runs());
//! # Ok(())
//! # }
//! ```
//!
//! Strides, lengths per batch entry and log-sum-exp, on a backend of one's choice:
//!
//! ```
//! use flashtile::{Attention, BackendKind, Call, Choice, DType, HostArgs, Layout, Problem, TensorView, bytes_of, zeroed_bytes};
//!
//! # fn main() -> Result<(), flashtile::Error> {
//! let x = TensorView::from_bhsd_sizes(DType::F32, Layout::Bshd, [2, 1, 3, 1])?;
//! let problem = Problem::builder(x, x, x).kv_lens(true).lse(true).build()?;
//! let data = [0.0f32, 0.0, 0.0, 2.0, 2.0, 2.0];
//! let mut out = zeroed_bytes(&problem)?;
//! let mut lse = [0.0f32; 6];
//! let args = HostArgs {
//!     q: bytes_of(&data),
//!     k: bytes_of(&data),
//!     v: bytes_of(&data),
//!     mask: None,
//!     kv_lens: Some(&[2, 0]), // the second entry has no keys at all
//!     out: &mut out,
//!     lse: Some(&mut lse),
//!     call: Call::default(),
//! };
//! let report = Attention::new().run(&problem, args, Choice::backend(BackendKind::Reference))?;
//! assert_eq!(report.backend, BackendKind::Reference);
//! assert_eq!(out, [0u8; 24]);
//! assert!((lse[0] - 2f32.ln()).abs() < 1e-6);
//! assert_eq!(lse[3], f32::NEG_INFINITY);
//! # Ok(())
//! # }
//! ```
//!
//! A cache from earlier steps goes in front of the new keys and values with [`concat_past`]; results over disjoint ranges of keys are put
//! together by [`merge`].

#[cfg(target_endian = "big")]
compile_error!(
    "flashtile hands slices to kernels as little-endian bytes; big-endian hosts are not supported"
);

#[cfg(feature = "wgpu")]
mod adapter;
mod attention;
#[cfg(feature = "cuda")]
mod card;
mod error;
mod past;
mod sdpa;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod session;
mod tensor;

pub use attention::{Attention, Choice, Report};
pub use error::Error;
pub use flashtile_core::*;
pub use past::concat_past;
pub use sdpa::{AttnMask, manual_seed, scaled_dot_product_attention};
pub use tensor::{Element, OwnedTensor, Tensor, bytes_of, zeroed_bytes};

/// Attention on an NVIDIA card, on a CUDA context and stream that the caller owns: [`Context`](flashtile_cuda::Context),
/// [`Plan`](flashtile_cuda::Plan), and cudarc itself.
#[cfg(feature = "cuda")]
pub use flashtile_cuda as cuda;
/// The oracle: naive attention in float64, which every result is held to.
pub use flashtile_reference as reference;
/// Attention on a wgpu device that the caller owns: [`Context`](flashtile_wgpu::Context), [`Plan`](flashtile_wgpu::Plan), and wgpu itself.
#[cfg(feature = "wgpu")]
pub use flashtile_wgpu as wgpu;
