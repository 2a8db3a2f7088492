//! How tensor cores add products: rounded as plain f32 arithmetic would, or truncated as GPUs do.
//!
//! NVIDIA does not document the additions inside a tensor core. Two papers measured them: Fasi,
//! Higham, Mikaitis and Pranesh, "Numerical behavior of NVIDIA tensor cores" (PeerJ Computer
//! Science 7:e330, 2021), on Volta, Turing and Ampere; and Khattak and Mikaitis, "Accurate models
//! of NVIDIA tensor cores" (arXiv:2512.07004, 2025), on Volta, Ampere, Ada, Hopper and Blackwell,
//! with models that agree with the hardware bit by bit. The scheme is the same for all generations,
//! and its parameters differ:
//!
//! - Products are exact. Several of them and the accumulator are added in one step.
//! - Each addend is shifted to the largest exponent among them. Bits shifted out are lost.
//! - The sum is exact, and truncated toward zero to f32.
//!
//! `cpp/sums.hpp` holds the same arithmetic for the kernels' source.

use flashtile_shaders::cuda::Arch;

/// How tensor cores add products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TensorSums {
    /// Every addition rounds to the nearest f32, in pairs, eight products at a time. No GPU does
    /// this; it shows the error of the kernel without the error of the hardware.
    #[default]
    Nearest,
    /// `products` products and the accumulator are aligned to the largest exponent and truncated.
    Truncated {
        /// How many products one step adds: a power of two, at most 16.
        products: u32,
        /// Bits that addends keep below the last bit of an f32 with the largest exponent: at most
        /// 8.
        extra_bits: u32,
    },
}

impl TensorSums {
    /// What was measured on GPUs of compute capability `arch`, for f16 and bf16.
    ///
    /// [`of_tf32`](Self::of_tf32) has the same for TF32.
    ///
    /// Turing (7.5) has no bit-exact model. It gets Volta's parameters, which lose the most.
    pub fn measured(arch: Arch) -> Self {
        let (products, extra_bits) = match arch {
            ..80 => (4, 0),
            80..90 => (8, 1),
            90.. => (16, 2),
        };
        Self::Truncated { products, extra_bits }
    }

    /// The sums of TF32 on the same GPU: steps add half as many products.
    pub fn of_tf32(self) -> Self {
        match self {
            Self::Nearest => Self::Nearest,
            Self::Truncated { products, extra_bits } => {
                Self::Truncated { products: products / 2, extra_bits }
            }
        }
    }

    /// `c` plus the sum of `a[k] b[k]`, in the order of `k`.
    ///
    /// The operands are `wide` (values of bf16 or TF32, which have the exponents of f32), or else
    /// values of f16. Their number is a multiple of 8.
    pub fn add_products(self, c: f32, a: &[f32], b: &[f32], wide: bool) -> f32 {
        match self {
            Self::Nearest => a.chunks(8).zip(b.chunks(8)).fold(c, |c, (a, b)| {
                let p: [f32; 8] = std::array::from_fn(|i| a[i] * b[i]);
                c + (((p[0] + p[1]) + (p[2] + p[3])) + ((p[4] + p[5]) + (p[6] + p[7])))
            }),
            Self::Truncated { products, extra_bits } => {
                let steps = a.chunks(products as usize).zip(b.chunks(products as usize));
                steps.fold(c, |c, (a, b)| add_truncated(c, a, b, wide, extra_bits as i32))
            }
        }
    }
}

/// Bits of an f32 after the binary point.
const FRACTION_BITS: i32 = 23;

/// The smallest exponent of a normal f32, bf16 or TF32.
const MIN_EXPONENT: i32 = -126;

/// The smallest exponent of a normal f16.
const MIN_EXPONENT_F16: i32 = -14;

/// A finite number as `significand * 2^(exponent - FRACTION_BITS)`.
#[derive(Clone, Copy)]
struct Split {
    significand: i64,
    exponent: i32,
}

/// Splits a finite number. Subnormal numbers of its type have the type's smallest exponent.
fn split(x: f32, min_exponent: i32) -> Split {
    if x == 0.0 {
        return Split { significand: 0, exponent: min_exponent };
    }
    let bits = x.to_bits();
    let biased = (bits >> FRACTION_BITS & 0xFF) as i32;
    let fraction = i64::from(bits & 0x007F_FFFF);
    let magnitude = if biased == 0 { fraction } else { fraction | 1 << FRACTION_BITS };
    let normal = biased.max(1) - 127;
    let exponent = normal.max(min_exponent);
    // Exact: the bits that a subnormal number of 16 bits lacks are zero.
    let magnitude = magnitude >> (exponent - normal);
    Split { significand: if x.is_sign_negative() { -magnitude } else { magnitude }, exponent }
}

