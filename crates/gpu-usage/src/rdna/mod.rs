//! Counts what the hot loops of an RDNA kernel do, in the listing that RADV's compiler prints.

mod count;
mod flow;
mod listing;
mod model;
mod roof;

pub use count::Counts;
pub use model::{Generation, HotLoop, hot_loops};
pub use roof::Roof;
