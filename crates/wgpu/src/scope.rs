//! Error scopes: wgpu panics on uncaught errors, so everything that can fail runs in
//! one.

use crate::Error;
use std::{
    future::Future,
    sync::Arc,
    sync::atomic::{AtomicBool, Ordering},
};

/// What a scope caught.
pub(crate) enum Caught {
    OutOfMemory,
    Other(String),
}

impl Caught {
    /// As an error about `what`. On a lost device everything that is made is invalid, and using it
    /// is what fails; the loss is the cause.
    pub(crate) fn about(self, device: &wgpu::Device, what: impl FnOnce() -> String) -> Error {
        match self {
            _ if is_lost(device) => lost(),
            Caught::OutOfMemory => Error::OutOfMemory { what: what() },
            Caught::Other(message) => Error::Validation(message),
        }
    }
}

/// Runs `f` with every kind of error caught. The scopes are popped before the future is polled,
/// because they belong to this thread.
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

/// As [`catch`], where errors are known at once: with every native API.
#[cfg(not(target_family = "wasm"))]
pub(crate) fn catch_now<T>(device: &wgpu::Device, f: impl FnOnce() -> T) -> Result<T, Caught> {
    pollster::block_on(catch(device, f))
}

/// A browser reports errors later, to the device's own handler.
#[cfg(target_family = "wasm")]
pub(crate) fn catch_now<T>(_: &wgpu::Device, f: impl FnOnce() -> T) -> Result<T, Caught> {
    Ok(f())
}

/// Whether the device is lost. Error scopes do not report it, and the callback that does belongs to
/// the application, so this asks by mapping a buffer, which a lost device refuses at once. (In a
/// browser it refuses later, and this returns false.)
///
/// The buffer is dropped and not unmapped: while another thread polls the device, `unmap` may find
/// that the buffer is not being mapped at that moment, which would look like an error.
pub(crate) fn is_lost(device: &wgpu::Device) -> bool {
    let refused = Arc::new(AtomicBool::new(false));
    let answer = refused.clone();
    let asked = catch_now(device, || {
        let probe = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("flashtile probe"),
            size: 4,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        probe.map_async(wgpu::MapMode::Read, .., move |result| {
            answer.store(result.is_err(), Ordering::Relaxed);
        });
        // Before the drop, which ends a mapping that is still under way.
        refused.load(Ordering::Relaxed)
    });
    // A device without memory for the probe is not lost for that.
    asked.unwrap_or_else(|caught| matches!(caught, Caught::Other(_)))
}

pub(crate) fn lost() -> Error {
    Error::DeviceLost("it refuses all work".into())
}

/// `Err` where the device is lost.
pub(crate) fn check_lost(device: &wgpu::Device) -> Result<(), Error> {
    if is_lost(device) { Err(lost()) } else { Ok(()) }
}

/// wgpu's reports are trees of lines; errors of this crate are sentences.
fn one_line(report: &str) -> String {
    report.split_whitespace().collect::<Vec<_>>().join(" ")
}
