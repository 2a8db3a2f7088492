//! The table of measured tile shapes: which shape was the fastest for a kind of problem on one
//! adapter.

use flashtile_core::{Band, KeyChunks, KeySplit, MaskKind, PlanOptions, Problem};
use flashtile_shaders::{Tiles, flash_tiles};
use std::{collections::BTreeMap, fmt, str::FromStr};

/// The problems that one measurement speaks for: a description of what decides how fast the tile
/// shapes of the flash kernel are.
///
/// It names the storage type, the head dimensions, whether there are many queries, whether a band
/// of keys is visible, and the features that every score passes through. With few queries it also
/// names the number of keys, rounded up to a power of two, and the heads of a group, because they
/// decide how the keys are split and how full a tile is.
///
/// The batch and the actual lengths of a call are no part of it: the bits of a row must not depend
/// on them. Two problems of one kind may have other strides or sizes, so a shape that was measured
/// for one may not run the other; the planner then chooses as if it had not been measured.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProblemKind(String);

impl ProblemKind {
    /// Up to this many queries, most rows of a wide tile are empty.
    const FEW: usize = 8;

    /// The kind of `problem`.
    pub fn of(problem: &Problem) -> Self {
        let (dtype, d, dv) = (problem.dtype(), problem.head_dim(), problem.head_dim_v());
        let band = problem.band();
        let (from, to) = (band.lo != -Band::UNBOUNDED, band.hi != Band::UNBOUNDED);
        let seq_q = problem.seq_q();
        let mut text = format!("{dtype}, head_dim {d}, head_dim_v {dv}");
        if seq_q > KeyChunks::MAX_QUERIES {
            text += ", many queries";
        } else {
            let most = if seq_q <= Self::FEW { Self::FEW } else { KeyChunks::MAX_QUERIES };
            let keys = problem.seq_kv().next_power_of_two();
            let group = problem.group_size();
            text += &format!(", up to {most} queries, up to {keys} keys, group {group}");
        }
        match (from, to) {
            (true, true) => text += ", window",
            // The few queries of a decode step see nearly all keys, with a causal mask or without.
            (false, true) | (true, false) if seq_q > KeyChunks::MAX_QUERIES => text += ", causal",
            (false, true) | (true, false) | (false, false) => {}
        }
        match problem.mask().map(|mask| mask.kind) {
            None => {}
            Some(MaskKind::Bool) => text += ", bool mask",
            Some(MaskKind::Additive(_)) => text += ", additive mask",
        }
        if problem.softcap().is_some() {
            text += ", softcap";
        }
        if problem.dropout().is_some() {
            text += ", dropout";
        }
        Self(text)
    }
}

impl fmt::Display for ProblemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A tile shape of the flash kernel, and how it splits keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct TileChoice {
    /// The tile shape.
    pub tiles: Tiles,
    /// How the keys of a row are split. [`KeySplit::Auto`] leaves it to the planner.
    pub key_split: KeySplit,
}

impl TileChoice {
    /// This tile shape, with a split that is left to the planner.
    pub const fn new(tiles: Tiles) -> Self {
        Self { tiles, key_split: KeySplit::Auto }
    }

    /// The same tile shape, with this split of the keys.
    #[must_use]
    pub const fn key_split(mut self, key_split: KeySplit) -> Self {
        self.key_split = key_split;
        self
    }

    /// `options` with this choice, as far as they leave it open.
    pub(crate) fn within(&self, options: &PlanOptions<Tiles>) -> PlanOptions<Tiles> {
        let split = match options.key_split {
            KeySplit::Auto => self.key_split,
            named @ (KeySplit::Off | KeySplit::Keys(_)) => named,
        };
        options.tiles(self.tiles).key_split(split)
    }
}

/// As in the text of a [`Tuning`]: the split, and the name of the tile shape.
impl fmt::Display for TileChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "split {}, tiles {}", self.key_split, self.tiles.name())
    }
}

