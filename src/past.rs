use crate::{Error, tensor::zeroed};
use flashtile_core::{Argument, Layout, ProblemError, TensorView};

/// Puts the keys or values of earlier steps in front of new ones, along the sequence.
///
/// `past` is (B, Hkv, P, D) and `new` is (B, Hkv, S, D), each with its own strides and its elements
/// as little-endian bytes. The result is the bytes and the view of a densely packed (B, Hkv, P + S,
/// D) tensor with its axes in `layout`'s order. `argument` names `past` in errors:
/// [`Argument::PastKey`] or [`Argument::PastValue`].
///
/// Kernels see one sequence: lengths, `kv_lens`, masks and positions count past and new keys
/// together.
///
/// ```
/// use flashtile::{Argument, DType, Layout, TensorView, bytes_of, concat_past};
///
/// # fn main() -> Result<(), flashtile::Error> {
/// let past = TensorView::bhsd(DType::F32, [1, 2, 1, 1])?;
/// let new = TensorView::bshd(DType::F32, [1, 2, 2, 1])?; // another layout
/// let (bytes, both) = concat_past(
///     Argument::PastKey,
///     (bytes_of(&[1.0f32, -1.0]), &past),
///     (bytes_of(&[2.0f32, -2.0, 3.0, -3.0]), &new),
///     Layout::Bhsd,
/// )?;
/// assert_eq!(both.shape, [1, 2, 3, 1]);
/// assert_eq!(bytes, bytes_of(&[1.0f32, 2.0, 3.0, -1.0, -2.0, -3.0]));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::Problem`] where dtypes or sizes differ, a slice ends before its tensor, or `argument`
/// names no past; [`Error::HostMemory`].
pub fn concat_past(
    argument: Argument,
    past: (&[u8], &TensorView),
    new: (&[u8], &TensorView),
    layout: Layout,
) -> Result<(Vec<u8>, TensorView), Error> {
    let (old, fresh) = (past.1, new.1);
    let (newer, because) = match argument {
        Argument::PastKey => {
            (Argument::K, ["the batch of k", "the heads of k", "the head_dim of k"])
        }
        Argument::PastValue => {
            (Argument::V, ["the batch of v", "the heads of v", "the head_dim of v"])
        }
        // `Argument` may grow, and nothing else has a past.
        argument => return Err(ProblemError::NotPast { argument }.into()),
    };
    if old.dtype != fresh.dtype {
        return Err(ProblemError::DTypeMix {
            argument,
            like: newer,
            expected: fresh.dtype,
            given: old.dtype,
        }
        .into());
    }
    for ((axis, name), because) in
        [(0, "batch"), (1, "heads"), (3, "head_dim")].into_iter().zip(because)
    {
        let (expected, given) = (fresh.shape[axis], old.shape[axis]);
        if expected != given {
            return Err(
                ProblemError::Size { argument, axis: name, expected, given, because }.into()
            );
        }
    }
    for (argument, (bytes, view)) in [(argument, past), (newer, new)] {
        let expected = view.byte_span().ok_or(ProblemError::Overflow { argument })?;
        if bytes.len() < expected {
            return Err(ProblemError::TooShort { argument, expected, given: bytes.len() }.into());
        }
    }
    let [b, h, s, d] = fresh.shape;
    let seq = s.checked_add(old.shape[2]).ok_or(ProblemError::Overflow { argument })?;
    let both = TensorView::from_bhsd_sizes(fresh.dtype, layout, [b, h, seq, d])
        .map_err(|_| ProblemError::Overflow { argument: newer })?;
    let mut bytes =
        zeroed(newer, both.byte_span().ok_or(ProblemError::Overflow { argument: newer })?)?;
    copy_rows(past, 0, &mut bytes, &both);
    copy_rows(new, old.shape[2], &mut bytes, &both);
    Ok((bytes, both))
}

