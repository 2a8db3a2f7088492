//! Tests that need a device, and what becomes of them where there is none.

use libtest_mimic::{Arguments, Failed, Trial};
use std::sync::Arc;

/// The tests of one kind of device.
pub(crate) struct Suite<D> {
    /// What such a device is called.
    pub(crate) device: &'static str,
    /// The environment variable that lets tests fail where there is none.
    pub(crate) required: &'static str,
    pub(crate) open: fn() -> Result<D, String>,
    pub(crate) tests: Vec<Test<D>>,
}

/// What a device lacks.
type Misfit<D> = Box<dyn Fn(&D) -> Option<String>>;

type Run<D> = Box<dyn FnOnce(&D) -> Result<(), String> + Send>;

/// One test on a device.
pub(crate) struct Test<D> {
    name: String,
    misfit: Misfit<D>,
    run: Run<D>,
}

impl<D> Test<D> {
    pub(crate) fn new(
        name: impl Into<String>,
        run: impl FnOnce(&D) -> Result<(), String> + Send + 'static,
    ) -> Self {
        Self { name: name.into(), misfit: Box::new(|_| None), run: Box::new(run) }
    }

    /// Ignored on devices that lack what it needs, with that as the reason.
    #[must_use]
    pub(crate) fn unless(mut self, misfit: impl Fn(&D) -> Option<String> + 'static) -> Self {
        self.misfit = Box::new(misfit);
        self
    }
}

impl<D: Send + Sync + 'static> Suite<D> {
    /// Those that `arguments` choose. The device is opened before anything runs, for a test is ignored or not when it is listed; and only where a
    /// test is to run on it.
    pub(crate) fn trials(self, arguments: &Arguments) -> Vec<Trial> {
        let Self { device, required, open, mut tests } = self;
        tests
            .retain(|test| !arguments.is_filtered_out(&ignored(&test.name, "", arguments.ignored)));
        if arguments.list {
            return tests.iter().map(|test| ignored(&test.name, "", false)).collect();
        }
        if tests.is_empty() {
            return Vec::new();
        }
        let required = std::env::var_os(required).is_some_and(|value| value == "1");
        let opened = Arc::new(open());
        let trial = |Test { name, misfit, run }| {
            let why = match &*opened {
                Ok(device) => misfit(device),
                Err(reason) => (!required).then(|| format!("no {device}: {reason}")),
            };
            if let Some(why) = why {
                return ignored(&format!("{name} ({why})"), &why, true);
            }
            let opened = opened.clone();
            Trial::test(name, move || {
                let device = opened.as_ref().as_ref().map_err(Failed::from)?;
                run(device).map_err(Failed::from)
            })
        };
        tests.into_iter().map(trial).collect()
    }
}

/// A test that cannot run, or is never to be run: whoever runs ignored tests too is told why it fails.
fn ignored(name: &str, why: &str, flag: bool) -> Trial {
    let why = why.to_owned();
    Trial::test(name, move || Err(Failed::from(why))).with_ignored_flag(flag)
}
