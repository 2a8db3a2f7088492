//! The parts of a parsed kernel.

/// A register: its index among all registers of the kernel, of any type.
pub(super) type Reg = u32;

/// How an instruction interprets bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Pred,
    U8,
    S8,
    U16,
    S16,
    U32,
    S32,
    U64,
    S64,
    F16,
    F32,
}

impl Type {
    /// Untyped bits (`.b32`) count as unsigned.
    pub(super) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "pred" => Self::Pred,
            "u8" | "b8" => Self::U8,
            "s8" => Self::S8,
            "u16" | "b16" => Self::U16,
            "s16" => Self::S16,
            "u32" | "b32" => Self::U32,
            "s32" => Self::S32,
            "u64" | "b64" => Self::U64,
            "s64" => Self::S64,
            "f16" => Self::F16,
            "f32" => Self::F32,
            _ => return None,
        })
    }

    pub(super) fn bytes(self) -> u32 {
        match self {
            Self::Pred | Self::U8 | Self::S8 => 1,
            Self::U16 | Self::S16 | Self::F16 => 2,
            Self::U32 | Self::S32 | Self::F32 => 4,
            Self::U64 | Self::S64 => 8,
        }
    }
}

/// An input of an instruction.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operand {
    Reg(Reg),
    /// The bits of a constant, or the address of a symbol in its memory space.
    Bits(u64),
    ThreadX,
    ThreadY,
    Block,
}

/// A memory address: a register or a symbol, plus an offset in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address {
    pub(super) base: Operand,
    pub(super) offset: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Space {
    Param,
    Global,
    Shared,
}

/// Functions of one, two or three inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    Move,
    Abs,
    Neg,
    Not,
    /// 2^x; 0 if the result would be subnormal.
    Exp2,
    Add,
    Sub,
    /// The lower half of a product.
    Mul,
    MulHigh,
    /// The full product, twice as wide as the inputs.
    MulWide,
    Div,
    Rem,
    Min,
    Max,
    And,
    Or,
    Xor,
    ShiftLeft,
    ShiftRight,
    MulAdd,
    /// The c bits of a from bit b on.
    ExtractBits,
}

/// The type of matrices that tensor cores multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MatrixType {
    F16,
    BF16,
    Tf32,
}

impl MatrixType {
    pub(super) fn parse(name: &str) -> Option<Self> {
        match name {
            "f16" => Some(Self::F16),
            "bf16" => Some(Self::BF16),
            "tf32" => Some(Self::Tf32),
            _ => None,
        }
    }

    /// The numbers in a register.
    pub(super) fn per_register(self) -> usize {
        match self {
            Self::F16 | Self::BF16 => 2,
            Self::Tf32 => 1,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

#[derive(Clone, Debug)]
pub(super) enum Operation {
    Compute {
        function: Function,
        of: Type,
        to: Reg,
        from: [Operand; 3],
    },
    /// Inserts the lower `bits[1]` bits of `from[0]` into `from[1]` at bit `bits[0]`.
    InsertBits {
        to: Reg,
        from: [Operand; 2],
        bits: [Operand; 2],
    },
    Convert {
        to_type: Type,
        from_type: Type,
        to: Reg,
        from: Operand,
    },
    /// Rounds two numbers to 16 bits each and packs them; the first one becomes the upper half.
    ConvertPair {
        bf16: bool,
        to: Reg,
        from: [Operand; 2],
    },
    /// With `or_unordered`, the result is true if an input is NaN.
    Compare {
        comparison: Comparison,
        or_unordered: bool,
        of: Type,
        to: Reg,
        from: [Operand; 2],
    },
    Select {
        to: Reg,
        from: [Operand; 2],
        by: Operand,
    },
    /// Packs two words of 16 bits into 32, or two of 32 into 64; the first one becomes the lower
    /// half.
    Pack {
        half: Type,
        to: Reg,
        from: [Operand; 2],
    },
    Unpack {
        half: Type,
        to: [Reg; 2],
        from: Operand,
    },
    Load {
        space: Space,
        of: Type,
        to: Vec<Reg>,
        from: Address,
    },
    Store {
        space: Space,
        of: Type,
        to: Address,
        from: Vec<Operand>,
    },
    Branch {
        to: u32,
    },
    Return,
    /// `any`: the register that receives whether any thread's input was true, and that input.
    Barrier {
        any: Option<(Reg, Operand)>,
    },
    WarpBarrier,
    /// Reads from lane number `lane`; with `by_xor`, from the lane whose number differs in these
    /// bits.
    Shuffle {
        by_xor: bool,
        to: Reg,
        /// Receives whether that lane exists. It always does in these kernels.
        found: Option<Reg>,
        from: Operand,
        lane: Operand,
    },
    Any {
        to: Reg,
        from: Operand,
    },
    CopyAsync {
        size: u32,
        to: Address,
        from: Address,
        bytes: Operand,
    },
    CopyCommit,
    CopyWait {
        latest: u32,
    },
    LoadMatrix {
        transposed: bool,
        to: [Reg; 4],
        from: Address,
    },
    /// `a` has two registers if `depth` is 8 and four if it is 16, or for TF32; `b` has half as
    /// many.
    MultiplyAdd {
        depth: u32,
        of: MatrixType,
        to: [Reg; 4],
        a: Vec<Operand>,
        b: Vec<Operand>,
        c: [Operand; 4],
    },
}

impl Operation {
    /// Whether all lanes of a warp execute it together.
    pub(super) fn is_collective(&self) -> bool {
        use Operation::{Any, Barrier, LoadMatrix, MultiplyAdd, Shuffle, WarpBarrier};
        matches!(
            self,
            Barrier { .. }
                | WarpBarrier
                | Shuffle { .. }
                | Any { .. }
                | LoadMatrix { .. }
                | MultiplyAdd { .. }
        )
    }

    /// Where each lane accesses shared memory, and how many bytes.
    pub(super) fn shared_access(&self) -> Option<(Address, u32)> {
        match self {
            Self::Load { space: Space::Shared, of, to, from } => {
                Some((*from, of.bytes() * to.len() as u32))
            }
            Self::Store { space: Space::Shared, of, to, from } => {
                Some((*to, of.bytes() * from.len() as u32))
            }
            Self::CopyAsync { size, to, .. } => Some((*to, *size)),
            Self::LoadMatrix { from, .. } => Some((*from, 16)),
            Self::Load { space: Space::Param | Space::Global, .. }
            | Self::Store { space: Space::Param | Space::Global, .. }
            | Self::Compute { .. }
            | Self::InsertBits { .. }
            | Self::Convert { .. }
            | Self::ConvertPair { .. }
            | Self::Compare { .. }
            | Self::Select { .. }
            | Self::Pack { .. }
            | Self::Unpack { .. }
            | Self::Branch { .. }
            | Self::Return
            | Self::Barrier { .. }
            | Self::WarpBarrier
            | Self::Shuffle { .. }
            | Self::Any { .. }
            | Self::CopyCommit
            | Self::CopyWait { .. }
            | Self::MultiplyAdd { .. } => None,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Instruction {
    /// Executed only if this register is true, or only if it is false.
    pub(super) guard: Option<(Reg, bool)>,
    pub(super) operation: Operation,
    /// Line number in the PTX, counted from 1.
    pub(super) line: u32,
}

/// A kernel with its labels resolved.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) instructions: Vec<Instruction>,
    pub(super) registers: u32,
    pub(super) param_bytes: u32,
}
