//! Line charts as SVG and PNG: axes, lines, and a label at the end of each line.

use std::path::Path;
use std::sync::Once;

use anyhow::{Context, Result, anyhow};
use plotters::backend::{BitMapBackend, DrawingBackend, SVGBackend};
use plotters::coord::Shift;
use plotters::element::{PathElement, Polygon, Text};
use plotters::prelude::{DrawingArea, IntoDrawingArea};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{
    Color, FontFamily, FontStyle, FontTransform, IntoFont, RGBColor, ShapeStyle, TextStyle,
    register_font,
};

use crate::exit::usage;
use crate::files::write_atomically;

/// Okabe and Ito's palette: told apart by people with any form of colour blindness.
pub(crate) const PALETTE: [RGBColor; 7] = [
    RGBColor(213, 94, 0),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(0, 0, 0),
];

/// Size of the SVG and of the PNG before its scaling.
pub(crate) const SIZE: (u32, u32) = (1100, 660);
/// Pixels of the PNG for one unit of the SVG.
pub(crate) const PNG_SCALE: u32 = 2;
/// Steps of the SVG's coordinates for one unit: plotters rounds to whole ones.
const SVG_GRID: u32 = 10;
/// Samples a pixel and direction: plotters draws lines without anti-aliasing.
const SUPERSAMPLING: u32 = 2;

const INK: RGBColor = RGBColor(34, 34, 34);
const SOFT_INK: RGBColor = RGBColor(105, 105, 105);
const GRID: RGBColor = RGBColor(228, 228, 228);
const PAPER: RGBColor = RGBColor(255, 255, 255);

/// What an axis shows.
#[derive(Debug, Clone)]
pub(crate) struct Axis {
    /// Its title.
    pub(crate) title: String,
    /// First and last value.
    pub(crate) range: (f64, f64),
    /// Its spacing.
    pub(crate) scale: Scale,
}

/// Spacing of an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    /// Even.
    Linear,
    /// By decades; both ends positive.
    Log,
}

/// How much a line stands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weight {
    /// Pale and thin: raw data behind the line that matters.
    Faint,
    /// A thin line in its own colour.
    Thin,
    /// A line like others.
    Normal,
    /// The line the chart is about.
    Strong,
}

/// One line.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    /// At its right end; none if empty.
    pub(crate) label: String,
    /// Its colour, and the label's.
    pub(crate) color: RGBColor,
    /// How much it stands out.
    pub(crate) weight: Weight,
    /// x and y; points that are not finite, or not positive on a log axis, break it.
    pub(crate) points: Vec<(f64, f64)>,
}

/// A chart.
#[derive(Debug, Clone)]
pub(crate) struct Chart {
    /// Says what the reader should see.
    pub(crate) title: String,
    /// Says what was measured.
    pub(crate) subtitle: String,
    /// Horizontal.
    pub(crate) x: Axis,
    /// Vertical.
    pub(crate) y: Axis,
    /// A shaded range of y, with its name.
    pub(crate) band: Option<(f64, f64)>,
    /// Drawn in this order.
    pub(crate) lines: Vec<Line>,
}

/// Refuses a path that no chart can be written to, before anything is computed.
///
/// # Errors
/// Another ending than `.svg` or `.png`.
pub(crate) fn check_path(path: &Path) -> Result<()> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("svg" | "png") => Ok(()),
        _ => Err(usage(format!("{}: a plot ends in .svg or .png", path.display()))),
    }
}

