//! What the planners of several backends share: budgets, size limits, the choice of a kernel, and
//! how a plan is displayed. Applications do not need it.

use crate::{
    Argument, KernelKind, KeyChunks, KeySplit, Mask, MatrixUnits, NoMatrixUnits, PlanOptions,
    Problem, Reason, TensorView,
};
use std::fmt;

/// Bytes of scores that an unfused kernel keeps at once. A larger problem is cut into parts.
pub const MAX_WORKSPACE_BYTES: u64 = 256 << 20;

/// FLOPs of one dispatch on a GPU that drives a display: 0.1 s at 2 TFLOP/s, and just within
/// Windows' limit of 2 s at 0.1 TFLOP/s.
pub const MAX_WATCHDOG_FLOPS: u64 = 200_000_000_000;

/// The limits of a device that decide whether it can hold a problem's tensors at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SizeLimits {
    /// Bytes of the largest buffer (or of all device memory).
    pub buffer_bytes: u64,
    /// The largest batch, heads, head_dim and head_dim_v that kernels can count.
    pub axis: usize,
}

impl SizeLimits {
    /// Limits on the bytes of a buffer and on the sizes of axes.
    pub const fn new(buffer_bytes: u64, axis: usize) -> Self {
        Self { buffer_bytes, axis }
    }
}

/// Axes that kernels cannot count and tensors that no buffer of the device can hold.
pub fn oversized(problem: &Problem, limits: &SizeLimits) -> Vec<Reason> {
    if problem.is_empty() {
        return Vec::new();
    }
    // A stride of 0 gives an axis of any length in little memory. Sequence lengths are limited by
    // the problem itself.
    let axes = [
        ("batch", problem.batch()),
        ("heads", problem.heads()),
        ("head_dim", problem.head_dim()),
        ("head_dim_v", problem.head_dim_v()),
    ];
    let max = limits.axis;
    let too_long = axes.into_iter().filter(|&(_, given)| given > max);
    let too_long = too_long.map(|(axis, given)| Reason::Axis { axis, given, max });
    let tensors = [
        (Argument::Q, problem.q().byte_span()),
        (Argument::K, problem.k().byte_span()),
        (Argument::V, problem.v().byte_span()),
        (Argument::Out, problem.out().byte_span()),
        (Argument::AttnMask, problem.mask().map_or(Some(0), Mask::byte_span)),
        (Argument::Lse, usize::try_from(problem.lse_bytes()).ok()),
    ];
    let too_big = tensors.into_iter().filter_map(|(argument, bytes)| {
        let (needed, limit) = (bytes.map_or(u64::MAX, |bytes| bytes as u64), limits.buffer_bytes);
        (needed > limit).then_some(Reason::BufferSize { argument, needed, limit })
    });
    too_long.chain(too_big).collect()
}

/// Refusals where `options` force on a kernel what only flash has: a tile shape, chunks of keys, or
/// matrix units.
pub fn flash_options<T: fmt::Display>(kernel: KernelKind, options: &PlanOptions<T>) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if kernel == KernelKind::Flash {
        return reasons;
    }
    if let Some(tiles) = &options.tiles {
        let because =
            format!("the {kernel} kernel has one tile shape; only flash can be given another");
        reasons.push(Reason::Tiles { tiles: tiles.to_string(), because });
    }
    if let KeySplit::Keys(keys) = options.key_split {
        let because = format!("the {kernel} kernel does not split keys; only flash does");
        reasons.push(Reason::KeySplit { keys, because });
    }
    if options.matrix_units == MatrixUnits::Require {
        reasons.push(Reason::MatrixUnits(NoMatrixUnits::Kernel { kernel }));
    }
    reasons
}

/// The query heads that fill the rows of a tile together: all heads of a group if one head has
/// fewer queries than a tile of `tile_rows` rows, else 1.
///
/// With `n` heads, row `r` is query `r / n` of the `r % n`-th of them. They share K and V. The
/// arithmetic of a row is the same either way.
pub fn folded_heads(problem: &Problem, tile_rows: usize) -> usize {
    if problem.seq_q() < tile_rows { problem.group_size() } else { 1 }
}

/// The ways to split the keys of `problem` that a plan of the flash kernel may use, preferred ones
/// first: [`KeySplit::candidates`].
///
/// # Errors
/// A chunk size that is not allowed.
pub fn key_splits<T>(
    problem: &Problem,
    options: &PlanOptions<T>,
) -> Result<Vec<Option<KeyChunks>>, Reason> {
    let candidates = options.key_split.candidates(problem.seq_q(), problem.seq_kv());
    candidates.map_err(|keys| {
        let least = KeyChunks::MIN_KEYS;
        let because = format!("a chunk has a power of two of keys, at least {least}");
        Reason::KeySplit { keys, because }
    })
}

