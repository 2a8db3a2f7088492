use crate::{
    BROADCAST_LANES, FLASH_TILES, LANE_TILES, MERGE_TILES, ROW_LANES, SOFTMAX_TILES, Tiles,
    UNFUSED_TILES, UNIFORM_TILES, broadcast_tiles, matrix_tiles, row_tiles,
};
use flashtile_core::{DType, MaskKind};
use std::fmt;

/// The computation of a dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Fused attention.
    FlashForward,
    /// Fused attention over one chunk of keys: unnormalised rows of O, with m and l.
    FlashSplit,
    /// Merges the chunks of each row, and normalises.
    FlashMerge,
    /// The score matrix, for the unfused kernels.
    UnfusedScores,
    /// Softmax of each row of the score matrix, and dropout.
    UnfusedSoftmax,
    /// The score matrix times V.
    UnfusedValues,
}

impl Slot {
    /// Every slot, in order of binding numbers.
    pub const ALL: &[Slot] = &[
        Slot::Params,
        Slot::Q,
        Slot::K,
        Slot::V,
        Slot::Mask,
        Slot::Aux,
        Slot::Out,
        Slot::Lse,
        Slot::Workspace,
    ];
}

impl Operation {
    /// Every operation.
    pub const ALL: &[Operation] = &[
        Operation::FlashForward,
        Operation::FlashSplit,
        Operation::FlashMerge,
        Operation::UnfusedScores,
        Operation::UnfusedSoftmax,
        Operation::UnfusedValues,
    ];

    /// The name of the entry point.
    pub const fn name(self) -> &'static str {
        match self {
            Operation::FlashForward => "flash_forward",
            Operation::FlashSplit => "flash_split",
            Operation::FlashMerge => "flash_merge",
            Operation::UnfusedScores => "unfused_scores",
            Operation::UnfusedSoftmax => "unfused_softmax",
            Operation::UnfusedValues => "unfused_values",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A binding of a kernel. Its number is the same in every variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Slot {
    /// The uniform [`Params`](crate::Params), at a dynamic offset.
    Params = 0,
    /// Queries.
    Q = 1,
    /// Keys.
    K = 2,
    /// Values.
    V = 3,
    /// Attention mask.
    Mask = 4,
    /// Small integer inputs: kv_lens.
    Aux = 5,
    /// Output.
    Out = 6,
    /// Log-sum-exp.
    Lse = 7,
    /// Workspace: scores of the unfused kernels, or partial results of a split.
    Workspace = 8,
}

/// How a kernel uses a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// A uniform buffer with a dynamic offset.
    Uniform,
    /// A read-only storage buffer.
    Read,
    /// A storage buffer that is read and written.
    ReadWrite,
}

/// One binding of a variant, in group 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Binding {
    /// What is bound. Its discriminant is the number of the binding.
    pub slot: Slot,
    /// How it is used.
    pub access: Access,
}

/// One kernel source: an operation with its storage types and tile shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// What it computes.
    pub operation: Operation,
    /// Storage type of q, k, v and out. The softmax sees only scores, which are f32.
    pub dtype: DType,
    /// The mask it reads.
    pub mask: Option<MaskKind>,
    /// Whether each batch entry has its own number of valid keys.
    pub kv_lens: bool,
    /// Whether it writes the log-sum-exp.
    pub lse: bool,
    /// The tile shape.
    pub tiles: Tiles,
}

/// Values of a variant's overridable constants: features that are worth a pipeline of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Constants {
    /// Whether scores are softcapped.
    pub softcap: bool,
    /// Whether dropout is on.
    pub dropout: bool,
    /// Whether head_dim and head_dim_v are multiples of 4, so that loads of four need no guard.
    pub by_four: bool,
    /// Whether the heads of a group fill the rows of a tile together.
    pub folded: bool,
}

