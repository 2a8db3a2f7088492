//! Waiting for the device and reading what it wrote.

use crate::{Context, Error, scope::catch};

/// Shows `f` the contents of `buffer` once everything submitted before is done.
pub(crate) async fn read(
    context: &Context,
    buffer: &wgpu::Buffer,
    f: impl FnOnce(&[u8]),
) -> Result<(), Error> {
    let device = context.device();
    let (done, mapped) = futures_channel::oneshot::channel();
    let asked = catch(device, || {
        buffer.map_async(wgpu::MapMode::Read, .., move |result| {
            // The receiver is gone if the caller gave up.
            let _ = done.send(result);
        });
    });
    asked.await.map_err(|caught| caught.about(device, || "a readback".into()))?;
    wait(context)?;
    let lost = |reason: String| Error::DeviceLost(reason);
    mapped.await.map_err(|e| lost(e.to_string()))?.map_err(|e| lost(e.to_string()))?;
    f(&buffer.get_mapped_range(..).map_err(|e| lost(e.to_string()))?);
    buffer.unmap();
    Ok(())
}

/// Waits until everything submitted so far is done.
pub(crate) async fn finished(context: &Context) -> Result<(), Error> {
    let (done, waiting) = futures_channel::oneshot::channel();
    context.queue().on_submitted_work_done(move || {
        // The receiver is gone if the caller gave up.
        let _ = done.send(());
    });
    wait(context)?;
    waiting.await.map_err(|e| Error::DeviceLost(e.to_string()))
}

/// Lets the device finish. A browser does so by itself.
fn wait(context: &Context) -> Result<(), Error> {
    context
        .device()
        .poll(wgpu::PollType::wait_indefinitely())
        .map(|_| ())
        .map_err(|e| Error::DeviceLost(e.to_string()))
}