impl FromStr for TileChoice {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (split, name) =
            text.strip_prefix("split ").and_then(|rest| rest.split_once(", tiles ")).ok_or(())?;
        let tiles = flash_tiles().find(|tiles| tiles.name() == name).ok_or(())?;
        Ok(Self { tiles, key_split: split.parse().map_err(|_| ())? })
    }
}

/// Measured tile shapes of the flash kernel on one adapter, by kind of problem, fastest first.
///
/// [`Context::tune`](crate::Context::tune) measures, [`insert`](Self::insert) adds what it found,
/// and [`Context::with_tuning`](crate::Context::with_tuning) plans with the table. Its `Display` is
/// a short text that [`str::parse`] reads back, so an application can keep it in a file.
///
/// A table never makes a result wrong: a plan takes a shape from it only where it would accept the
/// same shape by name, and every shape is held to the same error bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuning {
    key: String,
    kinds: BTreeMap<String, Vec<TileChoice>>,
}

/// Why a table of measured tile shapes cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TuningError {
    /// It was written by another version of the format, or is no table.
    #[error("its first line is `{given}`, not `{expected}`")]
    Version {
        /// The first line, or the start of it.
        given: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A line that no table contains.
    #[error("line {line} is not understood: `{given}`")]
    Line {
        /// Number of the line, from 1.
        line: usize,
        /// The line, or the start of it.
        given: String,
    },
    /// It was measured with another adapter, driver or version of flashtile.
    #[error("it was measured on another adapter, driver or version: `{given}`, not `{expected}`")]
    Stale {
        /// What it was measured on.
        given: String,
        /// The adapter at hand.
        expected: String,
    },
}

impl Tuning {
    const FIRST_LINE: &'static str = "flashtile tuning 1";

    /// An empty table for the adapter that `key` describes:
    /// [`Context::tuning_key`](crate::Context::tuning_key).
    pub fn new(key: impl Into<String>) -> Self {
        Self { key: one_line(&key.into()), kinds: BTreeMap::new() }
    }

    /// The adapter, driver and version of flashtile that it is valid for.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// How many kinds of problems it has shapes for.
    pub fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// The shapes for `kind`, fastest first. Empty where nothing was measured.
    pub fn choices(&self, kind: &ProblemKind) -> &[TileChoice] {
        self.kinds.get(&kind.0).map_or(&[], Vec::as_slice)
    }

    /// Sets the shapes for `kind`, fastest first. Without any, the planner chooses.
    pub fn insert(&mut self, kind: &ProblemKind, choices: impl IntoIterator<Item = TileChoice>) {
        let choices: Vec<_> = choices.into_iter().collect();
        if choices.is_empty() {
            self.kinds.remove(&kind.0);
        } else {
            self.kinds.insert(kind.0.clone(), choices);
        }
    }

    /// Whether it is valid for the adapter that `key` describes.
    ///
    /// # Errors
    /// [`TuningError::Stale`].
    pub fn check(&self, key: &str) -> Result<(), TuningError> {
        let expected = one_line(key);
        if self.key == expected {
            return Ok(());
        }
        Err(TuningError::Stale { given: shortened(&self.key), expected })
    }
}

impl fmt::Display for Tuning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\nfor {}", Self::FIRST_LINE, self.key)?;
        for (kind, choices) in &self.kinds {
            writeln!(f, "kind {kind}")?;
            for choice in choices {
                writeln!(f, "  {choice}")?;
            }
        }
        writeln!(f, "end")
    }
}

impl FromStr for Tuning {
    type Err = TuningError;