/// The schedule of the kernel that `wanted` names, or else of the first kernel that `schedule` does
/// not refuse, and why it is that kernel.
///
/// # Errors
/// The first kernel that was tried, with its reasons. Where no kernel was named and both are
/// refused, the reasons of the second follow if they differ.
pub fn choose_kernel<S>(
    wanted: Option<KernelKind>,
    mut schedule: impl FnMut(KernelKind) -> Result<S, Vec<Reason>>,
) -> Result<(S, String), (KernelKind, Vec<Reason>)> {
    if let Some(kernel) = wanted {
        let made = schedule(kernel).map_err(|reasons| (kernel, reasons))?;
        return Ok((made, format!("{kernel}: requested by name")));
    }
    let (first, second) = (KernelKind::Flash, KernelKind::Unfused);
    let refused = match schedule(first) {
        Ok(made) => return Ok((made, format!("{first}: the first choice wherever it runs"))),
        Err(reasons) => reasons,
    };
    match schedule(second) {
        Ok(made) => {
            let reasons: Vec<_> = refused.iter().map(Reason::to_string).collect();
            Ok((made, format!("{second}: {first} cannot run this ({})", reasons.join("; "))))
        }
        Err(_) => Err((first, refused)),
    }
}

/// Bytes of the tensor that `view` describes, and of one element.
pub fn extent(view: &TensorView) -> (u64, u64) {
    (view.byte_span().map_or(u64::MAX, |bytes| bytes as u64), view.dtype.size() as u64)
}

/// A plan as users read it. Backends fill it in, so that all plans look alike.
#[non_exhaustive]
pub struct PlanSummary<'a> {
    /// The kernel that was chosen.
    pub kernel: KernelKind,
    /// What it computes.
    pub problem: &'a Problem,
    /// The device, with its API or compute capability.
    pub device: String,
    /// Why the plan is as it is, one sentence each.
    pub rationale: &'a [String],
    /// One line per dispatch.
    pub dispatches: &'a dyn Fn(usize) -> String,
    /// How many dispatches there are.
    pub dispatch_count: usize,
    /// Bytes of workspace.
    pub workspace_bytes: u64,
}

impl<'a> PlanSummary<'a> {
    /// A plan of `kernel` for `problem` on `device`, without rationale, dispatches and workspace.
    pub fn new(kernel: KernelKind, problem: &'a Problem, device: String) -> Self {
        Self {
            kernel,
            problem,
            device,
            rationale: &[],
            dispatches: &|_| String::new(),
            dispatch_count: 0,
            workspace_bytes: 0,
        }
    }

    /// Why the plan is as it is, one sentence each.
    #[must_use]
    pub fn rationale(mut self, rationale: &'a [String]) -> Self {
        self.rationale = rationale;
        self
    }

    /// The dispatches: how many there are, and a line about each.
    #[must_use]
    pub fn dispatches(mut self, count: usize, line: &'a dyn Fn(usize) -> String) -> Self {
        (self.dispatch_count, self.dispatches) = (count, line);
        self
    }

    /// Bytes of workspace.
    #[must_use]
    pub fn workspace_bytes(mut self, bytes: u64) -> Self {
        self.workspace_bytes = bytes;
        self
    }
}

impl fmt::Display for PlanSummary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// More dispatches than this are counted, not listed.
        const LISTED: usize = 6;
        writeln!(f, "{}: {}", self.kernel, self.problem)?;
        writeln!(f, "on {}", self.device)?;
        for sentence in self.rationale {
            writeln!(f, "because {sentence}")?;
        }
        for n in 0..self.dispatch_count.min(LISTED) {
            writeln!(f, "dispatch {n}: {}", (self.dispatches)(n))?;
        }
        if self.dispatch_count > LISTED {
            writeln!(f, "and {} more dispatches", self.dispatch_count - LISTED)?;
        }
        write!(f, "workspace {} bytes", self.workspace_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    #[test]
    fn whatever_is_too_large_is_named() {
        let view = TensorView::bhsd(DType::F32, [2, 3, 5, 8]).expect("small");
        let problem = Problem::builder(view, view, view).lse(true).build().expect("valid");
        let fits = SizeLimits { buffer_bytes: 960, axis: 8 };
        assert_eq!(oversized(&problem, &fits), []);
        let reasons = oversized(&problem, &SizeLimits { buffer_bytes: 100, axis: 2 });
        let named: Vec<_> = reasons.iter().map(Reason::to_string).collect();
        assert_eq!(named.len(), 3 + 5, "{named:#?}");
        assert!(named[0].starts_with("heads is 3; the kernel supports at most 2"), "{}", named[0]);
    }

    #[test]
    fn a_named_kernel_is_taken_or_refused_and_auto_falls_back() {
        let reason = || vec![Reason::NoDriver("none".into())];
        let only = |runs: KernelKind| {
            move |kernel| if kernel == runs { Ok(kernel) } else { Err(reason()) }
        };
        let (kernel, why) = choose_kernel(None, only(KernelKind::Unfused)).expect("one runs");
        assert_eq!(kernel, KernelKind::Unfused);
        assert_eq!(why, "unfused: flash cannot run this (none)");
        let refused = choose_kernel(Some(KernelKind::Flash), only(KernelKind::Unfused));
        assert_eq!(refused, Err((KernelKind::Flash, reason())));
    }
}
