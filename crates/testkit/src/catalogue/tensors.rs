//! Cases of the tensors: their sizes, their placement in memory, and their values.

use super::{DTYPES, lines};
use crate::case::{Case, Values};

/// Lengths near the edges of every likely tile size.
pub(super) fn lengths() -> Vec<String> {
    let edges = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 127, 128, 129];
    let mut cases = Vec::new();
    for (n, s) in edges.into_iter().enumerate() {
        let dtype = DTYPES[n % 3];
        cases.push(format!("shape=1x2x{s}x16 dtype={dtype}"));
        cases.push(format!("shape=1x2x{s}x16 dtype={dtype} causal=yes"));
        let other = edges[(n * 8 + 5) % edges.len()];
        cases.push(format!("shape=1x1x{s}x24 skv={other} dtype={} seed=1", DTYPES[(n + 1) % 3]));
    }
    cases
}

/// Odd and even widths, those near powers of two, and those that models use.
pub(super) fn head_dims() -> Vec<String> {
    let dims = [
        1, 2, 3, 4, 5, 6, 7, 8, 16, 31, 32, 33, 40, 48, 64, 65, 80, 96, 112, 127, 128, 129, 160,
        192, 255, 256, 257, 320, 384, 511, 512,
    ];
    let mut cases = Vec::new();
    for (n, d) in dims.into_iter().enumerate() {
        cases.push(format!("shape=1x2x33x{d}"));
        cases.push(format!(
            "shape=1x2x19x{d} skv=37 causal=yes align=bottom-right dtype={}",
            DTYPES[1 + n % 2]
        ));
        cases.push(format!("shape=2x2x5x{d} hkv=1 skv=18 dtype={} seed=2", DTYPES[2 - n % 2]));
    }
    let unequal = [
        (1, 64),
        (64, 1),
        (3, 5),
        (5, 3),
        (64, 128),
        (128, 64),
        (192, 128),
        (128, 192),
        (33, 65),
        (65, 33),
        (512, 1),
        (1, 512),
        (80, 96),
        (40, 257),
        (257, 40),
        (511, 129),
        (576 - 64, 256),
    ];
    for (n, (d, dv)) in unequal.into_iter().enumerate() {
        cases.push(format!("shape=1x2x17x{d} skv=21 dv={dv} dtype={}", DTYPES[n % 3]));
        cases.push(format!("shape=1x2x34x{d} dv={dv} causal=yes dtype={}", DTYPES[(n + 1) % 3]));
    }
    cases
}

pub(super) fn values() -> Vec<String> {
    let mut cases = Vec::new();
    for values in Values::ALL {
        for dtype in DTYPES {
            let mut case: Case = "shape=1x2x40x32".parse().expect("a shape");
            case.values = values;
            cases.push(format!("{case} dtype={dtype}"));
            cases.push(format!(
                "{case} dtype={dtype} skv=75 dv=17 causal=yes align=bottom-right seed=3"
            ));
        }
    }
    cases.extend(lines(
        "shape=1x1x33x512 values=large
         shape=1x1x33x128 values=huge causal=yes
         shape=1x1x129x64 values=large dtype=bf16
         shape=1x1x129x64 values=onehot dtype=f16
         shape=1x1x300x4 values=constant",
    ));
    cases
}

pub(super) fn layouts() -> Vec<String> {
    let mut cases = Vec::new();
    let names = ["bshd", "bhsd", "hbsd", "bsd"];
    for (n, layout) in names.into_iter().enumerate() {
        for dtype in DTYPES {
            cases.push(format!(
                "shape=2x4x19x9 hkv=2 skv=23 dv=5 dtype={dtype} q={layout} k={layout} v={layout} \
                 out={layout}"
            ));
        }
        let [q, k, v, out] = [0, 1, 2, 3].map(|m| names[(n + m) % 4]);
        cases.push(format!(
            "shape=2x4x19x10 hkv=2 skv=23 dtype=f16 q={q} k={k} v={v} out={out} causal=yes"
        ));
    }
    cases
}

/// Rows with gaps between them, odd strides of 16-bit elements, strides of 0, and gaps between
/// elements.
pub(super) fn strides() -> Vec<String> {
    let mut cases = Vec::new();
    for dtype in DTYPES {
        let lines = lines(
            // First: rows of out are 5 wide with a stride of 7, so gaps share words with rows.
            "shape=2x2x9x5 out=126:63:7:1
             shape=2x2x9x8 out=162:81:9:1
             shape=1x3x33x3 out=999:3:9:1 causal=yes
             shape=1x3x17x1 out=0:17:1:1
             shape=2x1x17x1 out=1:0:2:1
             shape=1x2x17x6 out=2:1:12:2
             shape=2x3x9x5 skv=11 q=200:60:6:1 k=300:90:8:1 v=301:91:7:1
             shape=2x3x9x5 skv=11 q=500:5:15:1 k=6:170:15:1 v=1:100:9:2 out=11:999:31:2
             shape=1x2x9x4 skv=12 q=1:36:4:9 k=0:48:1:12 v=0:48:1:12 out=0:1:8:2
             shape=2x4x9x5 skv=11 k=0:0:5:1 v=0:0:5:1
             shape=2x4x9x5 skv=11 k=0:0:0:1 v=55:0:5:1
             shape=2x4x9x5 skv=11 q=0:0:0:0 k=220:55:5:1 v=0:0:0:0
             shape=3x4x18x16 skv=31 q=1200:300:16:1 k=2000:500:16:1 v=2004:501:16:1 \
             out=1500:350:18:1 causal=yes
             shape=1x1x3x8 skv=1 k=100:100:13:1 v=100:100:13:1
             shape=1x1x1x8 skv=20 q=100:100:13:1 out=101:103:13:1
             shape=2x1x70x100 skv=90 dv=52 q=7002:3:100:1 k=9002:5:100:1 v=4702:5:52:1
             shape=1x5x21x64 q=0:64:320:1 k=0:64:320:1 v=0:64:320:1 out=0:65:325:1",
        );
        cases.extend(lines.into_iter().map(|line| format!("{line} dtype={dtype}")));
    }
    cases
}