impl Chart {
    /// Writes `.svg` or `.png`, by the ending of the path.
    ///
    /// # Errors
    /// Another ending; the file system's.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        check_path(path)?;
        let bytes = match path.extension().and_then(|e| e.to_str()) {
            Some("png") => self.png()?,
            _ => self.svg()?.into_bytes(),
        };
        write_atomically(path, &bytes)
    }

    /// The chart as SVG text.
    ///
    /// # Errors
    /// None in practice: the drawing goes to memory.
    pub(crate) fn svg(&self) -> Result<String> {
        register_fonts();
        let fine = (SIZE.0 * SVG_GRID, SIZE.1 * SVG_GRID);
        let mut out = String::new();
        {
            let area = SVGBackend::with_string(&mut out, fine).into_drawing_area();
            let scale = i32::try_from(SVG_GRID)?;
            self.draw(&area, scale).map_err(|e| anyhow!("draw SVG: {e}"))?;
        }
        let size = |(w, h): (u32, u32)| format!("width=\"{w}\" height=\"{h}\"");
        Ok(out.replacen(&size(fine), &size(SIZE), 1))
    }

    /// The chart as a PNG file.
    ///
    /// # Errors
    /// None in practice: the drawing goes to memory.
    pub(crate) fn png(&self) -> Result<Vec<u8>> {
        register_fonts();
        let scale = PNG_SCALE * SUPERSAMPLING;
        let (width, height) = (SIZE.0 * PNG_SCALE, SIZE.1 * PNG_SCALE);
        let fine = (SIZE.0 * scale, SIZE.1 * scale);
        let mut pixels = vec![0u8; 3 * fine.0 as usize * fine.1 as usize];
        {
            let area = BitMapBackend::with_buffer(&mut pixels, fine).into_drawing_area();
            let scale = i32::try_from(scale)?;
            self.draw(&area, scale).map_err(|e| anyhow!("draw PNG: {e}"))?;
        }
        let pixels = shrink(&pixels, fine.0 as usize, SUPERSAMPLING as usize);
        let mut out = Vec::new();
        let mut encoder = png::Encoder::new(&mut out, width, height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header().context("encode PNG")?;
        writer.write_image_data(&pixels).context("encode PNG")?;
        writer.finish().context("encode PNG")?;
        Ok(out)
    }

    fn draw<B: DrawingBackend>(
        &self,
        area: &DrawingArea<B, Shift>,
        scale: i32,
    ) -> Result<(), String> {
        Drawing { chart: self, area, scale, frame: self.frame() }.draw()
    }

    /// Left, top, right, bottom of the plot, in units of the SVG.
    fn frame(&self) -> [f64; 4] {
        let longest = self.lines.iter().map(|l| l.label.chars().count()).max().unwrap_or(0);
        let label_width = if longest == 0 { 24.0 } else { 24.0 + 7.4 * longest as f64 };
        [76.0, 86.0, f64::from(SIZE.0) - label_width, f64::from(SIZE.1) - 58.0]
    }
}

/// A chart being drawn; coordinates are in units of the SVG, scaled when they reach the backend.
struct Drawing<'a, B: DrawingBackend> {
    chart: &'a Chart,
    area: &'a DrawingArea<B, Shift>,
    scale: i32,
    frame: [f64; 4],
}

