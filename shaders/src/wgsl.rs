//! Assembles a variant's source: the prelude, then the parts that its operation calls.

mod broadcast;
mod lanes;
mod uniform;
mod unroll;

use crate::{
    Access, BlockTiles, BroadcastTiles, LaneTiles, Operation, RowTiles, Slot, Tiles, UniformTiles,
    Variant, matrix,
};
use flashtile_core::{DType, MaskKind};

const NUMERICS: &str = include_str!("../wgsl/numerics.wgsl");
const PARAMS: &str = include_str!("../wgsl/params.wgsl");
const PHILOX: &str = include_str!("../wgsl/philox.wgsl");
const MASK: &str = include_str!("../wgsl/mask.wgsl");
const LOAD_F32: &str = include_str!("../wgsl/load_f32.wgsl");
const LOAD_HALF: &str = include_str!("../wgsl/load_half.wgsl");
const LOAD4: &str = include_str!("../wgsl/load4.wgsl");
const STORE_F32: &str = include_str!("../wgsl/store_f32.wgsl");
const STORE_HALF: &str = include_str!("../wgsl/store_half.wgsl");
const WORDS: &str = include_str!("../wgsl/words.wgsl");
const WORDS_F32: &str = include_str!("../wgsl/words_f32.wgsl");
const WORDS_HALF: &str = include_str!("../wgsl/words_half.wgsl");
const TILE: &str = include_str!("../wgsl/tile.wgsl");
const LOAD_K_CHUNK: &str = include_str!("../wgsl/load_k_chunk.wgsl");
const LOAD_V_CHUNK: &str = include_str!("../wgsl/load_v_chunk.wgsl");
const FLASH_FORWARD: &str = include_str!("../wgsl/flash_forward.wgsl");
const LOAD4_ROLLED: &str = include_str!("../wgsl/load4_rolled.wgsl");
const FLASH_FORWARD_ROWS: &str = include_str!("../wgsl/flash_forward_rows.wgsl");
const ROW_RESULT: &str = include_str!("../wgsl/row_result.wgsl");
const ROW_PARTIAL: &str = include_str!("../wgsl/row_partial.wgsl");
const PARTIAL: &str = include_str!("../wgsl/partial.wgsl");
const FLASH_MERGE: &str = include_str!("../wgsl/flash_merge.wgsl");
const LOAD8: &str = include_str!("../wgsl/load8.wgsl");
const LOAD8_ROUNDED: &str = include_str!("../wgsl/load8_rounded.wgsl");
const FLASH_FORWARD_MATRIX: &str = include_str!("../wgsl/flash_forward_matrix.wgsl");
const UNFUSED_SCORES: &str = include_str!("../wgsl/unfused_scores.wgsl");
const UNFUSED_SOFTMAX: &str = include_str!("../wgsl/unfused_softmax.wgsl");
const UNFUSED_VALUES: &str = include_str!("../wgsl/unfused_values.wgsl");

impl Variant {
    /// The complete WGSL source.
    pub fn wgsl(&self) -> String {
        assemble(self)
    }
}

fn assemble(variant: &Variant) -> String {
    let mut parts = vec![constants(variant), bindings(variant), NUMERICS.into(), PARAMS.into()];
    parts.push(valid_keys(variant).into());
    let loads = |tensor, width| match variant.tiles {
        Tiles::Block(_) => [load(variant.dtype, tensor), load4(false, tensor, width)].concat(),
        Tiles::Rows(_) => [load(variant.dtype, tensor), load4(true, tensor, width)].concat(),
        Tiles::Matrix(_) => load8(variant.dtype, tensor, width),
        // They read words of 16 bytes.
        Tiles::Broadcast(_) | Tiles::Uniform(_) | Tiles::Lanes(_) => String::new(),
    };
    let (q, k, v) = (
        loads("q", "params.head_dim"),
        loads("k", "params.head_dim"),
        loads("v", "params.head_dim_v"),
    );
    match variant.operation {
        Operation::FlashForward => {
            parts.extend([store_lse(variant.lse), ROW_RESULT].map(String::from));
            if !wide(variant) {
                parts.extend([store(variant.dtype), STORE4_ROW.into()]);
            }
            parts.extend(flash(variant, [q, k, v]));
        }
        Operation::FlashSplit => {
            parts.extend([PARTIAL, ROW_PARTIAL].map(String::from));
            // The same kernel under another name: it differs in what a row stores.
            let kernel = flash(variant, [q, k, v]).into_iter();
            parts.extend(kernel.map(|part| part.replace("fn flash_forward(", "fn flash_split(")));
        }
        Operation::FlashMerge => {
            parts.extend([store_lse(variant.lse).into(), store(variant.dtype)]);
            parts.extend([STORE4_ROW, ROW_RESULT, PARTIAL, FLASH_MERGE].map(String::from));
        }
        Operation::UnfusedScores => {
            parts.extend([mask(variant.mask), SCORE_ROW.into()]);
            parts.extend([q, k]);
            parts.extend([TILE, LOAD_K_CHUNK, UNFUSED_SCORES].map(String::from));
        }
        Operation::UnfusedSoftmax => {
            parts.extend(
                [PHILOX, SCORE_ROW, store_lse(variant.lse), UNFUSED_SOFTMAX].map(String::from),
            );
        }
        Operation::UnfusedValues => {
            parts.extend([SCORE_ROW.into(), store(variant.dtype)]);
            parts.push(v);
            parts.extend([TILE, LOAD_V_CHUNK, UNFUSED_VALUES].map(String::from));
        }
    }
    parts.join("\n")
}

