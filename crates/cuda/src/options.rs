use flashtile_core::KernelKind;
use flashtile_shaders::cuda::CudaTiles;

/// What a plan may be asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct PlanOptions {
    /// Forces a kernel. Default: flash where it runs, else unfused.
    pub kernel: Option<KernelKind>,
    /// Forces a tile shape of the flash kernel, one of [`CUDA_SIMT_TILES`](flashtile_shaders::cuda::CUDA_SIMT_TILES) and
    /// [`CUDA_MMA_TILES`](flashtile_shaders::cuda::CUDA_MMA_TILES): for measuring. Default: the plan's choice.
    pub tiles: Option<CudaTiles>,
}

impl PlanOptions {
    /// The flash kernel with a tile shape of one's own.
    pub fn tiles(tiles: CudaTiles) -> Self {
        Self { kernel: Some(KernelKind::Flash), tiles: Some(tiles) }
    }

    /// Forces `kernel`.
    pub fn kernel(kernel: KernelKind) -> Self {
        Self { kernel: Some(kernel), ..Self::default() }
    }
}
