//! Cases of a problem's options: which keys are seen, how scores and weights are changed, and all
//! options together.

use super::{DTYPES, lines};

/// Causal, windows and alignments, with as many queries as keys, fewer and more.
pub(super) fn bands() -> Vec<String> {
    let bands = [
        "causal=yes",
        "window_left=5",
        "window_right=4",
        "window_left=0 window_right=0",
        "window_left=20 window_right=3",
        "causal=yes window_left=16",
    ];
    let mut cases = Vec::new();
    for (n, align) in ["top-left", "bottom-right", "3", "-3", "40", "-40"].into_iter().enumerate() {
        for (m, band) in bands.into_iter().enumerate() {
            for shape in
                ["33x8", "17x8 skv=70", "70x8 skv=17"].into_iter().skip((n + m) % 2).step_by(2)
            {
                let dtype = DTYPES[(n + m) % 3];
                cases.push(format!(
                    "shape=1x2x{shape} align={align} {band} dtype={dtype} poison=unseen"
                ));
            }
        }
    }
    cases.extend(lines(
        "shape=1x1x129x16 causal=yes window_left=40
         shape=1x1x129x16 skv=200 window_left=7 window_right=70 align=bottom-right
         shape=1x1x100x16 causal=yes window_left=3 window_right=9
         shape=1x2x40x8 window_left=1000000 window_right=18446744073709551615
         shape=1x2x20x8 causal=yes align=9223372036854775807
         shape=1x2x20x8 causal=yes align=-9223372036854775808
         shape=1x2x40x8 window_left=3 align=1000 causal=yes
         shape=1x2x40x8 window_left=0 window_right=0 align=-1",
    ));
    cases
}

/// Large scores with a small cap, and scores near zero with a large cap, where c * tanh(s / c) is
/// nearly s.
pub(super) fn softcap() -> Vec<String> {
    let mut cases = Vec::new();
    for dtype in DTYPES {
        for (cap, values) in [
            (1.0, "large"),
            (20.0, "large"),
            (50.0, "normal"),
            (0.01, "normal"),
            (10_000.0, "normal"),
            (30.0, "huge"),
        ] {
            cases.push(format!("shape=1x2x40x32 softcap={cap:?} values={values} dtype={dtype}"));
        }
    }
    cases.extend(lines(
        "shape=1x2x40x32 softcap=1000000.0 scale=0.001
         shape=1x2x40x32 softcap=1e30
         shape=1x2x40x32 softcap=1e-30
         shape=1x2x40x32 softcap=50.0 scale=1e-5 values=spread
         shape=1x2x65x16 softcap=5.0 causal=yes scale=-1.5
         shape=2x4x33x64 hkv=2 softcap=50.0 causal=yes window_left=20 dtype=bf16",
    ));
    cases
}

pub(super) fn scale() -> Vec<String> {
    let mut cases = Vec::new();
    for (n, scale) in ["-0.25", "0.0", "1.0", "0.001", "-10.0", "7.5", "1e-30", "-1e-45", "100.0"]
        .into_iter()
        .enumerate()
    {
        cases.push(format!("shape=1x2x33x16 scale={scale} causal=yes dtype={}", DTYPES[n % 3]));
        cases.push(format!("shape=1x2x20x48 skv=66 scale={scale} dtype={}", DTYPES[(n + 1) % 3]));
    }
    // Scores so large that one ulp changes a weight completely, and products beyond f32, which
    // saturate: the results are still numbers.
    for dtype in DTYPES {
        cases.extend(lines(&format!(
            "shape=1x1x33x64 skv=1 values=huge scale=1e4 dtype={dtype}
             shape=1x1x33x64 skv=50 values=huge scale=1e6 dtype={dtype}
             shape=1x1x130x64 skv=128 values=large scale=3e4 dtype={dtype}
             shape=1x1x70x64 skv=200 values=huge scale=-1e5 causal=yes dtype={dtype}
             shape=1x1x40x32 skv=192 values=constant scale=1e7 dtype={dtype}
             shape=1x2x40x32 skv=192 values=normal scale=3e38 dtype={dtype}
             shape=1x2x40x32 skv=75 values=normal scale=-3e38 causal=yes dtype={dtype}
             shape=1x2x33x16 skv=50 values=normal scale=3e38 mask=f32:qk:lowest dtype={dtype}
             shape=1x2x33x16 skv=50 values=normal scale=2e38 softcap=20.0 dtype={dtype}
             shape=1x1x40x32 skv=192 values=constant scale=1e38 lse=no dtype={dtype}
             shape=1x1x40x32 skv=192 values=constant scale=-1e38 lse=no dtype={dtype}
             shape=1x1x40x32 skv=75 values=constant scale=-1e38 lse=no window_left=20 dtype={dtype}"
        )));
    }
    cases
}

