//! Any file with any options: the program's parser turns a safetensors file into a problem with all
//! of its inputs, or returns an error. It never panics, and never allocates more than the size of
//! the file justifies.
//!
//! Random bytes hardly ever get past the header, so most inputs are files written from a list of
//! tensors, correct or nearly so.

#![no_main]

use arbitrary::{Arbitrary, Result, Unstructured};
use flashtile_cli::{AttentionArgs, LayoutArgs, input::Input};
use flashtile_core::{Align, Layout, check_host_inputs};
use libfuzzer_sys::fuzz_target;
use std::{
    alloc::{GlobalAlloc, Layout as Block, System},
    fmt::Write as _,
    sync::atomic::{AtomicUsize, Ordering},
};

/// Records the largest block that was requested. A block that is too large is wrong even if the
/// machine has the memory.
struct Watch;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Watch = Watch;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Watch {
    unsafe fn alloc(&self, block: Block) -> *mut u8 {
        LARGEST.fetch_max(block.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(block) }
    }

    unsafe fn alloc_zeroed(&self, block: Block) -> *mut u8 {
        LARGEST.fetch_max(block.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(block) }
    }

    unsafe fn realloc(&self, at: *mut u8, block: Block, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(at, block, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, block: Block) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, block) }
    }
}

#[derive(Debug)]
struct Given {
    file: Vec<u8>,
    layout: LayoutArgs,
    options: AttentionArgs,
}

impl<'a> Arbitrary<'a> for Given {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let layout = LayoutArgs {
            layout: *u.choose(Layout::ALL)?,
            heads: maybe(u, size)?,
            kv_heads: maybe(u, size)?,
        };
        let options = AttentionArgs {
            scale: maybe(u, f32::arbitrary)?,
            softcap: maybe(u, f32::arbitrary)?,
            causal: u.arbitrary()?,
            align: match u.int_in_range(0..=3)? {
                0 => Align::BottomRight,
                1 => Align::Offset(u.arbitrary()?),
                _ => Align::TopLeft,
            },
            window_left: maybe(u, usize::arbitrary)?,
            window_right: maybe(u, usize::arbitrary)?,
            dropout_p: maybe(u, f64::arbitrary)?.unwrap_or(0.0),
            seed: u.arbitrary()?,
            offset: u.arbitrary()?,
            lse: u.arbitrary()?,
        };
        let file = match u.int_in_range(0..=7)? {
            0 => u.bytes(u.len())?.to_vec(),
            _ => file(u, &layout)?,
        };
        Ok(Self { file, layout, options })
    }
}

/// Nothing in three of four cases, and always after the end of the input: its numbers are then the
/// smallest, and every ratio is true.
fn maybe<'a, T>(
    u: &mut Unstructured<'a>,
    f: impl FnOnce(&mut Unstructured<'a>) -> Result<T>,
) -> Result<Option<T>> {
    if u.ratio(3, 4)? { Ok(None) } else { f(u).map(Some) }
}

/// Mostly a size that a file of a few kilobytes can have.
fn size(u: &mut Unstructured<'_>) -> Result<usize> {
    Ok(match u.int_in_range(0..=63)? {
        0 => 1 << u.int_in_range(0..=63)?,
        1 => u.arbitrary()?,
        2 => 0,
        n => 1 + n % 6,
    })
}

