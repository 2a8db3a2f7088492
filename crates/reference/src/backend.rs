use crate::attention;
use flashtile_core::{HostArgs, Problem, ProblemError, check_host_args};

/// The `reference` backend: [`attention`], rounded to nearest even into `out` and `lse`.
///
/// Memory between the strides of `out`, and rows beyond the call's queries, keep what they hold.
///
/// # Errors
/// Those of [`check_host_args`]; nothing is written then.
pub fn run(problem: &Problem, args: HostArgs<'_>) -> Result<(), ProblemError> {
    let call = check_host_args(problem, &args)?;
    let answer = attention(problem, &args.inputs())?;
    let HostArgs { out, mut lse, .. } = args;
    let (heads, width) = (problem.heads(), problem.head_dim_v());
    for b in 0..problem.batch() {
        for h in 0..heads {
            for i in 0..call.seq_q {
                let row = (b * heads + h) * call.seq_q + i;
                for d in 0..width {
                    problem.dtype().write(
                        out,
                        problem.out().index(b, h, i, d),
                        answer.out[row * width + d],
                    );
                }
                if let Some(lse) = &mut lse {
                    lse[(b * heads + h) * problem.seq_q() + i] = answer.lse[row] as f32;
                }
            }
        }
    }
    Ok(())
}
