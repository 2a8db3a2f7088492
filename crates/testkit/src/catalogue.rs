//! The catalogue: small cases that cover every word of the problem, alone and together.
//!
//! To add a case, add a line to the group it belongs to, or a group to [`catalogue`].

use crate::case::{Case, Values};

/// Every case with the name of its group. A few hundred, together under 3 GFLOP.
pub fn catalogue() -> Vec<(&'static str, Case)> {
    let groups: Vec<(&'static str, Vec<String>)> = vec![
        ("lengths", lengths()),
        ("head dims", head_dims()),
        ("values", values()),
        ("layouts", layouts()),
        ("strides", strides()),
        ("heads", heads()),
        ("bands", bands()),
        ("softcap", softcap()),
        ("scale", scale()),
        ("lengths of a call", call_lengths()),
        ("mask contents", mask_contents()),
        ("mask shapes", mask_shapes()),
        ("dropout", dropout()),
        ("decode", decode()),
        ("empty", empty()),
        ("unseen", unseen()),
        ("not a number", not_a_number()),
        ("long", long()),
        ("together", together()),
    ];
    let parse = |line: String| line.parse::<Case>().expect("a test reads every line of the catalogue");
    groups.into_iter().flat_map(|(group, lines)| lines.into_iter().map(move |line| (group, parse(line)))).collect()
}

