//! What a device's matrix units can do, and the tile shape that uses them.

use crate::machine::Machine;
use flashtile_core::{
    DType, KeyChunks, MatrixUnits, NoMatrixUnits, PlanOptions, Problem, Reason,
    planning::folded_heads,
};
use flashtile_shaders::{MatrixTiles, Tiles, matrix_tiles};

/// Up to this many rows, most rows of each matrix would be empty.
const FEW_ROWS: usize = 8;

/// The features that kernels on matrix units need, with their names.
const FEATURES: [(wgpu::Features, &str); 2] = [
    (wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, "EXPERIMENTAL_COOPERATIVE_MATRIX"),
    (wgpu::Features::SHADER_F16, "SHADER_F16"),
];

/// The features to request of `adapter` for its matrix units; none where it has no matrix units
/// that a kernel uses.
///
/// Kernels on matrix units compute f16 with f32 sums. They need `SHADER_F16` and
/// `EXPERIMENTAL_COOPERATIVE_MATRIX`. wgpu grants an experimental feature only with a token,
/// [`ExperimentalFeatures::enabled`](wgpu::ExperimentalFeatures::enabled), which is unsafe to make,
/// so [`recommended_features`](crate::recommended_features) leaves them out. [`open`](crate::open)
/// requests them. Make the context of such a device with
/// [`Context::for_adapter`](crate::Context::for_adapter), which asks the adapter for the sizes of
/// its matrices.
///
/// ```no_run
/// # use flashtile_wgpu::wgpu;
/// # async fn f(adapter: wgpu::Adapter) -> Result<(), Box<dyn std::error::Error>> {
/// let mut descriptor = flashtile_wgpu::device_descriptor(&adapter);
/// descriptor.required_features |= flashtile_wgpu::matrix_unit_features(&adapter);
/// // SAFETY: I accept that experimental features of wgpu may have bugs.
/// descriptor.experimental_features = unsafe { wgpu::ExperimentalFeatures::enabled() };
/// let (device, queue) = adapter.request_device(&descriptor).await?;
/// let context = flashtile_wgpu::Context::for_adapter(&adapter, device, queue).await?;
/// # Ok(())
/// # }
/// ```
pub fn matrix_unit_features(adapter: &wgpu::Adapter) -> wgpu::Features {
    let needed = FEATURES.iter().fold(wgpu::Features::empty(), |all, (feature, _)| all | *feature);
    let usable = offer(adapter.features(), Some(&adapter.cooperative_matrix_properties())).is_ok();
    if usable { needed } else { wgpu::Features::empty() }
}

/// The sizes of matrices that a device with `features` multiplies and that have kernels, the
/// largest first. `reported`: what its adapter reports, where that is known.
pub(crate) fn offer(
    features: wgpu::Features,
    reported: Option<&[wgpu::CooperativeMatrixProperties]>,
) -> Result<Vec<u32>, NoMatrixUnits> {
    if reported.is_some_and(<[_]>::is_empty) {
        return Err(NoMatrixUnits::NotOffered);
    }
    if let Some((_, feature)) = FEATURES.into_iter().find(|(needed, _)| !features.contains(*needed))
    {
        return Err(NoMatrixUnits::FeatureOff { feature });
    }
    let reported = reported.ok_or(NoMatrixUnits::SizesUnknown)?;
    let mut sizes: Vec<_> = reported
        .iter()
        .filter(|p| p.ab_type == wgpu::CooperativeScalarType::F16)
        .filter(|p| p.cr_type == wgpu::CooperativeScalarType::F32)
        .filter(|p| p.m_size == p.n_size && p.n_size == p.k_size)
        .map(|p| p.m_size)
        .filter(|&size| shapes().any(|tiles| tiles.size == size))
        .collect();
    sizes.sort_unstable_by_key(|&size| u32::MAX - size);
    sizes.dedup();
    if sizes.is_empty() {
        let name = |p: &wgpu::CooperativeMatrixProperties| {
            format!("{}x{}x{} {:?} to {:?}", p.m_size, p.n_size, p.k_size, p.ab_type, p.cr_type)
        };
        let reported: Vec<_> = reported.iter().map(name).collect();
        return Err(NoMatrixUnits::NoSize { reported: reported.join(", ") });
    }
    Ok(sizes)
}