/// Shifts toward zero, by any number of bits.
fn shift_right(x: i64, by: i32) -> i64 {
    let magnitude = match by {
        ..0 => x.abs() << -by,
        0..64 => x.abs() >> by,
        64.. => 0,
    };
    if x < 0 { -magnitude } else { magnitude }
}

/// One step: the products of all of `a` and `b`, and `c`.
fn add_truncated(c: f32, a: &[f32], b: &[f32], wide: bool, extra_bits: i32) -> f32 {
    if !c.is_finite() || a.iter().chain(b).any(|x| !x.is_finite()) {
        let products = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b));
        return products.fold(f64::from(c), |sum, product| sum + product) as f32;
    }
    let min_exponent = if wide { MIN_EXPONENT } else { MIN_EXPONENT_F16 };
    let mut addends = [Split { significand: 0, exponent: 0 }; 16];
    for (addend, (&a, &b)) in addends.iter_mut().zip(a.iter().zip(b)) {
        let (a, b) = (split(a, min_exponent), split(b, min_exponent));
        // Aligned by the sum of the exponents: a product is not normalised first.
        addend.significand = a.significand * b.significand;
        addend.exponent = a.exponent + b.exponent;
    }
    let c = split(c, MIN_EXPONENT);
    let nonzero = addends.iter().chain([&c]).filter(|addend| addend.significand != 0);
    let Some(largest) = nonzero.map(|addend| addend.exponent).max() else { return 0.0 };
    // The last bit that addends keep is worth 2^unit. A product has twice the fraction bits.
    let unit = largest - FRACTION_BITS - extra_bits;
    let kept = |addend: &Split, fraction_bits: i32| {
        shift_right(addend.significand, unit - (addend.exponent - fraction_bits))
    };
    let products: i64 = addends.iter().map(|addend| kept(addend, 2 * FRACTION_BITS)).sum();
    truncate(products + kept(&c, FRACTION_BITS), unit)
}

