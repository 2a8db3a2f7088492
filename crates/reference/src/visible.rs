use flashtile_core::{Align, Problem, ResolvedCall};

/// The keys that one query sees by lengths, causal and window alone, straight from the definitions:
/// a query has a position among the keys, causal allows j <= position, and a window allows
/// position - left <= j <= position + right.
pub(crate) struct Visible {
    position: i128,
    valid: usize,
    causal: bool,
    left: Option<usize>,
    right: Option<usize>,
}

impl Visible {
    pub(crate) fn new(problem: &Problem, call: &ResolvedCall, valid: usize, i: usize) -> Self {
        let i = i as i128;
        let position = match problem.align() {
            Align::TopLeft => i,
            Align::BottomRight => i + valid as i128 - call.seq_q as i128,
            Align::Offset(offset) => i + i128::from(offset),
        };
        let (left, right) = (problem.window_left(), problem.window_right());
        Self { position, valid, causal: problem.causal(), left, right }
    }

    pub(crate) fn sees(&self, j: usize) -> bool {
        if j >= self.valid {
            return false;
        }
        let j = j as i128;
        let hidden_by_causal = self.causal && j > self.position;
        let before_window = self.left.is_some_and(|left| j < self.position - left as i128);
        let after_window = self.right.is_some_and(|right| j > self.position + right as i128);
        !(hidden_by_causal || before_window || after_window)
    }
}
