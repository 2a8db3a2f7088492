//! Guarantee 4: the same bits in every run, with any neighbours in the batch, and with any number
//! of unseen keys in the cache.

use crate::case::Case;
use crate::check::{Failure, Results, Wrong, elements_of, execute, name};
use crate::inputs::Tensors;
use flashtile_core::{Backend, KernelKind, Problem, ProblemError, TensorView};

/// Runs a case twice and compares all bits.
///
/// # Errors
/// A [`Failure`] with [`Wrong::NotRepeated`], or with the reason why the case did not run.
pub fn check_repeats(
    backend: &dyn Backend,
    kernel: KernelKind,
    case: &Case,
) -> Result<(), Failure> {
    let twice = || {
        let tensors = case.build()?;
        let [first, second] = [(); 2].map(|()| execute(backend, kernel, &tensors));
        let (first, second) = (bits(&tensors, &first?)?, bits(&tensors, &second?)?);
        require_same(&first, &second, |at| Wrong::NotRepeated { at })
    };
    twice().map_err(|wrong| Failure::new(backend, kernel, case, wrong))
}

/// Runs each batch entry of a case alone and compares its bits with those that it had in the batch.
///
/// With dropout, only the first entry is compared: the random words of the others depend on their
/// position in the batch.
///
/// # Errors
/// A [`Failure`] with [`Wrong::Neighbours`], or with the reason why the case did not run.
pub fn check_neighbours(
    backend: &dyn Backend,
    kernel: KernelKind,
    case: &Case,
) -> Result<(), Failure> {
    let apart = || {
        let tensors = case.build()?;
        let together = bits(&tensors, &execute(backend, kernel, &tensors)?)?;
        let entries = if case.dropout_p > 0.0 { case.batch.min(1) } else { case.batch };
        for b in 0..entries {
            let one = tensors.entry(b)?;
            let alone = bits(&one, &execute(backend, kernel, &one)?)?;
            let among = together.iter().filter(|([batch, ..], _)| *batch == b);
            if let Some((&(at, _), _)) = among.zip(&alone).find(|((_, a), (_, b))| a != b) {
                return Err(Wrong::Neighbours { at });
            }
        }
        Ok(())
    };
    apart().map_err(|wrong| Failure::new(backend, kernel, case, wrong))
}

/// Runs a case with `kv_lens`, and again in a call that ends at the longest of these. The keys
/// beyond it are seen by no row, so the bits have to be the same.
///
/// # Errors
/// A [`Failure`] with [`Wrong::Lengths`], or with the reason why the case did not run.
pub fn check_lengths(
    backend: &dyn Backend,
    kernel: KernelKind,
    case: &Case,
) -> Result<(), Failure> {
    let shortened = || {
        let mut tensors = case.build()?;
        let whole = bits(&tensors, &execute(backend, kernel, &tensors)?)?;
        let longest = tensors.kv_lens.iter().flatten().copied().max().unwrap_or(0).max(0) as usize;
        let seq_kv = tensors.call.resolve(&tensors.problem)?.seq_kv.min(longest);
        tensors.call = tensors.call.seq_kv(seq_kv);
        let short = bits(&tensors, &execute(backend, kernel, &tensors)?)?;
        require_same(&whole, &short, |at| Wrong::Lengths { at })
    };
    shortened().map_err(|wrong| Failure::new(backend, kernel, case, wrong))
}

/// Runs a case on two settings of a backend, such as numbers of threads, which have to give the
/// same bits.
///
/// # Errors
/// A [`Failure`] with [`Wrong::Disagree`], or with the reason why the case did not run.
pub fn check_agreement(
    [one, other]: [&dyn Backend; 2],
    kernel: KernelKind,
    case: &Case,
) -> Result<(), Failure> {
    let both = || {
        let tensors = case.build()?;
        let [first, second] = [one, other].map(|backend| execute(backend, kernel, &tensors));
        let (first, second) = (bits(&tensors, &first?)?, bits(&tensors, &second?)?);
        require_same(&first, &second, |at| Wrong::Disagree { other: name(other), at })
    };
    both().map_err(|wrong| Failure::new(one, kernel, case, wrong))
}

/// A number's position and bits.
type Bits = ([usize; 4], u32);

/// `wrong` at the first difference.
fn require_same(
    one: &[Bits],
    other: &[Bits],
    wrong: impl FnOnce([usize; 4]) -> Wrong,
) -> Result<(), Wrong> {
    match one.iter().zip(other).find(|(a, b)| a != b) {
        Some((&(at, _), _)) => Err(wrong(at)),
        None => Ok(()),
    }
}

/// The bits of out, then of lse, each with its position.
fn bits(tensors: &Tensors, results: &Results) -> Result<Vec<Bits>, ProblemError> {
    let problem = &tensors.problem;
    let seq_q = tensors.call.resolve(problem)?.seq_q;
    let size = problem.dtype().size();
    let mut bits: Vec<_> = elements_of(problem.out(), seq_q)
        .map(|(at, place)| {
            let mut word = [0; 4];
            word[..size].copy_from_slice(&results.out[place * size..(place + 1) * size]);
            (at, u32::from_le_bytes(word))
        })
        .collect();
    if let Some(lse) = &results.lse {
        let [batch, heads, capacity] = problem.lse_shape();
        for (b, h, i) in (0..batch)
            .flat_map(|b| (0..heads).flat_map(move |h| (0..seq_q).map(move |i| (b, h, i))))
        {
            bits.push(([b, h, i, 0], lse[(b * heads + h) * capacity + i].to_bits()));
        }
    }
    Ok(bits)
}

impl Tensors {
    /// Batch entry `b` as a problem of its own.
    fn entry(&self, b: usize) -> Result<Tensors, ProblemError> {
        let problem = &self.problem;
        let one = |view: &TensorView| {
            TensorView::strided(
                view.dtype,
                [1, view.shape[1], view.shape[2], view.shape[3]],
                view.strides,
            )
        };
        // The strides of an empty tensor may reach beyond its buffer.
        let cut = |bytes: &[u8], stride: usize, size: usize| {
            bytes.get(b * stride * size..).unwrap_or_default().to_vec()
        };
        let cut_view =
            |bytes: &[u8], view: &TensorView| cut(bytes, view.strides[0], view.dtype.size());
        let mask = problem.mask().map(|mask| {
            let [_, heads, seq_q, seq_kv] = mask.shape;
            let mut one = *mask;
            one.shape = [1, heads, seq_q, seq_kv];
            one
        });
        let alone = Problem::builder(one(problem.q()), one(problem.k()), one(problem.v()))
            .out(one(problem.out()))
            .causal(problem.causal())
            .align(problem.align())
            .window_left(problem.window_left())
            .window_right(problem.window_right())
            .softcap(problem.softcap())
            .mask(mask)
            .kv_lens(problem.kv_lens())
            .dropout_p(problem.dropout_p())
            .lse(problem.lse())
            .build()?;
        Ok(Tensors {
            problem: alone,
            call: self.call,
            q: cut_view(&self.q, problem.q()),
            k: cut_view(&self.k, problem.k()),
            v: cut_view(&self.v, problem.v()),
            mask: problem.mask().zip(self.mask.as_ref()).map(|(mask, bytes)| {
                let stride = if mask.shape[0] == 1 { 0 } else { mask.strides[0] };
                cut(bytes, stride, mask.kind.size())
            }),
            kv_lens: self.kv_lens.as_ref().map(|lens| vec![lens[b]]),
        })
    }
}
