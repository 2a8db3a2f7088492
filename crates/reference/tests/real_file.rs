//! The oracle against the real file in examples/data. Its `expected` was computed in float64 by
//! another program.

mod common;

use approx::assert_abs_diff_eq;
use common::{Case, view};
use flashtile_core::{Call, Problem};
use safetensors::SafeTensors;

#[test]
fn a_sentence_encoders_layer() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data/real_qkv.safetensors");
    let file = std::fs::read(path).expect("the file lies in examples/data");
    let tensors = SafeTensors::deserialize(&file).expect("a safetensors file");
    let data = |name| tensors.tensor(name).expect("present").data().to_vec();
    let shape: [usize; 4] =
        tensors.tensor("q").expect("present").shape().try_into().expect("rank 4");
    let words = |name| -> Vec<[u8; 8]> {
        data(name).chunks_exact(8).map(|bytes| bytes.try_into().expect("eight")).collect()
    };
    let kv_lens = words("kv_lens").into_iter().map(|w| i64::from_le_bytes(w) as i32).collect();
    let expected: Vec<f64> = words("expected").into_iter().map(f64::from_le_bytes).collect();

    let view = view(shape);
    let mut case = Case {
        problem: Problem::builder(view, view, view).kv_lens(true).build().expect("valid"),
        q: data("q"),
        k: data("k"),
        v: data("v"),
        mask: None,
        kv_lens: Some(kv_lens),
        call: Call::default(),
    };
    // The file's scale is 1/sqrt(32) in float64, which lies between two f32 scales that a call can
    // have. Its answer lies between theirs; over so short an interval it is linear to 10^-15.
    let scale = 1.0 / 32f64.sqrt();
    let near = scale as f32;
    let far = if f64::from(near) < scale { near.next_up() } else { near.next_down() };
    let [a, b] = [near, far].map(|scale| {
        case.call.scale = Some(scale);
        case.answer().out
    });
    let t = (scale - f64::from(near)) / (f64::from(far) - f64::from(near));
    assert_eq!(a.len(), expected.len());
    let interpolated: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a + t * (b - a)).collect();
    assert_abs_diff_eq!(interpolated[..], expected[..], epsilon = 1e-12);
}
