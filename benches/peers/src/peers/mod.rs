//! The kernels that are compared.

mod adapter;
#[cfg(feature = "peers")]
mod burn;
#[cfg(feature = "peers")]
mod cubek;
mod flashtile;

use crate::case::Inputs;
use anyhow::Result;
use clap::ValueEnum;
use std::fmt;

/// Who takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// This repository's kernels through wgpu, as a plan chooses them
    Flashtile,
    /// burn's attention, as its autotuner chooses
    Burn,
    /// cubek-attention's flash kernel without matrix units
    CubekUnit,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Flashtile, Self::Burn, Self::CubekUnit];

    /// Opens flashtile's default adapter for this peer. Returns the adapter's name too.
    ///
    /// # Errors
    /// If there is no adapter, or if the peer refuses it.
    pub(crate) fn open(self) -> Result<(String, Box<dyn Peer>)> {
        match self {
            Self::Flashtile => flashtile::open(),
            #[cfg(feature = "peers")]
            Self::Burn => burn::open(),
            #[cfg(feature = "peers")]
            Self::CubekUnit => cubek::open(),
            #[cfg(not(feature = "peers"))]
            Self::Burn | Self::CubekUnit => {
                anyhow::bail!("{self} is not compiled in: enable the feature `peers`")
            }
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flashtile => "flashtile",
            Self::Burn => "burn",
            Self::CubekUnit => "cubek-unit",
        })
    }
}

/// A library with an open device.
pub(crate) trait Peer {
    /// Uploads, plans, compiles, runs, and reads the first result back.
    fn prepare(&self, inputs: &Inputs) -> Result<Box<dyn Prepared>>;
}

/// A case whose tensors are on the device.
pub(crate) trait Prepared {
    /// Enqueues `times` runs, and waits for the last.
    fn run(&mut self, times: usize) -> Result<()>;

    /// The output of the last run, densely packed in the order (B, H, S, D).
    fn output(&mut self) -> Result<Vec<f32>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_arguments() {
        for kind in Kind::ALL {
            let value = kind.to_possible_value().expect("no peer is hidden");
            assert_eq!(value.get_name(), kind.to_string());
        }
    }
}
