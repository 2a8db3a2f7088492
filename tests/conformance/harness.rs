//! Tests that need a device, and how they show where there is none.

use libtest_mimic::{Arguments, Failed, Trial};
use std::sync::Arc;

/// The tests of one kind of device.
pub(crate) struct Suite<D> {
    /// The name of such a device in messages.
    pub(crate) device: &'static str,
    /// The environment variable that makes tests fail where there is no such device.
    pub(crate) required: &'static str,
    pub(crate) open: fn() -> Result<D, String>,
    pub(crate) tests: Vec<Test<D>>,
}

/// The reason, if any, why a test cannot run on a device.
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

    /// Ignores the test on devices for which `misfit` returns a reason.
    #[must_use]
    pub(crate) fn unless(mut self, misfit: impl Fn(&D) -> Option<String> + 'static) -> Self {
        self.misfit = Box::new(misfit);
        self
    }
}

impl<D: Send + Sync + 'static> Suite<D> {
    /// The tests that `arguments` choose. The device is opened before any of them runs, because a
    /// test must be marked as ignored when it is listed. It is not opened if no test is chosen.
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
        let required = is_required(required);
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

/// A test that cannot run, or that is only listed. It fails with the reason if ignored tests are
/// run.
fn ignored(name: &str, why: &str, flag: bool) -> Trial {
    let why = why.to_owned();
    Trial::test(name, move || Err(Failed::from(why))).with_ignored_flag(flag)
}

/// Whether `variable` requires something that a machine may lack: it is 1.
pub(crate) fn is_required(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| value == "1")
}
