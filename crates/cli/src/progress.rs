//! Progress bars and spinners on stderr. They are silent where stderr is not a terminal.

use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;

/// A spinner, for long work of unknown length.
pub(crate) fn spinner(message: String) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(message);
    bar.set_style(style("{spinner} {msg} ({elapsed})"));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// A bar of `len` steps.
pub(crate) fn bar(len: u64) -> ProgressBar {
    bar_of(len, "{bar:32} {pos}/{len} {msg} ({elapsed}, {eta} left)")
}

/// A bar of an amount of time, which may be exceeded.
pub(crate) fn time_bar(within: Duration) -> ProgressBar {
    bar_of(within.as_millis() as u64, "{bar:32} {msg} ({elapsed})")
}

fn bar_of(len: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::new(len);
    bar.set_style(style(template));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates are constants of this file")
}
