//! Converts a case to one line of text and back.

use crate::case::{Case, KvLens, MaskContent, MaskSpec, Nan, Placement, Poison, Values};
use flashtile_core::{DType, Layout, MaskKind};
use std::fmt;
use std::str::FromStr;

/// Why a line is not a [`Case`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseCaseError {
    /// A word is not `key=value`.
    #[error("`{0}` is not of the form key=value")]
    NotAPair(String),
    /// No case has this key.
    #[error("`{0}` is not a key of a case")]
    UnknownKey(String),
    /// A value cannot be read.
    #[error("{key}={value}: expected {expected}")]
    Value {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What it should look like.
        expected: &'static str,
    },
    /// The one key that must be there is not.
    #[error("a case needs shape=BxHxSxD")]
    NoShape,
}

/// The names of an enum's values, for writing and reading.
type Names<T> = &'static [(T, &'static str)];

const DTYPES: Names<DType> = &[(DType::F32, "f32"), (DType::F16, "f16"), (DType::BF16, "bf16")];
const KINDS: Names<MaskKind> = &[
    (MaskKind::Bool, "bool"),
    (MaskKind::Additive(DType::F32), "f32"),
    (MaskKind::Additive(DType::F16), "f16"),
    (MaskKind::Additive(DType::BF16), "bf16"),
];
const CONTENTS: Names<MaskContent> = &[
    (MaskContent::Random, "random"),
    (MaskContent::Blocks, "blocks"),
    (MaskContent::Rows, "rows"),
    (MaskContent::Lowest, "lowest"),
    (MaskContent::Open, "open"),
    (MaskContent::Shut, "shut"),
    (MaskContent::Alibi, "alibi"),
];
const VALUES: Names<Values> = &[
    (Values::Normal, "normal"),
    (Values::Large, "large"),
    (Values::Huge, "huge"),
    (Values::Tiny, "tiny"),
    (Values::OneHot, "onehot"),
    (Values::Constant, "constant"),
    (Values::Alike, "alike"),
    (Values::Spread, "spread"),
    (Values::Ints, "ints"),
    (Values::Positive, "positive"),
    (Values::Vast, "vast"),
];
const POISONS: Names<Poison> = &[(Poison::Gaps, "gaps"), (Poison::Unseen, "unseen")];
const NANS: Names<Nan> = &[(Nan::Q, "q"), (Nan::K, "k"), (Nan::V, "v")];
const FLAGS: Names<bool> = &[(true, "yes"), (false, "no")];

fn name<T: PartialEq>(names: Names<T>, value: T) -> &'static str {
    names.iter().find(|(known, _)| *known == value).map_or("?", |(_, name)| name)
}

fn named<T: Copy>(names: Names<T>, text: &str) -> Option<T> {
    names.iter().find(|(_, name)| *name == text).map(|(value, _)| *value)
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = Case::new(self.q_shape());
        write!(f, "shape={}x{}x{}x{}", self.batch, self.heads, self.seq_q, self.head_dim)?;
        let mut pair = |differs: bool, key: &str, value: &dyn fmt::Display| {
            if differs { write!(f, " {key}={value}") } else { Ok(()) }
        };
        pair(self.kv_heads != plain.kv_heads, "hkv", &self.kv_heads)?;
        pair(self.seq_kv != plain.seq_kv, "skv", &self.seq_kv)?;
        pair(self.head_dim_v != plain.head_dim_v, "dv", &self.head_dim_v)?;
        pair(self.dtype != plain.dtype, "dtype", &name(DTYPES, self.dtype))?;
        pair(self.q != plain.q, "q", &self.q)?;
        pair(self.k != plain.k, "k", &self.k)?;
        pair(self.v != plain.v, "v", &self.v)?;
        pair(self.out != plain.out, "out", &self.out)?;
        pair(self.causal, "causal", &"yes")?;
        pair(self.align != plain.align, "align", &self.align)?;
        pair(self.window_left.is_some(), "window_left", &self.window_left.unwrap_or_default())?;
        pair(self.window_right.is_some(), "window_right", &self.window_right.unwrap_or_default())?;
        pair(
            self.softcap.is_some(),
            "softcap",
            &format_args!("{:?}", self.softcap.unwrap_or_default()),
        )?;
        pair(self.scale.is_some(), "scale", &format_args!("{:?}", self.scale.unwrap_or_default()))?;
        if let Some(mask) = &self.mask {
            pair(true, "mask", mask)?;
        }
        pair(self.kv_lens != plain.kv_lens, "kv_lens", &self.kv_lens)?;
        pair(self.dropout_p != 0.0, "dropout", &format_args!("{:?}", self.dropout_p))?;
        pair(self.dropout_seed != 0, "dropout_seed", &self.dropout_seed)?;
        pair(self.dropout_offset != 0, "dropout_offset", &self.dropout_offset)?;
        pair(!self.lse, "lse", &"no")?;
        pair(self.call_q.is_some(), "call_q", &self.call_q.unwrap_or_default())?;
        pair(self.call_kv.is_some(), "call_kv", &self.call_kv.unwrap_or_default())?;
        pair(self.values != plain.values, "values", &name(VALUES, self.values))?;
        pair(self.poison != plain.poison, "poison", &name(POISONS, self.poison))?;
        if let Some(nan) = self.nan {
            pair(true, "nan", &name(NANS, nan))?;
        }
        pair(self.seed != 0, "seed", &self.seed)
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Placement::Layout(layout) => layout.fmt(f),
            Placement::Strides([b, h, s, d]) => write!(f, "{b}:{h}:{s}:{d}"),
        }
    }
}