    /// Reads the text that `Display` writes.
    ///
    /// # Errors
    /// [`TuningError::Version`] and [`TuningError::Line`]. A text that was cut off is an error too.
    fn from_str(text: &str) -> Result<Self, TuningError> {
        let mut lines = text.lines().enumerate().map(|(n, line)| (n + 1, line));
        let first = lines.next().map_or("", |(_, line)| line);
        if first != Self::FIRST_LINE {
            let given = shortened(first);
            return Err(TuningError::Version { given, expected: Self::FIRST_LINE });
        }
        let wrong = |line, given: &str| TuningError::Line { line, given: shortened(given) };
        let (n, line) = lines.next().unwrap_or((2, ""));
        let key = line.strip_prefix("for ").ok_or_else(|| wrong(n, line))?;
        let mut tuning = Self::new(key);
        let mut choices: Option<&mut Vec<TileChoice>> = None;
        let mut last = 2;
        for (n, line) in lines.by_ref() {
            last = n;
            if line == "end" {
                return match lines.next() {
                    None => Ok(tuning),
                    Some((n, more)) => Err(wrong(n, more)),
                };
            }
            if let Some(kind) = line.strip_prefix("kind ") {
                choices = Some(tuning.kinds.entry(kind.to_owned()).or_default());
                continue;
            }
            let choice = line.strip_prefix("  ").and_then(|choice| choice.parse().ok());
            match (choice, &mut choices) {
                (Some(choice), Some(choices)) => choices.push(choice),
                _ => return Err(wrong(n, line)),
            }
        }
        Err(wrong(last + 1, "the end of the text"))
    }
}

