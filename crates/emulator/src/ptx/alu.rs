//! What instructions compute, on bits. In registers, the bits above a type's width are zero.

use super::instruction::{Comparison, Function, MatrixType, Type};
use half::{bf16, f16};

fn float(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn bits(x: f32) -> u64 {
    x.to_bits().into()
}

/// The value of bits of an integer type.
fn number(of: Type, bits: u64) -> i128 {
    match of {
        Type::S8 => (bits as i8).into(),
        Type::S16 => (bits as i16).into(),
        Type::S32 => (bits as i32).into(),
        Type::S64 => (bits as i64).into(),
        Type::Pred | Type::U8 => (bits as u8).into(),
        Type::U16 | Type::F16 => (bits as u16).into(),
        Type::U32 | Type::F32 => (bits as u32).into(),
        Type::U64 => bits.into(),
    }
}

/// A number, reduced to the bits of a type.
pub(super) fn wrap(of: Type, number: i128) -> u64 {
    let bits = number as u64;
    match of.bytes() {
        8 => bits,
        bytes => bits & ((1 << (8 * bytes)) - 1),
    }
}

/// The result of a function. `None` if the type does not have this function, or for a division by
/// 0.
pub(super) fn compute(function: Function, of: Type, from: [u64; 3]) -> Option<u64> {
    if function == Function::Move {
        // PTX may write true, and numbers narrower than their register, as -1.
        return Some(if of == Type::Pred {
            (from[0] != 0).into()
        } else {
            wrap(of, from[0].into())
        });
    }
    match of {
        Type::F32 => compute_float(function, from.map(float)).map(bits),
        // No kernel computes in 16 bits.
        Type::F16 => None,
        _ => compute_integer(function, of, from),
    }
}

fn compute_float(function: Function, [a, b, c]: [f32; 3]) -> Option<f32> {
    Some(match function {
        Function::Abs => a.abs(),
        Function::Neg => -a,
        Function::Exp2 => {
            let x = f64::from(a).exp2() as f32;
            if x.is_subnormal() { 0.0 } else { x }
        }
        Function::Add => a + b,
        Function::Sub => a - b,
        Function::Mul => a * b,
        Function::Div => a / b,
        // Of a number and NaN, the number.
        Function::Min => a.min(b),
        Function::Max => a.max(b),
        Function::MulAdd => a.mul_add(b, c),
        _ => return None,
    })
}

fn compute_integer(function: Function, of: Type, from: [u64; 3]) -> Option<u64> {
    let [a, b, c] = from.map(|bits| number(of, bits));
    let width = 8 * of.bytes();
    // Shift amounts have 32 bits. A shift by the width or more removes all bits.
    let by = (from[1] as u32).min(width);
    Some(wrap(
        of,
        match function {
            Function::Abs => a.abs(),
            Function::Neg => -a,
            Function::Not if of == Type::Pred => 1 - a,
            Function::Not => !a,
            Function::Add => a + b,
            Function::Sub => a - b,
            Function::Mul => a.wrapping_mul(b),
            Function::MulHigh => a.wrapping_mul(b) >> width,
            Function::MulWide => {
                let wide = match of {
                    Type::U16 => Type::U32,
                    Type::S16 => Type::S32,
                    Type::U32 => Type::U64,
                    Type::S32 => Type::S64,
                    _ => return None,
                };
                return Some(wrap(wide, a * b));
            }
            // Divisions by 0 have no defined result on a GPU either.
            Function::Div => a.checked_div(b)?,
            Function::Rem => a.checked_rem(b)?,
            Function::Min => a.min(b),
            Function::Max => a.max(b),
            Function::And => a & b,
            Function::Or => a | b,
            Function::Xor => a ^ b,
            Function::ShiftLeft => a << by,
            Function::ShiftRight => a >> by,
            Function::MulAdd => a.wrapping_mul(b).wrapping_add(c),
            Function::ExtractBits if matches!(of, Type::U32) => {
                let (place, count) = (from[1] as u32 & 0xFF, from[2] as u32 & 0xFF);
                (a >> place.min(32)) & ((1_i128 << count.min(32)) - 1)
            }
            _ => return None,
        },
    ))
}

/// `b`, with its `count` bits from `place` on replaced by the lower bits of `a`.
pub(super) fn insert_bits(a: u64, b: u64, place: u64, count: u64) -> u64 {
    let (place, count) = ((place & 0xFF).min(32), (count & 0xFF).min(32));
    let mask = (((1_u64 << count) - 1) << place) & 0xFFFF_FFFF;
    (b & !mask) | ((a << place) & mask)
}

pub(super) fn compare(
    comparison: Comparison,
    or_unordered: bool,
    of: Type,
    a: u64,
    b: u64,
) -> bool {
    let order = if of == Type::F32 {
        float(a).partial_cmp(&float(b))
    } else {
        Some(number(of, a).cmp(&number(of, b)))
    };
    let Some(order) = order else { return or_unordered };
    match comparison {
        Comparison::Equal => order.is_eq(),
        Comparison::NotEqual => order.is_ne(),
        Comparison::Less => order.is_lt(),
        Comparison::LessEqual => order.is_le(),
        Comparison::Greater => order.is_gt(),
        Comparison::GreaterEqual => order.is_ge(),
    }
}

/// `None` for conversions that the interpreter does not support.
pub(super) fn convert(to: Type, from: Type, x: u64) -> Option<u64> {
    Some(match (to, from) {
        (Type::F16, Type::F32) => f16::from_f32(float(x)).to_bits().into(),
        (Type::F32, Type::F16) => bits(f16::from_bits(x as u16).to_f32()),
        (Type::F32, Type::S32) => bits(x as u32 as i32 as f32),
        (Type::F32, Type::U32) => bits(x as u32 as f32),
        (Type::F16 | Type::F32, _) | (_, Type::F16 | Type::F32) => return None,
        (to, from) => wrap(to, number(from, x)),
    })
}

/// Two floats, rounded to 16 bits, in one word.
pub(super) fn convert_pair(to_bf16: bool, high: u64, low: u64) -> u64 {
    let half = |x: u64| -> u64 {
        let bits = if to_bf16 {
            bf16::from_f32(float(x)).to_bits()
        } else {
            f16::from_f32(float(x)).to_bits()
        };
        bits.into()
    };
    half(high) << 16 | half(low)
}

/// The numbers in a register of a matrix, the one in the low half first. TF32 has one of them.
pub(super) fn matrix_values(of: MatrixType, bits: u32) -> Result<[f32; 2], String> {
    let halves = [bits as u16, (bits >> 16) as u16];
    match of {
        MatrixType::F16 => Ok(halves.map(|half| f16::from_bits(half).to_f32())),
        MatrixType::BF16 => Ok(halves.map(|half| bf16::from_bits(half).to_f32())),
        // What a tensor core makes of the last 13 bits of an f32 is not defined.
        MatrixType::Tf32 if bits & 0x1FFF != 0 => {
            Err(format!("{bits:#010x} is not a number of TF32"))
        }
        MatrixType::Tf32 => Ok([f32::from_bits(bits), 0.0]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_wrap_and_keep_their_signs() {
        let of = |function, of, a: i64, b: i64| {
            compute(function, of, [wrap(of, a.into()), wrap(of, b.into()), 0])
        };
        assert_eq!(of(Function::Add, Type::U32, 0xFFFF_FFFF, 2), Some(1));
        assert_eq!(of(Function::ShiftRight, Type::S32, -8, 1), Some(0xFFFF_FFFC));
        assert_eq!(of(Function::ShiftRight, Type::U32, -8, 40), Some(0));
        assert_eq!(of(Function::ShiftLeft, Type::U32, 3, 32), Some(0));
        assert_eq!(of(Function::MulHigh, Type::U32, 0x8000_0000, 6), Some(3));
        assert_eq!(of(Function::MulWide, Type::U32, 0x8000_0000, 6), Some(0x3_0000_0000));
        assert_eq!(of(Function::MulWide, Type::U16, -1, 2), Some(0x1_FFFE));
        assert_eq!(of(Function::MulWide, Type::S16, -1, 2), Some(0xFFFF_FFFE));
        assert_eq!(of(Function::Mul, Type::S64, -3, 5), Some(-15_i64 as u64));
        assert_eq!(of(Function::Min, Type::S32, -1, 1), Some(0xFFFF_FFFF));
        assert_eq!(of(Function::Min, Type::U32, -1, 1), Some(1));
        assert_eq!(of(Function::Div, Type::U32, 1, 0), None);
        assert_eq!(compute(Function::ExtractBits, Type::U32, [0xABCD, 4, 8]), Some(0xBC));
        assert_eq!(insert_bits(0b101, 0xFFFF_FFFF, 3, 3), 0xFFFF_FFEF);
        assert_eq!(convert(Type::S32, Type::S8, 0x1FF), Some(0xFFFF_FFFF));
        assert_eq!(compute(Function::Move, Type::Pred, [u64::MAX, 0, 0]), Some(1));
        assert_eq!(compute(Function::Not, Type::Pred, [1, 0, 0]), Some(0));
    }

    #[test]
    fn floats_handle_nan_and_underflow() {
        let of = |function, a: f32, b: f32| {
            float(compute(function, Type::F32, [bits(a), bits(b), 0]).unwrap_or(7))
        };
        assert_eq!(of(Function::Max, f32::NAN, 2.0), 2.0);
        assert_eq!(
            (of(Function::Exp2, -126.0, 0.0), of(Function::Exp2, -127.0, 0.0)),
            (f32::MIN_POSITIVE, 0.0)
        );
        for (comparison, or_unordered, expected) in [
            (Comparison::Less, false, false),
            (Comparison::GreaterEqual, true, true),
            (Comparison::NotEqual, false, false),
        ] {
            assert_eq!(
                compare(comparison, or_unordered, Type::F32, bits(f32::NAN), bits(1.0)),
                expected
            );
        }
        assert_eq!(convert_pair(false, bits(1.0), bits(-2.0)), 0x3C00_C000);
        assert_eq!(convert_pair(true, bits(1.0), bits(-2.0)), 0x3F80_C000);
    }
}
