//! The backends that this build has, and how their devices are opened: the place to add one.

use flashtile_core::{Backend, BackendKind, DeviceChoice, Reason};
use std::sync::Arc;

/// What is done to a device when it has been opened.
#[derive(Clone, Default)]
pub(crate) struct Prepare {
    #[cfg(feature = "wgpu")]
    pub(crate) wgpu: Option<Arc<PrepareWgpu>>,
}

#[cfg(feature = "wgpu")]
pub(crate) type PrepareWgpu =
    dyn Fn(flashtile_wgpu::Context) -> flashtile_wgpu::Context + Send + Sync;

/// Opens the device of `kind` that `choice` names.
///
/// # Errors
/// Why there is no such backend or device here.
pub(crate) fn open(
    kind: BackendKind,
    choice: &DeviceChoice,
    prepare: &Prepare,
) -> Result<Arc<dyn Backend>, Reason> {
    #[cfg(not(feature = "wgpu"))]
    let _ = prepare;
    match kind {
        #[cfg(feature = "wgpu")]
        BackendKind::Wgpu => match flashtile_wgpu::open_blocking(choice) {
            Ok(context) => Ok(match &prepare.wgpu {
                Some(prepare) => Arc::new(prepare(context)),
                None => Arc::new(context),
            }),
            Err(error) => Err(Reason::NoDevice(error.to_string())),
        },
        #[cfg(feature = "cuda")]
        BackendKind::Cuda => match flashtile_cuda::open(choice) {
            Ok(context) => Ok(Arc::new(context)),
            Err(
                error @ (flashtile_cuda::Error::NoDriver(_) | flashtile_cuda::Error::OldDriver(_)),
            ) => Err(Reason::NoDriver(error.to_string())),
            Err(error) => Err(Reason::NoDevice(error.to_string())),
        },
        #[cfg(feature = "cpu")]
        BackendKind::Cpu => Ok(Arc::new(flashtile_cpu::Cpu::new())),
        #[cfg(not(feature = "wgpu"))]
        BackendKind::Wgpu => Err(feature_off(kind, choice)),
        #[cfg(not(feature = "cuda"))]
        BackendKind::Cuda => Err(feature_off(kind, choice)),
        #[cfg(not(feature = "cpu"))]
        BackendKind::Cpu => Err(feature_off(kind, choice)),
        BackendKind::Reference => Ok(Arc::new(flashtile_reference::Reference)),
        // `BackendKind` may grow: a backend that is not listed here is refused, never replaced.
        backend => Err(Reason::NotBuilt { backend }),
    }
}

#[cfg(not(all(feature = "wgpu", feature = "cuda", feature = "cpu")))]
fn feature_off(backend: BackendKind, _: &DeviceChoice) -> Reason {
    Reason::FeatureOff { backend }
}