/// The tile shape for matrix units, and the ways to split keys with which it stays within the
/// limits of the device: those that `suits` returns.
///
/// # Errors
/// Why they cannot be used, or with [`MatrixUnits::Auto`] why they should not.
pub(crate) fn choose(
    problem: &Problem,
    machine: &Machine,
    options: &PlanOptions<Tiles>,
    suits: impl Fn(&Tiles) -> Result<Vec<Option<KeyChunks>>, Vec<Reason>>,
) -> Result<(Tiles, Vec<Option<KeyChunks>>), NoMatrixUnits> {
    let units = options.matrix_units;
    if units == MatrixUnits::Off {
        return Err(NoMatrixUnits::Off);
    }
    // The largest matrices, no more threads per strip than there are lanes, and the fewest columns
    // that the problem does not have.
    let mut all: Vec<_> = shapes().collect();
    all.sort_by_key(|t| (u32::MAX - t.size, t.lanes, t.width));
    let reduced = options.reduced_precision;
    let serves = |tiles: &&MatrixTiles| serves(problem, machine, tiles, reduced).is_ok();
    let Some(&best) = all.iter().find(serves) else {
        // The widest of the largest came closest.
        let last = |tiles: &&MatrixTiles| {
            machine.matrix_sizes.as_ref().is_ok_and(|sizes| sizes.contains(&tiles.size))
                && tiles.lanes >= machine.max_lanes
        };
        let closest = all.iter().filter(last).max_by_key(|tiles| tiles.width).or(all.last());
        let reason = closest.and_then(|tiles| self::serves(problem, machine, tiles, reduced).err());
        return Err(reason.unwrap_or(NoMatrixUnits::NotOffered));
    };
    let tiles = Tiles::Matrix(best);
    let splits = suits(&tiles).map_err(|reasons| over_limit(&reasons))?;
    if units == MatrixUnits::Auto {
        if machine.software {
            return Err(NoMatrixUnits::Software);
        }
        let rows = problem.seq_q() * folded_heads(problem, tiles.rows() as usize);
        if rows <= FEW_ROWS {
            return Err(NoMatrixUnits::FewQueries { seq_q: problem.seq_q() });
        }
    }
    Ok((tiles, splits))
}

/// Whether a tile shape for matrix units can compute the problem on the device, if the device's
/// limits allow. `reduced`: whether inputs may be rounded to f16.
///
/// # Errors
/// Why not.
pub(crate) fn serves(
    problem: &Problem,
    machine: &Machine,
    tiles: &MatrixTiles,
    reduced: bool,
) -> Result<(), NoMatrixUnits> {
    let sizes = usable_sizes(problem, machine, reduced)?;
    if !sizes.contains(&tiles.size) || tiles.lanes < machine.max_lanes {
        let sizes: Vec<_> = sizes.iter().map(|n| format!("{n}x{n}x{n}")).collect();
        let lanes = machine.max_lanes;
        let reported = format!("{} in subgroups of up to {lanes} lanes", sizes.join(", "));
        return Err(NoMatrixUnits::NoSize { reported });
    }
    let axes = [("head_dim", problem.head_dim()), ("head_dim_v", problem.head_dim_v())];
    let max = tiles.width as usize;
    match axes.into_iter().find(|&(_, given)| given > max) {
        Some((axis, given)) => Err(NoMatrixUnits::Axis { axis, given, max }),
        None => Ok(()),
    }
}

/// The sizes of matrices with which the device can compute the problem.
fn usable_sizes<'a>(
    problem: &Problem,
    machine: &'a Machine,
    reduced: bool,
) -> Result<&'a [u32], NoMatrixUnits> {
    match problem.dtype() {
        DType::F16 => {}
        DType::F32 | DType::BF16 if reduced => {}
        given @ (DType::F32 | DType::BF16) => return Err(NoMatrixUnits::Precision { given }),
    }
    machine.matrix_sizes.as_deref().map_err(Clone::clone)
}

/// The first limit of the device among `reasons`.
fn over_limit(reasons: &[Reason]) -> NoMatrixUnits {
    let limit = reasons.iter().find_map(|reason| match *reason {
        Reason::DeviceLimit { limit, given, needed } => {
            Some(NoMatrixUnits::DeviceLimit { limit, given, needed })
        }
        Reason::LoopBudget { needed, limit } => {
            let (given, limit) = (limit, "limit of loop iterations");
            Some(NoMatrixUnits::DeviceLimit { limit, given, needed })
        }
        _ => None,
    });
    limit.unwrap_or(NoMatrixUnits::NotOffered)
}