/// A file whose tensors mostly fit together.
fn file(u: &mut Unstructured<'_>, layout: &LayoutArgs) -> Result<Vec<u8>> {
    let [batch, kv_heads, seq_q, seq_kv, dim, dim_v] = [(); 6].map(|()| size(u));
    let (batch, seq_q, seq_kv, dim, dim_v) = (batch?, seq_q?, seq_kv?, dim?, dim_v?);
    let kv_heads = layout.kv_heads.map_or(kv_heads, Ok)?;
    let heads = layout.heads.unwrap_or(kv_heads.saturating_mul(u.int_in_range(1..=3)?));
    let past = maybe(u, size)?;
    let float = *u.choose(&["F32", "F16", "BF16"])?;
    let in_layout = |[b, h, s, d]: [usize; 4]| match layout.layout {
        Layout::Bshd => vec![b, s, h, d],
        Layout::Bhsd => vec![b, h, s, d],
        Layout::Hbsd => vec![h, b, s, d],
        Layout::Bsd => vec![b, s, h.saturating_mul(d)],
    };
    let mut tensors = vec![
        ("q", float, in_layout([batch, heads, seq_q, dim])),
        ("k", float, in_layout([batch, kv_heads, seq_kv, dim])),
        ("v", float, in_layout([batch, kv_heads, seq_kv, dim_v])),
    ];
    if let Some(past) = past {
        tensors.push(("past_key", float, vec![batch, kv_heads, past, dim]));
        tensors.push(("past_value", float, vec![batch, kv_heads, past, dim_v]));
    }
    if u.ratio(1, 3)? {
        let full = [batch, heads, seq_q, seq_kv.saturating_add(past.unwrap_or(0))];
        let rank = u.int_in_range(0..=4)?;
        let mut shape = full[4 - rank..].to_vec();
        for n in &mut shape {
            *n = if u.ratio(1, 3)? { 1 } else { *n };
        }
        tensors.push(("attn_mask", *u.choose(&["BOOL", "F32", "F16", "BF16", "U8"])?, shape));
    }
    if u.ratio(1, 3)? {
        tensors.push(("kv_lens", *u.choose(&["I32", "I64", "U32"])?, vec![batch]));
    }
    // In most files nothing is spoilt, so that these test the options.
    for _ in 0..u.int_in_range(0..=7u32)?.saturating_sub(5) {
        let at = u.choose_index(tensors.len())?;
        match u.int_in_range(0..=3)? {
            0 if tensors.len() > 1 => drop(tensors.remove(at)),
            1 => {
                tensors[at].1 =
                    u.choose(&["F32", "F16", "BF16", "F64", "BOOL", "I32", "F8_E4M3", "no"])?
            }
            2 => tensors[at].2.push(size(u)?),
            _ => match tensors[at].2.len() {
                0 => {}
                axes => tensors[at].2[u.choose_index(axes)?] = size(u)?,
            },
        }
    }
    write(u, &tensors)
}

/// The file of these tensors: the header's length, the header, the data.
fn write(u: &mut Unstructured<'_>, tensors: &[(&str, &str, Vec<usize>)]) -> Result<Vec<u8>> {
    const MOST: usize = 1 << 16;
    let mut header = String::from("{");
    let mut end = 0usize;
    for (n, (name, dtype, shape)) in tensors.iter().enumerate() {
        let element = match *dtype {
            "F32" | "I32" | "U32" => 4,
            "F16" | "BF16" => 2,
            "I64" | "F64" => 8,
            _ => 1,
        };
        let start = end;
        end = end
            .saturating_add(shape.iter().fold(element, |bytes: usize, &n| bytes.saturating_mul(n)));
        let comma = if n > 0 { "," } else { "" };
        // Writing to a string does not fail.
        let _ = write!(header, r#"{comma}"{name}":{{"dtype":"{dtype}","shape":{shape:?},"#);
        let _ = write!(header, r#""data_offsets":[{start},{end}]}}"#);
    }
    header.push('}');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    // A file that claims a larger size ends early, like one that was cut off.
    let data = end.min(MOST);
    let some = u.bytes(u.len().min(data))?;
    file.extend(some.iter().cycle().copied().take(if some.is_empty() { 0 } else { data }));
    if !u.ratio(11, 12)? && !file.is_empty() {
        let at = u.choose_index(file.len())?;
        if u.arbitrary()? {
            file.truncate(at);
        } else {
            file[at] = u.arbitrary()?;
        }
    }
    Ok(file)
}

fuzz_target!(|given: Given| {
    let Given { file, layout, options } = given;
    LARGEST.store(0, Ordering::Relaxed);
    let parsed = Input::parse(&file, &layout, &options);
    let largest = LARGEST.load(Ordering::Relaxed);
    // The few bytes of a header become strings, shapes and errors that quote them, and past and new
    // keys become one tensor.
    let most = 64 * file.len() + (64 << 10);
    assert!(largest <= most, "a block of {largest} bytes for a file of {}", file.len());

    let input = match parsed {
        Ok(input) => input,
        Err(error) => {
            assert!(!format!("{error:#}").is_empty());
            return;
        }
    };
    let call =
        check_host_inputs(&input.problem, &input.inputs()).expect("what was parsed is complete");
    assert!(call.scale.is_finite());
    assert_eq!((call.seq_q, call.seq_kv), (input.problem.seq_q(), input.problem.seq_kv()));
    assert_eq!(input.layout, layout.layout);
    let _ = (input.problem.to_string(), input.score_matrix_bytes());
});
