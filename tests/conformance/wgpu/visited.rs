//! Which key tiles a kernel visits, and for which of them it applies masks. Results cannot show
//! this: a needless visit only costs time. So the kernel's own functions run on the device, and the
//! test compares them with core's visitor.

use super::{
    embedding::{buffer, read},
    probe::{Probe, words},
};
use crate::shared::text;
use flashtile_core::{
    Align, Call, DType, KernelKind, KeyTiles, Layout, Problem, TensorView, TileKind,
};
use flashtile_shaders::Slot;
use flashtile_wgpu::{Context, ExportedDispatch, export_baseline, wgpu};
use wgpu::BufferUsages as Usage;

/// The number of words that one query tile of one head writes, one per key tile: more than any case
/// has.
const ANSWERS: usize = 32;
const SKIPPED: u32 = 0;
const EDGE: u32 = 1;
const FULL: u32 = 2;

/// Visits key tiles as flash_forward does, and records their kinds.
const PROBE: &str = "
@compute @workgroup_size(1)
fn probe(@builtin(workgroup_id) workgroup: vec3<u32>) {
    let index = workgroup.y * params.grid_width + workgroup.x;
    if (index >= params.item_count) {
        return;
    }
    let item = work_item(index, BR);
    let row_end = tile_row_end(item, BR);
    let range = kv_range(item, row_end);
    for (var j_begin = range.x / BC * BC; j_begin < range.y; j_begin += BC) {
        let full = tile_is_full(item, row_end, j_begin, j_begin + BC);
        out[index * 32u + j_begin / BC] = select(1u, 2u, full);
    }
}
";

/// Every band, with lengths that are not multiples of tiles, lengths per batch entry, and lengths
/// of the call.
pub(super) fn visited_tiles(context: &Context) -> Result<(), String> {
    let windows = [None, Some(0), Some(40), Some(100)];
    let mut met = [0; 3];
    for align in [Align::TopLeft, Align::BottomRight, Align::Offset(-37), Align::Offset(70)] {
        for (causal, left, right) in [false, true]
            .into_iter()
            .flat_map(|c| windows.into_iter().flat_map(move |l| windows.map(|r| (c, l, r))))
        {
            for (seq_q, seq_kv) in [(70, 300), (150, 90)] {
                let view = |seq| {
                    TensorView::from_bhsd_sizes(DType::F32, Layout::Bhsd, [3, 2, seq, 8])
                        .map_err(text)
                };
                let problem = Problem::builder(view(seq_q)?, view(seq_kv)?, view(seq_kv)?)
                    .causal(causal)
                    .align(align)
                    .window_left(left)
                    .window_right(right)
                    .kv_lens(true)
                    .build()
                    .map_err(text)?;
                let call = Call::new().seq_q(seq_q - 3).seq_kv(seq_kv - 1);
                compare(context, &problem, &call, &mut met)?;
            }
        }
    }
    if met.iter().all(|&tiles| tiles > 1000) {
        Ok(())
    } else {
        Err(format!("too few tiles of some kind (skipped, edge, full): {met:?}"))
    }
}

fn compare(
    context: &Context,
    problem: &Problem,
    call: &Call,
    met: &mut [usize; 3],
) -> Result<(), String> {
    let exported = export_baseline(problem, KernelKind::Flash, call).map_err(text)?;
    let [dispatch] = &exported.dispatches[..] else {
        return Err("one dispatch was expected".into());
    };
    let call = call.resolve(problem).map_err(text)?;
    let lens = [call.seq_kv, 0, 61].map(|len| len as i32);
    let items = problem.batch() * problem.heads() * call.seq_q.div_ceil(constant(dispatch, "BR")?);
    let got = run(context, dispatch, &lens, items)?;
    for (index, got) in got.chunks(ANSWERS).enumerate() {
        let tiles = items / (problem.batch() * problem.heads());
        let (entry, tile) = (index / tiles / problem.heads(), index % tiles);
        let (rows, width) = (constant(dispatch, "BR")?, constant(dispatch, "BC")?);
        let mut expected = [SKIPPED; ANSWERS];
        let kv_len = lens[entry] as usize;
        let visitor = KeyTiles::new(
            problem.band(),
            false,
            tile * rows..(tile + 1) * rows,
            width,
            call.seq_q,
            kv_len,
        );
        for tile in visitor {
            expected[tile.keys.start / width] =
                if tile.kind == TileKind::Full { FULL } else { EDGE };
        }
        if got != expected {
            return Err(format!(
                "{problem}, {kv_len} keys, query tile {tile}: visited {got:?}, not {expected:?}"
            ));
        }
        expected[..call.seq_kv.div_ceil(width)].iter().for_each(|&kind| met[kind as usize] += 1);
    }
    Ok(())
}

/// A constant in the kernel source.
fn constant(dispatch: &ExportedDispatch, name: &str) -> Result<usize, String> {
    let (_, rest) =
        dispatch.wgsl.split_once(&format!("const {name}: u32 = ")).ok_or("no such constant")?;
    rest.split('u')
        .next()
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| format!("{name} is not a number"))
}

fn run(
    context: &Context,
    dispatch: &ExportedDispatch,
    lens: &[i32],
    items: usize,
) -> Result<Vec<u32>, String> {
    let probe = Probe {
        name: "probe",
        wgsl: dispatch.wgsl.clone() + PROBE,
        entry_point: "probe",
        constants: &dispatch.constants,
        workgroups: dispatch.workgroups,
    };
    let params = buffer(context, bytemuck::cast_slice(&dispatch.params), Usage::UNIFORM);
    let aux = buffer(context, bytemuck::cast_slice(lens), Usage::STORAGE);
    let out = buffer(context, &vec![0; 4 * ANSWERS * items], Usage::STORAGE);
    let bound = [(Slot::Params, &params), (Slot::Aux, &aux), (Slot::Out, &out)];
    probe.run(context, &bound.map(|(slot, buffer)| (slot as u32, buffer)));
    Ok(words(&read(context, &out)?))
}