/// The fused kernel with what it calls, except for how a row is stored.
fn flash(variant: &Variant, loads: [String; 3]) -> Vec<String> {
    let mut parts = vec![PHILOX.into(), mask(variant.mask)];
    if wide(variant) {
        parts.push(words(variant.dtype));
    } else {
        parts.extend(loads);
    }
    match &variant.tiles {
        Tiles::Broadcast(tiles) => {
            parts.extend([DOT_ADD.into(), broadcast::kernel(variant, tiles)]);
        }
        Tiles::Uniform(tiles) => parts.push(uniform::kernel(variant, tiles)),
        Tiles::Lanes(tiles) => parts.push(lanes::kernel(variant, tiles)),
        Tiles::Block(_) => {
            parts.extend([TILE, LOAD_K_CHUNK, LOAD_V_CHUNK, FLASH_FORWARD].map(String::from));
        }
        Tiles::Rows(tiles) => {
            parts.extend([DOT_ADD.into(), spread(tiles), rows_kernel(tiles)]);
        }
        Tiles::Matrix(tiles) => {
            let constants = [tiles.constants(), vec![("BC", tiles.keys())]].concat();
            let kernel = matrix::unroll(FLASH_FORWARD_MATRIX, &constants, tiles.is_for_software());
            parts.extend([tiles.prelude(), kernel]);
        }
    }
    parts
}

fn constants(variant: &Variant) -> String {
    let tiles = &variant.tiles;
    let mut source = format!("// {variant}\n");
    if tiles.uses_matrix_units() {
        // Subgroups run matrix operations together. That their control flow is uniform depends on
        // flags in workgroup memory, which the compiler does not follow.
        source += "enable f16;
enable wgpu_cooperative_matrix;
diagnostic(off, derivative_uniformity);
";
    }
    let common = [("THREADS", tiles.threads()), ("BR", tiles.rows()), ("BC", tiles.keys())];
    let own = match *tiles {
        Tiles::Block(BlockTiles { tx, ty, kc, qw4, ot }) => {
            vec![("TX", tx), ("TY", ty), ("KC", kc), ("QW4", qw4), ("OT", ot)]
        }
        Tiles::Broadcast(BroadcastTiles { .. }) => {
            vec![("STEP", 16 / variant.dtype.size() as u32)]
        }
        Tiles::Uniform(UniformTiles { width, .. }) => {
            let step = 16 / variant.dtype.size() as u32;
            vec![("STEP", step), ("WORDS_V", width / step)]
        }
        Tiles::Lanes(LaneTiles { width, lanes, rows, prefetch: _ }) => {
            let step = 16 / variant.dtype.size() as u32;
            vec![
                ("STEP", step),
                ("WIDTH4", width / 4),
                ("LANES", lanes),
                ("ROWS", rows),
                ("KEYS", lanes::KEYS),
            ]
        }
        Tiles::Rows(RowTiles { width, lanes: _ }) => vec![("KC", RowTiles::KC), ("OT", width / 4)],
        Tiles::Matrix(ref tiles) => tiles.constants(),
    };
    for (name, value) in common.into_iter().chain(own) {
        source += &format!("const {name}: u32 = {value}u;\n");
    }
    source += &format!("const HAS_MASK: bool = {};\n", variant.mask.is_some());
    source
        + &format!(
            "const HAS_BIAS: bool = {};\n",
            matches!(variant.mask, Some(MaskKind::Additive(_)))
        )
}

