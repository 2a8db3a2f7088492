//! Measures the tile shapes that can compute a problem, against each other.

use crate::{
    Context, Error, HostRun, Plan, PlanOptions, ProblemKind, TileChoice, Tuning,
    schedule::{Schedule, schedule},
};
use flashtile_core::{HostArgs, KernelKind, KeyChunks, KeySplit, Problem};
use flashtile_shaders::{Tiles, flash_tiles};
use std::{mem::discriminant, time::Duration};
// `std::time::Instant` panics in a browser; elsewhere this is the same type.
use web_time::Instant;

/// A shape must be this much faster than the planner's choice to replace it, and faster in this
/// share of the rounds. Less may be noise: of 20 rounds between equals, one is ahead in 15 with a
/// probability of 2%.
const WORTH: f64 = 1.03;
const AHEAD: f64 = 0.75;

/// The part of the time in which shapes are compiled and run for the first time.
const ADMISSION: f64 = 0.6;

/// The part of the time until ways to split keys are compiled.
const SPLITS: f64 = 0.8;

/// Rounds without which nothing is decided, and rounds after which more would change nothing.
const MIN_ROUNDS: usize = 3;
const MAX_ROUNDS: usize = 20;

/// Shapes that are this much slower than the fastest leave after the first, second and later
/// rounds. The two fastest stay.
const ELIMINATION: [f64; 3] = [1.5, 1.25, 1.1];

/// Runs of one shape in one round, and the time that they may take together: the median of a few
/// short runs is steadier than one.
const RUNS: usize = 5;
const RUNS_TIME: Duration = Duration::from_millis(20);

/// How a search for the fastest tile shape is made.
#[non_exhaustive]
pub struct TuneOptions<'a> {
    /// The time that it may take. It ends a little later: a compilation is not interrupted, and
    /// there are at least three rounds of runs. Default: 20 seconds.
    pub within: Duration,
    /// The most shapes that are tried besides the planner's choice, most promising first. Those
    /// beyond are not listed in the result. Default: all.
    pub most: usize,
    /// What the plans are asked for besides tiles. A named split is kept; matrix units can be
    /// switched off.
    pub plan: PlanOptions,
    /// Called before each compilation and each run.
    pub progress: Option<&'a mut dyn FnMut(&TuneProgress<'_>)>,
    /// Checks the output of each shape, given as the bytes of `out`. A shape for which it returns
    /// an error never wins. Default: no check.
    pub verify: Option<&'a mut Verify<'a>>,
}

/// Checks the bytes of an output.
type Verify<'a> = dyn FnMut(&[u8]) -> Result<(), String> + 'a;

impl Default for TuneOptions<'_> {
    fn default() -> Self {
        let plan = PlanOptions::new();
        let within = Duration::from_secs(20);
        Self { within, most: usize::MAX, plan, progress: None, verify: None }
    }
}

impl<'a> TuneOptions<'a> {
    /// Twenty seconds, all shapes, no progress and no check.
    pub fn new() -> Self {
        Self::default()
    }

    /// The time that the search may take.
    #[must_use]
    pub fn within(mut self, within: Duration) -> Self {
        self.within = within;
        self
    }

    /// The most shapes that are tried besides the planner's choice.
    #[must_use]
    pub fn most(mut self, shapes: usize) -> Self {
        self.most = shapes;
        self
    }

    /// What the plans are asked for besides tiles.
    #[must_use]
    pub fn plan(mut self, plan: PlanOptions) -> Self {
        self.plan = plan;
        self
    }

    /// Called before each compilation and each run.
    #[must_use]
    pub fn progress(mut self, progress: &'a mut dyn FnMut(&TuneProgress<'_>)) -> Self {
        self.progress = Some(progress);
        self
    }

    /// Checks the output of each shape.
    #[must_use]
    pub fn verify(mut self, verify: &'a mut Verify<'a>) -> Self {
        self.verify = Some(verify);
        self
    }
}

