//! The rows of a result that are verified, and what the oracle computes for them.

use super::{cases::Case, inputs::Inputs};
use anyhow::Result;
use flashtile::{
    Align, HostInputs, Problem, TensorView,
    bound::{self, RowTerms},
    reference,
};
use flashtile_testkit::Worst;
use std::{num::NonZero, panic, thread};

/// Elements of K and V that the oracle may visit for one case: one to two seconds of one CPU core.
/// A row visits Skv * (D + Dv).
const BUDGET: usize = 150_000_000;

/// Rows that are always verified, whatever they cost: the first and last query of the first and
/// last head.
const FEWEST: usize = 4;

/// Verified queries of one head, at most.
const QUERIES: usize = 16;

/// Some rows of a case, as the oracle computes them.
pub(crate) struct Sample {
    problem: Problem,
    rows: Vec<Row>,
}

/// The output of one query.
struct Row {
    /// Batch entry, head and query.
    at: [usize; 3],
    out: Vec<f64>,
    terms: RowTerms,
}

impl Sample {
    /// Runs the oracle on some rows, on all CPU cores.
    pub(crate) fn new(case: &Case, inputs: &Inputs) -> Result<Self> {
        let problem = case.problem()?;
        let row_cost = problem.seq_kv() * (problem.head_dim() + problem.head_dim_v());
        let places =
            places(problem.batch(), problem.heads(), problem.seq_q(), BUDGET / row_cost.max(1));
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        let parts = places.chunks(places.len().div_ceil(threads).max(1));
        let compute = |part: &[[usize; 3]]| -> Result<Vec<Row>> {
            part.iter().map(|&at| row(&problem, inputs, at)).collect()
        };
        let computed = thread::scope(|scope| {
            let workers: Vec<_> = parts.map(|part| scope.spawn(move || compute(part))).collect();
            let join = |worker: thread::ScopedJoinHandle<'_, Result<Vec<Row>>>| {
                worker.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked))
            };
            workers.into_iter().map(join).collect::<Result<Vec<_>>>()
        });
        Ok(Self { rows: computed?.into_iter().flatten().collect(), problem })
    }

    /// The number in the verified rows of `out` that is nearest to its bound, or farthest beyond
    /// it.
    pub(crate) fn worst(&self, out: &[u8]) -> Worst {
        let (problem, dtype) = (&self.problem, self.problem.dtype());
        let mut worst = Worst::default();
        for Row { at: [b, h, i], out: expected, terms } in &self.rows {
            let bound = terms.out_bound(dtype, problem.head_dim());
            for (d, &expected) in expected.iter().enumerate() {
                let got = dtype.read(out, problem.out().index(*b, *h, *i, d));
                let share = bound::share(got, expected, bound, dtype);
                if share > worst.share {
                    worst = Worst { share, at: [*b, *h, *i, d], got, expected, bound };
                }
            }
        }
        worst
    }
}

/// The rows to verify, where `affordable` rows are within the budget: batch entry, head and query.
///
/// These are the first and last query of every head, and queries between them at equal distances
/// that differ from head to head. If that many rows cost too much, then of as many heads as are
/// affordable, at equal distances from the first to the last.
fn places(batch: usize, heads: usize, seq_q: usize, affordable: usize) -> Vec<[usize; 3]> {
    let affordable = affordable.max(FEWEST);
    let all_heads = batch * heads;
    let ends = seq_q.min(2);
    let verified_heads = all_heads.min(affordable / ends.max(1));
    let between = (affordable / verified_heads.max(1)).min(QUERIES).min(seq_q) - ends;
    let mut places = Vec::new();
    for n in 0..verified_heads {
        let head = n * (all_heads - 1) / (verified_heads - 1).max(1);
        let middle = (0..between).map(|query| {
            1 + (query * verified_heads + n) * (seq_q - ends) / (between * verified_heads)
        });
        let queries = (0..ends.min(1)).chain(middle).chain((1..ends).map(|_| seq_q - 1));
        places.extend(queries.map(|query| [head / heads, head % heads, query]));
    }
    places
}

