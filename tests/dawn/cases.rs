//! The cases that run on Dawn: a few from each group of the catalogue. Many share a pipeline,
//! because a software driver takes seconds to compile one. They cover every tile shape that a
//! browser gets, every storage type, every kind of mask, and every option alone and in combination.

type Groups = &'static [(&'static str, &'static [&'static str])];

pub(crate) const FLASH: Groups = &[
    ("lengths", &["shape=1x2x127x16 causal=yes", "shape=1x1x31x24 skv=49 dtype=f16 seed=1"]),
    (
        "heads",
        &[
            "shape=2x6x9x20 hkv=3 skv=40",
            "shape=2x7x12x16 hkv=1 skv=33 dtype=f16",
            "shape=513x1x1x2 skv=2",
        ],
    ),
    (
        "bands",
        &[
            "shape=1x1x129x16 causal=yes window_left=40",
            "shape=1x1x129x16 skv=200 window_left=7 window_right=70 align=bottom-right",
        ],
    ),
    // One for each tile shape with many queries, and two for few queries that are not in `decode`.
    (
        "head dims",
        &[
            "shape=1x2x33x64",
            "shape=1x2x34x128 dv=192 causal=yes dtype=bf16",
            "shape=1x2x19x128 skv=37 causal=yes align=bottom-right dtype=f16",
            "shape=1x2x33x512",
            "shape=2x2x5x255 hkv=1 skv=18 dtype=bf16 seed=2",
        ],
    ),
    (
        "decode",
        &[
            "shape=2x8x1x64 hkv=2 skv=257 dtype=f16",
            "shape=2x4x1x64 skv=64 call_kv=64 causal=yes align=bottom-right dtype=f16",
            "shape=4x4x1x128 skv=100 kv_lens=random dtype=bf16",
        ],
    ),
    // Neighbours that share a 16-bit word, and memory between strides.
    ("layouts", &["shape=2x4x19x9 hkv=2 skv=23 dv=5 dtype=f16 q=hbsd k=hbsd v=hbsd out=hbsd"]),
    (
        "strides",
        &[
            "shape=2x3x9x5 skv=11 q=500:5:15:1 k=6:170:15:1 v=1:100:9:2 out=11:999:31:2 dtype=f16",
            "shape=1x5x21x64 q=0:64:320:1 k=0:64:320:1 v=0:64:320:1 out=0:65:325:1",
        ],
    ),
    ("values", &["shape=1x2x40x32 values=huge", "shape=1x2x40x32 values=spread dtype=bf16"]),
    ("long", &["shape=1x1x1000x32 window_left=100 window_right=0 dtype=bf16"]),
    (
        "softcap",
        &[
            "shape=1x2x40x32 softcap=1.0 values=large dtype=f16",
            "shape=1x2x40x32 softcap=10000.0 dtype=f16",
        ],
    ),
    ("scale", &["shape=1x2x33x16 scale=-0.25 causal=yes"]),
    (
        "lengths of a call",
        &[
            "shape=4x2x18x16 skv=37 kv_lens=random causal=yes align=bottom-right poison=unseen",
            "shape=4x2x20x16 skv=40 call_q=7 call_kv=33 kv_lens=33:0:1:16 causal=yes",
        ],
    ),
    (
        "mask contents",
        &[
            "shape=2x2x33x16 skv=50 mask=bool:bhqk:random",
            "shape=2x3x20x8 mask=bool:hqk:rows causal=yes poison=unseen seed=2",
            "shape=2x2x33x16 skv=50 mask=f32:bhqk:lowest dtype=f16 seed=1",
            "shape=2x2x33x16 skv=50 mask=f16:qk:lowest dtype=bf16 seed=2",
        ],
    ),
    // Rows of 16-bit entries that start anywhere in a word.
    ("mask shapes", &["shape=3x2x9x5 skv=13 mask=bf16:bhqk+3:rows seed=1"]),
    (
        "dropout",
        &[
            "shape=2x2x33x16 skv=41 dropout=0.5 dropout_seed=1234567890123 dropout_offset=1",
            "shape=2x2x33x16 skv=41 dropout=1.0 dropout_seed=1234567890123 dropout_offset=3",
        ],
    ),
    ("empty", &["shape=2x2x0x4 skv=5", "shape=2x2x3x4 skv=0"]),
    (
        "unseen",
        &["shape=2x4x33x16 hkv=2 skv=70 mask=bool:b11k:random kv_lens=random poison=unseen \
             dtype=bf16"],
    ),
    ("not a number", &["shape=2x2x40x16 nan=k causal=yes dtype=f32 seed=1"]),
    (
        "together",
        &[
            "shape=2x4x37x24 hkv=2 skv=75 dv=17 dtype=f32 q=bhsd k=hbsd out=bsd causal=yes \
             align=bottom-right window_left=40 softcap=20.0 scale=-0.3 mask=bool:bhqk+1:blocks \
             kv_lens=random dropout=0.2 dropout_seed=99 dropout_offset=3 call_q=33 call_kv=70 \
             poison=unseen seed=0",
            "shape=3x6x17x32 hkv=3 skv=33 dtype=f16 causal=yes align=2 window_left=9 \
             window_right=4 softcap=5.0 mask=f16:b11k:lowest kv_lens=33:0:20 dropout=0.5 \
             dropout_seed=6 values=large seed=6",
            "shape=2x8x1x64 hkv=2 skv=200 dtype=bf16 causal=yes align=bottom-right window_left=60 \
             softcap=30.0 mask=f32:b11k:lowest kv_lens=random dropout=0.1 call_kv=180 lse=no \
             poison=unseen",
        ],
    ),
];

pub(crate) const UNFUSED: Groups = &[
    ("lengths", &["shape=1x2x127x16 causal=yes"]),
    ("heads", &["shape=2x7x12x16 hkv=1 skv=33 dtype=f16"]),
    ("head dims", &["shape=1x2x33x512"]),
    ("unseen", &["shape=2x2x33x16 mask=f32:11qk:blocks causal=yes poison=unseen dtype=bf16"]),
    (
        "together",
        &["shape=3x6x17x32 hkv=3 skv=33 dtype=f16 causal=yes align=2 window_left=9 \
             window_right=4 softcap=5.0 mask=f16:b11k:lowest kv_lens=33:0:20 dropout=0.5 \
             dropout_seed=6 values=large seed=6"],
    ),
];