/// How far a search is.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct TuneProgress<'a> {
    /// The time since its start.
    pub elapsed: Duration,
    /// The time that it may take.
    pub within: Duration,
    /// What is compiled or run next.
    pub choice: &'a TileChoice,
}

/// What a search found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TuneResult {
    /// The kind of problem that it speaks for.
    pub kind: ProblemKind,
    /// Every shape: those that were measured, fastest first, and then the others.
    pub shapes: Vec<Tuned>,
}

/// One shape of a search.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Tuned {
    /// The shape.
    pub choice: TileChoice,
    /// The chunks of keys that its plan has, if it splits them.
    pub chunks: Option<KeyChunks>,
    /// Whether the planner chooses it without a table.
    pub planned: bool,
    /// What came out.
    pub outcome: Outcome,
}

/// What a search found out about a shape.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Outcome {
    /// It ran.
    Measured {
        /// The median time of a run: by the GPU's clock where it has one, else by the host's.
        time: Duration,
        /// The time of the planner's choice over its own: the median of rounds that ran both.
        speedup: f64,
        /// Rounds that it took part in.
        rounds: usize,
        /// The share of them in which it was faster than the planner's choice.
        ahead: f64,
        /// The time that the driver took to compile it.
        compile: Duration,
    },
    /// Its result is wrong: a bug of the kernel, the driver or the device.
    Wrong(String),
    /// It did not compile or run.
    Failed(String),
    /// There was no time for it, or compiling it takes too long here.
    Skipped(String),
}

impl TuneResult {
    /// The shapes for a [`Tuning`], fastest first: those that are clearly faster than the planner's
    /// choice, and then that choice. Empty if the planner's choice is wrong and nothing beats it.
    pub fn choices(&self) -> Vec<TileChoice> {
        let worth = |shape: &&Tuned| match shape.outcome {
            Outcome::Measured { speedup, rounds, ahead, .. } => {
                let sure = speedup >= WORTH && ahead >= AHEAD && rounds >= MIN_ROUNDS;
                shape.planned || sure
            }
            Outcome::Wrong(_) | Outcome::Failed(_) | Outcome::Skipped(_) => false,
        };
        let mut choices: Vec<_> = self.shapes.iter().filter(worth).collect();
        choices.sort_by_key(|shape| shape.planned);
        choices.into_iter().map(|shape| shape.choice).collect()
    }

    /// The shape that a plan takes with this result: the first of [`choices`](Self::choices).
    pub fn winner(&self) -> Option<&Tuned> {
        let first = *self.choices().first()?;
        self.shapes.iter().find(|shape| shape.choice == first)
    }
}

impl Tuning {
    /// Adds what a search found, in place of what there was for its kind.
    pub fn add(&mut self, found: &TuneResult) {
        self.insert(&found.kind, found.choices());
    }
}

impl Context {
    /// Measures every tile shape of the flash kernel that can compute `problem` here, within a
    /// bound on the time.
    ///
    /// The planner's own choice comes first. Then each shape is compiled, run once, and verified.
    /// Then rounds follow in which each remaining shape runs once after the other, so that a device
    /// that slows down slows all of them; slow shapes leave early. For few queries, ways to split
    /// the keys are tried with the shape that is ahead. Matrix units take part where the device has
    /// them, on software adapters too.
    ///
    /// `args` are the tensors to measure with. Their output is written only by the caller's next
    /// run. A context with a table measures as one without.
    ///
    /// ```no_run
    /// # use flashtile_core::{HostArgs, Problem};
    /// # use flashtile_wgpu::{Context, Error, TuneOptions, Tuning};
    /// # async fn f(context: Context, problem: Problem, args: HostArgs<'_>) -> Result<(), Error> {
    /// let found = context.tune(&problem, &args, TuneOptions::new()).await?;
    /// let mut tuning = Tuning::new(context.tuning_key());
    /// tuning.add(&found);
    /// let context = context.with_tuning(tuning).expect("it is this context's");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Refused`] where the flash kernel cannot run the problem; failures of the planner's
    /// choice, and [`Error::DeviceLost`]. A shape that fails is an [`Outcome`].
    pub async fn tune(
        &self,
        problem: &Problem,
        args: &HostArgs<'_>,
        options: TuneOptions<'_>,
    ) -> Result<TuneResult, Error> {
        Search::new(self, problem, options)?.run(args).await
    }

