//! The tensors of a case.

use super::cases::Case;
use flashtile::HostArgs;

/// Elements after which a tensor repeats: generating all of a large one takes longer than
/// measuring. A prime, so that rows and heads differ.
const PERIOD: usize = 1_000_003;

/// q, k and v of a case in host memory, densely packed (B, H, S, D).
pub(crate) struct Inputs {
    pub(crate) q: Vec<u8>,
    pub(crate) k: Vec<u8>,
    pub(crate) v: Vec<u8>,
}

impl Inputs {
    /// Numbers spread evenly over -1..1, which give scores of a usual size. They are the same in
    /// every run.
    pub(crate) fn new(case: &Case) -> Self {
        let ([q_len, kv_len], dtype) = (case.shape.elements(), case.dtype);
        let size = dtype.size();
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut fill = |len: usize| {
            let mut bytes = vec![0; len * size];
            for index in 0..len.min(PERIOD) {
                // xorshift64 (Marsaglia 2003).
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let number = (state >> 40) as f64 / f64::from(1 << 23) - 1.0;
                dtype.write(&mut bytes, index, number);
            }
            let mut filled = PERIOD * size;
            while filled < bytes.len() {
                let more = filled.min(bytes.len() - filled);
                bytes.copy_within(..more, filled);
                filled += more;
            }
            bytes
        };
        Self { q: fill(q_len), k: fill(kv_len), v: fill(kv_len) }
    }

    /// The arguments of a call that writes to `out`.
    pub(crate) fn args<'a>(&'a self, out: &'a mut [u8]) -> HostArgs<'a> {
        HostArgs::new(&self.q, &self.k, &self.v, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Shape;
    use flashtile::DType;

    #[test]
    fn tensors_repeat_and_differ() {
        let case = Case::new(Shape::of_self([1, 3, 700_001, 1]), DType::F16, false);
        let Inputs { q, k, v } = Inputs::new(&case);
        assert_eq!((q.len(), k.len(), v.len()), (4_200_006, 4_200_006, 4_200_006));
        assert!(q != k && k != v);
        assert_eq!(q[..2 * 1_000], q[2 * PERIOD..2 * (PERIOD + 1_000)]);
        assert_eq!(q[..100_000], q[4 * PERIOD..4 * PERIOD + 100_000]);
        assert_ne!(q[..2 * 700_001], q[2 * 700_001..4 * 700_001]);
    }
}
