//! What every backend is held to: one catalogue of cases, one way to make their inputs, one error rule.
mod backend;
mod case;
mod catalogue;
mod check;
mod inputs;
mod rng;
mod same_bits;
mod shapes;
mod text;

pub use backend::{Backend, ReferenceBackend};
pub use case::{Case, KvLens, MaskContent, MaskSpec, Nan, Placement, Poison, Values};
pub use catalogue::catalogue;
pub use check::{Failure, Outcome, Prepared, Worst, Wrong, run_case};
pub use inputs::Tensors;
pub use rng::Rng;
pub use same_bits::{check_neighbours, check_repeats};
pub use shapes::named_shapes;
pub use text::ParseCaseError;