    /// As [`tune`](Self::tune), blocking.
    ///
    /// # Errors
    /// As [`tune`](Self::tune).
    #[cfg(not(target_family = "wasm"))]
    pub fn tune_blocking(
        &self,
        problem: &Problem,
        args: &HostArgs<'_>,
        options: TuneOptions<'_>,
    ) -> Result<TuneResult, Error> {
        pollster::block_on(self.tune(problem, args, options))
    }
}

/// A search under way.
struct Search<'a, 'o> {
    context: &'a Context,
    problem: &'a Problem,
    options: TuneOptions<'o>,
    start: Instant,
    /// What the planner chooses.
    planned: TileChoice,
    /// The first is the planner's choice.
    entered: Vec<Entered>,
    rest: Vec<Tuned>,
    rounds: usize,
}

/// A shape that runs.
struct Entered {
    choice: TileChoice,
    plan: Plan,
    wrong: Option<String>,
    compile: Duration,
    /// Milliseconds of the run with which it entered.
    first: f64,
    /// Milliseconds in each round; `None` where it did not take part.
    times: Vec<Option<f64>>,
    out: bool,
}

impl<'a, 'o> Search<'a, 'o> {
    fn new(
        context: &'a Context,
        problem: &'a Problem,
        mut options: TuneOptions<'o>,
    ) -> Result<Self, Error> {
        let kernel = KernelKind::Flash;
        // A forced shape leaves nothing to search.
        options.plan.tiles = None;
        let machine = &context.inner.machine;
        let planned = schedule(problem, kernel, &options.plan, machine)
            .map_err(|reasons| Error::Refused { kernel, reasons })?;
        let planned = TileChoice { tiles: planned.tiles, key_split: options.plan.key_split };
        let (entered, rest, rounds) = (Vec::new(), Vec::new(), 0);
        let start = Instant::now();
        Ok(Self { context, problem, options, start, planned, entered, rest, rounds })
    }

    async fn run(mut self, args: &HostArgs<'_>) -> Result<TuneResult, Error> {
        let planned = self.planned;
        let made = self.schedule(&planned).expect("it was just planned");
        let plan = self.context.build(self.problem, made.clone()).await?;
        let tensors = HostRun::upload(&plan, args).await?;
        let entry = self.enter(planned, made, &tensors, args).await?;
        self.entered.push(entry);
        for choice in self.shapes().into_iter().take(self.options.most) {
            self.try_to_enter(choice, ADMISSION, &tensors, args).await?;
        }
        self.round(&tensors).await?;
        for choice in self.splits() {
            self.try_to_enter(choice, SPLITS, &tensors, args).await?;
        }
        while self.rounds < MIN_ROUNDS || (self.rounds < MAX_ROUNDS && self.in_time(1.0)) {
            self.eliminate();
            self.round(&tensors).await?;
        }
        Ok(self.result())
    }

    fn schedule(&self, choice: &TileChoice) -> Option<Schedule> {
        let options = choice.within(&self.options.plan);
        let machine = &self.context.inner.machine;
        schedule(self.problem, KernelKind::Flash, &options, machine).ok()
    }

