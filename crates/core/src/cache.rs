use crate::{AnyTiles, BackendPlan, PlanOptions, Problem};
use lru::LruCache;
use std::{
    fmt,
    hash::Hash,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// A plan that a [`PlanCache`] keeps: a cheap handle, with memory behind it.
pub trait CachedPlan: Clone {
    /// Bytes of device memory that the plan keeps.
    fn workspace_bytes(&self) -> u64;
}

impl CachedPlan for Arc<dyn BackendPlan> {
    fn workspace_bytes(&self) -> u64 {
        BackendPlan::workspace_bytes(&**self)
    }
}

/// Plans by problem and options, the least recently used evicted first.
///
/// Bounded by the number of plans and by the workspace that they keep. It can be shared between
/// threads; planning itself happens outside its lock. Plans are bound to the device that made them,
/// so use one cache per device.
///
/// ```
/// # use flashtile_core::{CachedPlan, DType, PlanCache, PlanOptions};
/// # use flashtile_core::{Problem, ProblemError, TensorView};
/// # #[derive(Clone)]
/// # struct Plan;
/// # impl CachedPlan for Plan {
/// #     fn workspace_bytes(&self) -> u64 { 0 }
/// # }
/// # fn plan_on_device(_: &Problem) -> Result<Plan, ProblemError> { Ok(Plan) }
/// # fn main() -> Result<(), ProblemError> {
/// let cache: PlanCache<Plan> = PlanCache::new();
/// let view = TensorView::bshd(DType::F16, [1, 128, 8, 64])?;
/// let problem = Problem::builder(view, view, view).causal(true).build()?;
/// let plan = cache.get_or_plan(&problem, &PlanOptions::new(), || plan_on_device(&problem))?;
/// # let _ = plan;
/// assert_eq!(cache.len(), 1);
/// # Ok(())
/// # }
/// ```
pub struct PlanCache<P, T = AnyTiles> {
    plans: Mutex<LruCache<(Problem, PlanOptions<T>), P>>,
    max_bytes: u64,
}

impl<P: CachedPlan, T: Copy + Eq + Hash> PlanCache<P, T> {
    /// At most 64 plans with 256 MiB of workspace.
    pub fn new() -> Self {
        Self::bounded(64, 256 << 20)
    }

    /// At most `plans` plans (at least 1) that together keep at most `bytes` of workspace. One plan
    /// is kept even if its workspace alone exceeds `bytes`.
    pub fn bounded(plans: usize, bytes: u64) -> Self {
        let plans = NonZeroUsize::new(plans).unwrap_or(NonZeroUsize::MIN);
        Self { plans: Mutex::new(LruCache::new(plans)), max_bytes: bytes }
    }

    /// The plan for `problem` and `options`, made by `plan` if it is not there.
    ///
    /// Two threads that ask for the same new plan at the same time may both make it; both get the
    /// one that was made first.
    ///
    /// # Errors
    /// Those of `plan`.
    pub fn get_or_plan<E>(
        &self,
        problem: &Problem,
        options: &PlanOptions<T>,
        plan: impl FnOnce() -> Result<P, E>,
    ) -> Result<P, E> {
        match self.get(problem, options) {
            Some(plan) => Ok(plan),
            None => Ok(self.insert(problem, options, plan()?)),
        }
    }

    /// The plan for `problem` and `options`, if it is there.
    pub fn get(&self, problem: &Problem, options: &PlanOptions<T>) -> Option<P> {
        self.lock().get(&(problem.clone(), *options)).cloned()
    }

    /// Adds a plan, unless another thread added one meanwhile. Returns the one that is kept.
    pub fn insert(&self, problem: &Problem, options: &PlanOptions<T>, plan: P) -> P {
        let mut plans = self.lock();
        let kept = plans.get_or_insert((problem.clone(), *options), || plan).clone();
        let bytes =
            |plans: &LruCache<_, P>| plans.iter().map(|(_, p)| p.workspace_bytes()).sum::<u64>();
        while plans.len() > 1 && bytes(&plans) > self.max_bytes {
            plans.pop_lru();
        }
        kept
    }

    /// How many plans it holds.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether it holds no plan.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops all plans: after a lost device, say.
    pub fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<(Problem, PlanOptions<T>), P>> {
        // The cache is consistent between any two statements.
        self.plans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<P: CachedPlan, T: Copy + Eq + Hash> Default for PlanCache<P, T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P, T> fmt::Debug for PlanCache<P, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlanCache").field("max_bytes", &self.max_bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, KernelKind, MatrixUnits, TensorView};
    use std::convert::Infallible;

    #[derive(Clone, Debug, PartialEq)]
    struct Fake(u64);

    impl CachedPlan for Fake {
        fn workspace_bytes(&self) -> u64 {
            self.0
        }
    }

    fn problem(seq: usize) -> Problem {
        let view = TensorView::bshd(DType::F32, [1, seq, 1, 4]).expect("small");
        Problem::builder(view, view, view).softcap(30.0).dropout_p(0.1).build().expect("valid")
    }

    fn plan(cache: &PlanCache<Fake>, seq: usize, bytes: u64) -> (Fake, bool) {
        let mut made = false;
        let plan = cache.get_or_plan(&problem(seq), &PlanOptions::new(), || {
            made = true;
            Ok::<_, Infallible>(Fake(bytes))
        });
        (plan.unwrap_or_else(|e| match e {}), made)
    }

    #[test]
    fn equal_problems_share_a_plan_and_options_tell_them_apart() {
        let cache = PlanCache::new();
        assert_eq!(plan(&cache, 3, 1), (Fake(1), true));
        assert_eq!(plan(&cache, 3, 2), (Fake(1), false));
        assert_eq!(plan(&cache, 4, 2), (Fake(2), true));
        let flash = PlanOptions::new().kernel(KernelKind::Flash);
        assert_eq!(cache.get(&problem(3), &flash), None);
        let no_units = PlanOptions::new().matrix_units(MatrixUnits::Off);
        assert_eq!(cache.get(&problem(3), &no_units), None);
        assert_eq!(cache.insert(&problem(3), &PlanOptions::new(), Fake(9)), Fake(1));
        cache.clear();
        assert!(cache.is_empty());
    }

    #[test]
    fn the_least_recently_used_is_evicted() {
        let cache = PlanCache::bounded(2, u64::MAX);
        for (seq, made) in [(1, true), (2, true), (1, false), (3, true), (1, false), (2, true)] {
            assert_eq!(plan(&cache, seq, 0).1, made, "{seq}");
        }
        assert_eq!(cache.len(), 2);
    }

    #[test]
    fn workspaces_stay_within_the_bound() {
        let cache = PlanCache::bounded(8, 100);
        for seq in 1..=4 {
            plan(&cache, seq, 40);
        }
        assert_eq!(cache.len(), 2);
        assert!(plan(&cache, 9, 1000).1 && cache.len() == 1, "one plan is always kept");
    }

    #[test]
    fn threads_share_it() {
        let cache = PlanCache::bounded(4, u64::MAX);
        std::thread::scope(|scope| {
            for n in 0..8 {
                let cache = &cache;
                scope.spawn(move || {
                    for round in 0..100 {
                        let seq = 1 + (n + round) % 6;
                        assert_eq!(plan(cache, seq, seq as u64).0, Fake(seq as u64));
                    }
                });
            }
        });
        assert!(cache.len() <= 4);
    }
}
