//! Work shared among threads: rayon's, except in a browser, which has one thread.

use crate::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The threads that a backend uses.
#[derive(Clone, Default)]
pub(crate) struct Threads {
    /// A pool of its own; `None` for the caller's, or rayon's global one.
    #[cfg(not(target_family = "wasm"))]
    own: Option<std::sync::Arc<rayon::ThreadPool>>,
}

impl Threads {
    /// A pool of `count` threads.
    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn own(count: usize) -> Result<Self, Error> {
        let failed = |because: String| Error::Threads { threads: count, because };
        if count == 0 {
            return Err(failed("at least one is needed".to_owned()));
        }
        let named = |n| format!("flashtile {n}");
        let pool = rayon::ThreadPoolBuilder::new().num_threads(count).thread_name(named).build();
        let pool = pool.map_err(|e| failed(e.to_string()))?;
        Ok(Self { own: Some(std::sync::Arc::new(pool)) })
    }

    /// One thread.
    #[cfg(target_family = "wasm")]
    pub(crate) fn own(count: usize) -> Result<Self, Error> {
        if count == 1 {
            return Ok(Self {});
        }
        Err(Error::Threads { threads: count, because: "there is only one here".to_owned() })
    }

    /// How many threads share work that is started from here.
    pub(crate) fn count(&self) -> usize {
        #[cfg(not(target_family = "wasm"))]
        return self
            .own
            .as_ref()
            .map_or_else(rayon::current_num_threads, |pool| pool.current_num_threads());
        #[cfg(target_family = "wasm")]
        1
    }

    /// Calls `body` with every number below `count`, in ascending order of their start, on one
    /// thread per workspace.
    pub(crate) fn for_each<W: Send>(
        &self,
        count: usize,
        workspaces: &mut [W],
        body: impl Fn(usize, &mut W) + Sync,
    ) {
        let next = AtomicUsize::new(0);
        let work = |workspace: &mut W| {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= count {
                    break;
                }
                body(n, workspace);
            }
        };
        let Some((first, others)) = workspaces.split_first_mut() else { return };
        if others.is_empty() {
            return work(first);
        }
        #[cfg(not(target_family = "wasm"))]
        self.scope(|scope| {
            for workspace in others {
                scope.spawn(|_| work(workspace));
            }
            work(first);
        });
    }

    /// The calling thread works too, also where it is none of the pool: one thread less to wake.
    #[cfg(not(target_family = "wasm"))]
    fn scope<'s>(&self, work: impl FnOnce(&rayon::Scope<'s>)) {
        match &self.own {
            Some(pool) => pool.in_place_scope(work),
            None => rayon::in_place_scope(work),
        }
    }
}