/// kv_lens, and calls below the planned capacity.
pub(super) fn call_lengths() -> Vec<String> {
    let mut cases = Vec::new();
    for (n, dtype) in DTYPES.into_iter().enumerate() {
        for band in [
            "",
            "causal=yes",
            "causal=yes align=bottom-right",
            "window_left=3 window_right=2 align=bottom-right",
        ] {
            cases.push(format!(
                "shape=4x2x18x16 skv=37 kv_lens=random {band} dtype={dtype} poison=unseen seed={n}"
            ));
            cases.push(format!(
                "shape=4x2x20x16 skv=40 call_q=7 call_kv=33 kv_lens=33:0:1:16 {band} dtype={dtype}"
            ));
            cases.push(format!(
                "shape=2x3x20x16 skv=40 call_q=13 call_kv=17 {band} dtype={dtype} seed={n}"
            ));
        }
    }
    cases.extend(lines(
        "shape=3x2x9x8 kv_lens=0:0:0
         shape=3x2x9x8 kv_lens=9:9:9 causal=yes align=bottom-right
         shape=2x2x9x8 call_q=0
         shape=2x2x9x8 call_kv=0
         shape=2x2x9x8 call_q=1 call_kv=1
         shape=2x2x33x8 skv=65 mask=bool:qk:blocks call_q=17 call_kv=40
         shape=2x2x33x8 skv=65 mask=f32:bhqk:blocks call_q=17 call_kv=40 kv_lens=random
         shape=2x2x300x8 call_q=5 call_kv=9 causal=yes",
    ));
    cases
}

pub(super) fn mask_contents() -> Vec<String> {
    let mut cases = Vec::new();
    let axes = ["bhqk", "qk", "hqk", "b1qk"];
    for (n, kind) in ["bool", "f32", "f16", "bf16"].into_iter().enumerate() {
        for (m, content) in
            ["random", "blocks", "rows", "lowest", "open", "shut", "alibi"].into_iter().enumerate()
        {
            let (axes, dtype) = (axes[(n + m) % 4], DTYPES[(n + m) % 3]);
            cases.push(format!(
                "shape=2x2x33x16 skv=50 mask={kind}:{axes}:{content} dtype={dtype} seed={n}"
            ));
            cases.push(format!(
                "shape=2x3x20x8 mask={kind}:{axes}:{content} causal=yes poison=unseen seed={m}"
            ));
        }
    }
    cases
}

/// Every way to broadcast.
pub(super) fn mask_shapes() -> Vec<String> {
    let axes = [
        "k", "1", "qk", "1k", "q1", "11", "hqk", "1qk", "h1k", "hq1", "11k", "h11", "111", "bhqk",
        "b1qk", "1hqk", "bh1k", "bhq1", "11qk", "b11k", "1h1k", "bh11", "b1q1", "11q1", "b111",
        "1111", "111k",
    ];
    let kinds = ["bool", "f32", "f16", "bf16"];
    let mut cases = Vec::new();
    for (n, axes) in axes.into_iter().enumerate() {
        cases.push(format!(
            "shape=2x3x17x8 skv=35 mask={}:{axes}:random dtype={}",
            kinds[n % 4],
            DTYPES[n % 3]
        ));
        // Rows with odd strides, so that 16-bit and 8-bit entries start anywhere in a word.
        cases
            .push(format!("shape=3x2x9x5 skv=13 mask={}:{axes}+3:rows seed=1", kinds[(n + 2) % 4]));
    }
    cases
}

