//! Error scopes: wgpu panics on errors that nobody catches, so everything that can fail runs inside one.

use crate::Error;
use std::future::Future;

/// What a scope caught.
pub(crate) enum Caught {
    OutOfMemory,
    Other(String),
}

impl Caught {
    /// As an error about `what`.
    pub(crate) fn about(self, what: impl FnOnce() -> String) -> Error {
        match self {
            Caught::OutOfMemory => Error::OutOfMemory { what: what() },
            Caught::Other(message) => Error::Validation(message),
        }
    }
}

/// Runs `f` with every kind of error caught. The scopes are popped before the future is polled: they belong to this thread.
pub(crate) fn catch<T, F: FnOnce() -> T>(
    device: &wgpu::Device,
    f: F,
) -> impl Future<Output = Result<T, Caught>> + use<T, F> {
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
    let value = f();
    let errors = [internal.pop(), memory.pop(), validation.pop()].map(Box::pin);
    async move {
        for error in errors {
            match error.await {
                None => {}
                Some(wgpu::Error::OutOfMemory { .. }) => return Err(Caught::OutOfMemory),
                Some(error) => return Err(Caught::Other(one_line(&error.to_string()))),
            }
        }
        Ok(value)
    }
}

/// As [`catch`], where errors are known at once (every native API).
pub(crate) fn catch_now<T>(device: &wgpu::Device, f: impl FnOnce() -> T) -> Result<T, Caught> {
    pollster::block_on(catch(device, f))
}

/// wgpu's reports are trees of lines; errors of this crate are sentences.
fn one_line(report: &str) -> String {
    report.split_whitespace().collect::<Vec<_>>().join(" ")
}