/// What a table is valid for: the adapter, its driver, and the version of flashtile.
pub(crate) fn key(info: &wgpu::AdapterInfo) -> String {
    let wgpu::AdapterInfo { name, backend, vendor, device, driver, driver_info, .. } = info;
    one_line(&format!(
        "{name}; {backend:?} {vendor:x}:{device:x}; {driver} {driver_info}; flashtile {}",
        env!("CARGO_PKG_VERSION")
    ))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// At most 100 characters of a text that may be anything.
fn shortened(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;
    use crate::schedule::{Schedule, measured, schedule};
    use flashtile_core::{Align, DType, KernelKind, Mask, MatrixUnits, NoMatrixUnits, TensorView};
    use flashtile_shaders::{FLASH_TILES, UNIFORM_TILES};
    use std::collections::HashSet;

    fn problem(dtype: DType, [batch, heads, kv_heads, seq_q, seq_kv]: [usize; 5]) -> Problem {
        let view = |heads, seq| TensorView::bhsd(dtype, [batch, heads, seq, 64]).expect("small");
        let (q, kv) = (view(heads, seq_q), view(kv_heads, seq_kv));
        Problem::builder(q, kv, kv).build().expect("valid")
    }

    fn kind(sizes: [usize; 5]) -> String {
        ProblemKind::of(&problem(DType::F16, sizes)).to_string()
    }

    #[test]
    fn names_of_shapes_are_unique_and_read_back() {
        let mut names = HashSet::new();
        for tiles in flash_tiles() {
            assert!(names.insert(tiles.name()), "{tiles:?}");
            for key_split in [KeySplit::Auto, KeySplit::Off, KeySplit::Keys(512)] {
                let choice = TileChoice { tiles, key_split };
                assert_eq!(choice.to_string().parse(), Ok(choice));
            }
        }
        for wrong in ["", "split auto", "split auto, tiles 1x1", "split 3, tiles rows w64 lanes8"] {
            assert_eq!(wrong.parse::<TileChoice>(), Err(()), "{wrong}");
        }
    }

    #[test]
    fn kinds_ignore_the_batch_and_what_kernels_do_not_see() {
        let many = "f16, head_dim 64, head_dim_v 64, many queries";
        for sizes in [[1, 8, 8, 65, 65], [9, 8, 2, 4096, 100]] {
            assert_eq!(kind(sizes), many);
        }
        let few = "f16, head_dim 64, head_dim_v 64, up to 8 queries, up to 4096 keys, group 4";
        for sizes in [[1, 8, 2, 1, 4096], [5, 4, 1, 8, 2049]] {
            assert_eq!(kind(sizes), few);
        }
        for sizes in [[1, 8, 8, 1, 4096], [1, 8, 2, 9, 4096], [1, 8, 2, 1, 4097]] {
            assert_ne!(kind(sizes), few);
        }
    }

    #[test]
    fn kinds_name_the_features_that_kernels_work_for() {
        let of = |seq, change: &dyn Fn(flashtile_core::ProblemBuilder) -> _| {
            let x = TensorView::bhsd(DType::F32, [1, 1, seq, 8]).expect("small");
            let builder: flashtile_core::ProblemBuilder = change(Problem::builder(x, x, x));
            let all = ProblemKind::of(&builder.build().expect("valid")).to_string();
            all.replace("f32, head_dim 8, head_dim_v 8, ", "")
        };
        assert_eq!(of(100, &|b| b.causal(true)), "many queries, causal");
        assert_eq!(of(100, &|b| b.causal(true).window_left(9)), "many queries, window");
        let decode = of(1, &|b| b.causal(true).align(Align::BottomRight));
        assert_eq!(decode, of(1, &|b| b));
        let mask = Mask::contiguous(MaskKind::Bool, &[100, 100]).expect("small");
        let every = of(100, &|b| b.mask(mask).softcap(5.0).dropout_p(0.5).lse(true).kv_lens(true));
        assert_eq!(every, "many queries, bool mask, softcap, dropout");
    }

    fn table() -> Tuning {
        let mut tuning = Tuning::new("a GPU;\n Vulkan");
        let shapes: Vec<_> = flash_tiles().take(3).collect();
        let choice = |tiles, key_split| TileChoice { tiles, key_split };
        let of = |sizes| ProblemKind::of(&problem(DType::F32, sizes));
        tuning.insert(&of([1, 1, 1, 100, 100]), [choice(shapes[1], KeySplit::Auto)]);
        let both = [choice(shapes[2], KeySplit::Keys(256)), choice(shapes[0], KeySplit::Off)];
        tuning.insert(&of([1, 1, 1, 1, 100]), both);
        tuning
    }

    #[test]
    fn a_table_reads_back_what_it_wrote() {
        let tuning = table();
        assert_eq!(tuning.to_string().parse(), Ok(tuning.clone()));
        assert_eq!((tuning.len(), tuning.key()), (2, "a GPU; Vulkan"));
        assert_eq!(tuning.check("a GPU; Vulkan"), Ok(()));
        let stale = tuning.check("another GPU").expect_err("stale");
        assert!(matches!(stale, TuningError::Stale { .. }), "{stale}");
    }

    /// Whatever happens to a file, reading it gives a table or an error.
    #[test]
    fn damaged_tables_are_errors() {
        let text = table().to_string();
        for end in 0..text.len() - 1 {
            assert!(text[..end].parse::<Tuning>().is_err(), "cut off after {end}");
        }
        let first = text.replace("tuning 1", "tuning 2").parse::<Tuning>();
        assert!(matches!(first, Err(TuningError::Version { .. })), "{first:?}");
        for (from, to, line) in
            [("for ", "of ", 2), ("tiles 32x2", "tiles 31x2", 4), ("end", "end\n.", 9)]
        {
            let damaged = text.replacen(from, to, 1).parse::<Tuning>();
            let Err(TuningError::Line { line: n, .. }) = damaged else { panic!("{damaged:?}") };
            assert_eq!(n, line, "{from} -> {to}\n{text}");
        }
    }

    /// The schedules without and with a table of `choices`.
    fn both(
        problem: &Problem,
        options: &PlanOptions<Tiles>,
        machine: &Machine,
        choices: &[TileChoice],
    ) -> [Schedule; 2] {
        let planned = schedule(problem, KernelKind::Flash, options, machine).expect("runs");
        let mut tuning = Tuning::new("here");
        tuning.insert(&ProblemKind::of(problem), choices.iter().copied());
        let tuned = measured(&tuning, problem, options, machine, planned.clone());
        [planned, tuned]
    }

    #[test]
    fn plans_take_the_fastest_shape_that_runs_and_say_so() {
        const AUTO: KeySplit = KeySplit::Auto;
        let choice = |tiles, key_split| TileChoice { tiles, key_split };
        let large = Machine { workgroup_bytes: 64 << 10, ..Machine::baseline() };
        let machine = Machine { matrix_sizes: Ok(vec![16]), max_lanes: 32, ..large.clone() };
        let problem = problem(DType::F16, [1, 2, 2, 100, 100]);
        let options = PlanOptions::new();
        let [planned, tuned] = both(&problem, &options, &machine, &[]);
        let units = planned.tiles;
        assert!(units.uses_matrix_units() && planned == tuned);

        // Tiles for heads 16 wide cannot run, and are passed over.
        let block = choice(FLASH_TILES[3], AUTO);
        let choices = [choice(UNIFORM_TILES[0], AUTO), block, choice(units, AUTO)];
        let [planned, tuned] = both(&problem, &options, &machine, &choices);
        assert_eq!((tuned.tiles, tuned.measured), (block.tiles, true));
        assert_eq!(tuned.no_matrix_units, Some(NoMatrixUnits::Slower));
        let why = format!("{}: measured to be the fastest here (", block.tiles);
        assert!(tuned.rationale[0].starts_with(&why), "{:?}", tuned.rationale);
        let instead = format!("planned: {}", planned.tiles);
        assert!(tuned.rationale[0].ends_with(&instead), "{:?}", tuned.rationale);

        // What the options forbid or force comes first.
        let off = options.matrix_units(MatrixUnits::Off);
        let [_, tuned] = both(&problem, &off, &machine, &[choice(units, AUTO), block]);
        assert_eq!((tuned.tiles, tuned.no_matrix_units), (block.tiles, Some(NoMatrixUnits::Off)));
        for options in [options.matrix_units(MatrixUnits::Require), options.tiles(FLASH_TILES[4])] {
            let [planned, tuned] = both(&problem, &options, &machine, &[block]);
            assert_eq!(planned, tuned);
        }
        // No shape of the table runs here.
        let [planned, tuned] = both(&problem, &options, &large, &[choice(units, AUTO)]);
        assert_eq!(planned, tuned);
    }

    #[test]
    fn a_table_decides_how_keys_are_split_unless_the_options_do() {
        let problem = problem(DType::F32, [1, 2, 2, 1, 4096]);
        let machine = Machine::baseline();
        let tiles = FLASH_TILES[0];
        let choices = [TileChoice { tiles, key_split: KeySplit::Keys(1024) }];
        let [planned, tuned] = both(&problem, &PlanOptions::new(), &machine, &choices);
        let keys = |schedule: &Schedule| schedule.chunks.map(KeyChunks::keys);
        assert_ne!(keys(&planned), Some(1024));
        assert_eq!(keys(&tuned), Some(1024));
        let sentence = "4 chunks of 1024 keys, merged in ascending order: measured";
        assert!(tuned.rationale.iter().any(|why| why == sentence), "{:?}", tuned.rationale);
        let off = PlanOptions::new().key_split(KeySplit::Off);
        let [_, tuned] = both(&problem, &off, &machine, &choices);
        assert_eq!((keys(&tuned), tuned.measured), (None, true));
        // The same chunks whatever the batch.
        for batch in [2, 7] {
            let more = self::problem(DType::F32, [batch, 2, 2, 1, 4096]);
            let [_, tuned] = both(&more, &PlanOptions::new(), &machine, &choices);
            assert_eq!((tuned.tiles, keys(&tuned)), (tiles, Some(1024)));
        }
    }
}
