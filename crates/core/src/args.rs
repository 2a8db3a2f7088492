use crate::Call;

/// The memory and values of one call on a device; shapes and strides are the problem's.
///
/// `I` is how a backend names memory that a call reads, `O` memory that it writes. Each backend
/// crate has its own alias: `flashtile_wgpu::Args`, `flashtile_cuda::Args`.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Args<I, O = I> {
    /// Queries.
    pub q: I,
    /// Keys.
    pub k: I,
    /// Values.
    pub v: I,
    /// Receives the output. It must not overlap any other argument.
    pub out: O,
    /// The mask, where the problem has one: one byte per element for bool, else its storage type.
    pub mask: Option<I>,
    /// Valid keys of each batch entry (i32), where the problem has them. The device clamps them to
    /// 0..=seq_kv.
    pub kv_lens: Option<I>,
    /// Receives the log-sum-exp (f32, batch x heads x capacity of seq_q), where the problem asks
    /// for it. It must not overlap any other argument.
    pub lse: Option<O>,
    /// Workspace of at least the plan's `workspace_bytes`, instead of the plan's own. With it,
    /// calls of one plan do not share memory.
    pub workspace: Option<O>,
    /// The values that may change from call to call.
    pub call: Call,
}

impl<I, O> Args<I, O> {
    /// The four tensors that every call has.
    pub fn new(q: impl Into<I>, k: impl Into<I>, v: impl Into<I>, out: impl Into<O>) -> Self {
        Self {
            q: q.into(),
            k: k.into(),
            v: v.into(),
            out: out.into(),
            mask: None,
            kv_lens: None,
            lse: None,
            workspace: None,
            call: Call::new(),
        }
    }

    /// Adds an attention mask.
    #[must_use]
    pub fn mask(mut self, mask: impl Into<I>) -> Self {
        self.mask = Some(mask.into());
        self
    }

    /// Adds the counts of valid keys.
    #[must_use]
    pub fn kv_lens(mut self, kv_lens: impl Into<I>) -> Self {
        self.kv_lens = Some(kv_lens.into());
        self
    }

    /// Adds the memory that receives the log-sum-exp.
    #[must_use]
    pub fn lse(mut self, lse: impl Into<O>) -> Self {
        self.lse = Some(lse.into());
        self
    }

    /// Adds a workspace of the caller's own.
    #[must_use]
    pub fn workspace(mut self, workspace: impl Into<O>) -> Self {
        self.workspace = Some(workspace.into());
        self
    }

    /// Sets the values that may change from call to call.
    #[must_use]
    pub fn call(mut self, call: Call) -> Self {
        self.call = call;
        self
    }
}