/// `sum * 2^unit` as f32, truncated toward zero; beyond the range of f32, infinity.
fn truncate(sum: i64, unit: i32) -> f32 {
    if sum == 0 {
        return 0.0;
    }
    let exponent = 63 - sum.unsigned_abs().leading_zeros() as i32 + unit;
    if exponent > 127 {
        return if sum < 0 { f32::NEG_INFINITY } else { f32::INFINITY };
    }
    let last = exponent.max(MIN_EXPONENT) - FRACTION_BITS;
    let (kept, unit) =
        if last > unit { (shift_right(sum, last - unit), last) } else { (sum, unit) };
    // Exact: at most 24 bits, whose last one an f32 can hold.
    (kept as f64 * f64::from_bits(((unit + 1023) as u64) << 52)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLTA: TensorSums = TensorSums::Truncated { products: 4, extra_bits: 0 };
    const AMPERE: TensorSums = TensorSums::Truncated { products: 8, extra_bits: 1 };
    const HOPPER: TensorSums = TensorSums::Truncated { products: 16, extra_bits: 2 };

    fn power(n: i32) -> f32 {
        f64::from(n).exp2() as f32
    }

    /// `c` plus sixteen products, of which the first ones are given and the others are 0.
    fn sum(sums: TensorSums, c: f32, products: &[(f32, f32)]) -> f32 {
        let (mut a, mut b) = ([0.0; 16], [0.0; 16]);
        for (k, &(x, y)) in products.iter().enumerate() {
            (a[k], b[k]) = (x, y);
        }
        sums.add_products(c, &a, &b, false)
    }

    #[test]
    fn each_generation_has_its_parameters() {
        assert_eq!([75, 80, 89].map(TensorSums::measured), [VOLTA, AMPERE, AMPERE]);
        assert_eq!([90, 100, 120].map(TensorSums::measured), [HOPPER; 3]);
        let half = TensorSums::Truncated { products: 4, extra_bits: 1 };
        assert_eq!((AMPERE.of_tf32(), TensorSums::Nearest.of_tf32()), (half, TensorSums::Nearest));
    }

    #[test]
    fn bits_below_the_largest_addend_are_lost() {
        // 2^-24 is half a unit in the last place of 1. Four of them are two units.
        let small = [(power(-12), power(-12)); 4];
        assert_eq!(sum(VOLTA, 1.0, &small), 1.0);
        assert_eq!(sum(AMPERE, 1.0, &small), 1.0 + power(-22));
        assert_eq!(sum(TensorSums::Nearest, 1.0, &small), 1.0 + power(-22));
        // A quarter of a unit needs two extra bits.
        let smaller = [(power(-12), power(-13)); 4];
        assert_eq!([VOLTA, AMPERE].map(|sums| sum(sums, 1.0, &smaller)), [1.0; 2]);
        assert_eq!(sum(HOPPER, 1.0, &smaller), 1.0 + power(-23));
        // Alone they are exact.
        assert_eq!(sum(VOLTA, 0.0, &smaller), power(-23));
    }

    #[test]
    fn sums_are_truncated_toward_zero() {
        for sums in [VOLTA, AMPERE, HOPPER] {
            // 1.75 units round to 2 and are truncated to 1.
            let products = [(power(-12), 1.75 * power(-11))];
            assert_eq!(sum(sums, 1.0, &products), 1.0 + power(-23));
            let products = [(power(-12), -1.75 * power(-11))];
            assert_eq!(sum(sums, -1.0, &products), -1.0 - power(-23));
        }
        // The carry makes the last place worth twice as much: 3 units become 1.5.
        let (c, ones) = (1.0 + 3.0 * power(-23), [(1.0, 1.0)]);
        assert_eq!(sum(HOPPER, c, &ones), 2.0 + power(-22));
        assert_eq!(sum(TensorSums::Nearest, c, &ones), 2.0 + power(-21));
        // An addend that is not aligned exactly shrinks, whatever its sign.
        assert_eq!(sum(VOLTA, 1.0, &[(power(-12), -power(-12))]), 1.0);
        assert_eq!(sum(AMPERE, 1.0, &[(power(-12), -power(-12))]), 1.0 - power(-24));
    }

    #[test]
    fn a_step_ends_where_its_products_end() {
        // 1 + 2^-24 - 1: exact within one step that keeps 2^-24, and 1 - 1 otherwise.
        let products = [(power(-12), power(-12)), (-1.0, 1.0), (0.0, 0.0), (0.0, 0.0)];
        let apart = [&products[..1], &[(0.0, 0.0); 8], &products[1..2]].concat();
        for (sums, together, across) in
            [(VOLTA, 0.0, 0.0), (AMPERE, power(-24), 0.0), (HOPPER, power(-24), power(-24))]
        {
            assert_eq!(sum(sums, 1.0, &products), together, "{sums:?}");
            assert_eq!(sum(sums, 1.0, &apart), across, "{sums:?}");
        }
    }

    #[test]
    fn subnormal_and_special_numbers() {
        let tiny = power(-24); // the smallest f16
        assert_eq!(sum(VOLTA, 0.0, &[(tiny, tiny)]), power(-48));
        assert_eq!(
            HOPPER.add_products(0.0, &[power(-80); 16], &[power(-69); 16], true),
            power(-145)
        );
        assert_eq!(
            HOPPER.add_products(0.0, &[power(-80); 16], &[power(-73); 16], true),
            power(-149)
        );
        assert_eq!(HOPPER.add_products(0.0, &[power(-80); 16], &[power(-74); 16], true), 0.0);
        assert_eq!(
            HOPPER.add_products(0.0, &[power(100); 16], &[power(24); 16], true),
            f32::INFINITY
        );
        assert_eq!(HOPPER.add_products(0.0, &[power(100); 16], &[power(23); 16], true), power(127));
        assert_eq!(sum(HOPPER, f32::NEG_INFINITY, &[(1.0, 1.0)]), f32::NEG_INFINITY);
        assert!(sum(HOPPER, f32::NEG_INFINITY, &[(f32::INFINITY, 1.0)]).is_nan());
        assert!(sum(HOPPER, 0.0, &[(f32::INFINITY, 0.0)]).is_nan());
        assert_eq!(sum(VOLTA, 1.0, &[(-1.0, 1.0)]).to_bits(), 0);
    }
}
