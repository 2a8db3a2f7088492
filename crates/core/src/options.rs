use crate::{KernelKind, KeySplit};
use std::fmt;

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
    /// Whether kernels may, must not or must use matrix units. Default:
    /// [`Auto`](MatrixUnits::Auto).
    pub matrix_units: MatrixUnits,
    /// Whether the flash kernel splits the keys of a row among workgroups, and how. Forced chunks
    /// together with the unfused kernel are refused.
    pub key_split: KeySplit,
    /// Whether kernels may round q, k and v to fewer bits than they are stored with, where matrix
    /// units then multiply them. Default: no.
    ///
    /// On wgpu, kernels on matrix units multiply f16. With this, they take f32 and bf16 too: q, k
    /// and v are rounded to f16, and finite numbers beyond 65504 become 65504. For the inputs as
    /// rounded, the result is within the error bound of f16 or of the storage type, whichever is
    /// larger. Backends without such kernels ignore it.
    pub reduced_precision: bool,
}

/// Whether a plan uses units that multiply small matrices: NVIDIA's tensor cores, cooperative
/// matrices of Vulkan, simdgroup matrices of Metal.
///
/// All sums stay f32, and the error bound is the same. For 16-bit storage, matrix units round each
/// weight once to the storage type. For f32, CUDA kernels split each number into two numbers of
/// TF32, whose products tensor cores sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MatrixUnits {
    /// Uses them where the device and the problem allow it and they are the faster choice. The plan
    /// states why it does not.
    #[default]
    Auto,
    /// Never uses them.
    Off,
    /// Uses them, or refuses the problem with the reason
    /// ([`Reason::MatrixUnits`](crate::Reason::MatrixUnits)).
    Require,
}

impl MatrixUnits {
    /// Every choice.
    pub const ALL: &'static [MatrixUnits] =
        &[MatrixUnits::Auto, MatrixUnits::Off, MatrixUnits::Require];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            MatrixUnits::Auto => "auto",
            MatrixUnits::Off => "off",
            MatrixUnits::Require => "require",
        }
    }
}

impl fmt::Display for MatrixUnits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
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
        Self {
            kernel: None,
            tiles: None,
            matrix_units: MatrixUnits::Auto,
            key_split: KeySplit::Auto,
            reduced_precision: false,
        }
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

    /// Whether kernels may, must not or must use matrix units.
    #[must_use]
    pub const fn matrix_units(mut self, matrix_units: MatrixUnits) -> Self {
        self.matrix_units = matrix_units;
        self
    }

    /// Forces or forbids that the keys of a row are split among workgroups.
    #[must_use]
    pub fn key_split(mut self, key_split: KeySplit) -> Self {
        self.key_split = key_split;
        self
    }

    /// Allows kernels to round q, k and v for matrix units; see
    /// [`reduced_precision`](Self#structfield.reduced_precision).
    #[must_use]
    pub const fn reduced_precision(mut self, allowed: bool) -> Self {
        self.reduced_precision = allowed;
        self
    }

    /// The kernel that the options name, if only by an option that belongs to the flash kernel.
    pub const fn named_kernel(&self) -> Option<KernelKind> {
        match (self.kernel, &self.tiles, self.key_split) {
            (Some(kernel), _, _) => Some(kernel),
            (None, Some(_), _) | (None, None, KeySplit::Keys(_)) => Some(KernelKind::Flash),
            (None, None, KeySplit::Auto | KeySplit::Off) => None,
        }
    }
}

impl PlanOptions {
    /// The same options for a backend with tile shapes of type `T`, none of them forced.
    pub const fn for_tiles<T>(&self) -> PlanOptions<T> {
        PlanOptions {
            kernel: self.kernel,
            tiles: None,
            matrix_units: self.matrix_units,
            key_split: self.key_split,
            reduced_precision: self.reduced_precision,
        }
    }
}
