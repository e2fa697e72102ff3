//! Line charts as SVG and PNG: axes, lines, and a label at the end of each line.

mod axis;
mod draw;
mod marks;

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use muon_cuda::Printable;
use plotters::backend::{BitMapBackend, DrawingBackend, SVGBackend};
use plotters::coord::Shift;
use plotters::prelude::{DrawingArea, IntoDrawingArea};
use plotters::style::RGBColor;

use self::draw::{Drawing, register_fonts, whole};
use crate::exit::usage;
use crate::files::write_atomically;

pub(crate) use axis::{Axis, Scale};
pub(crate) use marks::{Mark, Side};

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

/// Height of a row of names below the horizontal axis.
const TICK_ROW: f64 = 14.0;
/// Letters of the longest label that is drawn whole.
const LONGEST: usize = 60;

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
        self.write_with(&[], path)
    }

    /// The same with marks over the lines.
    ///
    /// # Errors
    /// As [`Chart::write`].
    pub(crate) fn write_with(&self, marks: &[Mark], path: &Path) -> Result<()> {
        check_path(path)?;
        let bytes = match path.extension().and_then(|e| e.to_str()) {
            Some("png") => self.png_with(marks)?,
            _ => self.svg_with(marks)?.into_bytes(),
        };
        write_atomically(path, &bytes)
    }

    /// The chart as SVG text.
    ///
    /// # Errors
    /// None in practice: the drawing goes to memory.
    pub(crate) fn svg(&self) -> Result<String> {
        self.svg_with(&[])
    }

    fn svg_with(&self, marks: &[Mark]) -> Result<String> {
        register_fonts();
        let fine = (SIZE.0 * SVG_GRID, SIZE.1 * SVG_GRID);
        let mut out = String::new();
        {
            let area = SVGBackend::with_string(&mut out, fine).into_drawing_area();
            let scale = i32::try_from(SVG_GRID)?;
            self.draw(&area, scale, marks).map_err(|e| anyhow!("draw SVG: {e}"))?;
        }
        let size = |(w, h): (u32, u32)| format!("width=\"{w}\" height=\"{h}\"");
        Ok(out.replacen(&size(fine), &size(SIZE), 1))
    }

    /// The chart as a PNG file.
    ///
    /// # Errors
    /// None in practice: the drawing goes to memory.
    pub(crate) fn png(&self) -> Result<Vec<u8>> {
        self.png_with(&[])
    }

    fn png_with(&self, marks: &[Mark]) -> Result<Vec<u8>> {
        register_fonts();
        let scale = PNG_SCALE * SUPERSAMPLING;
        let (width, height) = (SIZE.0 * PNG_SCALE, SIZE.1 * PNG_SCALE);
        let fine = (SIZE.0 * scale, SIZE.1 * scale);
        let mut pixels = vec![0u8; 3 * fine.0 as usize * fine.1 as usize];
        {
            let area = BitMapBackend::with_buffer(&mut pixels, fine).into_drawing_area();
            let scale = i32::try_from(scale)?;
            self.draw(&area, scale, marks).map_err(|e| anyhow!("draw PNG: {e}"))?;
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
        marks: &[Mark],
    ) -> Result<(), String> {
        Drawing { chart: self, marks, area, scale, frame: self.frame() }.draw()
    }

    /// Left, top, right, bottom of the plot, in units of the SVG.
    fn frame(&self) -> [f64; 4] {
        let longest = self.lines.iter().map(|l| shown(&l.label).chars().count()).max().unwrap_or(0);
        let label_width = if longest == 0 { 24.0 } else { 24.0 + 7.4 * longest as f64 };
        let (left, right) = (76.0, f64::from(SIZE.0) - label_width);
        let on_paper = |value| left + (right - left) * axis::fraction(&self.x, value);
        let names: Vec<(f64, String)> =
            axis::ticks(&self.x).into_iter().map(|(v, name)| (on_paper(v), name)).collect();
        let rows = axis::rows(&names).into_iter().max().unwrap_or(0);
        [left, 86.0, right, f64::from(SIZE.1) - 58.0 - TICK_ROW * rows as f64]
    }
}

/// A label as it is drawn: control characters written out, the middle of a very long one left out.
fn shown(label: &str) -> String {
    let letters: Vec<char> = Printable(label).to_string().chars().collect();
    if letters.len() <= LONGEST {
        return letters.into_iter().collect();
    }
    // What stands behind a name, such as its result, is kept.
    let (start, end) = (&letters[..LONGEST - 15], &letters[letters.len() - 14..]);
    start.iter().chain(['…'].iter()).chain(end).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_breaks_neither_the_svg_nor_the_paper() {
        let line = |label: String| Line {
            label,
            color: PALETTE[0],
            weight: Weight::Strong,
            points: vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0), (3.0, 2.0)],
        };
        let chart = Chart {
            title: "a\u{1b}[31m\u{0}<b>&amp;\n".into(),
            subtitle: "\u{202e}\u{9b}".into(),
            x: Axis::new("x", (0.0, 3.0), Scale::Linear),
            y: Axis::new("y", (0.0, 3.0), Scale::Linear),
            band: None,
            lines: vec![line("\u{7}bell".into()), line("w".repeat(10_000) + "  0.25")],
        };
        let svg = chart.svg().unwrap();
        // Line breaks are the writer's own, between elements.
        assert!(svg.chars().all(|c| c == '\n' || !c.is_control()), "{svg}");
        assert!(
            svg.contains("a\\u001b[31m\\u0000&lt;b&gt;&amp;amp;\\n") && svg.contains("\\u0007bell")
        );
        assert!(svg.contains('…') && svg.contains("  0.25") && !svg.contains(&"w".repeat(60)));
        assert!(!chart.png().unwrap().is_empty());
    }

    #[test]
    fn shrinking_averages() {
        let pixels = [0, 10, 20, 4, 10, 20, 8, 10, 20, 4, 14, 20];
        assert_eq!(shrink(&pixels, 2, 2), [4, 11, 20]);
    }
}