impl<B: DrawingBackend> Drawing<'_, B> {
    fn draw(&self) -> Result<(), String> {
        let [left, top, right, bottom] = self.frame;
        self.area.fill(&PAPER).map_err(|e| e.to_string())?;
        self.text(&self.chart.title, (24.0, 20.0), 21.0, INK, Anchor::TopLeft, FontStyle::Bold)?;
        self.text(
            &self.chart.subtitle,
            (24.0, 49.0),
            13.5,
            SOFT_INK,
            Anchor::TopLeft,
            FontStyle::Normal,
        )?;
        if let Some((low, high)) = self.chart.band {
            let (y0, y1) = (self.y(low), self.y(high));
            self.polygon(
                &[(left, y0), (right, y0), (right, y1), (left, y1)],
                RGBColor(240, 244, 236),
            )?;
        }
        for (value, name) in ticks(&self.chart.y) {
            let y = self.y(value);
            self.path(&[(left, y), (right, y)], GRID, 1.0)?;
            self.text(&name, (left - 9.0, y), 13.0, SOFT_INK, Anchor::Right, FontStyle::Normal)?;
        }
        for (value, name) in ticks(&self.chart.x) {
            let x = self.x(value);
            self.path(&[(x, top), (x, bottom)], GRID, 1.0)?;
            self.text(&name, (x, bottom + 9.0), 13.0, SOFT_INK, Anchor::Top, FontStyle::Normal)?;
        }
        self.path(&[(left, bottom), (right, bottom)], SOFT_INK, 1.2)?;
        let middle = (left + right) / 2.0;
        let x_title = (middle, bottom + 32.0);
        self.text(&self.chart.x.title, x_title, 13.5, INK, Anchor::Top, FontStyle::Normal)?;
        let y_title = (20.0, (top + bottom) / 2.0);
        self.text(&self.chart.y.title, y_title, 13.5, INK, Anchor::Turned, FontStyle::Normal)?;
        for line in &self.chart.lines {
            self.line(line)?;
        }
        self.labels()?;
        self.area.present().map_err(|e| e.to_string())
    }

    fn line(&self, line: &Line) -> Result<(), String> {
        let (color, width) = match line.weight {
            Weight::Faint => (blend(line.color, 0.25), 1.0),
            Weight::Thin => (line.color, 1.4),
            Weight::Normal => (line.color, 2.0),
            Weight::Strong => (line.color, 3.0),
        };
        let visible = |p: &(f64, f64)| {
            let ok = |v: f64, a: &Axis| v.is_finite() && (a.scale == Scale::Linear || v > 0.0);
            ok(p.0, &self.chart.x) && ok(p.1, &self.chart.y)
        };
        for part in line.points.split(|p| !visible(p)) {
            let points: Vec<(f64, f64)> = part
                .iter()
                .map(|p| (self.x(p.0), self.y(p.1).clamp(self.frame[1], self.frame[3])))
                .collect();
            if points.len() > 1 {
                self.path(&points, color, width)?;
            }
        }
        Ok(())
    }

    /// At the right ends of the lines, pushed apart where they would overlap, with a thin leader.
    fn labels(&self) -> Result<(), String> {
        let [_, top, right, bottom] = self.frame;
        let mut labels: Vec<(f64, &Line)> = self
            .chart
            .lines
            .iter()
            .filter(|l| !l.label.is_empty())
            .filter_map(|l| {
                let end = l.points.iter().rev().find(|p| p.1.is_finite())?;
                Some((self.y(end.1).clamp(top, bottom), l))
            })
            .collect();
        labels.sort_by(|a, b| a.0.total_cmp(&b.0));
        let at = spread(&labels.iter().map(|l| l.0).collect::<Vec<_>>(), 17.0, top, bottom);
        for ((end, line), y) in labels.iter().zip(at) {
            let leader = [(right + 3.0, *end), (right + 13.0, y)];
            self.path(&leader, line.color, 1.0)?;
            let style = match line.weight {
                Weight::Strong => FontStyle::Bold,
                Weight::Normal | Weight::Thin | Weight::Faint => FontStyle::Normal,
            };
            self.text(&line.label, (right + 17.0, y), 13.0, line.color, Anchor::Left, style)?;
        }
        Ok(())
    }

    fn x(&self, value: f64) -> f64 {
        let [left, _, right, _] = self.frame;
        left + (right - left) * fraction(&self.chart.x, value)
    }

    fn y(&self, value: f64) -> f64 {
        let [_, top, _, bottom] = self.frame;
        bottom - (bottom - top) * fraction(&self.chart.y, value)
    }

    fn pixel(&self, (x, y): (f64, f64)) -> (i32, i32) {
        let scale = f64::from(self.scale);
        (whole(x * scale), whole(y * scale))
    }

    fn path(&self, points: &[(f64, f64)], color: RGBColor, width: f64) -> Result<(), String> {
        let width = u32::try_from(whole(width * f64::from(self.scale))).unwrap_or(1).max(1);
        let style = ShapeStyle { color: color.to_rgba(), filled: false, stroke_width: width };
        let points: Vec<(i32, i32)> = points.iter().map(|p| self.pixel(*p)).collect();
        self.area.draw(&PathElement::new(points, style)).map_err(|e| e.to_string())
    }

    fn polygon(&self, points: &[(f64, f64)], color: RGBColor) -> Result<(), String> {
        let points: Vec<(i32, i32)> = points.iter().map(|p| self.pixel(*p)).collect();
        self.area.draw(&Polygon::new(points, color.filled())).map_err(|e| e.to_string())
    }

    fn text(
        &self,
        text: &str,
        at: (f64, f64),
        size: f64,
        color: RGBColor,
        anchor: Anchor,
        style: FontStyle,
    ) -> Result<(), String> {
        let (h, v, transform) = match anchor {
            Anchor::TopLeft => (HPos::Left, VPos::Top, FontTransform::None),
            Anchor::Top => (HPos::Center, VPos::Top, FontTransform::None),
            Anchor::Left => (HPos::Left, VPos::Center, FontTransform::None),
            Anchor::Right => (HPos::Right, VPos::Center, FontTransform::None),
            Anchor::Turned => (HPos::Center, VPos::Top, FontTransform::Rotate270),
        };
        let font = (FontFamily::SansSerif, size * f64::from(self.scale), style)
            .into_font()
            .transform(transform);
        let style = TextStyle::from(font).color(&color).pos(Pos::new(h, v));
        let element = Text::new(text.to_owned(), self.pixel(at), style);
        self.area.draw(&element).map_err(|e| e.to_string())
    }
}