/// Copies every row of `from` to the place that `at` positions further holds in `to`, whose rows
/// are contiguous.
fn copy_rows((bytes, from): (&[u8], &TensorView), at: usize, out: &mut [u8], to: &TensorView) {
    // Without positions there may still be 2^40 batch entries, each of which would be visited in
    // vain.
    if from.is_empty() {
        return;
    }
    let size = from.dtype.size();
    let [batch, heads, seq, width] = from.shape;
    for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
        for s in 0..seq {
            let target = to.index(b, h, s + at, 0) * size;
            let target = &mut out[target..target + width * size];
            if from.strides[3] == 1 {
                let source = from.index(b, h, s, 0) * size;
                target.copy_from_slice(&bytes[source..source + width * size]);
                continue;
            }
            for (d, element) in target.chunks_exact_mut(size).enumerate() {
                let source = from.index(b, h, s, d) * size;
                element.copy_from_slice(&bytes[source..source + size]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes_of;
    use flashtile_core::DType;

    fn view(layout: Layout, shape: [usize; 4]) -> TensorView {
        TensorView::from_bhsd_sizes(DType::F32, layout, shape).expect("small")
    }

    #[test]
    fn every_layout_and_strides() {
        let past = view(Layout::Bhsd, [2, 3, 2, 4]);
        let numbers: Vec<f32> = (0..1000).map(|n| n as f32).collect();
        let strided = TensorView::strided(
            view(Layout::Bhsd, [2, 3, 5, 4]).dtype,
            view(Layout::Bhsd, [2, 3, 5, 4]).shape,
            [200, 50, 9, 2],
        );
        for new in [view(Layout::Bshd, [2, 3, 5, 4]), view(Layout::Hbsd, [2, 3, 5, 4]), strided] {
            for layout in [Layout::Bshd, Layout::Bhsd, Layout::Hbsd] {
                let bytes = bytes_of(&numbers);
                let (out, both) =
                    concat_past(Argument::PastValue, (bytes, &past), (bytes, &new), layout)
                        .expect("fits");
                assert_eq!((both.shape, out.len()), ([2, 3, 7, 4], 2 * 3 * 7 * 4 * 4));
                for (b, h, s, d) in [(0, 0, 0, 0), (1, 2, 1, 3), (0, 1, 2, 0), (1, 2, 6, 3)] {
                    let expected =
                        if s < 2 { past.index(b, h, s, d) } else { new.index(b, h, s - 2, d) };
                    assert_eq!(
                        DType::F32.read(&out, both.index(b, h, s, d)),
                        expected as f64,
                        "{layout}"
                    );
                }
            }
        }
    }

    #[test]
    fn empty_sequences_of_huge_batches_take_no_time() {
        let empty = view(Layout::Bhsd, [1 << 40, 1 << 20, 0, 4]);
        let (bytes, both) =
            concat_past(Argument::PastKey, (&[], &empty), (&[], &empty), Layout::Bshd)
                .expect("fits");
        assert_eq!((bytes.len(), both.shape), (0, empty.shape));
    }

    #[test]
    fn broken_rules_have_errors() {
        let new = view(Layout::Bhsd, [2, 3, 5, 4]);
        let data = [0u8; 480];
        let f16 = TensorView::strided(DType::F16, new.shape, new.strides);
        for (past, bytes, message) in [
            (f16, 480, "past_key must be f32 like k, but is f16"),
            (
                view(Layout::Bhsd, [2, 2, 1, 4]),
                480,
                "past_key must have heads 3 (the heads of k), but has 2",
            ),
            (view(Layout::Bhsd, [2, 3, 1, 4]), 95, "past_key needs 96 bytes, but 95 were given"),
        ] {
            let e = concat_past(
                Argument::PastKey,
                (&data[..bytes], &past),
                (&data, &new),
                Layout::Bshd,
            );
            assert_eq!(e.expect_err("refused").to_string(), message);
        }
        let e = concat_past(Argument::Out, (&data, &new), (&data, &new), Layout::Bshd);
        let message = "expected past_key or past_value, but out was named";
        assert_eq!(e.expect_err("it has no past").to_string(), message);
    }
}
