//! f32 on tensor cores: numbers in V that cannot be split into two of TF32. The catalogue has no
//! such values in visible places.

use super::Test;
use super::common::tile_name;
use flashtile_core::{Backend, DType, HostArgs, KernelKind, Layout, PlanOptions};
use flashtile_core::{Problem, TensorView};
use flashtile_emulator::{EmulatedCudaBackend, Emulator, TensorSums, ThreadOrder};
use flashtile_shaders::cuda::{CUDA_TF32_TILES, CudaTiles};
use std::sync::Arc;

const QUERIES: usize = 70;
const KEYS: usize = 100;
const WIDTH: usize = 20;

pub(super) fn tests() -> Vec<Test> {
    let test = |tiles: CudaTiles| -> Test {
        let name = format!("values that cannot be split: {}", tile_name(&tiles));
        (name, Box::new(move |emulator| unsplittable(emulator, tiles)))
    };
    CUDA_TF32_TILES.into_iter().map(test).collect()
}

/// With Q = 0 all weights of a causal row are equal, so out is the mean of the keys that it sees.
fn unsplittable(emulator: Arc<Emulator>, tiles: CudaTiles) -> Result<(), String> {
    let mut v = [1.0_f32; KEYS * WIDTH];
    let mut set = |key: usize, column: usize, x: f32| v[key * WIDTH + column] = x;
    set(1, 0, f32::MAX);
    set(33, 1, -f32::MAX);
    set(40, 2, f32::INFINITY);
    set(40, 3, f32::NEG_INFINITY);
    set(41, 3, f32::INFINITY);
    set(2, 4, f32::NAN);
    // The largest number that can be split, and the next one.
    set(3, 5, f32::from_bits(0x7F7F_EFFF));
    set(3, 6, f32::from_bits(0x7F7F_F000));
    let view = |seq| {
        TensorView::from_bhsd_sizes(DType::F32, Layout::Bhsd, [1, 1, seq, WIDTH])
            .map_err(|e| e.to_string())
    };
    let (q, kv) = (view(QUERIES)?, view(KEYS)?);
    let problem = Problem::builder(q, kv, kv).causal(true).build().map_err(|e| e.to_string())?;
    let bytes = |x: &[f32]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let (q, k, values) = (bytes(&[0.0; QUERIES * WIDTH]), bytes(&[1.0; KEYS * WIDTH]), bytes(&v));
    let mut out = vec![0; 4 * QUERIES * WIDTH];
    let backend = EmulatedCudaBackend::new(emulator, 90, ThreadOrder::Shuffled(1))
        .with_sums(TensorSums::measured(90))
        .with_tiles(tiles);
    let options = PlanOptions::new().kernel(KernelKind::Flash);
    let args = HostArgs::new(&q, &k, &values, &mut out);
    backend.run(&problem, &options, args).map_err(|e| e.to_string())?;
    for (n, x) in out.chunks_exact(4).enumerate() {
        let (row, column) = (n / WIDTH, n % WIDTH);
        let got = f64::from(f32::from_le_bytes([x[0], x[1], x[2], x[3]]));
        let seen = (0..=row).map(|key| f64::from(v[key * WIDTH + column]));
        let expected = seen.sum::<f64>() / (row + 1) as f64;
        let right = if expected.is_finite() {
            (got - expected).abs() <= expected.abs() * 1e-6
        } else {
            got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan()
        };
        if !right {
            return Err(format!("row {row}, column {column}: {got}, expected {expected}"));
        }
    }
    Ok(())
}
