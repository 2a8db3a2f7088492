use crate::{BackendKind, DType, KernelKind};

/// Why matrix units are not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoMatrixUnits {
    /// The options say so.
    #[error("they are switched off by name")]
    Off,
    /// A tile shape of another kernel was requested.
    #[error("the requested tiles are those of a kernel without them")]
    Tiles,
    /// The backend has no kernel that uses them.
    #[error("the {backend} backend has no kernel for them")]
    Backend {
        /// Which backend.
        backend: BackendKind,
    },
    /// The kernel does not use them.
    #[error("the {kernel} kernel does not use them")]
    Kernel {
        /// Which kernel.
        kernel: KernelKind,
    },
    /// They do not multiply this storage type without changing results.
    #[error("they do not multiply {given} here")]
    DType {
        /// The problem's storage type.
        given: DType,
    },
    /// They would round the inputs, and the options do not allow that.
    #[error("they would round {given} to f16, which needs PlanOptions::reduced_precision")]
    Precision {
        /// The problem's storage type.
        given: DType,
    },
    /// The device has none, or its driver does not offer them.
    #[error("the device or its driver does not offer them")]
    NotOffered,
    /// The device was opened without a feature that they need, although the adapter has it.
    #[error("the device was opened without the feature {feature}")]
    FeatureOff {
        /// Which feature.
        feature: &'static str,
    },
    /// The device can multiply matrices, but the sizes are not known.
    #[error("the sizes of matrices are not known: make the context with Context::for_adapter")]
    SizesUnknown,
    /// None of the sizes that the device reports has a kernel.
    #[error("no kernel has a size that the device reports ({reported})")]
    NoSize {
        /// The sizes that the device reports.
        reported: String,
    },
    /// An axis is longer than the kernels support.
    #[error("{axis} is {given}; their kernels support at most {max}")]
    Axis {
        /// Its name.
        axis: &'static str,
        /// Its size.
        given: usize,
        /// The largest size that the kernels support.
        max: usize,
    },
    /// A limit of the device is below what the kernels need.
    #[error("the device's {limit} is {given}, below the {needed} that their kernel needs")]
    DeviceLimit {
        /// Name of the limit.
        limit: &'static str,
        /// The device's value.
        given: u64,
        /// What is needed.
        needed: u64,
    },
    /// The GPU's compute capability is too low.
    #[error(
        "they need compute capability {}.{} for {dtype}; the GPU has {}.{}",
        needed / 10,
        needed % 10,
        given / 10,
        given % 10
    )]
    ComputeCapability {
        /// The problem's storage type.
        dtype: DType,
        /// Ten times the major version, plus the minor one.
        given: u32,
        /// What is needed, in the same form.
        needed: u32,
    },
    /// A software adapter emulates them, which is slower than its other kernels.
    #[error("a software adapter emulates them, which is slow")]
    Software,
    /// Tiles of a kernel without them were measured to be faster on this device.
    #[error("tiles of another kernel were measured to be faster here")]
    Slower,
    /// They need several products for each product of this storage type, and are no faster than the
    /// device's other units.
    #[error("for {dtype} they are no faster than the other units of this GPU")]
    NotFaster {
        /// The problem's storage type.
        dtype: DType,
    },
    /// Few queries would leave most of each matrix empty.
    #[error("seq_q is {seq_q}: most rows of each matrix would be empty")]
    FewQueries {
        /// The problem's number of queries.
        seq_q: usize,
    },
}