pub(super) fn heads() -> Vec<String> {
    lines(
        "shape=1x2x17x8 hkv=1
         shape=2x4x17x8 hkv=2 dtype=f16 causal=yes
         shape=1x8x33x16 hkv=1 dtype=bf16
         shape=2x6x9x20 hkv=3 skv=40
         shape=1x12x20x16 hkv=4 causal=yes
         shape=2x7x12x16 hkv=1 skv=33 dtype=f16
         shape=1x9x5x32 hkv=3 skv=50 causal=yes align=bottom-right
         shape=3x1x40x16
         shape=64x8x1x8 skv=3
         shape=64x8x3x4 hkv=2 causal=yes dtype=f16
         shape=100x3x2x5 skv=7 kv_lens=random
         shape=5x16x4x16 hkv=4 skv=9 dtype=bf16
         shape=513x1x1x2 skv=2",
    )
}

/// One query, or a few, over a cache.
pub(super) fn decode() -> Vec<String> {
    lines(
        "shape=1x1x1x64
         shape=2x8x1x64 skv=129
         shape=2x8x1x64 hkv=2 skv=257 dtype=f16
         shape=4x4x1x128 skv=100 kv_lens=random dtype=bf16
         shape=1x8x1x64 hkv=1 skv=1000
         shape=2x4x1x64 skv=64 call_kv=1 causal=yes align=bottom-right
         shape=2x4x1x64 skv=64 call_kv=17 causal=yes align=bottom-right
         shape=2x4x1x64 skv=64 call_kv=64 causal=yes align=bottom-right dtype=f16
         shape=3x4x4x32 hkv=2 skv=300 kv_lens=300:4:77 causal=yes align=bottom-right window_left=50
         shape=1x2x1x7 skv=33 dv=9 dtype=f16 mask=bool:k:random
         shape=1x2x3x64 skv=2000 causal=yes align=bottom-right
         shape=1x1x1x512 skv=513 dtype=bf16",
    )
}

pub(super) fn empty() -> Vec<String> {
    let mut cases = lines(
        "shape=0x2x3x4
         shape=0x2x3x4 mask=bool:bhqk:random kv_lens=random
         shape=2x2x0x4 skv=5
         shape=2x2x0x4 skv=0
         shape=2x2x3x4 skv=0
         shape=2x2x3x4 skv=0 dv=7 out=63:30:8:1 dtype=bf16
         shape=2x2x5x4 skv=0 causal=yes mask=f32:qk:random kv_lens=random
         shape=1x1x9x3 mask=bool:1:shut
         shape=2x1x9x3 mask=f16:b1qk:shut dtype=f16",
    );
    cases.extend(DTYPES.map(|dtype| format!("shape=1x3x7x5 skv=0 dtype={dtype} lse=no")));
    cases
}

pub(super) fn long() -> Vec<String> {
    lines(
        "shape=1x2x300x32
         shape=1x2x300x32 causal=yes dtype=f16
         shape=1x1x1000x16 causal=yes
         shape=1x1x1000x32 window_left=100 window_right=0 dtype=bf16
         shape=1x1x64x16 skv=9000
         shape=1x1x32x16 skv=1000 values=positive
         shape=1x1x32x16 skv=4000 values=positive
         shape=1x1x32x16 skv=9000 values=positive dtype=f16
         shape=1x1x32x16 skv=9000 values=positive
         shape=1x1x9000x4 skv=40
         shape=1x1x300x64 skv=700 causal=yes align=bottom-right dtype=f16
         shape=1x1x257x128 causal=yes
         shape=1x1x40x80 skv=140 dtype=f16
         shape=1x1x70x40 skv=150 dv=72 causal=yes align=bottom-right dtype=bf16
         shape=2x3x150x80 kv_lens=random",
    )
}

/// As many keys as real models have, with few queries so that the oracle stays fast. Drivers may
/// end long loops early: llvmpipe before Mesa 25 did, at about 1500 keys of width 512 and 16000 of
/// width 32.
pub(super) fn long_keys() -> Vec<String> {
    lines(
        "shape=1x2x1x32 skv=16384
         shape=1x2x1x64 skv=16384 dtype=f16
         shape=1x2x2x96 hkv=1 skv=16384 dtype=bf16 causal=yes align=bottom-right
         shape=1x2x1x128 skv=16384
         shape=1x1x3x128 skv=16384 dtype=f16 mask=bool:k:random poison=unseen
         shape=2x1x1x64 skv=16384 kv_lens=16384:9001 values=positive
         shape=1x1x1x64 skv=16384 dropout=0.1 dropout_seed=3
         shape=1x1x2x64 skv=16384 causal=yes align=bottom-right window_left=5000 dtype=bf16
         shape=1x1x40x32 skv=8192 causal=yes align=bottom-right
         shape=1x2x1x128 skv=4099
         shape=1x2x1x64 skv=8192 values=positive
         shape=1x1x1x512 skv=4096
         shape=1x1x2x512 skv=4096 dtype=f16 mask=f32:qk:blocks
         shape=1x1x1x512 skv=2048 dtype=bf16
         shape=1x1x3x40 skv=12000 dv=200 softcap=20.0 call_kv=11111",
    )
}
