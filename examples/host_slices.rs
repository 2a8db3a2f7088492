//! Attention on slices in host memory, in one call: PyTorch's function with its name, argument
//! order and meaning.
//!
//! Runs on the best GPU, or on the CPU if there is none: `cargo run --example host_slices`.

use approx::assert_abs_diff_eq;
use flashtile::{
    AttnMask, Error, SdpaOptions, Tensor, scaled_dot_product_attention,
    scaled_dot_product_attention_with,
};

fn main() -> Result<(), Error> {
    // One batch entry, two query heads that share one key head (GQA), two queries, three keys,
    // width 2.
    let q = [1.0f32, 0.0, 0.0, 1.0, -1.0, 0.0, 0.0, -1.0];
    let k = [2.0f32, 0.0, 0.0, 2.0, f32::NAN, f32::NAN];
    let v = [10.0f32, 0.0, 0.0, 10.0, f32::NAN, f32::NAN];
    let q = Tensor::new(&q, &[1, 2, 2, 2]);
    let k = Tensor::new(&k, &[1, 1, 3, 2]);
    let v = Tensor::new(&v, &[1, 1, 3, 2]);

    // The third key is padding. Masked means absent: its NaN reaches no output.
    let mask = AttnMask::Bool(Tensor::new(&[true, true, false], &[3]));
    let out = scaled_dot_product_attention(q, k, v, Some(mask), 0.0, false, Some(0.5), true)?;

    // Scores 1 and 0: weights e / (e + 1) and 1 / (e + 1). The second head has the opposite scores.
    let near = 10.0 * 1f32.exp() / (1f32.exp() + 1.0);
    let far = 10.0 - near;
    let expected = [near, far, far, near, far, near, near, far];
    println!("{:?} of shape {:?}", out.data, out.shape);
    assert_eq!(out.shape, [1, 2, 2, 2]);
    assert_abs_diff_eq!(out.data[..], expected[..], epsilon = 1e-4);

    // The same with its optional arguments by name.
    let options = SdpaOptions::new().mask(mask).scale(0.5).gqa(true);
    let named = scaled_dot_product_attention_with(q, k, v, &options)?;
    assert_eq!(named, out);
    Ok(())
}