/// One row by the oracle: a problem with one query, which stands where the query of the case
/// stands.
fn row(problem: &Problem, inputs: &Inputs, at: [usize; 3]) -> Result<Row> {
    let [b, h, i] = at;
    let kv_head = h / problem.group_size();
    let (q, q_bytes) = part(problem.q(), &inputs.q, [b, h, i], 1);
    let (k, k_bytes) = part(problem.k(), &inputs.k, [b, kv_head, 0], problem.seq_kv());
    let (v, v_bytes) = part(problem.v(), &inputs.v, [b, kv_head, 0], problem.seq_kv());
    let first = match problem.align() {
        Align::TopLeft => 0,
        Align::BottomRight => problem.seq_kv() as i64 - problem.seq_q() as i64,
        Align::Offset(n) => n,
    };
    let alone = Problem::builder(q, k, v)
        .causal(problem.causal())
        .align(Align::Offset(first + i as i64))
        .build()?;
    let answer = reference::attention(&alone, &HostInputs::new(q_bytes, k_bytes, v_bytes))?;
    // One row in, one row out.
    let terms = answer.rows.first().copied().unwrap_or_default();
    Ok(Row { at, out: answer.out, terms })
}

/// `len` positions of one head from position `s` on, as a tensor of its own in the same bytes.
fn part<'a>(
    view: &TensorView,
    bytes: &'a [u8],
    [b, h, s]: [usize; 3],
    len: usize,
) -> (TensorView, &'a [u8]) {
    let shape = [1, 1, len, view.shape[3]];
    let start = view.index(b, h, s, 0) * view.dtype.size();
    (TensorView::strided(view.dtype, shape, view.strides), &bytes[start..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Shape;
    use flashtile::DType;
    use std::collections::HashSet;

    #[test]
    fn every_head_has_its_ends_and_some_between() {
        let places = places(2, 3, 1000, 60);
        let queries = |b, h| -> Vec<usize> {
            places.iter().filter(|at| at[..2] == [b, h]).map(|at| at[2]).collect()
        };
        let mut between = HashSet::new();
        for (b, h) in (0..2).flat_map(|b| (0..3).map(move |h| (b, h))) {
            let found = queries(b, h);
            assert_eq!((found.len(), found[0], found[9]), (10, 0, 999), "{found:?}");
            assert!(found.is_sorted_by(|a, b| a < b), "{found:?}");
            between.extend(found[1..9].iter().copied());
        }
        assert_eq!(between.len(), 6 * 8, "each head has other queries");
    }

    #[test]
    fn a_short_problem_is_verified_as_a_whole() {
        for seq in 1..=QUERIES {
            let expected: Vec<_> = (0..seq).map(|i| [0, 0, i]).collect();
            assert_eq!(places(1, 1, seq, usize::MAX), expected);
        }
        assert_eq!(places(1, 1, 1000, usize::MAX).len(), QUERIES);
    }

    #[test]
    fn costly_rows_leave_heads_out_but_never_the_first_and_the_last() {
        let found = places(4, 8, 100, 9);
        let expected: Vec<_> = [0, 10, 20, 31]
            .into_iter()
            .flat_map(|head| [0, 99].map(|query| [head / 8, head % 8, query]))
            .collect();
        assert_eq!(found, expected);
        assert_eq!(places(4, 8, 100, 0), [[0, 0, 0], [0, 0, 99], [3, 7, 0], [3, 7, 99]]);
        assert_eq!(places(64, 32, 1, 100).len(), 100);
    }

    /// The rows of the sample are those of the whole problem, and an error in one of them is found.
    #[test]
    fn rows_are_those_of_the_whole_problem() {
        for causal in [false, true] {
            let case = Case::new(Shape::of_self([2, 3, 20, 4]), DType::F16, causal);
            let (inputs, problem) = (Inputs::new(&case), case.problem().expect("valid"));
            let whole =
                reference::attention(&problem, &HostInputs::new(&inputs.q, &inputs.k, &inputs.v))
                    .expect("valid");
            let sample = Sample::new(&case, &inputs).expect("computes");
            assert_eq!(sample.rows.len(), 6 * QUERIES);
            for Row { at: [b, h, i], out, terms } in &sample.rows {
                let row = (b * 3 + h) * 20 + i;
                assert_eq!(out[..], whole.out[row * 4..][..4]);
                assert_eq!(*terms, whole.rows[row]);
            }
            let mut out = vec![0; problem.out().byte_span().expect("small")];
            reference::run(&problem, inputs.args(&mut out)).expect("runs");
            let right = sample.worst(&out).share;
            assert!(right > 0.0 && right <= 1.0, "{right}");
            let last = problem.out().index(1, 2, 19, 3);
            DType::F16.write(&mut out, last, 0.75);
            let wrong = sample.worst(&out);
            assert!(wrong.share > 1.0 && wrong.at == [1, 2, 19, 3], "{wrong}");
            DType::F16.write(&mut out, last, f64::NAN);
            assert_eq!(sample.worst(&out).share, f64::INFINITY);
        }
    }
}
