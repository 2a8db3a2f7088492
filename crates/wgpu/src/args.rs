use flashtile_core::Call;

/// Where a tensor begins in a buffer that the caller owns.
#[derive(Clone, Copy, Debug)]
pub struct BufferView<'a> {
    /// The buffer, with usage `STORAGE`.
    pub buffer: &'a wgpu::Buffer,
    /// Bytes before the tensor's first element: a multiple of the element size. (No other alignment is asked for.)
    pub offset: u64,
}

impl<'a> BufferView<'a> {
    /// A tensor that begins `offset` bytes into `buffer`.
    pub fn new(buffer: &'a wgpu::Buffer, offset: u64) -> Self {
        Self { buffer, offset }
    }
}

impl<'a> From<&'a wgpu::Buffer> for BufferView<'a> {
    fn from(buffer: &'a wgpu::Buffer) -> Self {
        Self { buffer, offset: 0 }
    }
}

/// The buffers and values of one call. Strides and sizes are the problem's.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a> {
    /// Queries.
    pub q: BufferView<'a>,
    /// Keys.
    pub k: BufferView<'a>,
    /// Values.
    pub v: BufferView<'a>,
    /// Receives the output. No other argument may use its buffer.
    pub out: BufferView<'a>,
    /// The mask, where the problem has one: bytes for bool, else its storage type.
    pub mask: Option<BufferView<'a>>,
    /// Valid keys of each batch entry (i32), where the problem has them. The device clamps them to the keys there are.
    pub kv_lens: Option<BufferView<'a>>,
    /// Receives the log-sum-exp (f32, B x H x capacity of Sq), where the problem asks for it. No other argument may use its buffer.
    pub lse: Option<BufferView<'a>>,
    /// The values that may change from call to call.
    pub call: Call,
}

impl<'a> Args<'a> {
    /// The four buffers that every call has.
    pub fn new(
        q: impl Into<BufferView<'a>>,
        k: impl Into<BufferView<'a>>,
        v: impl Into<BufferView<'a>>,
        out: impl Into<BufferView<'a>>,
    ) -> Self {
        Self {
            q: q.into(),
            k: k.into(),
            v: v.into(),
            out: out.into(),
            mask: None,
            kv_lens: None,
            lse: None,
            call: Call::default(),
        }
    }

    /// With an attention mask.
    #[must_use]
    pub fn mask(mut self, mask: impl Into<BufferView<'a>>) -> Self {
        self.mask = Some(mask.into());
        self
    }

    /// With counts of valid keys.
    #[must_use]
    pub fn kv_lens(mut self, kv_lens: impl Into<BufferView<'a>>) -> Self {
        self.kv_lens = Some(kv_lens.into());
        self
    }

    /// With a place for the log-sum-exp.
    #[must_use]
    pub fn lse(mut self, lse: impl Into<BufferView<'a>>) -> Self {
        self.lse = Some(lse.into());
        self
    }

    /// With other values than the defaults.
    #[must_use]
    pub fn call(mut self, call: Call) -> Self {
        self.call = call;
        self
    }
}
