use half::{bf16, f16};
use std::fmt;

/// The storage type of a tensor's elements. Sums are in f32 whatever the storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of an IEEE binary32.
    BF16,
}

impl DType {
    /// Every storage type.
    pub const ALL: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

    /// Bytes an element takes.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::BF16 => 2,
        }
    }

    /// Half an ulp relative to the value (the unit roundoff): 2^-24, 2^-11, 2^-8.
    pub fn unit_roundoff(self) -> f64 {
        match self {
            DType::F32 => 2f64.powi(-24),
            DType::F16 => 2f64.powi(-11),
            DType::BF16 => 2f64.powi(-8),
        }
    }

    /// The smallest positive normal number.
    pub fn min_positive(self) -> f64 {
        match self {
            DType::F32 | DType::BF16 => f32::MIN_POSITIVE.into(),
            DType::F16 => f16::MIN_POSITIVE.to_f64(),
        }
    }

    /// The largest finite number.
    pub fn max(self) -> f64 {
        match self {
            DType::F32 => f32::MAX.into(),
            DType::F16 => f16::MAX.to_f64(),
            DType::BF16 => bf16::MAX.to_f64(),
        }
    }

    /// The distance from `|x|` to the next larger number of this type, at least the smallest subnormal.
    pub fn ulp(self, x: f64) -> f64 {
        let exponent = x.abs().max(self.min_positive()).log2().floor();
        2.0 * self.unit_roundoff() * exponent.exp2()
    }

    /// Reads element `index` of tightly packed little-endian `bytes` as f64 (exact).
    ///
    /// # Panics
    /// If the element lies beyond `bytes`.
    pub fn read(self, bytes: &[u8], index: usize) -> f64 {
        let at = index * self.size();
        match self {
            DType::F32 => f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]).into(),
            DType::F16 => f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f64(),
            DType::BF16 => bf16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f64(),
        }
    }

    /// Writes `value`, rounded to nearest even, as element `index` of tightly packed little-endian `bytes`.
    ///
    /// # Panics
    /// If the element lies beyond `bytes`.
    pub fn write(self, bytes: &mut [u8], index: usize, value: f64) {
        let at = index * self.size();
        match self {
            DType::F32 => bytes[at..at + 4].copy_from_slice(&(value as f32).to_le_bytes()),
            DType::F16 => bytes[at..at + 2].copy_from_slice(&f16::from_f64(value).to_le_bytes()),
            DType::BF16 => bytes[at..at + 2].copy_from_slice(&bf16::from_f64(value).to_le_bytes()),
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::DType;

    #[test]
    fn ulp_is_the_gap_to_the_next_number() {
        assert_eq!(DType::F32.ulp(1.0), f64::from(f32::EPSILON));
        assert_eq!(DType::F32.ulp(-1.99), f64::from(f32::EPSILON));
        assert_eq!(DType::F16.ulp(2.0), 2f64.powi(-9));
        assert_eq!(DType::BF16.ulp(0.75), 2f64.powi(-8));
        assert_eq!(DType::F16.ulp(0.0), 2f64.powi(-24));
    }

    #[test]
    fn elements_survive_a_round_trip() {
        for dtype in DType::ALL {
            let mut bytes = vec![0; 3 * dtype.size()];
            dtype.write(&mut bytes, 1, -1.5);
            assert_eq!([dtype.read(&bytes, 0), dtype.read(&bytes, 1), dtype.read(&bytes, 2)], [0.0, -1.5, 0.0]);
        }
    }
}