/// Whether q, k, v and out are read and written in words of 16 bytes.
fn wide(variant: &Variant) -> bool {
    match variant.operation {
        Operation::FlashForward | Operation::FlashSplit => variant.tiles.uses_words(),
        Operation::FlashMerge
        | Operation::UnfusedScores
        | Operation::UnfusedSoftmax
        | Operation::UnfusedValues => false,
    }
}

/// What kernels with such tensors share.
fn words(dtype: DType) -> String {
    let finite = match dtype {
        DType::F32 => WORDS_F32.into(),
        DType::F16 => WORDS_HALF.replace("EXPONENT", "0x7c00u"),
        DType::BF16 => WORDS_HALF.replace("EXPONENT", "0x7f80u"),
    };
    format!("{WORDS}\n{finite}")
}

fn bindings(variant: &Variant) -> String {
    let mut source = String::new();
    // Lanes hold blocks of four columns.
    let row_element = match (&variant.tiles, variant.dtype) {
        (Tiles::Lanes(_), DType::F16 | DType::BF16) => "vec2<u32>",
        _ => "vec4<u32>",
    };
    // The kernel on matrix units reads f16 as such.
    let as_f16 = variant.tiles.uses_matrix_units() && variant.dtype == DType::F16;
    let word = if as_f16 { "vec2<f16>" } else { "u32" };
    for binding in variant.bindings() {
        let (name, element) = match binding.slot {
            Slot::Params => continue, // beside its struct, in params.wgsl
            Slot::Q if wide(variant) => ("q", row_element),
            Slot::K if wide(variant) => ("k", "vec4<u32>"),
            Slot::V if wide(variant) => ("v", "vec4<u32>"),
            Slot::Out if wide(variant) => ("out", row_element),
            Slot::Q => ("q", word),
            Slot::K => ("k", word),
            Slot::V => ("v", word),
            Slot::Mask => ("mask", "u32"),
            Slot::Aux => ("kv_lens", "i32"),
            Slot::Out if variant.dtype == DType::F32 => ("out", "u32"),
            // Two rows may share one word.
            Slot::Out => ("out", "atomic<u32>"),
            Slot::Lse => ("lse", "u32"),
            Slot::Workspace => ("workspace", "u32"),
        };
        let access = match binding.access {
            Access::ReadWrite => "read_write",
            Access::Uniform | Access::Read => "read",
        };
        let number = binding.slot as u32;
        source += &format!(
            "@group(0) @binding({number}) var<storage, {access}> {name}: array<{element}>;\n"
        );
    }
    source
}

fn valid_keys(variant: &Variant) -> &'static str {
    if variant.kv_lens {
        "// Lengths are clamped, because the host may not know them.
fn valid_keys(b: u32) -> u32 {
    let len = kv_lens[params.kv_lens_offset + b - params.batch_begin];
    return u32(clamp(len, 0, i32(params.seq_kv)));
}
"
    } else {
        "fn valid_keys(b: u32) -> u32 {
    return params.seq_kv;
}
"
    }
}

fn half_prefix(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::F32 => None,
        DType::F16 => Some("f16"),
        DType::BF16 => Some("bf16"),
    }
}

fn load(dtype: DType, tensor: &str) -> String {
    match half_prefix(dtype) {
        None => LOAD_F32.replace("TENSOR", tensor),
        Some(half) => LOAD_HALF.replace("TENSOR", tensor).replace("HALF", half),
    }
}

fn load4(rolled: bool, tensor: &str, width: &str) -> String {
    let source = if rolled { LOAD4_ROLLED } else { LOAD4 };
    source.replace("TENSOR", tensor).replace("WIDTH", width)
}

/// Reads of eight numbers for matrix units: as they are stored, or rounded to f16.
fn load8(dtype: DType, tensor: &str, width: &str) -> String {
    match dtype {
        DType::F16 => LOAD8.replace("TENSOR", tensor).replace("WIDTH", width),
        DType::F32 | DType::BF16 => {
            let eight = LOAD8_ROUNDED.replace("TENSOR", tensor);
            [load(dtype, tensor), load4(false, tensor, width), eight].concat()
        }
    }
}

/// The kernel with one query per thread. Without subgroups, every lane reads every key.
fn rows_kernel(tiles: &RowTiles) -> String {
    if tiles.lanes > 1 {
        return FLASH_FORWARD_ROWS.into();
    }
    FLASH_FORWARD_ROWS
        .replace("    @builtin(subgroup_invocation_id) lane: u32,\n", "")
        .replace(" + lane", "")
}

