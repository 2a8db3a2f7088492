use crate::case::Case;
use flashtile_core::Align;

/// The shapes of known models by name, for benchmarks: not causal, in f32 and bshd.
pub fn named_shapes() -> Vec<(&'static str, Case)> {
    let shape = |batch, heads, seq, dim| Case { lse: false, ..Case::new([batch, heads, seq, dim]) };
    vec![
        ("sentence", shape(2, 12, 89, 32)),
        ("small", shape(1, 4, 256, 64)),
        ("gpt2", shape(4, 12, 1024, 64)),
        ("llama", shape(1, 32, 2048, 128)),
        ("llama-gqa", Case { kv_heads: 8, ..shape(1, 32, 2048, 128) }),
        ("gemma", Case { kv_heads: 4, softcap: Some(50.0), ..shape(1, 8, 1024, 256) }),
        ("vit", shape(8, 12, 197, 64)),
        ("unet-cross", Case { seq_kv: 77, ..shape(2, 8, 4096, 40) }),
        ("long", shape(1, 8, 8192, 64)),
        (
            "decode",
            Case { kv_heads: 8, seq_kv: 4096, align: Align::BottomRight, ..shape(8, 32, 1, 128) },
        ),
    ]
}