const DTYPES: [&str; 3] = ["f32", "f16", "bf16"];

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// Around the edges of every tile that kernels are likely to have.
fn lengths() -> Vec<String> {
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

/// Odd, even, around powers of two, and the models' favourites.
fn head_dims() -> Vec<String> {
    let dims = [
        1, 2, 3, 4, 5, 6, 7, 8, 16, 31, 32, 33, 40, 48, 64, 65, 80, 96, 112, 127, 128, 129, 160, 192, 255, 256, 257,
        320, 384, 511, 512,
    ];
    let mut cases = Vec::new();
    for (n, d) in dims.into_iter().enumerate() {
        cases.push(format!("shape=1x2x33x{d}"));
        cases.push(format!("shape=1x2x19x{d} skv=37 causal=yes align=bottom-right dtype={}", DTYPES[1 + n % 2]));
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

fn values() -> Vec<String> {
    let mut cases = Vec::new();
    for values in Values::ALL {
        for dtype in DTYPES {
            let mut case: Case = "shape=1x2x40x32".parse().expect("a shape");
            case.values = values;
            cases.push(format!("{case} dtype={dtype}"));
            cases.push(format!("{case} dtype={dtype} skv=75 dv=17 causal=yes align=bottom-right seed=3"));
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

fn layouts() -> Vec<String> {
    let mut cases = Vec::new();
    let names = ["bshd", "bhsd", "hbsd", "bsd"];
    for (n, layout) in names.into_iter().enumerate() {
        for dtype in DTYPES {
            cases.push(format!(
                "shape=2x4x19x9 hkv=2 skv=23 dv=5 dtype={dtype} q={layout} k={layout} v={layout} out={layout}"
            ));
        }
        let [q, k, v, out] = [0, 1, 2, 3].map(|m| names[(n + m) % 4]);
        cases.push(format!("shape=2x4x19x10 hkv=2 skv=23 dtype=f16 q={q} k={k} v={v} out={out} causal=yes"));
    }
    cases
}

/// Rows with gaps between them, odd steps of 16-bit elements, steps of zero, elements apart.
fn strides() -> Vec<String> {
    let mut cases = Vec::new();
    for dtype in DTYPES {
        let lines = lines(
            // Rows of out 7 apart and 5 wide: gaps that share words with rows.
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
             shape=3x4x18x16 skv=31 q=1200:300:16:1 k=2000:500:16:1 v=2004:501:16:1 out=1500:350:18:1 causal=yes
             shape=1x5x21x64 q=0:64:320:1 k=0:64:320:1 v=0:64:320:1 out=0:65:325:1",
        );
        cases.extend(lines.into_iter().map(|line| format!("{line} dtype={dtype}")));
    }
    cases
}

fn heads() -> Vec<String> {
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

/// Causal, windows and alignments, on queries and keys of equal, fewer and more.
fn bands() -> Vec<String> {
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
            for shape in ["33x8", "17x8 skv=70", "70x8 skv=17"].into_iter().skip((n + m) % 2).step_by(2) {
                let dtype = DTYPES[(n + m) % 3];
                cases.push(format!("shape=1x2x{shape} align={align} {band} dtype={dtype} poison=unseen"));
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

/// Large scores under a small cap, and scores near zero under a large one, where c * tanh(s / c) is all but s.
fn softcap() -> Vec<String> {
    let mut cases = Vec::new();
    for dtype in DTYPES {
        for (cap, values) in
            [(1.0, "large"), (20.0, "large"), (50.0, "normal"), (0.01, "normal"), (10_000.0, "normal"), (30.0, "huge")]
        {
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

fn scale() -> Vec<String> {
    let mut cases = Vec::new();
    for (n, scale) in
        ["-0.25", "0.0", "1.0", "0.001", "-10.0", "7.5", "1e-30", "-1e-45", "100.0"].into_iter().enumerate()
    {
        cases.push(format!("shape=1x2x33x16 scale={scale} causal=yes dtype={}", DTYPES[n % 3]));
        cases.push(format!("shape=1x2x20x48 skv=66 scale={scale} dtype={}", DTYPES[(n + 1) % 3]));
    }
    cases
}

/// kv_lens, and calls below the capacity that was planned for.
fn call_lengths() -> Vec<String> {
    let mut cases = Vec::new();
    for (n, dtype) in DTYPES.into_iter().enumerate() {
        for band in
            ["", "causal=yes", "causal=yes align=bottom-right", "window_left=3 window_right=2 align=bottom-right"]
        {
            cases.push(format!("shape=4x2x18x16 skv=37 kv_lens=random {band} dtype={dtype} poison=unseen seed={n}"));
            cases.push(format!("shape=4x2x20x16 skv=40 call_q=7 call_kv=33 kv_lens=33:0:1:16 {band} dtype={dtype}"));
            cases.push(format!("shape=2x3x20x16 skv=40 call_q=13 call_kv=17 {band} dtype={dtype} seed={n}"));
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

fn mask_contents() -> Vec<String> {
    let mut cases = Vec::new();
    let axes = ["bhqk", "qk", "hqk", "b1qk"];
    for (n, kind) in ["bool", "f32", "f16", "bf16"].into_iter().enumerate() {
        for (m, content) in ["random", "blocks", "rows", "lowest", "open", "shut", "alibi"].into_iter().enumerate() {
            let (axes, dtype) = (axes[(n + m) % 4], DTYPES[(n + m) % 3]);
            cases.push(format!("shape=2x2x33x16 skv=50 mask={kind}:{axes}:{content} dtype={dtype} seed={n}"));
            cases.push(format!("shape=2x3x20x8 mask={kind}:{axes}:{content} causal=yes poison=unseen seed={m}"));
        }
    }
    cases
}

/// Every way to broadcast.
fn mask_shapes() -> Vec<String> {
    let axes = [
        "k", "1", "qk", "1k", "q1", "11", "hqk", "1qk", "h1k", "hq1", "11k", "h11", "111", "bhqk", "b1qk", "1hqk",
        "bh1k", "bhq1", "11qk", "b11k", "1h1k", "bh11", "b1q1", "11q1", "b111", "1111", "111k",
    ];
    let kinds = ["bool", "f32", "f16", "bf16"];
    let mut cases = Vec::new();
    for (n, axes) in axes.into_iter().enumerate() {
        cases.push(format!("shape=2x3x17x8 skv=35 mask={}:{axes}:random dtype={}", kinds[n % 4], DTYPES[n % 3]));
        // Rows of odd steps, so that 16-bit and 8-bit entries begin anywhere in a word.
        cases.push(format!("shape=3x2x9x5 skv=13 mask={}:{axes}+3:rows seed=1", kinds[(n + 2) % 4]));
    }
    cases
}

fn dropout() -> Vec<String> {
    let mut cases = Vec::new();
    for (n, p) in ["0.1", "0.5", "0.9", "1.0"].into_iter().enumerate() {
        for dtype in DTYPES {
            cases.push(format!(
                "shape=2x2x33x16 skv=41 dropout={p} dropout_seed=1234567890123 dropout_offset={n} dtype={dtype}"
            ));
        }
    }
    cases.extend(lines(
        "shape=1x2x65x16 causal=yes dropout=0.3
         shape=1x2x17x16 skv=67 dropout=1e-10
         shape=1x2x17x16 skv=67 dropout=0.99999 dropout_seed=18446744073709551615 dropout_offset=4294967295
         shape=2x4x17x16 hkv=2 skv=70 dropout=0.2 kv_lens=random window_left=9 align=bottom-right
         shape=2x2x33x16 dropout=0.2 mask=bool:bhqk:rows poison=unseen
         shape=2x2x33x16 dropout=0.5 values=constant
         shape=1x1x1x8 skv=130 dropout=0.5 dropout_seed=7",
    ));
    cases
}

/// One query, or a few, over a cache.
fn decode() -> Vec<String> {
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

fn empty() -> Vec<String> {
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

/// NaN and infinities wherever no query looks.
fn unseen() -> Vec<String> {
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

/// A NaN that is seen reaches exactly the rows that see it. Only where the driver honours IEEE NaN: see [`Case::nan`].
fn not_a_number() -> Vec<String> {
    let mut cases = Vec::new();
    for (n, nan) in ["q", "k", "v"].into_iter().enumerate() {
        for dtype in DTYPES {
            cases.push(format!("shape=2x2x40x16 nan={nan} causal=yes dtype={dtype} seed={n}"));
            cases.push(format!("shape=2x4x20x8 hkv=2 skv=45 nan={nan} mask=bool:bhqk:random dtype={dtype} seed={n}"));
        }
    }
    cases
}

fn long() -> Vec<String> {
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
         shape=2x3x150x80 kv_lens=random",
    )
}

/// All features at once.
fn together() -> Vec<String> {
    let mut cases = Vec::new();
    for (n, dtype) in DTYPES.into_iter().enumerate() {
        for (m, kind) in ["bool", "f32", "f16", "bf16"].into_iter().enumerate() {
            let seed = 4 * n + m;
            cases.push(format!(
                "shape=2x4x37x{d} hkv=2 skv=75 dv={dv} dtype={dtype} q=bhsd k=hbsd out={out} causal=yes align=bottom-right \
                 window_left=40 softcap=20.0 scale=-0.3 mask={kind}:bhqk+1:blocks kv_lens=random dropout=0.2 dropout_seed=99 \
                 dropout_offset=3 call_q=33 call_kv=70 poison=unseen seed={seed}",
                d = [24, 33, 80, 5][m],
                dv = [17, 40, 64, 3][(m + n) % 4],
                out = ["bsd", "20000:4440:120:1", "hbsd", "1:10656:144:2"][m],
            ));
            cases.push(format!(
                "shape=3x6x17x32 hkv=3 skv=33 dtype={dtype} causal=yes align=2 window_left=9 window_right=4 softcap=5.0 \
                 mask={kind}:{axes}:lowest kv_lens=33:0:20 dropout=0.5 dropout_seed={seed} values=large seed={seed}",
                axes = ["qk", "h1k", "b11k", "1hqk"][m],
            ));
        }
    }
    cases.extend(lines(
        "shape=2x8x1x64 hkv=2 skv=200 dtype=bf16 causal=yes align=bottom-right window_left=60 softcap=30.0 mask=f32:b11k:lowest \
         kv_lens=random dropout=0.1 call_kv=180 lse=no poison=unseen
         shape=1x2x64x256 dtype=f16 causal=yes softcap=50.0 mask=f16:qk:alibi dropout=0.1 dropout_seed=5",
    ));
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, HashSet};

    #[test]
    fn every_case_builds_prints_and_is_there_once() {
        let cases = catalogue();
        let mut lines = HashSet::new();
        for (group, case) in &cases {
            let line = case.to_string();
            assert_eq!(line.parse().as_ref(), Ok(case));
            if let Err(error) = case.build() {
                panic!("{group}: {line}: {error}");
            }
            assert!(lines.insert(line), "{group}: twice: {case}");
        }
        assert!(cases.len() > 300, "{}", cases.len());
    }

    /// A software GPU gets through the catalogue in a minute or so.
    #[test]
    fn the_whole_costs_little() {
        let mut groups = BTreeMap::<&str, (usize, u64)>::new();
        for (group, case) in catalogue() {
            let entry = groups.entry(group).or_default();
            entry.0 += 1;
            entry.1 += case.flops();
        }
        let (cases, flops) = groups.values().fold((0, 0), |(n, f), (cases, flops)| (n + cases, f + flops));
        for (group, (cases, flops)) in groups {
            println!("{group:20} {cases:4} cases {:8.1} MFLOP", flops as f64 / 1e6);
        }
        println!("{:20} {cases:4} cases {:8.1} MFLOP", "all", flops as f64 / 1e6);
        assert!(flops < 3_000_000_000);
    }
}