const DOT_ADD: &str = "fn dot_add(sum: f32, a: vec4<f32>, b: vec4<f32>) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}
";

/// The two inner products of that kernel, unrolled, because the lane of a broadcast must be
/// constant.
fn spread(tiles: &RowTiles) -> String {
    let mut scores = String::new();
    let mut values = String::new();
    if tiles.lanes == 1 {
        scores += "    for (var c = 0u; c < params.rolled; c++) {
        (*s)[c] = dot_add((*s)[c], q, kv_tile[at + c]);
    }
";
        values += "    for (var c = 0u; c < params.rolled; c++) {
        sum = fma(vec4<f32>((*s)[c]), kv_tile[at + c], sum);
        if (c % 8u == 7u) {
            total += sum;
            sum = vec4<f32>(0.0);
        }
    }
";
    } else {
        for key in 0..RowTiles::KEYS {
            let lane = key % tiles.lanes;
            if lane == 0 {
                let load = format!("    x = kv_tile[at + {key}u];\n");
                scores += &load;
                values += &load;
            }
            let place = format!("(*s)[{key}]");
            scores +=
                &format!("    {place} = dot_add({place}, q, subgroupBroadcast(x, {lane}u));\n");
            values += &format!(
                "    sum = fma(vec4<f32>({place}), subgroupBroadcast(x, {lane}u), sum);\n"
            );
            if key % 8 == 7 {
                values += "    total += sum;\n    sum = vec4<f32>(0.0);\n";
            }
        }
    }
    format!(
        "// Adds four columns of q.k to the scores of all keys of the tile; `at` is this lane's index
// in kv_tile.
fn add_scores(s: ptr<function, array<f32, BC>>, q: vec4<f32>, at: u32) {{
    var x: vec4<f32>;
{scores}}}

// Four columns of the weighted values of all keys of the tile, summed in groups of eight keys to
// keep rounding errors small.
fn weighted_values(s: ptr<function, array<f32, BC>>, at: u32) -> vec4<f32> {{
    var total = vec4<f32>(0.0);
    var sum = vec4<f32>(0.0);
    var x: vec4<f32>;
{values}    return total;
}}
"
    )
}

fn store(dtype: DType) -> String {
    match half_prefix(dtype) {
        None => STORE_F32.into(),
        Some(half) => STORE_HALF.replace("HALF", half),
    }
}

/// `mask_bits(index)` reads one entry as the bits of an f32. False becomes -inf.
fn mask(kind: Option<MaskKind>) -> String {
    let bits = match kind {
        None => {
            return "fn mask4(item: Item, r: u32, j: u32) -> vec4<u32> {
    return vec4<u32>(0u);
}

fn mask_at(item: Item, r: u32, j: u32) -> u32 {
    return 0u;
}
"
            .into();
        }
        Some(MaskKind::Bool) => {
            "select(NEG_INF, 0u, ((mask[index / 4u] >> (index % 4u * 8u)) & 0xffu) != 0u)"
        }
        Some(MaskKind::Additive(DType::F32)) => "mask[index]",
        Some(MaskKind::Additive(DType::BF16)) => "(mask[index / 2u] >> (index % 2u * 16u)) << 16u",
        Some(MaskKind::Additive(DType::F16)) => {
            return format!(
                "fn mask_bits(index: u32) -> u32 {{
    let half = (mask[index / 2u] >> (index % 2u * 16u)) & 0xffffu;
    return select(bitcast<u32>(f16_value(half)), NEG_INF, half == 0xfc00u);
}}
{MASK}"
            );
        }
    };
    format!("fn mask_bits(index: u32) -> u32 {{\n    return {bits};\n}}\n{MASK}")
}

fn store_lse(lse: bool) -> &'static str {
    if lse {
        "fn store_lse(index: u32, bits: u32) {
    lse[index] = bits;
}
"
    } else {
        "fn store_lse(index: u32, bits: u32) {}\n"
    }
}

const STORE4_ROW: &str = "fn store4_row(item: Item, r: u32, d: u32, x: vec4<f32>) {
    store4_out(out_row(item, r), d, x);
}
";

const SCORE_ROW: &str =
    "// The index of the scores of query i in the workspace. `head` counts within the part.
fn score_row(head: u32, i: u32) -> u32 {
    let row = head * (params.row_end - params.row_begin) + i - params.row_begin;
    return row * params.score_stride;
}
";
