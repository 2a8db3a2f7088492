//! What a parsed kernel is made of.

/// A register: its place among all registers of the kernel, whatever their types.
pub(super) type Reg = u32;

/// How bits are read.
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
    /// `.b32` and the like are read as unsigned.
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

/// What an instruction reads.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operand {
    Reg(Reg),
    /// A number as bits, or the address of a symbol in its own space.
    Bits(u64),
    ThreadX,
    ThreadY,
    Block,
}

/// A place in memory: a register or a symbol, and bytes behind it.
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

/// Functions of one, two or three values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    Move,
    Abs,
    Neg,
    Not,
    /// 2^x, to 0 where the result would be subnormal.
    Exp2,
    Add,
    Sub,
    /// The lower half of a product.
    Mul,
    MulHigh,
    /// Twice as wide as its operands.
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
    /// Bits from place b on, c of them.
    ExtractBits,
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
    /// Inserts the `bits[1]` lower bits of `from[0]` into `from[1]` at place `bits[0]`.
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
    /// Two numbers rounded to 16 bits each, the first one high.
    ConvertPair {
        bf16: bool,
        to: Reg,
        from: [Operand; 2],
    },
    /// `or_unordered`: true where an operand is NaN.
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
    /// Two words of 16 bits to one of 32, or of 32 to one of 64; the first one low.
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
    /// `any`: the register that receives whether any thread's operand was true.
    Barrier {
        any: Option<(Reg, Operand)>,
    },
    /// `by_xor`: from the lane whose number differs in these bits; else from the lane of this number.
    Shuffle {
        by_xor: bool,
        to: Reg,
        /// Receives that there is such a lane: kernels ask for no other.
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
    /// `a` holds two registers where `depth` is 8, and four where it is 16; `b` half as many.
    MultiplyAdd {
        depth: u32,
        bf16: bool,
        to: [Reg; 4],
        a: Vec<Operand>,
        b: Vec<Operand>,
        c: [Operand; 4],
    },
}

impl Operation {
    /// Whether all lanes of a warp do it at once.
    pub(super) fn is_collective(&self) -> bool {
        use Operation::{Any, Barrier, LoadMatrix, MultiplyAdd, Shuffle};
        matches!(
            self,
            Barrier { .. } | Shuffle { .. } | Any { .. } | LoadMatrix { .. } | MultiplyAdd { .. }
        )
    }
}

#[derive(Clone, Debug)]
pub(super) struct Instruction {
    /// Done where this register is true, or false.
    pub(super) guard: Option<(Reg, bool)>,
    pub(super) operation: Operation,
    /// Of the text, from 1 on.
    pub(super) line: u32,
}

/// A kernel, its labels resolved.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) instructions: Vec<Instruction>,
    pub(super) registers: u32,
    pub(super) param_bytes: u32,
}
