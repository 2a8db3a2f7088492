/// One instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    /// Its name; `?` for one that the disassembler did not know. Of a pair that is issued at once,
    /// the first half's.
    pub(crate) name: String,
    /// The name of the second half of a pair.
    pub(crate) second: Option<String>,
    /// The label that it may jump to.
    pub(crate) target: Option<String>,
}

/// What a line of the listing is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// The start of a block.
    Label(String),
    Instruction(Instruction),
}

/// Reads a listing. Each line is a label `BB3:`, or an instruction and its encoding:
///
/// ```text
///     v_dual_fmac_f32 v1, v2, v3 :: v_dual_mul_f32 v4, v5, v6    ; c8000000 ...
/// ```
///
/// After an instruction, `(then repeated 2 times)` stands for two more of it.
pub(crate) fn parse(text: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    for line in text.lines() {
        let code = line.split(';').next().unwrap_or_default().trim();
        if let Some(count) = repeated(code) {
            let Some(last @ Line::Instruction(_)) = lines.last().cloned() else { continue };
            lines.extend(std::iter::repeat_n(last, count));
        } else if let Some(label) = code.strip_suffix(':') {
            lines.push(Line::Label(label.to_owned()));
        } else if code == "(invalid instruction)" {
            let name = "?".to_owned();
            lines.push(Line::Instruction(Instruction { name, second: None, target: None }));
        } else if code.starts_with(|c: char| c.is_ascii_lowercase()) {
            lines.push(Line::Instruction(instruction(code)));
        }
    }
    lines
}

fn repeated(code: &str) -> Option<usize> {
    code.strip_prefix("(then repeated ")?.strip_suffix(" times)")?.parse().ok()
}

fn instruction(code: &str) -> Instruction {
    let first_word = |text: &str| text.split_whitespace().next().unwrap_or_default().to_owned();
    let (first, second) = match code.split_once("::") {
        Some((first, second)) => (first, Some(first_word(second))),
        None => (code, None),
    };
    let name = first_word(first);
    let target =
        name.contains("branch").then(|| code.split_whitespace().last().unwrap_or_default().into());
    Instruction { name, second, target }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(name: &str) -> Line {
        let name = name.to_owned();
        Line::Instruction(Instruction { name, second: None, target: None })
    }

    #[test]
    fn every_kind_of_line_is_read() {
        let lines = parse(
            "BB1:
\tv_add_f32_e32 v1, v2, v3                 ; 06020702
\tv_dual_fmac_f32 v1, s2, v3 :: v_dual_mul_f32 v4, s5, v6 ; c8000000 00000000
\ts_nop 0                                  ; bf800000
\t(then repeated 2 times)
(invalid instruction)                      ; f4281a04

\ts_cbranch_scc1 BB1                       ; bfa20000
",
        );
        let dual = Instruction {
            name: "v_dual_fmac_f32".to_owned(),
            second: Some("v_dual_mul_f32".to_owned()),
            target: None,
        };
        let branch = Instruction {
            name: "s_cbranch_scc1".to_owned(),
            second: None,
            target: Some("BB1".to_owned()),
        };
        assert_eq!(
            lines,
            [
                Line::Label("BB1".to_owned()),
                plain("v_add_f32_e32"),
                Line::Instruction(dual),
                plain("s_nop"),
                plain("s_nop"),
                plain("s_nop"),
                plain("?"),
                Line::Instruction(branch),
            ]
        );
    }
}