    /// Every other shape that runs here, in the order in which they are tried: the best guess of
    /// each kernel first, that of the planner's kernel before the others. Those that are not tried
    /// come last.
    fn shapes(&self) -> Vec<TileChoice> {
        let key_split = self.planned.key_split;
        let choices = flash_tiles().map(|tiles| TileChoice { tiles, key_split });
        let runs = |choice: &TileChoice| *choice != self.planned && self.schedule(choice).is_some();
        let mut all: Vec<_> = choices.filter(runs).collect();
        let kind = |choice: &TileChoice| discriminant(&choice.tiles);
        // Columns that V does not have are wasted, and so are subgroups that are not used.
        all.sort_by_key(|choice| (choice.tiles.max_head_dim_v(), !choice.tiles.uses_subgroups()));
        let place = |n: usize| all[..n].iter().filter(|c| kind(c) == kind(&all[n])).count();
        let other = |n: usize| kind(&all[n]) != kind(&self.planned);
        let mut order: Vec<_> = (0..all.len()).collect();
        let slow = |n: usize| self.skips(&all[n].tiles);
        order.sort_by_key(|&n| (slow(n), place(n), other(n)));
        order.into_iter().map(|n| all[n]).collect()
    }

    /// Other ways to split the keys of few queries, with the shape that is ahead.
    fn splits(&self) -> Vec<TileChoice> {
        let (seq_q, seq_kv) = (self.problem.seq_q(), self.problem.seq_kv());
        if self.planned.key_split != KeySplit::Auto || seq_q > KeyChunks::MAX_QUERIES {
            return Vec::new();
        }
        let right = self.entered.iter().filter(|entry| entry.wrong.is_none());
        let ahead = right.min_by(|a, b| a.latest().total_cmp(&b.latest()));
        let Some(Entered { choice: TileChoice { tiles, .. }, plan, .. }) = ahead else {
            return Vec::new();
        };
        let now = plan.inner.schedule.chunks.map(KeyChunks::keys);
        // The merge reads one row of every chunk, so very many do not pay.
        let sizes = (0..usize::BITS).map(|n| KeyChunks::MIN_KEYS << n);
        let sizes = sizes.take_while(|&keys| keys < seq_kv);
        let sizes = sizes.filter(|&keys| seq_kv.div_ceil(keys) <= 4 * KeyChunks::MAX_COUNT);
        let splits = sizes.map(Some).chain([None]).filter(|&keys| keys != now);
        let split = |keys: Option<usize>| keys.map_or(KeySplit::Off, KeySplit::Keys);
        splits.map(|keys| TileChoice { tiles: *tiles, key_split: split(keys) }).collect()
    }

    /// Whether compiling a shape takes too long here: software adapters take minutes for a kernel
    /// that has all of a row in one thread, 196 s for the narrowest on a busy machine.
    fn skips(&self, tiles: &Tiles) -> bool {
        self.context.is_software() && matches!(tiles, Tiles::Uniform(_))
    }

    /// Whether no more than this part of the time has passed.
    fn in_time(&self, part: f64) -> bool {
        self.start.elapsed().as_secs_f64() <= self.options.within.as_secs_f64() * part
    }

    fn report(&mut self, choice: &TileChoice) {
        let (elapsed, within) = (self.start.elapsed(), self.options.within);
        if let Some(progress) = &mut self.options.progress {
            progress(&TuneProgress { elapsed, within, choice });
        }
    }

    /// Compiles, runs and verifies a shape, while `part` of the time has not passed.
    async fn try_to_enter(
        &mut self,
        choice: TileChoice,
        part: f64,
        tensors: &HostRun,
        args: &HostArgs<'_>,
    ) -> Result<(), Error> {
        let Some(made) = self.schedule(&choice) else { return Ok(()) };
        let chunks = made.chunks;
        let left_out = |outcome| Tuned { choice, chunks, planned: false, outcome };
        if self.skips(&choice.tiles) {
            let why = "a software adapter compiles it for minutes".to_owned();
            self.rest.push(left_out(Outcome::Skipped(why)));
            return Ok(());
        }
        if !self.in_time(part) {
            self.rest.push(left_out(Outcome::Skipped("there was no time".to_owned())));
            return Ok(());
        }
        match self.enter(choice, made, tensors, args).await {
            Ok(entry) => self.entered.push(entry),
            Err(lost @ Error::DeviceLost(_)) => return Err(lost),
            Err(e) => self.rest.push(left_out(Outcome::Failed(e.to_string()))),
        }
        Ok(())
    }

