use crate::case::{Case, KvLens, Placement, Poison, Values};
use flashtile_core::{Align, DType, Layout};

/// The smallest case that simple steps reach from `case` and for which `fails` is still true.
///
/// Each step drops a feature or reduces a size. `fails` is called at most 500 times.
pub fn minimise(case: &Case, mut fails: impl FnMut(&Case) -> bool) -> Case {
    let mut smallest = case.clone();
    let mut calls = 0;
    'smaller: loop {
        for step in simpler(&smallest) {
            if calls == 500 {
                break 'smaller;
            }
            let valid = step.problem().is_ok_and(|problem| step.call().resolve(&problem).is_ok());
            if valid && step != smallest {
                calls += 1;
                if fails(&step) {
                    smallest = step;
                    continue 'smaller;
                }
            }
        }
        break;
    }
    smallest
}

/// Cases one step simpler, the largest steps first. Not all are valid.
fn simpler(case: &Case) -> Vec<Case> {
    let mut steps = Vec::new();
    let mut step = |change: &dyn Fn(&mut Case)| {
        let mut simpler = case.clone();
        change(&mut simpler);
        steps.push(simpler);
    };
    let dense = Placement::Layout(Layout::Bshd);
    step(&|c| c.mask = None);
    step(&|c| c.dropout_p = 0.0);
    step(&|c| (c.q, c.k, c.v, c.out) = (dense, dense, dense, dense));
    step(&|c| c.kv_lens = KvLens::Off);
    step(&|c| (c.call_q, c.call_kv) = (None, None));
    step(&|c| (c.window_left, c.window_right) = (None, None));
    step(&|c| (c.causal, c.align) = (false, Align::TopLeft));
    step(&|c| c.softcap = None);
    step(&|c| c.scale = None);
    step(&|c| c.values = Values::Normal);
    step(&|c| c.poison = Poison::Gaps);
    step(&|c| c.nan = None);
    step(&|c| c.lse = false);
    step(&|c| c.dtype = DType::F32);
    // Sizes change only if tensors are dense: strides were made for the original sizes.
    for smaller in [|_| 1, |n: usize| n.div_ceil(2), |n: usize| n.saturating_sub(1).max(1)] {
        step(&|c| c.batch = smaller(c.batch));
        step(&|c| (c.heads, c.kv_heads) = (smaller(c.heads / c.kv_heads) * c.kv_heads, c.kv_heads));
        step(&|c| {
            (c.heads, c.kv_heads) =
                (c.heads / c.kv_heads * smaller(c.kv_heads), smaller(c.kv_heads))
        });
        step(&|c| (c.seq_q, c.seq_kv) = (smaller(c.seq_q), smaller(c.seq_kv)));
        step(&|c| c.seq_q = smaller(c.seq_q));
        step(&|c| c.seq_kv = smaller(c.seq_kv));
        step(&|c| (c.head_dim, c.head_dim_v) = (smaller(c.head_dim), smaller(c.head_dim_v)));
        step(&|c| c.head_dim = smaller(c.head_dim));
        step(&|c| c.head_dim_v = smaller(c.head_dim_v));
    }
    step(&|c| c.causal = false);
    step(&|c| c.align = Align::TopLeft);
    step(&|c| c.window_left = None);
    step(&|c| c.window_right = None);
    step(&|c| c.q = dense);
    step(&|c| c.k = dense);
    step(&|c| c.v = dense);
    step(&|c| c.out = dense);
    step(&|c| {
        if let Some(mask) = &mut c.mask {
            mask.pad = 0;
        }
    });
    step(&|c| c.seed = 0);
    step(&|c| (c.dropout_seed, c.dropout_offset) = (0, 0));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random_case;

    #[test]
    fn a_failure_is_made_small() {
        let fails = |case: &Case| case.causal && case.seq_kv > 9 && case.head_dim % 2 == 1;
        for case in (0..300).map(random_case).filter(fails) {
            let smallest = minimise(&case, fails).to_string();
            assert_eq!(
                smallest.replace(" lse=no", ""),
                "shape=1x1x1x1 skv=10 causal=yes",
                "from {case}"
            );
        }
    }
}
