//! Plots of speed and memory against sequence length.

use super::measure::Row;
use crate::{shape::Shape, text};
use anyhow::{Result, anyhow};
use flashtile::DType;
use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};
use std::ops::Range;

const SIZE: (u32, u32) = (1100, 480);
/// Height of a line of the legend, which holds two names.
const LINE: i32 = 22;

/// Colours that colour-blind readers can tell apart (Okabe and Ito, 2008).
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
    RGBColor(214, 202, 40),
];
const INK: RGBColor = RGBColor(60, 60, 67);
const GRID: RGBColor = RGBColor(225, 225, 230);

/// The points of one kernel on one device.
struct Curve<'a> {
    name: String,
    colour: RGBColor,
    rows: Vec<&'a Row>,
}

/// One of the two panels: its title, the head dim of the rows it shows (`None` for all), the value
/// of a row, and the label of a value.
struct Panel {
    title: String,
    head_dim: Option<usize>,
    value: fn(&Row) -> f64,
    label: fn(f64) -> String,
}

impl Panel {
    fn shows(&self, row: &Row) -> bool {
        self.head_dim.is_none_or(|d| d == row.case.shape.head_dim)
    }
}

/// Draws `rows`, whose cases differ only in sequence length, as an SVG document.
pub(crate) fn svg(rows: &[&Row]) -> Result<String> {
    let title = rows.first().map_or(String::new(), |row| {
        let Shape { batch, heads, head_dim, .. } = row.case.shape;
        let causal = if row.case.causal { ", causal" } else { "" };
        format!(
            "Forward attention, {batch} x {heads} heads of {head_dim}, {}{causal}",
            row.case.dtype
        )
    });
    let speed = Panel {
        title: "speed, GFLOP/s (higher is better)".to_owned(),
        head_dim: None,
        value: |row| row.gflops,
        label: |y| short(&text::digits(y)),
    };
    let memory = Panel {
        title: "memory of tensors and workspace (lower is better)".to_owned(),
        head_dim: None,
        value: |row| row.peak_bytes as f64,
        label: |bytes| short(&text::bytes(bytes.round() as u64)),
    };
    draw(&title, rows, [speed, memory])
}

/// Draws the speed of `rows`, all of one dtype, causal or not, at two head dims.
pub(crate) fn speed_svg(
    rows: &[&Row],
    dtype: DType,
    causal: bool,
    head_dims: [usize; 2],
) -> Result<String> {
    let panels = head_dims.map(|d| Panel {
        title: format!("head_dim {d}, TFLOP/s (higher is better)"),
        head_dim: Some(d),
        value: |row| row.gflops / 1e3,
        label: |y| short(&text::digits(y)),
    });
    draw(
        &format!("Forward attention, {dtype}{}", if causal { ", causal" } else { "" }),
        rows,
        panels,
    )
}

fn draw(title: &str, rows: &[&Row], panels: [Panel; 2]) -> Result<String> {
    let mut document = String::new();
    draw_into(&mut document, title, rows, panels).map_err(|e| anyhow!("cannot draw: {e}"))?;
    Ok(document)
}

fn draw_into(
    document: &mut String,
    title: &str,
    rows: &[&Row],
    panels: [Panel; 2],
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(document, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(title, ("sans-serif", 20).into_font().color(&INK))?;
    let curves = curves(rows);
    let (names, root) = root.split_vertically(LINE * curves.len().div_ceil(2) as i32);
    for (n, curve) in curves.iter().enumerate() {
        let (x, y) = (90 + n as i32 % 2 * SIZE.0 as i32 / 2, LINE * (n as i32 / 2) + LINE / 2);
        names.draw(&PathElement::new([(x, y), (x + 22, y)], curve.colour.stroke_width(3)))?;
        let style =
            ("sans-serif", 14).into_font().color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
        names.draw(&Text::new(curve.name.clone(), (x + 30, y), style))?;
    }
    for (area, panel) in root.split_evenly((1, 2)).iter().zip(panels) {
        draw_panel(area, &panel, &curves)?;
    }
    root.present()?;
    Ok(())
}

fn draw_panel(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    panel: &Panel,
    curves: &[Curve<'_>],
) -> Result<(), Box<dyn std::error::Error>> {
    let rows = || curves.iter().flat_map(|curve| &curve.rows).filter(|row| panel.shows(row));
    let xs = around(rows().map(|row| row.case.shape.seq_kv as f64), 1.2);
    let ys = around(rows().map(|row| (panel.value)(row)), 1.6);
    let small = ("sans-serif", 13).into_font().color(&INK);
    let mut chart = ChartBuilder::on(area)
        .margin(14)
        .caption(&panel.title, ("sans-serif", 15).into_font().color(&INK))
        .x_label_area_size(42)
        .y_label_area_size(74)
        .build_cartesian_2d(xs.log_scale().base(2.0), ys.log_scale().base(2.0))?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(INK)
        .x_desc("sequence length")
        .x_label_formatter(&|&n| format!("{n:.0}"))
        .y_label_formatter(&|&y| (panel.label)(y))
        .y_labels(8)
        .label_style(small.clone())
        .draw()?;
    for curve in curves {
        let shown = curve.rows.iter().filter(|row| panel.shows(row));
        let points: Vec<_> =
            shown.map(|row| (row.case.shape.seq_kv as f64, (panel.value)(row).max(1e-6))).collect();
        let colour = curve.colour;
        chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(3)))?;
        chart
            .draw_series(points.into_iter().map(|point| Circle::new(point, 4, colour.filled())))?;
    }
    Ok(())
}