impl Constants {
    /// Names and values, as WebGPU pipelines take them.
    pub fn entries(&self) -> [(&'static str, f64); 4] {
        [
            ("SOFTCAP", u32::from(self.softcap).into()),
            ("DROPOUT", u32::from(self.dropout).into()),
            ("BY_FOUR", u32::from(self.by_four).into()),
            ("FOLDED", u32::from(self.folded).into()),
        ]
    }
}

/// Every tile shape of every flash kernel.
pub fn flash_tiles() -> impl Iterator<Item = Tiles> {
    let rows = ROW_LANES.into_iter().flat_map(row_tiles);
    let rows = rows.chain(BROADCAST_LANES.into_iter().flat_map(broadcast_tiles));
    let registers = UNIFORM_TILES.into_iter().chain(LANE_TILES);
    FLASH_TILES.into_iter().chain(rows).chain(registers).chain(matrix_tiles())
}

impl Variant {
    /// Resets what `operation` does not use, so that equal sources are equal variants.
    pub fn new(
        operation: Operation,
        dtype: DType,
        mask: Option<MaskKind>,
        kv_lens: bool,
        lse: bool,
        tiles: Tiles,
    ) -> Self {
        let all = Self { operation, dtype, mask, kv_lens, lse, tiles };
        match operation {
            Operation::FlashForward => all,
            Operation::FlashSplit | Operation::UnfusedScores => Self { lse: false, ..all },
            Operation::FlashMerge => Self { mask: None, ..all },
            Operation::UnfusedSoftmax => {
                Self { dtype: DType::F32, mask: None, kv_lens: false, ..all }
            }
            Operation::UnfusedValues => Self { mask: None, lse: false, ..all },
        }
    }

    /// Every variant that any plan can choose.
    pub fn all() -> impl Iterator<Item = Variant> {
        let flags = || [(false, false), (false, true), (true, false), (true, true)];
        let masks = || std::iter::once(None).chain(MaskKind::ALL.iter().copied().map(Some));
        let tiles = |operation| match operation {
            Operation::FlashForward | Operation::FlashSplit => flash_tiles().collect(),
            Operation::FlashMerge => vec![MERGE_TILES],
            Operation::UnfusedSoftmax => vec![SOFTMAX_TILES],
            Operation::UnfusedScores | Operation::UnfusedValues => vec![UNFUSED_TILES],
        };
        let mut all = Vec::new();
        for &operation in Operation::ALL {
            for tiles in tiles(operation) {
                for &dtype in DType::ALL {
                    for mask in masks().filter(|mask| mask.is_none() || tiles.has_general()) {
                        for (kv_lens, lse) in flags() {
                            let variant = Variant::new(operation, dtype, mask, kv_lens, lse, tiles);
                            if !all.contains(&variant) {
                                all.push(variant);
                            }
                        }
                    }
                }
            }
        }
        all.into_iter()
    }

    /// The name of the entry point.
    pub fn entry_point(&self) -> &'static str {
        self.operation.name()
    }

    /// The bindings that the source declares, in order of their numbers.
    pub fn bindings(&self) -> Vec<Binding> {
        use Access::{Read, ReadWrite, Uniform};
        let always: &[(Slot, Access)] = match self.operation {
            Operation::FlashForward => {
                &[(Slot::Q, Read), (Slot::K, Read), (Slot::V, Read), (Slot::Out, ReadWrite)]
            }
            Operation::FlashSplit => {
                &[(Slot::Q, Read), (Slot::K, Read), (Slot::V, Read), (Slot::Workspace, ReadWrite)]
            }
            Operation::FlashMerge => &[(Slot::Out, ReadWrite), (Slot::Workspace, Read)],
            Operation::UnfusedScores => {
                &[(Slot::Q, Read), (Slot::K, Read), (Slot::Workspace, ReadWrite)]
            }
            Operation::UnfusedSoftmax => &[(Slot::Workspace, ReadWrite)],
            Operation::UnfusedValues => {
                &[(Slot::V, Read), (Slot::Out, ReadWrite), (Slot::Workspace, ReadWrite)]
            }
        };
        // `new` has reset those that the operation does not use.
        let optional = [
            (self.mask.is_some(), (Slot::Mask, Read)),
            (self.kv_lens, (Slot::Aux, Read)),
            (self.lse, (Slot::Lse, ReadWrite)),
        ];
        let optional = optional.into_iter().filter(|(wanted, _)| *wanted).map(|(_, used)| used);
        let all = std::iter::once((Slot::Params, Uniform)).chain(always.iter().copied());
        let mut bindings: Vec<_> =
            all.chain(optional).map(|(slot, access)| Binding { slot, access }).collect();
        bindings.sort_by_key(|binding| binding.slot);
        bindings
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.operation, self.dtype)?;
        if let Some(mask) = self.mask {
            write!(f, " {mask} mask")?;
        }
        if self.kv_lens {
            f.write_str(" kv_lens")?;
        }
        if self.lse {
            f.write_str(" lse")?;
        }
        write!(f, " {}", self.tiles.name())
    }
}
