use std::fmt;

/// The order of a tensor's axes in memory. Kernels only see strides; layouts are names for common
/// ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Layout {
    /// (batch, sequence, heads, head_dim), as flash-attn has it.
    #[default]
    Bshd,
    /// (batch, heads, sequence, head_dim), as PyTorch's function has it.
    Bhsd,
    /// (heads, batch, sequence, head_dim).
    Hbsd,
    /// (batch, sequence, heads * head_dim): packed heads, rank 3.
    Bsd,
}

impl Layout {
    /// Every layout.
    pub const ALL: &[Layout] = &[Layout::Bshd, Layout::Bhsd, Layout::Hbsd, Layout::Bsd];

    /// The rank of a tensor in this layout: 4, or 3 for packed heads.
    pub const fn rank(self) -> usize {
        match self {
            Layout::Bsd => 3,
            Layout::Bshd | Layout::Bhsd | Layout::Hbsd => 4,
        }
    }

    /// For each of (B, H, S, D), its position among the axes in memory, outermost first. Packed
    /// heads count as `bshd`.
    pub const fn axes(self) -> [usize; 4] {
        match self {
            Layout::Bshd | Layout::Bsd => [0, 2, 1, 3],
            Layout::Bhsd => [0, 1, 2, 3],
            Layout::Hbsd => [1, 0, 2, 3],
        }
    }

    /// The sizes of a (B, H, S, D) tensor in this layout's own order and rank.
    pub fn dims(self, [b, h, s, d]: [usize; 4]) -> Vec<usize> {
        match self {
            Layout::Bshd => vec![b, s, h, d],
            Layout::Bhsd => vec![b, h, s, d],
            Layout::Hbsd => vec![h, b, s, d],
            Layout::Bsd => vec![b, s, h * d],
        }
    }

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Layout::Bshd => "bshd",
            Layout::Bhsd => "bhsd",
            Layout::Hbsd => "hbsd",
            Layout::Bsd => "bsd",
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Layout {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Layout::ALL
            .iter()
            .copied()
            .find(|l| l.name() == s)
            .ok_or_else(|| format!("unknown layout `{s}`: expected bshd, bhsd, hbsd or bsd"))
    }
}