impl fmt::Display for KvLens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KvLens::Off => f.write_str("off"),
            KvLens::Random => f.write_str("random"),
            KvLens::Lens(lens) => {
                f.write_str(&lens.iter().map(i32::to_string).collect::<Vec<_>>().join(":"))
            }
        }
    }
}

/// `kind:axes:content`. `axes` has one character per axis of the mask: its letter in `bhqk`, or 1.
/// `+n` adds n unused elements after each row.
impl fmt::Display for MaskSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", name(KINDS, self.kind))?;
        for axis in 4 - self.rank.min(4)..4 {
            f.write_str(if self.full[axis] { &"bhqk"[axis..=axis] } else { "1" })?;
        }
        if self.pad > 0 {
            write!(f, "+{}", self.pad)?;
        }
        write!(f, ":{}", name(CONTENTS, self.content))
    }
}

fn read_placement(text: &str) -> Option<Placement> {
    if let Ok(layout) = text.parse::<Layout>() {
        return Some(Placement::Layout(layout));
    }
    let strides: Vec<usize> = text.split(':').map(str::parse).collect::<Result<_, _>>().ok()?;
    Some(Placement::Strides(strides.try_into().ok()?))
}

fn read_lens(text: &str) -> Option<KvLens> {
    match text {
        "off" => Some(KvLens::Off),
        "random" => Some(KvLens::Random),
        "" => Some(KvLens::Lens(Vec::new())),
        _ => Some(KvLens::Lens(text.split(':').map(str::parse).collect::<Result<_, _>>().ok()?)),
    }
}

fn read_mask(text: &str) -> Option<MaskSpec> {
    let [kind, axes, content] = text.split(':').collect::<Vec<_>>().try_into().ok()?;
    let (axes, pad) = match axes.split_once('+') {
        Some((axes, pad)) => (axes, pad.parse().ok()?),
        None => (axes, 0),
    };
    let rank = axes.len();
    if rank == 0 || rank > 4 {
        return None;
    }
    let mut full = [false; 4];
    for (axis, letter) in (4 - rank..).zip(axes.bytes()) {
        match letter {
            b'1' => {}
            letter if letter == b"bhqk"[axis] => full[axis] = true,
            _ => return None,
        }
    }
    Some(MaskSpec {
        kind: named(KINDS, kind)?,
        rank,
        full,
        pad,
        content: named(CONTENTS, content)?,
    })
}

fn read_shape(text: &str) -> Option<[usize; 4]> {
    text.split('x').map(str::parse).collect::<Result<Vec<usize>, _>>().ok()?.try_into().ok()
}

impl FromStr for Case {
    type Err = ParseCaseError;

    fn from_str(line: &str) -> Result<Self, ParseCaseError> {
        let pairs: Vec<(&str, &str)> = line
            .split_whitespace()
            .map(|word| {
                word.split_once('=').ok_or_else(|| ParseCaseError::NotAPair(word.to_owned()))
            })
            .collect::<Result<_, _>>()?;
        let bad = |key: &str, value: &str, expected| ParseCaseError::Value {
            key: key.to_owned(),
            value: value.to_owned(),
            expected,
        };
        // The shape sets the defaults of other keys, wherever it is in the line.
        let (key, shape) =
            pairs.iter().find(|(key, _)| *key == "shape").ok_or(ParseCaseError::NoShape)?;
        let mut case = Case::new(read_shape(shape).ok_or_else(|| bad(key, shape, "BxHxSxD"))?);
        for (key, value) in pairs {
            case.set(key, value).map_err(|expected| match expected {
                Some(expected) => bad(key, value, expected),
                None => ParseCaseError::UnknownKey(key.to_owned()),
            })?;
        }
        Ok(case)
    }
}