pub(super) fn dropout() -> Vec<String> {
    let mut cases = Vec::new();
    for (n, p) in ["0.1", "0.5", "0.9", "1.0"].into_iter().enumerate() {
        for dtype in DTYPES {
            cases.push(format!(
                "shape=2x2x33x16 skv=41 dropout={p} dropout_seed=1234567890123 \
                 dropout_offset={n} dtype={dtype}"
            ));
        }
    }
    cases.extend(lines(
        "shape=1x2x65x16 causal=yes dropout=0.3
         shape=1x2x17x16 skv=67 dropout=1e-10
         shape=1x2x17x16 skv=67 dropout=0.99999 dropout_seed=18446744073709551615 \
         dropout_offset=4294967295
         shape=2x4x17x16 hkv=2 skv=70 dropout=0.2 kv_lens=random window_left=9 align=bottom-right
         shape=2x2x33x16 dropout=0.2 mask=bool:bhqk:rows poison=unseen
         shape=2x2x33x16 dropout=0.5 values=constant
         shape=1x1x1x8 skv=130 dropout=0.5 dropout_seed=7",
    ));
    cases
}

/// NaN and infinities in every place that no query sees.
pub(super) fn unseen() -> Vec<String> {
    let mut cases = Vec::new();
    for dtype in DTYPES {
        let lines = lines(
            "shape=2x4x33x16 hkv=2 skv=70 mask=bool:b11k:random kv_lens=random
             shape=2x2x33x16 mask=f32:11qk:blocks causal=yes
             shape=1x2x20x8 skv=90 mask=bool:k:blocks window_left=30 align=bottom-right
             shape=2x2x40x8 mask=f16:1h1k:random kv_lens=random causal=yes align=bottom-right
             shape=2x2x17x8 mask=bf16:bhqk:rows q=0:136:8:1 dropout=0.3
             shape=2x2x17x8 skv=33 mask=bool:b1qk+1:rows values=large lse=no
             shape=2x1x17x9 skv=64 kv_lens=3:40 out=500:200:11:1",
        );
        cases.extend(lines.into_iter().map(|line| format!("{line} poison=unseen dtype={dtype}")));
    }
    cases
}

/// A visible NaN reaches exactly the rows that see it, if the driver honours IEEE NaN: see
/// [`Case::nan`].
pub(super) fn not_a_number() -> Vec<String> {
    let mut cases = Vec::new();
    for (n, nan) in ["q", "k", "v"].into_iter().enumerate() {
        for dtype in DTYPES {
            cases.push(format!("shape=2x2x40x16 nan={nan} causal=yes dtype={dtype} seed={n}"));
            cases.push(format!(
                "shape=2x4x20x8 hkv=2 skv=45 nan={nan} mask=bool:bhqk:random dtype={dtype} seed={n}"
            ));
        }
    }
    cases
}

/// All features at once.
pub(super) fn together() -> Vec<String> {
    let mut cases = Vec::new();
    for (n, dtype) in DTYPES.into_iter().enumerate() {
        for (m, kind) in ["bool", "f32", "f16", "bf16"].into_iter().enumerate() {
            let seed = 4 * n + m;
            cases.push(format!(
                "shape=2x4x37x{d} hkv=2 skv=75 dv={dv} dtype={dtype} q=bhsd k=hbsd out={out} \
                 causal=yes align=bottom-right window_left=40 softcap=20.0 scale=-0.3 \
                 mask={kind}:bhqk+1:blocks kv_lens=random dropout=0.2 dropout_seed=99 \
                 dropout_offset=3 call_q=33 call_kv=70 poison=unseen seed={seed}",
                d = [24, 33, 80, 5][m],
                dv = [17, 40, 64, 3][(m + n) % 4],
                out = ["bsd", "20000:4440:120:1", "hbsd", "1:10656:144:2"][m],
            ));
            cases.push(format!(
                "shape=3x6x17x32 hkv=3 skv=33 dtype={dtype} causal=yes align=2 window_left=9 \
                 window_right=4 softcap=5.0 mask={kind}:{axes}:lowest kv_lens=33:0:20 \
                 dropout=0.5 dropout_seed={seed} values=large seed={seed}",
                axes = ["qk", "h1k", "b11k", "1hqk"][m],
            ));
        }
    }
    cases.extend(lines(
        "shape=2x8x1x64 hkv=2 skv=200 dtype=bf16 causal=yes align=bottom-right window_left=60 \
         softcap=30.0 mask=f32:b11k:lowest kv_lens=random dropout=0.1 call_kv=180 lse=no \
         poison=unseen
         shape=1x2x64x256 dtype=f16 causal=yes softcap=50.0 mask=f16:qk:alibi dropout=0.1 \
         dropout_seed=5",
    ));
    cases
}
