use crate::KernelKind;

/// What a plan is asked for. The default leaves every choice to the planner.
///
/// `T` is a backend's tile shape; code that works with any backend leaves it at [`AnyTiles`].
///
/// ```
/// use flashtile_core::{KernelKind, PlanOptions};
///
/// let options: PlanOptions = PlanOptions::new().kernel(KernelKind::Flash);
/// assert_eq!(options.kernel, Some(KernelKind::Flash));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct PlanOptions<T = AnyTiles> {
    /// Forces a kernel. Default: `flash` where it runs, else `unfused`.
    pub kernel: Option<KernelKind>,
    /// Forces a tile shape of the flash kernel, for measuring. Default: the planner's choice.
    /// Together with the unfused kernel it is refused.
    pub tiles: Option<T>,
}

/// No tile shape: the planner chooses. There are no values of this type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AnyTiles {}

impl<T> Default for PlanOptions<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> PlanOptions<T> {
    /// Leaves every choice to the planner.
    pub const fn new() -> Self {
        Self { kernel: None, tiles: None }
    }

    /// Forces a kernel; `None` leaves the choice to the planner.
    #[must_use]
    pub fn kernel(mut self, kernel: impl Into<Option<KernelKind>>) -> Self {
        self.kernel = kernel.into();
        self
    }

    /// Forces a tile shape of the flash kernel; `None` leaves the choice to the planner.
    #[must_use]
    pub fn tiles(mut self, tiles: impl Into<Option<T>>) -> Self {
        self.tiles = tiles.into();
        self
    }
}

impl PlanOptions {
    /// The same options for a backend with tile shapes of type `T`, none of them forced.
    pub const fn for_tiles<T>(&self) -> PlanOptions<T> {
        PlanOptions { kernel: self.kernel, tiles: None }
    }
}
