//! What every backend is held to: one catalogue of cases, one way to make their inputs, one error rule.
//!
//! ```
//! use flashtile_core::KernelKind;
//! use flashtile_testkit::{Case, ReferenceBackend, run_case};
//!
//! let case: Case = "shape=2x4x17x8 hkv=2 skv=33 dtype=f16 causal=yes mask=bool:b11k:blocks".parse()?;
//! let outcome = run_case(&ReferenceBackend, KernelKind::Unfused, &case)?;
//! assert!(outcome.out.share <= 1.0); // of the bound that the oracle gives each row
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! - [`Case`] describes a problem and its inputs as plain data and as one line of text: what fails can be replayed from what it prints,
//!   with the environment variable `FLASHTILE_CASE` ([`chosen_cases`]).
//! - [`catalogue`] lists the cases; [`random_case`] makes more, and [`minimise`] makes those that fail small; [`named_shapes`] are the
//!   models' shapes for benchmarks.
//! - [`Backend`] is what is tested. [`run_case`] and [`run_cases`] hold it to the oracle (promises 1 and 3, and that nothing else is
//!   written), [`check_repeats`] and [`check_neighbours`] to the same bits (promise 4).
//! - [`Prepared`] asks the oracle once for any number of backends.

mod backend;
mod case;
mod catalogue;
mod check;
mod cuda;
mod inputs;
mod random;
mod rng;
mod same_bits;
mod shapes;
mod shrink;
mod tally;
mod text;
mod wgpu;

pub use backend::{Backend, ReferenceBackend};
pub use case::{Case, KvLens, MaskContent, MaskSpec, Nan, Placement, Poison, Values};
pub use catalogue::catalogue;
pub use check::{Failure, Outcome, Prepared, Worst, Wrong, run_case};
pub use cuda::CudaBackend;
pub use inputs::Tensors;
pub use random::random_case;
pub use rng::Rng;
pub use same_bits::{check_neighbours, check_repeats};
pub use shapes::named_shapes;
pub use shrink::minimise;
pub use tally::{Tally, chosen_cases, run_cases, run_random};
pub use text::ParseCaseError;
pub use wgpu::WgpuBackend;