/// Which point of a text is given.
#[derive(Debug, Clone, Copy)]
enum Anchor {
    TopLeft,
    Top,
    Left,
    Right,
    /// Its middle, read from below.
    Turned,
}

fn fraction(axis: &Axis, value: f64) -> f64 {
    let (low, high) = axis.range;
    match axis.scale {
        Scale::Linear => (value - low) / (high - low),
        Scale::Log => (value / low).ln() / (high / low).ln(),
    }
}

/// Round values inside the range with their names.
fn ticks(axis: &Axis) -> Vec<(f64, String)> {
    let (low, high) = axis.range;
    match axis.scale {
        Scale::Log => (-30i32..=30)
            .map(|k| (10f64.powi(k), format!("10{}", superscript(k))))
            .filter(|(v, _)| (low * 0.999..=high * 1.001).contains(v))
            .collect(),
        Scale::Linear => {
            let rough = (high - low) / 6.0;
            let power = 10f64.powf(rough.log10().floor());
            let step = [1.0, 2.0, 2.5, 5.0, 10.0]
                .map(|m| m * power)
                .into_iter()
                .find(|s| *s >= rough)
                .unwrap_or(rough);
            let first = (low / step).ceil();
            (0u32..64)
                .map(|i| (first + f64::from(i)) * step)
                .take_while(|v| *v <= high + 1e-9 * step)
                .map(|v| {
                    let v = if v == 0.0 { 0.0 } else { v };
                    // As many decimals as the step needs.
                    let text = format!("{v:.4}");
                    (v, text.trim_end_matches('0').trim_end_matches('.').to_owned())
                })
                .collect()
        }
    }
}

fn superscript(k: i32) -> String {
    k.to_string()
        .chars()
        .map(|c| match c {
            '-' => '⁻',
            '1' => '¹',
            '2' => '²',
            '3' => '³',
            '4' => '⁴',
            '5' => '⁵',
            '6' => '⁶',
            '7' => '⁷',
            '8' => '⁸',
            '9' => '⁹',
            _ => '⁰',
        })
        .collect()
}

