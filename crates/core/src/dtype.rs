use half::{bf16, f16};
use std::fmt;

/// The storage type of a tensor's elements. Sums are in f32 for every storage type.
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
    pub const ALL: &[DType] = &[DType::F32, DType::F16, DType::BF16];

    /// Bytes per element.
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

    /// The distance from `|x|` to the next larger number of this type; at least the smallest
    /// subnormal.
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
            DType::F32 => {
                f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]).into()
            }
            DType::F16 => f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f64(),
            DType::BF16 => bf16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f64(),
        }
    }

    /// Writes `value`, rounded to nearest even, as element `index` of tightly packed little-endian
    /// `bytes`.
    ///
    /// # Panics
    /// If the element lies beyond `bytes`.
    pub fn write(self, bytes: &mut [u8], index: usize, value: f64) {
        let at = index * self.size();
        match self {
            DType::F32 => bytes[at..at + 4].copy_from_slice(&(value as f32).to_le_bytes()),
            DType::F16 => {
                bytes[at..at + 2].copy_from_slice(&f16::from_f32(round_to_odd(value)).to_le_bytes())
            }
            DType::BF16 => bytes[at..at + 2]
                .copy_from_slice(&bf16::from_f32(round_to_odd(value)).to_le_bytes()),
        }
    }
}

/// `value` as f32, rounded to odd: rounding the result to 16 bits gives the same as rounding
/// `value` once. An inexact result gets an odd last bit, so it is never a tie in the second
/// rounding (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
///
/// The conversions from f64 in `half` cut the low bits off first, so they mistake a value just
/// above a tie for the tie itself.
fn round_to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    if f64::from(nearest) == value || nearest.to_bits() & 1 == 1 || !value.is_finite() {
        return nearest;
    }
    let below = f64::from(nearest).abs() < value.abs();
    f32::from_bits(if below { nearest.to_bits() + 1 } else { nearest.to_bits() - 1 })
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
    fn writing_rounds_once() {
        let written = |dtype: DType, value| {
            let mut bytes = vec![0; dtype.size()];
            dtype.write(&mut bytes, 0, value);
            dtype.read(&bytes, 0)
        };
        let (half, tiny) = (2f64.powi(-11), 2f64.powi(-50));
        assert_eq!(written(DType::F16, 1.0 + half), 1.0);
        assert_eq!(written(DType::F16, 1.0 + half + tiny), 1.0 + 2.0 * half);
        assert_eq!(written(DType::F16, -1.0 - half - tiny), -1.0 - 2.0 * half);
        assert_eq!(written(DType::F16, 1.0 + 3.0 * half - tiny), 1.0 + 2.0 * half);
        let half = 2f64.powi(-8);
        assert_eq!(written(DType::BF16, 1.0 + half), 1.0);
        assert_eq!(written(DType::BF16, 1.0 + half + tiny), 1.0 + 2.0 * half);
        assert_eq!(written(DType::BF16, 1e-60), 0.0);
        assert_eq!(written(DType::F16, 1e300), f64::INFINITY);
        assert_eq!(written(DType::F16, f64::NEG_INFINITY), f64::NEG_INFINITY);
        assert!(written(DType::BF16, f64::NAN).is_nan());
    }

    #[test]
    fn elements_survive_a_round_trip() {
        for &dtype in DType::ALL {
            let mut bytes = vec![0; 3 * dtype.size()];
            dtype.write(&mut bytes, 1, -1.5);
            assert_eq!(
                [dtype.read(&bytes, 0), dtype.read(&bytes, 1), dtype.read(&bytes, 2)],
                [0.0, -1.5, 0.0]
            );
        }
    }
}
