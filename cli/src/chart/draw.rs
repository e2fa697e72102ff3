//! Putting a chart on paper: plotters' primitives, in units of the SVG.

use std::sync::Once;

use muon_cuda::Printable;
use plotters::backend::DrawingBackend;
use plotters::coord::Shift;
use plotters::element::{PathElement, Polygon, Text};
use plotters::prelude::DrawingArea;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{
    Color, FontFamily, FontStyle, FontTransform, IntoFont, RGBColor, ShapeStyle, TextStyle,
    register_font,
};

use super::axis::{Axis, Scale, fraction, rows, ticks};
use super::marks::{Place, leader, places};
use super::{Chart, Line, Mark, Side, TICK_ROW, Weight, blend, shown};

const INK: RGBColor = RGBColor(34, 34, 34);
const SOFT_INK: RGBColor = RGBColor(105, 105, 105);
const GRID: RGBColor = RGBColor(228, 228, 228);
const PAPER: RGBColor = RGBColor(255, 255, 255);

/// A chart being drawn; coordinates are in units of the SVG, scaled when they reach the backend.
pub(super) struct Drawing<'a, B: DrawingBackend> {
    pub(super) chart: &'a Chart,
    /// Points over the lines.
    pub(super) marks: &'a [Mark],
    pub(super) area: &'a DrawingArea<B, Shift>,
    /// Steps of the backend for one unit.
    pub(super) scale: i32,
    /// Left, top, right, bottom of the plot.
    pub(super) frame: [f64; 4],
}

/// Where a mark is on the paper, the mark, and where its label goes.
type PlacedMark<'a> = ((f64, f64), &'a Mark, Place);

impl<B: DrawingBackend> Drawing<'_, B> {
    /// Draws everything.
    ///
    /// # Errors
    /// The backend's, as text.
    pub(super) fn draw(&self) -> Result<(), String> {
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
        let names: Vec<(f64, String)> =
            ticks(&self.chart.x).into_iter().map(|(value, name)| (self.x(value), name)).collect();
        let rows = rows(&names);
        for ((x, name), row) in names.iter().zip(&rows) {
            self.path(&[(*x, top), (*x, bottom)], GRID, 1.0)?;
            let place = (*x, bottom + 9.0 + TICK_ROW * *row as f64);
            self.text(name, place, 13.0, SOFT_INK, Anchor::Top, FontStyle::Normal)?;
        }
        self.path(&[(left, bottom), (right, bottom)], SOFT_INK, 1.2)?;
        let middle = (left + right) / 2.0;
        let below = rows.iter().copied().max().unwrap_or(0) as f64;
        let x_title = (middle, bottom + 32.0 + TICK_ROW * below);
        self.text(&self.chart.x.title, x_title, 13.5, INK, Anchor::Top, FontStyle::Normal)?;
        let y_title = (20.0, (top + bottom) / 2.0);
        self.text(&self.chart.y.title, y_title, 13.5, INK, Anchor::Turned, FontStyle::Normal)?;
        let marks = self.placed_marks();
        // Paper below a label, so that the grid does not cross it; over no line and no point.
        for ((x, y), mark, place) in &marks {
            let [l, t, r, b] = place.area((*x, *y), &mark.label);
            self.polygon(&[(l, t), (r, t), (r, b), (l, b)], PAPER)?;
        }
        for line in &self.chart.lines {
            self.line(line)?;
        }
        self.labels()?;
        self.marks(&marks)?;
        self.area.present().map_err(|e| e.to_string())
    }

    fn line(&self, line: &Line) -> Result<(), String> {
        let (color, width) = match line.weight {
            Weight::Faint => (blend(line.color, 0.25), 1.0),
            Weight::Thin => (line.color, 1.4),
            Weight::Normal => (line.color, 2.0),
            Weight::Strong => (line.color, 3.0),
        };
        self.parts(line).iter().try_for_each(|part| self.path(part, color, width))
    }

    /// The line on the paper, in the pieces that it is drawn in.
    fn parts(&self, line: &Line) -> Vec<Vec<(f64, f64)>> {
        let visible = |p: &(f64, f64)| {
            let ok = |v: f64, a: &Axis| v.is_finite() && (a.scale == Scale::Linear || v > 0.0);
            ok(p.0, &self.chart.x) && ok(p.1, &self.chart.y)
        };
        let on_paper =
            |p: &(f64, f64)| (self.x(p.0), self.y(p.1).clamp(self.frame[1], self.frame[3]));
        let parts = line.points.split(|p| !visible(p)).filter(|part| part.len() > 1);
        parts.map(|part| part.iter().map(on_paper).collect()).collect()
    }

    /// The points in the frame with the places of their labels.
    fn placed_marks(&self) -> Vec<PlacedMark<'_>> {
        let [left, top, right, bottom] = self.frame;
        let points: Vec<((f64, f64), &Mark)> = self
            .marks
            .iter()
            .map(|mark| ((self.x(mark.at.0), self.y(mark.at.1)), mark))
            .filter(|((x, y), _)| (left..=right).contains(x) && (top..=bottom).contains(y))
            .collect();
        let lines: Vec<Vec<(f64, f64)>> =
            self.chart.lines.iter().flat_map(|line| self.parts(line)).collect();
        let places = places(&points, &lines, self.frame);
        points.into_iter().zip(places).map(|((at, mark), place)| (at, mark, place)).collect()
    }

    /// Diamonds with labels that no other label and no line covers, a thin leader to those that had to move.
    fn marks(&self, marks: &[PlacedMark<'_>]) -> Result<(), String> {
        const SIZE: f64 = 4.5;
        for ((x, y), mark, place) in marks {
            let corners = [(*x, y - SIZE), (x + SIZE, *y), (*x, y + SIZE), (x - SIZE, *y)];
            self.polygon(&corners, mark.color)?;
            let (side, anchor) = match place.side {
                Side::Right => (1.0, Anchor::Left),
                Side::LowerLeft => (-1.0, Anchor::Right),
            };
            if let Some(leader) = leader((*x, *y), *place) {
                self.path(&leader, mark.color, 0.8)?;
            }
            let start = (x + side * (SIZE + 4.0), place.height);
            self.text(&shown(&mark.label), start, 12.0, mark.color, anchor, FontStyle::Normal)?;
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
            let label = shown(&line.label);
            self.text(&label, (right + 17.0, y), 13.0, line.color, Anchor::Left, style)?;
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
        // Whatever names are in it: an SVG with a control character is no XML.
        let element = Text::new(Printable(text).to_string(), self.pixel(at), style);
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

/// The nearest whole number of a coordinate.
#[expect(clippy::cast_possible_truncation, reason = "coordinates are a few thousand at most")]
pub(super) fn whole(x: f64) -> i32 {
    x.round() as i32
}

/// DejaVu Sans is part of this program: a chart looks the same on a machine without fonts.
pub(super) fn register_fonts() {
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
}
