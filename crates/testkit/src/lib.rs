//! Tests for every backend: one catalogue of cases, one way to make their inputs, and one error
//! rule.
//!
//! ```
//! use flashtile_core::KernelKind;
//! use flashtile_reference::Reference;
//! use flashtile_testkit::{Case, run_case};
//!
//! let case: Case = "shape=2x4x17x8 hkv=2 skv=33 dtype=f16 causal=yes".parse()?;
//! let outcome = run_case(&Reference, KernelKind::Unfused, &case)?;
//! assert!(outcome.out.share <= 1.0); // of the bound that the oracle computes for each row
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! - [`Case`] describes a problem and its inputs as plain data and as one line of text. A failure
//!   prints its case, and the environment variable `FLASHTILE_CASE` replays it ([`chosen_cases`]).
//! - [`catalogue`] lists the cases; [`random_case`] makes more, and [`minimise`] shrinks those that
//!   fail; [`named_shapes`] are the shapes of known models, for benchmarks.
//! - [`run_case`] and [`run_cases`] compare any [`Backend`](flashtile_core::Backend) with the
//!   oracle (guarantees 1 and 3) and check that nothing else is written; [`check_repeats`] and
//!   [`check_neighbours`] require the same bits (guarantee 4), as does [`check_agreement`] of two
//!   settings of a backend.
//! - [`Prepared`] runs the oracle once for any number of backends.

mod case;
mod catalogue;
mod check;
mod inputs;
mod random;
mod rng;
mod same_bits;
mod shapes;
mod shrink;
mod tally;
mod text;

pub use case::{Case, KvLens, MaskContent, MaskSpec, Nan, Placement, Poison, Values};
pub use catalogue::catalogue;
pub use check::{Failure, Outcome, Prepared, Worst, Wrong, cannot_plan, run_case};
pub use inputs::Tensors;
pub use random::random_case;
pub use rng::Rng;
pub use same_bits::{check_agreement, check_lengths, check_neighbours, check_repeats};
pub use shapes::named_shapes;
pub use shrink::minimise;
pub use tally::{Tally, chosen_cases, run_cases, run_random};
pub use text::ParseCaseError;

/// Compiles the example in README.md.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
