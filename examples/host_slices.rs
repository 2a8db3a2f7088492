//! Attention on slices in host memory, in one call: PyTorch's function by name, argument order and meaning.
//!
//! Runs on the best GPU there is, or on the CPU where there is none: `cargo run --example host_slices`.

use flashtile::{AttnMask, Error, Tensor, scaled_dot_product_attention};

fn main() -> Result<(), Error> {
    // One batch entry, two query heads that share one key head (GQA), two queries over three keys, width 2.
    let q = [1.0f32, 0.0, 0.0, 1.0, -1.0, 0.0, 0.0, -1.0];
    let k = [2.0f32, 0.0, 0.0, 2.0, f32::NAN, f32::NAN];
    let v = [10.0f32, 0.0, 0.0, 10.0, f32::NAN, f32::NAN];
    let q = Tensor { data: &q, shape: &[1, 2, 2, 2] };
    let k = Tensor { data: &k, shape: &[1, 1, 3, 2] };
    let v = Tensor { data: &v, shape: &[1, 1, 3, 2] };

    // The third key is padding. Masked means absent: its NaNs reach nobody.
    let mask = AttnMask::Bool(Tensor { data: &[true, true, false], shape: &[3] });
    let out = scaled_dot_product_attention(q, k, v, Some(mask), 0.0, false, Some(0.5), true)?;

    // Scores 1 and 0: weights e / (e + 1) and 1 / (e + 1). The second head looks away from the same keys.
    let near = 10.0 * 1f32.exp() / (1f32.exp() + 1.0);
    let far = 10.0 - near;
    let expected = [near, far, far, near, far, near, near, far];
    println!("{:?} of shape {:?}", out.data, out.shape);
    assert_eq!(out.shape, [1, 2, 2, 2]);
    for (got, expected) in out.data.iter().zip(expected) {
        assert!((got - expected).abs() < 1e-4, "{got} is not {expected}");
    }
    Ok(())
}