fn shapes() -> impl Iterator<Item = MatrixTiles> {
    matrix_tiles().filter_map(|tiles| match tiles {
        Tiles::Matrix(tiles) => Some(tiles),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashtile_core::TensorView;
    use wgpu::CooperativeScalarType::{F16, F32};

    fn reports(
        size: u32,
        ab_type: wgpu::CooperativeScalarType,
    ) -> wgpu::CooperativeMatrixProperties {
        wgpu::CooperativeMatrixProperties {
            m_size: size,
            n_size: size,
            k_size: size,
            ab_type,
            cr_type: F32,
            saturating_accumulation: false,
        }
    }

    fn all_features() -> wgpu::Features {
        FEATURES.iter().fold(wgpu::Features::empty(), |all, (feature, _)| all | *feature)
    }

    fn problem(dtype: DType, [seq, heads, dim, dim_v]: [usize; 4]) -> Problem {
        let view = |dim| TensorView::bhsd(dtype, [1, heads, seq, dim]).expect("small");
        Problem::builder(view(dim), view(dim), view(dim_v)).build().expect("valid")
    }

    fn machine(sizes: &[u32], max_lanes: u32) -> Machine {
        Machine { matrix_sizes: Ok(sizes.to_vec()), max_lanes, ..Machine::baseline() }
    }

    fn chosen(
        problem: &Problem,
        machine: &Machine,
        units: MatrixUnits,
    ) -> Result<MatrixTiles, NoMatrixUnits> {
        chosen_by(problem, machine, &PlanOptions::new().matrix_units(units))
    }

    fn chosen_by(
        problem: &Problem,
        machine: &Machine,
        options: &PlanOptions<Tiles>,
    ) -> Result<MatrixTiles, NoMatrixUnits> {
        choose(problem, machine, options, |_| Ok(vec![None])).map(|(tiles, _)| match tiles {
            Tiles::Matrix(tiles) => tiles,
            other => panic!("{other} is not for matrix units"),
        })
    }

    #[test]
    fn sizes_come_from_the_adapter_and_features_from_the_device() {
        let reported = [reports(8, F16), reports(16, F16), reports(16, F32)];
        assert_eq!(offer(all_features(), Some(&reported)), Ok(vec![16, 8]));
        assert_eq!(offer(all_features(), Some(&[])), Err(NoMatrixUnits::NotOffered));
        assert_eq!(offer(all_features(), None), Err(NoMatrixUnits::SizesUnknown));
        for (missing, name) in FEATURES {
            let reason = NoMatrixUnits::FeatureOff { feature: name };
            assert_eq!(offer(all_features() - missing, Some(&reported)), Err(reason));
        }
        let oblong = wgpu::CooperativeMatrixProperties { k_size: 8, ..reports(16, F16) };
        let unusable = offer(all_features(), Some(&[oblong, reports(8, F32)]));
        let reported = "16x16x8 F16 to F32, 8x8x8 F32 to F32".to_owned();
        assert_eq!(unusable, Err(NoMatrixUnits::NoSize { reported }));
    }

    #[test]
    fn the_largest_matrices_and_the_narrowest_shape_that_fit_are_taken() {
        let auto = |dims, sizes: &[u32], lanes| {
            let [dim, dim_v] = dims;
            let problem = problem(DType::F16, [100, 2, dim, dim_v]);
            chosen(&problem, &machine(sizes, lanes), MatrixUnits::Auto)
        };
        let tiles = |size, lanes, width| Ok(MatrixTiles { size, lanes, width });
        assert_eq!(auto([64, 64], &[16, 8], 32), tiles(16, 32, 64));
        assert_eq!(auto([64, 65], &[16], 64), tiles(16, 64, 96));
        assert_eq!(auto([256, 3], &[8], 32), tiles(8, 32, 256));
        // Subgroups of 64 have no kernel with matrices of 8 x 8.
        assert_eq!(auto([64, 64], &[16, 8], 64), tiles(16, 64, 64));
        let no_size =
            NoMatrixUnits::NoSize { reported: "8x8x8 in subgroups of up to 64 lanes".to_owned() };
        assert_eq!(auto([64, 64], &[8], 64), Err(no_size));
        let wide = NoMatrixUnits::Axis { axis: "head_dim_v", given: 257, max: 256 };
        assert_eq!(auto([64, 257], &[16], 32), Err(wide));
    }

    #[test]
    fn auto_leaves_them_where_they_do_not_pay_and_require_takes_them() {
        let gpu = machine(&[16], 32);
        let software = Machine { software: true, ..machine(&[8], 8) };
        let (many, one) =
            (problem(DType::F16, [100, 2, 64, 64]), problem(DType::F16, [1, 2, 64, 64]));
        let few = NoMatrixUnits::FewQueries { seq_q: 1 };
        assert_eq!(chosen(&one, &gpu, MatrixUnits::Auto), Err(few));
        assert_eq!(chosen(&many, &software, MatrixUnits::Auto), Err(NoMatrixUnits::Software));
        assert!(chosen(&one, &gpu, MatrixUnits::Require).is_ok());
        assert!(chosen(&many, &software, MatrixUnits::Require).is_ok());
        assert_eq!(chosen(&many, &gpu, MatrixUnits::Off), Err(NoMatrixUnits::Off));
        for given in [DType::F32, DType::BF16] {
            let problem = problem(given, [100, 2, 64, 64]);
            let reason = NoMatrixUnits::Precision { given };
            assert_eq!(chosen(&problem, &gpu, MatrixUnits::Require), Err(reason));
            let allowed = PlanOptions::new().reduced_precision(true);
            assert!(chosen_by(&problem, &gpu, &allowed).is_ok());
        }
    }

    #[test]
    fn limits_of_the_device_are_named() {
        let (limit, given, needed) = ("max_compute_workgroup_storage_size", 1, 2);
        let refuse = |_: &Tiles| Err(vec![Reason::DeviceLimit { limit, given, needed }]);
        let problem = problem(DType::F16, [100, 2, 64, 64]);
        let required = PlanOptions::new().matrix_units(MatrixUnits::Require);
        let refused = choose(&problem, &machine(&[16], 32), &required, refuse);
        assert_eq!(refused, Err(NoMatrixUnits::DeviceLimit { limit, given, needed }));
    }
}
