//! Few queries over many keys, where plans split the keys into chunks and let the heads of a group
//! share tiles.

use super::{DTYPES, lines};

/// The smallest chunks have 256 keys, and a plan splits from 769 keys on. Lengths, windows and
/// masks leave chunks empty, partly seen, or seen by some rows only.
pub(super) fn few_queries() -> Vec<String> {
    let mut cases = Vec::new();
    for dtype in DTYPES {
        let lines = lines(
            "shape=2x8x1x64 hkv=2 skv=1300 kv_lens=1300:3
             shape=1x6x3x40 hkv=2 skv=1029 dv=33 causal=yes align=bottom-right call_kv=1000
             shape=3x4x5x32 hkv=2 skv=1500 causal=yes align=bottom-right window_left=300 \
             kv_lens=1500:520:0 poison=unseen
             shape=2x4x2x24 hkv=1 skv=1200 mask=bool:b11k:blocks kv_lens=random poison=unseen",
        );
        cases.extend(lines.into_iter().map(|line| format!("{line} dtype={dtype}")));
    }
    cases.extend(lines(
        "shape=1x2x1x128 skv=2048
         shape=2x3x4x16 skv=769 q=bhsd k=hbsd out=bsd
         shape=1x5x1x9 hkv=1 skv=1025 dv=3 dtype=f16
         shape=1x4x7x16 hkv=2 skv=1100 align=600 window_left=10 window_right=300 poison=unseen
         shape=1x4x7x16 hkv=2 skv=1100 align=250 window_left=6 window_right=6 dtype=bf16
         shape=2x4x3x16 hkv=2 skv=1100 mask=f32:bhqk:rows poison=unseen lse=no
         shape=2x4x3x16 hkv=2 skv=1100 mask=f16:1h1k:random causal=yes align=bottom-right \
         dtype=f16 poison=unseen
         shape=2x4x2x20 hkv=2 skv=1030 mask=bool:qk:shut
         shape=2x6x2x16 hkv=2 skv=900 dropout=0.3 dropout_seed=77 dropout_offset=2
         shape=1x4x2x16 hkv=1 skv=900 dropout=1.0
         shape=2x4x2x32 hkv=2 skv=1300 softcap=20.0 values=large scale=-0.5 dtype=bf16
         shape=1x4x2x32 hkv=2 skv=1000 values=huge scale=1e6
         shape=1x2x3x16 skv=1000 nan=v mask=bool:bhqk:random
         shape=1x4x1x16 hkv=2 skv=1000 nan=k kv_lens=700
         shape=2x4x4x16 hkv=2 skv=1000 call_q=3 call_kv=0
         shape=2x4x4x16 hkv=2 skv=1000 call_q=0
         shape=2x4x4x16 hkv=2 skv=1000 call_q=1 call_kv=1 causal=yes
         shape=2x4x9x24 hkv=2 skv=2500 dtype=f16 q=bsd k=bhsd causal=yes align=bottom-right \
         window_left=1200 softcap=30.0 mask=bf16:bh1k:lowest kv_lens=2500:1100 dropout=0.2 \
         poison=unseen
         shape=1x4x33x16 hkv=2 skv=9000 causal=yes align=bottom-right kv_lens=6000
         shape=1x6x1x32 hkv=3 skv=900 values=normal scale=3e38
         shape=1x4x3x32 hkv=2 skv=900 values=constant scale=-1e38 lse=no window_left=700
         shape=3x8x2x40 hkv=4 skv=257 kv_lens=257:191:66 poison=unseen
         shape=1x8x5x24 hkv=8 skv=250 window_left=70 dtype=bf16 mask=f32:b1qk:random poison=unseen",
    ));
    cases
}