impl Case {
    /// Sets one key. The error says what was expected; it is `None` if there is no such key.
    fn set(&mut self, key: &str, text: &str) -> Result<(), Option<&'static str>> {
        fn number<T: FromStr>(text: &str) -> Result<T, Option<&'static str>> {
            text.parse().map_err(|_| Some("a number"))
        }
        const PLACEMENT: Option<&str> = Some("a layout or four strides b:h:s:d");
        match key {
            "shape" => {}
            "hkv" => self.kv_heads = number(text)?,
            "skv" => self.seq_kv = number(text)?,
            "dv" => self.head_dim_v = number(text)?,
            "dtype" => self.dtype = named(DTYPES, text).ok_or(Some("f32, f16 or bf16"))?,
            "q" => self.q = read_placement(text).ok_or(PLACEMENT)?,
            "k" => self.k = read_placement(text).ok_or(PLACEMENT)?,
            "v" => self.v = read_placement(text).ok_or(PLACEMENT)?,
            "out" => self.out = read_placement(text).ok_or(PLACEMENT)?,
            "causal" => self.causal = named(FLAGS, text).ok_or(Some("yes or no"))?,
            "align" => {
                self.align =
                    text.parse().map_err(|_| Some("top-left, bottom-right or an integer"))?
            }
            "window_left" => self.window_left = Some(number(text)?),
            "window_right" => self.window_right = Some(number(text)?),
            "softcap" => self.softcap = Some(number(text)?),
            "scale" => self.scale = Some(number(text)?),
            "mask" => {
                self.mask = Some(
                    read_mask(text).ok_or(Some("kind:axes:content, such as bool:1hqk+3:blocks"))?,
                )
            }
            "kv_lens" => {
                self.kv_lens = read_lens(text).ok_or(Some("random, or lengths joined by colons"))?
            }
            "dropout" => self.dropout_p = number(text)?,
            "dropout_seed" => self.dropout_seed = number(text)?,
            "dropout_offset" => self.dropout_offset = number(text)?,
            "lse" => self.lse = named(FLAGS, text).ok_or(Some("yes or no"))?,
            "call_q" => self.call_q = Some(number(text)?),
            "call_kv" => self.call_kv = Some(number(text)?),
            "values" => {
                self.values =
                    named(VALUES, text).ok_or(Some("a distribution, such as normal or large"))?
            }
            "poison" => self.poison = named(POISONS, text).ok_or(Some("gaps or unseen"))?,
            "nan" => self.nan = Some(named(NANS, text).ok_or(Some("q, k or v"))?),
            "seed" => self.seed = number(text)?,
            _ => return Err(None),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_are_written() {
        for line in [
            "shape=2x4x17x64",
            "shape=0x1x0x3 hkv=1 kv_lens=",
            "shape=2x6x17x64 hkv=2 skv=33 dv=7 dtype=bf16 q=hbsd k=0:0:7:1 v=bhsd out=999:99:9:2 \
             causal=yes align=-3 window_left=4 window_right=0 softcap=2.5 scale=-0.1 \
             mask=f16:1hqk+3:lowest kv_lens=3:0 dropout=0.25 dropout_seed=18446744073709551615 \
             dropout_offset=7 lse=no call_q=3 call_kv=5 values=onehot poison=unseen nan=v seed=9",
        ] {
            let case: Case = line.parse().expect("valid");
            assert_eq!(case.to_string().parse(), Ok(case.clone()), "{line}");
        }
        assert_eq!(
            "seed=3 shape=1x2x3x4".parse::<Case>().map(|c| c.to_string()),
            Ok("shape=1x2x3x4 seed=3".to_owned())
        );
    }

    #[test]
    fn wrong_lines_say_what_is_wrong() {
        for (line, message) in [
            ("", "a case needs shape=BxHxSxD"),
            ("shape=1x2x3", "shape=1x2x3: expected BxHxSxD"),
            ("shape=1x1x1x1 causal", "`causal` is not of the form key=value"),
            ("shape=1x1x1x1 colour=red", "`colour` is not a key of a case"),
            (
                "shape=1x1x1x1 mask=bool:kq:open",
                "mask=bool:kq:open: expected kind:axes:content, such as bool:1hqk+3:blocks",
            ),
            ("shape=1x1x1x1 k=1:2:3", "k=1:2:3: expected a layout or four strides b:h:s:d"),
        ] {
            assert_eq!(line.parse::<Case>().map_err(|e| e.to_string()), Err(message.to_owned()));
        }
    }
}
