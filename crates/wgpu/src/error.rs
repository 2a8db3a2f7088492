use flashtile_core::{Argument, DeviceChoice, KernelKind, ProblemError, Reason};

/// What can go wrong on a wgpu device.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no adapter, or not the requested one.
    #[error("no graphics adapter{wanted}: {reason}")]
    NoAdapter {
        /// What was requested.
        wanted: DeviceChoice,
        /// What was looked for and found.
        reason: String,
    },
    /// The adapter gave no device.
    #[error("adapter {adapter} gave no device: {reason}")]
    NoDevice {
        /// Name of the adapter.
        adapter: String,
        /// wgpu's reason.
        reason: String,
    },
    /// The problem cannot run with this kernel, for all of these reasons.
    #[error("the {kernel} kernel cannot run this: {}", joined(reasons))]
    Refused {
        /// Which kernel.
        kernel: KernelKind,
        /// Why.
        reasons: Vec<Reason>,
    },
    /// The arguments break a rule of the problem.
    #[error(transparent)]
    Problem(#[from] ProblemError),
    /// A kernel did not compile on this device.
    #[error("kernel {variant} did not compile: {message}")]
    Compile {
        /// The variant's name.
        variant: String,
        /// What the compiler said.
        message: String,
    },
    /// The device is out of memory.
    #[error("the device is out of memory for {what}")]
    OutOfMemory {
        /// What did not fit.
        what: String,
    },
    /// A buffer lacks a usage.
    #[error("the buffer of {argument} must have usage {expected}, but has {given:?}")]
    Usage {
        /// Whose buffer.
        argument: Argument,
        /// The usage that is needed.
        expected: &'static str,
        /// What it has.
        given: wgpu::BufferUsages,
    },
    /// A buffer is written and also bound otherwise, which wgpu's usage rules forbid in one
    /// dispatch even at disjoint ranges.
    #[error(
        "{written} and {other} share a buffer: a buffer that is written cannot be bound twice in \
         one dispatch"
    )]
    Aliased {
        /// The output.
        written: Argument,
        /// The other argument.
        other: Argument,
    },
    /// An offset is not a multiple of the element size.
    #[error(
        "{argument} starts at byte {offset}, which is not a multiple of its {size}-byte elements"
    )]
    Misaligned {
        /// Whose offset.
        argument: Argument,
        /// Where it starts, in bytes.
        offset: u64,
        /// Bytes an element takes.
        size: u64,
    },
    /// A tensor fills a whole binding, and its offset in the buffer pushes it beyond the device's
    /// limit: bindings start at multiples of `min_storage_buffer_offset_alignment`.
    #[error(
        "{argument} needs a binding of {needed} bytes at this offset, over the device's {limit}; \
         an offset that is a multiple of {alignment} needs less"
    )]
    BindingSize {
        /// Whose binding.
        argument: Argument,
        /// Bytes from the aligned start to the end of the tensor.
        needed: u64,
        /// `max_storage_buffer_binding_size` of the device.
        limit: u64,
        /// `min_storage_buffer_offset_alignment` of the device.
        alignment: u64,
    },
    /// The queue belongs to another device.
    #[error("the queue belongs to another device: Context::new needs the device's own queue")]
    ForeignQueue,
    /// The plan was made by another context.
    #[error("the plan was made by another context: plans run on the device that made them")]
    OtherContext,
    /// The device is lost.
    #[error("the device was lost: {0}")]
    DeviceLost(String),
    /// wgpu refused a command: a buffer of another device, for example.
    #[error("wgpu refused: {0}")]
    Validation(String),
}

fn joined(reasons: &[Reason]) -> String {
    reasons.iter().map(Reason::to_string).collect::<Vec<_>>().join("; ")
}
