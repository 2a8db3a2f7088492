use crate::{input::Input, progress};
use anyhow::{Result, ensure};
use flashtile::{DType, Problem, bound, bound::RowTerms, reference};
use safetensors::{Dtype, SafeTensors, tensor::TensorView as Stored};
use std::io::Write;

/// Compares a result with the oracle, and with the tensor `expected` where the file has one. Prints
/// the largest errors as shares of the error bound.
///
/// # Errors
/// A share over 1: the result is outside the bound.
pub(crate) fn verify(
    input: &Input<'_>,
    file: &[u8],
    out: &[u8],
    lse: &[f32],
    stdout: &mut dyn Write,
) -> Result<()> {
    let problem = &input.problem;
    if problem.is_empty() {
        return Ok(writeln!(stdout, "error     none: the result is empty")?);
    }
    let spinner = progress::spinner("running the oracle".to_owned());
    let answer = reference::attention(problem, &input.inputs());
    spinner.finish_and_clear();
    let answer = answer?;

    let mut worst =
        worst_out(problem, out, &answer.rows, |row, d| answer.out[row * problem.head_dim_v() + d]);
    writeln!(stdout, "error     {worst:.3} of the error bound, against the float64 oracle")?;
    if let Some(expected) = expected(input, file)? {
        // `expected` has the axes of the file. In layouts bsd and bshd, elements have the same
        // indices.
        let share = worst_out(problem, out, &answer.rows, |row, d| {
            let [heads, seq] = [problem.heads(), problem.seq_q()];
            expected(problem.out().index(row / seq / heads, row / seq % heads, row % seq, d))
        });
        writeln!(
            stdout,
            "          {share:.3} of the error bound, against `expected` in the file"
        )?;
        worst = worst.max(share);
    }
    if problem.lse() {
        let rows = lse.iter().zip(&answer.rows);
        let shares = rows.map(|(&got, row)| {
            bound::share(got.into(), row.lse, row.lse_bound(problem.head_dim()), DType::F32)
        });
        let share = shares.fold(0.0, f64::max);
        writeln!(stdout, "          {share:.3} of the error bound, lse against the oracle")?;
        worst = worst.max(share);
    }
    ensure!(
        worst <= 1.0,
        "the largest error is {worst:.3} of the error bound; at most 1 is allowed"
    );
    Ok(())
}

/// The largest share over all elements. `expected` takes the row (b * H + h) * Sq + i and the
/// column.
fn worst_out(
    problem: &Problem,
    out: &[u8],
    rows: &[RowTerms],
    expected: impl Fn(usize, usize) -> f64,
) -> f64 {
    let (heads, seq) = (problem.heads(), problem.seq_q());
    let mut worst = 0f64;
    for (n, row) in rows.iter().enumerate() {
        let bound = row.out_bound(problem.dtype(), problem.head_dim());
        for d in 0..problem.head_dim_v() {
            let got = problem
                .dtype()
                .read(out, problem.out().index(n / seq / heads, n / seq % heads, n % seq, d));
            worst = worst.max(bound::share(got, expected(n, d), bound, problem.dtype()));
        }
    }
    worst
}

/// Element access to the file's `expected`, if it has one.
fn expected<'a>(
    input: &Input<'_>,
    file: &'a [u8],
) -> Result<Option<impl Fn(usize) -> f64 + use<'a>>> {
    let file = SafeTensors::deserialize(file)?;
    let Ok(stored) = file.tensor("expected") else { return Ok(None) };
    let wanted = input.layout.dims(input.problem.out().shape);
    ensure!(
        stored.shape() == wanted,
        "expected must have shape {wanted:?} like out, but has {:?}",
        stored.shape()
    );
    let read: fn(&[u8], usize) -> f64 = match stored.dtype() {
        Dtype::F64 => {
            |bytes, n| bytes.as_chunks().0.get(n).map_or(f64::NAN, |&b| f64::from_le_bytes(b))
        }
        Dtype::F32 => |bytes, n| DType::F32.read(bytes, n),
        Dtype::F16 => |bytes, n| DType::F16.read(bytes, n),
        Dtype::BF16 => |bytes, n| DType::BF16.read(bytes, n),
        other => anyhow::bail!("expected must be a float tensor, but is {other}"),
    };
    let data = Stored::data(&stored);
    Ok(Some(move |n| read(data, n)))
}