/// Positions near `wanted` (ascending), at least `gap` apart and inside `[low, high]` if there is room.
fn spread(wanted: &[f64], gap: f64, low: f64, high: f64) -> Vec<f64> {
    let mut at = wanted.to_vec();
    // Relax overlapping pairs towards both sides; sorted order is kept.
    for _ in 0..200 {
        for i in 1..at.len() {
            let overlap = gap - (at[i] - at[i - 1]);
            if overlap > 0.0 {
                at[i - 1] -= overlap / 2.0;
                at[i] += overlap / 2.0;
            }
        }
        if let Some(first) = at.first_mut() {
            *first = first.max(low);
        }
        if let Some(last) = at.last_mut() {
            *last = last.min(high);
        }
    }
    at
}

/// That share of the colour, the rest paper.
pub(crate) fn blend(c: RGBColor, share: f64) -> RGBColor {
    let mix = |a: u8| {
        let mixed = 255.0 - share.clamp(0.0, 1.0) * (255.0 - f64::from(a));
        u8::try_from(whole(mixed)).unwrap_or(u8::MAX)
    };
    RGBColor(mix(c.0), mix(c.1), mix(c.2))
}

/// Averages squares of `factor` × `factor` RGB pixels.
fn shrink(pixels: &[u8], width: usize, factor: usize) -> Vec<u8> {
    let rows: Vec<&[u8]> = pixels.chunks_exact(3 * width).collect();
    let count = u32::try_from(factor * factor).unwrap_or(1);
    let mut out = Vec::with_capacity(pixels.len() / (factor * factor));
    for block in rows.chunks_exact(factor) {
        for x in 0..width / factor {
            for channel in 0..3 {
                let sum: u32 = block
                    .iter()
                    .flat_map(|row| {
                        (0..factor).map(move |dx| u32::from(row[3 * (x * factor + dx) + channel]))
                    })
                    .sum();
                out.push(u8::try_from((sum + count / 2) / count).unwrap_or(u8::MAX));
            }
        }
    }
    out
}

/// The nearest whole number of a coordinate.
#[expect(clippy::cast_possible_truncation, reason = "coordinates are a few thousand at most")]
fn whole(x: f64) -> i32 {
    x.round() as i32
}

/// DejaVu Sans is part of this program: a chart looks the same on a machine without fonts.
fn register_fonts() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // A font that did not register leaves a drawing error behind that names it.
        let _ = register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular());
        let _ = register_font("sans-serif", FontStyle::Bold, dejavu::sans::bold());
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_spread_in_order_and_inside() {
        let at = spread(&[100.0, 101.0, 101.5, 300.0, 399.0, 400.0], 17.0, 50.0, 400.0);
        assert!(at.windows(2).all(|p| p[1] - p[0] > 16.5), "{at:?}");
        assert!(at[0] >= 50.0 && at[5] <= 400.0 + 0.5, "{at:?}");
        assert_eq!(spread(&[1.0], 17.0, 0.0, 10.0), [1.0]);
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let axis = |range, scale| Axis { title: String::new(), range, scale };
        let names = |a: &Axis| ticks(a).into_iter().map(|t| t.1).collect::<Vec<_>>();
        assert_eq!(
            names(&axis((0.0, 300.0), Scale::Linear)),
            ["0", "50", "100", "150", "200", "250", "300"]
        );
        assert_eq!(
            names(&axis((0.0, 1.3), Scale::Linear)),
            ["0", "0.25", "0.5", "0.75", "1", "1.25"]
        );
        assert_eq!(names(&axis((2e-6, 10.0), Scale::Log)).first().unwrap(), "10⁻⁵");
        assert_eq!(names(&axis((1e-12, 10.0), Scale::Log)).last().unwrap(), "10¹");
    }

    #[test]
    fn shrinking_averages() {
        let pixels = [0, 10, 20, 4, 10, 20, 8, 10, 20, 4, 14, 20];
        assert_eq!(shrink(&pixels, 2, 2), [4, 11, 20]);
    }
}