/// A number without trailing zeros: `4.00 MiB` becomes `4 MiB`.
fn short(number: &str) -> String {
    let (number, unit) = number.split_once(' ').unwrap_or((number, ""));
    let number = if number.contains('.') {
        number.trim_end_matches('0').trim_end_matches('.')
    } else {
        number
    };
    format!("{number} {unit}").trim_end().to_owned()
}

/// The rows of each kernel on each device, by sequence length.
fn curves<'a>(rows: &[&'a Row]) -> Vec<Curve<'a>> {
    let mut curves: Vec<Curve<'a>> = Vec::new();
    for &row in rows {
        let name = format!("{} {}, {}", row.backend, row.kernel, row.device);
        match curves.iter_mut().find(|curve| curve.name == name) {
            Some(curve) => curve.rows.push(row),
            None => {
                let colour = COLOURS[curves.len() % COLOURS.len()];
                curves.push(Curve { name, colour, rows: vec![row] });
            }
        }
    }
    for curve in &mut curves {
        curve.rows.sort_by_key(|row| row.case.shape.seq_kv);
    }
    curves
}

/// A range that holds all values, larger by the factor `room` at both ends.
fn around(values: impl Iterator<Item = f64>, room: f64) -> Range<f64> {
    let (low, high) =
        values.fold((f64::INFINITY, 0f64), |(low, high), x| (low.min(x), high.max(x)));
    let low = if low.is_finite() { low.max(1e-6) } else { 1.0 };
    low / room..high.max(low) * room
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{cases::Case, target::Clock};
    use flashtile::DType;

    fn row(kernel: &str, seq: usize, gflops: f64) -> Row {
        let shape = Shape::of_self([1, 8, seq, 64]);
        let case = Case { shape, dtype: DType::F32, causal: true, on_curve: true };
        let (backend, device, first_ms) = ("wgpu".to_owned(), "a <GPU> & more".to_owned(), 1.0);
        let kernel = kernel.to_owned();
        let (peak_bytes, clock) = ((seq * seq) as u64, Clock::Host);
        Row {
            case,
            backend,
            kernel,
            device,
            ms: 1.0,
            clock,
            gflops,
            gbps: 1.0,
            peak_bytes,
            first_ms,
            error: None,
            peak_gflops: None,
        }
    }

    #[test]
    fn the_plot_names_its_curves_and_escapes_them() {
        let rows = [row("flash", 256, 10.0), row("flash", 512, 20.0), row("unfused", 256, 5.0)];
        let svg = svg(&rows.iter().collect::<Vec<_>>()).expect("draws");
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for text in [
            "1 x 8 heads of 64, f32, causal",
            "wgpu flash, a &lt;GPU&gt; &amp; more",
            "sequence length",
        ] {
            assert!(svg.contains(text), "{text}");
        }
    }

    #[test]
    fn one_point_and_none_are_plots_too() {
        assert!(svg(&[&row("flash", 1, 0.0)]).is_ok());
        assert!(svg(&[]).is_ok());
        assert!(speed_svg(&[], DType::F16, true, [64, 128]).is_ok());
    }
}