    async fn enter(
        &mut self,
        choice: TileChoice,
        made: Schedule,
        tensors: &HostRun,
        args: &HostArgs<'_>,
    ) -> Result<Entered, Error> {
        self.report(&choice);
        let start = Instant::now();
        let plan = self.context.build(self.problem, made).await?;
        // Some drivers compile a kernel when it first runs.
        plan.warm_up().await?;
        let compile = start.elapsed();
        tensors.clear_output().await?;
        let first = tensors.run_plan(&plan).await?.best().as_secs_f64() * 1e3;
        let wrong = match &mut self.options.verify {
            None => None,
            Some(verify) => {
                let mut out = vec![0; args.out.len()];
                let mut lse = args.lse.as_ref().map(|lse| vec![0.0; lse.len()]);
                let mut results = HostArgs::new(args.q, args.k, args.v, &mut out);
                results.lse = lse.as_deref_mut();
                tensors.download(&mut results).await?;
                verify(&out).err()
            }
        };
        let times = vec![None; self.rounds];
        Ok(Entered { choice, plan, wrong, compile, first, times, out: false })
    }

    /// Runs each remaining shape, one after the other.
    async fn round(&mut self, tensors: &HostRun) -> Result<(), Error> {
        let count = self.entered.len();
        for place in 0..count {
            // Every other round runs backwards: what runs before a shape may slow it down.
            let n = if self.rounds.is_multiple_of(2) { place } else { count - 1 - place };
            let entry = &self.entered[n];
            let mut time = None;
            if !entry.out {
                let (choice, plan) = (entry.choice, entry.plan.clone());
                self.report(&choice);
                let start = Instant::now();
                let mut times = Vec::new();
                while times.is_empty() || (times.len() < RUNS && start.elapsed() < RUNS_TIME) {
                    times.push(tensors.run_plan(&plan).await?.best().as_secs_f64() * 1e3);
                }
                time = median(times);
            }
            self.entered[n].times.push(time);
        }
        self.rounds += 1;
        Ok(())
    }

    /// Takes out what cannot win any more. The planner's choice stays, as the measure of the
    /// others.
    fn eliminate(&mut self) {
        let slower = ELIMINATION[(self.rounds - 1).min(ELIMINATION.len() - 1)];
        let rivals = |entry: &&Entered| !entry.out && entry.wrong.is_none();
        let mut times: Vec<_> = self.entered.iter().filter(rivals).map(Entered::latest).collect();
        times.sort_by(f64::total_cmp);
        let (Some(&best), second) = (times.first(), times.get(1)) else { return };
        let limit = (best * slower).max(second.copied().unwrap_or(best));
        for entry in &mut self.entered[1..] {
            entry.out |= entry.wrong.is_some() || entry.latest() > limit;
        }
    }

    fn result(self) -> TuneResult {
        let planned = &self.entered[0];
        let tuned = |entry: &Entered| {
            let outcome = match &entry.wrong {
                Some(why) => Outcome::Wrong(why.clone()),
                None => entry.outcome(planned),
            };
            let Entered { choice, plan, .. } = entry;
            let chunks = plan.inner.schedule.chunks;
            Tuned { choice: *choice, chunks, planned: *choice == self.planned, outcome }
        };
        let mut shapes: Vec<_> = self.entered.iter().map(tuned).collect();
        shapes.extend(self.rest);
        let rank = |shape: &Tuned| match shape.outcome {
            Outcome::Measured { speedup, .. } => -speedup,
            Outcome::Wrong(_) | Outcome::Failed(_) | Outcome::Skipped(_) => f64::INFINITY,
        };
        shapes.sort_by(|a, b| rank(a).total_cmp(&rank(b)));
        TuneResult { kind: ProblemKind::of(self.problem), shapes }
    }
}

