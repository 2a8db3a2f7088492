//! What is measured, and with which inputs.

use anyhow::{Context as _, Error, Result, anyhow, bail};
use flashtile::{Layout, Problem};
use flashtile_testkit::Placement;
use std::{fmt, str::FromStr};

/// Self-attention of dense (B, H, S, D) tensors in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    /// (B, H, S, D).
    pub(crate) shape: [usize; 4],
    pub(crate) causal: bool,
}

/// The case of `--quick`.
pub(crate) const QUICK: Case = Case { shape: [1, 4, 512, 64], causal: true };

/// The shapes of a whole run, each causal and not. The oracle computes every row of them, so they
/// are small.
const SHAPES: [[usize; 4]; 5] =
    [[1, 4, 512, 64], [1, 4, 1024, 64], [1, 8, 1024, 64], [1, 4, 2048, 64], [1, 4, 1024, 128]];

/// The cases of a whole run.
pub(crate) fn all() -> Vec<Case> {
    SHAPES.iter().flat_map(|&shape| [true, false].map(|causal| Case { shape, causal })).collect()
}

impl Case {
    /// `BxHxSxD`.
    pub(crate) fn name(&self) -> String {
        self.shape.map(|n| n.to_string()).join("x")
    }
}

/// `BxHxSxD[,causal]`, as [`FromStr`] reads it.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.name(), if self.causal { ",causal" } else { "" })
    }
}

impl FromStr for Case {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (sizes, causal) = match text.split_once(',') {
            None => (text, false),
            Some((sizes, "causal")) => (sizes, true),
            Some(_) => bail!("expected BxHxSxD[,causal], but got `{text}`"),
        };
        let sizes = sizes.split('x').map(str::parse).collect::<Result<Vec<usize>, _>>();
        let shape = sizes.ok().and_then(|sizes| <[usize; 4]>::try_from(sizes).ok());
        let shape = shape.filter(|shape| !shape.contains(&0));
        let shape = shape.ok_or_else(|| {
            anyhow!("expected BxHxSxD[,causal] such as 1x8x1024x64, got `{text}`")
        })?;
        Ok(Self { shape, causal })
    }
}

/// q, k and v of a case, densely packed in the order (B, H, S, D).
pub(crate) struct Inputs {
    pub(crate) case: Case,
    pub(crate) problem: Problem,
    pub(crate) q: Vec<f32>,
    pub(crate) k: Vec<f32>,
    pub(crate) v: Vec<f32>,
}

impl Inputs {
    /// Numbers of the normal distribution: the same in every process.
    pub(crate) fn new(case: Case) -> Result<Self> {
        let dense = Placement::Layout(Layout::Bhsd);
        let described = flashtile_testkit::Case {
            q: dense,
            k: dense,
            v: dense,
            out: dense,
            causal: case.causal,
            lse: false,
            ..flashtile_testkit::Case::new(case.shape)
        };
        let tensors = described.build().with_context(|| format!("{case} is no valid case"))?;
        let len = case.shape.iter().product();
        // The testkit's buffers are longer than their tensors.
        let [q, k, v] = [&tensors.q, &tensors.k, &tensors.v].map(|bytes| {
            let mut numbers = numbers(bytes);
            numbers.truncate(len);
            numbers
        });
        Ok(Self { case, problem: tensors.problem, q, k, v })
    }
}

/// The f32 numbers in `bytes`. What is left over at the end is dropped.
pub(crate) fn numbers(bytes: &[u8]) -> Vec<f32> {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|word| f32::from_le_bytes(*word)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_read_from_text() {
        for case in all() {
            assert_eq!(case.to_string().parse::<Case>().expect("a case"), case);
        }
        assert!(all().contains(&QUICK));
        for wrong in ["", "1x2x3", "1x2x3x4x5", "1x2x3x4,casual", "1x2x0x4", "1x2x3x-4"] {
            assert!(wrong.parse::<Case>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn inputs_have_the_size_of_the_case() {
        let inputs = Inputs::new(Case { shape: [1, 2, 5, 3], causal: true }).expect("valid");
        for tensor in [&inputs.q, &inputs.k, &inputs.v] {
            assert_eq!(tensor.len(), 30);
            assert!(tensor.iter().all(|number| number.is_finite()));
        }
        assert!(inputs.q != inputs.k && inputs.k != inputs.v);
    }
}
