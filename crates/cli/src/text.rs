//! Numbers and messages as people read them.

use std::time::Duration;

/// `message` on one line: breaks and other control characters become spaces, runs of spaces one.
pub(crate) fn one_line(message: &str) -> String {
    message
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|w| !w.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// A size in bytes, with three digits or so.
pub(crate) fn bytes(n: u64) -> String {
    let mut size = n as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if size < 1000.0 {
            break;
        }
        size /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{n} B") } else { format!("{} {unit}", digits(size)) }
}

/// A time, with three digits or so.
pub(crate) fn time(t: Duration) -> String {
    ms(t.as_secs_f64() * 1e3)
}

/// A time in milliseconds, with three digits or so.
pub(crate) fn ms(t: f64) -> String {
    if t >= 1000.0 { format!("{} s", digits(t / 1000.0)) } else { format!("{} ms", digits(t)) }
}

/// About three significant digits.
pub(crate) fn digits(x: f64) -> String {
    match x.abs() {
        a if a >= 99.95 => format!("{x:.0}"),
        a if a >= 9.995 => format!("{x:.1}"),
        a if a >= 0.9995 => format!("{x:.2}"),
        _ => format!("{x:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_times_and_lines() {
        assert_eq!(
            [0, 999, 1536, 1 << 20, 3 << 40].map(bytes),
            ["0 B", "999 B", "1.50 KiB", "1.00 MiB", "3.00 TiB"]
        );
        assert_eq!(
            [0.01234, 9.5, 12.34, 1234.0].map(ms),
            ["0.012 ms", "9.50 ms", "12.3 ms", "1.23 s"]
        );
        assert_eq!(time(Duration::from_micros(12_340)), "12.3 ms");
        assert_eq!(one_line(" a\nb\t\r\n  c\u{1b}[0m"), "a b c [0m");
    }
}