impl Entered {
    /// Its median so far.
    fn latest(&self) -> f64 {
        median(self.times.iter().copied().flatten().collect()).unwrap_or(self.first)
    }

    fn outcome(&self, planned: &Entered) -> Outcome {
        let pairs = planned.times.iter().zip(&self.times);
        let ratios: Vec<_> =
            pairs.filter_map(|(planned, own)| Some((*planned)? / (*own)?.max(1e-9))).collect();
        let rounds = ratios.len();
        let faster = ratios.iter().filter(|&&ratio| ratio > 1.0).count();
        let ahead = faster as f64 / rounds.max(1) as f64;
        let speedup = median(ratios).unwrap_or(planned.first / self.first.max(1e-9));
        let time = Duration::from_secs_f64(self.latest() / 1e3);
        Outcome::Measured { time, speedup, rounds, ahead, compile: self.compile }
    }
}

fn median(mut times: Vec<f64>) -> Option<f64> {
    times.sort_by(f64::total_cmp);
    let upper = *times.get(times.len() / 2)?;
    let lower = times[(times.len() - 1) / 2];
    Some(f64::midpoint(lower, upper))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashtile_core::{DType, TensorView};
    use flashtile_shaders::FLASH_TILES;

    fn shape(n: usize, planned: bool, outcome: Outcome) -> Tuned {
        let choice = TileChoice { tiles: FLASH_TILES[n], key_split: KeySplit::Auto };
        Tuned { choice, chunks: None, planned, outcome }
    }

    fn ran(speedup: f64) -> Outcome {
        in_rounds(speedup, 3, 1.0)
    }

    fn in_rounds(speedup: f64, rounds: usize, ahead: f64) -> Outcome {
        let (time, compile) = (Duration::from_millis(1), Duration::ZERO);
        Outcome::Measured { time, speedup, rounds, ahead, compile }
    }

    fn result(shapes: Vec<Tuned>) -> TuneResult {
        let x = TensorView::bhsd(DType::F32, [1; 4]).expect("small");
        let problem = Problem::builder(x, x, x).build().expect("valid");
        TuneResult { kind: ProblemKind::of(&problem), shapes }
    }

    #[test]
    fn only_clearly_faster_shapes_come_before_the_planned_one() {
        let found = result(vec![
            shape(7, false, in_rounds(9.0, 2, 1.0)),
            shape(6, false, in_rounds(8.0, 20, 0.7)),
            shape(4, false, ran(2.0)),
            shape(3, false, ran(1.2)),
            shape(2, false, ran(1.02)),
            shape(1, true, ran(1.0)),
            shape(0, false, Outcome::Wrong("it is".into())),
            shape(5, false, Outcome::Skipped("no time".into())),
        ]);
        let tiles: Vec<_> = found.choices().into_iter().map(|choice| choice.tiles).collect();
        assert_eq!(tiles, [FLASH_TILES[4], FLASH_TILES[3], FLASH_TILES[1]]);
        assert_eq!(found.winner().map(|shape| shape.choice.tiles), Some(FLASH_TILES[4]));
        let mut tuning = Tuning::new("here");
        tuning.add(&found);
        assert_eq!(tuning.choices(&found.kind), found.choices());
    }

    #[test]
    fn a_wrong_shape_is_never_kept() {
        let wrong = || Outcome::Wrong("it is".into());
        let found = result(vec![shape(0, false, ran(1.01)), shape(1, true, wrong())]);
        assert!(found.choices().is_empty() && found.winner().is_none());
        let mut tuning = Tuning::new("here");
        tuning.add(&found);
        assert!(tuning.is_empty());
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0]), Some(2.0));
        assert_eq!(median(vec![9.0, 1.0, 2.0]), Some(2.0));
    }
}
