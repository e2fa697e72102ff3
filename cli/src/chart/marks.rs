//! Points on a chart with a name beside each.

use plotters::style::RGBColor;

/// Where a label stands before others push it away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// To the right.
    Right,
    /// To the left and below: free where a falling step line ends.
    LowerLeft,
}

/// One point.
#[derive(Debug, Clone)]
pub(crate) struct Mark {
    /// Beside it.
    pub(crate) label: String,
    /// Where the label goes.
    pub(crate) side: Side,
    /// Its colour, and the label's.
    pub(crate) color: RGBColor,
    /// x and y.
    pub(crate) at: (f64, f64),
}

/// Half the height of a label, and the width of one of its letters.
const HALF: f64 = 7.0;
const LETTER: f64 = 7.0;
/// From a point to its label.
const GAP: f64 = 8.5;

/// Heights of the labels of points (in units of the paper, y downwards) so that none covers another or a point, as far as
/// there is room between `top` and `bottom`.
pub(super) fn heights(points: &[((f64, f64), &Mark)], top: f64, bottom: f64) -> Vec<f64> {
    type Rectangle = [f64; 4];
    let overlaps =
        |a: &Rectangle, b: &Rectangle| a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
    let mut taken: Vec<Rectangle> =
        points.iter().map(|((x, y), _)| [x - 5.0, y - 5.0, x + 5.0, y + 5.0]).collect();
    points
        .iter()
        .map(|((x, y), mark)| {
            let width = LETTER * mark.label.chars().count() as f64;
            let rectangle = |height: f64| match mark.side {
                Side::Right => [x + GAP, height - HALF, x + GAP + width, height + HALF],
                Side::LowerLeft => [x - GAP - width, height - HALF, x - GAP, height + HALF],
            };
            let tried = (0..40).map(f64::from).flat_map(|i| match mark.side {
                Side::Right => [y + i * HALF, y - i * HALF],
                Side::LowerLeft => [y + 9.0 + i * HALF, y + 9.0 + i * HALF],
            });
            let free = tried.filter(|h| (top + HALF..=bottom - HALF).contains(h)).find(|h| {
                let wanted = rectangle(*h);
                !taken.iter().any(|other| overlaps(&wanted, other))
            });
            let height = free.unwrap_or(*y);
            taken.push(rectangle(height));
            height
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_cover_neither_each_other_nor_points() {
        let mark =
            |side| Mark { label: "9,9,9,9".into(), side, color: RGBColor(0, 0, 0), at: (0.0, 0.0) };
        let (right, left) = (mark(Side::Right), mark(Side::LowerLeft));
        let points = [
            ((100.0, 50.0), &right),
            ((100.0, 55.0), &right),
            ((130.0, 52.0), &left),
            ((160.0, 52.0), &left),
        ];
        let at = heights(&points, 0.0, 200.0);
        // The first is moved off the third point, the second off it and the first.
        assert!((at[0] - 50.0).abs() >= 12.0 && (at[1] - at[0]).abs() >= 2.0 * HALF, "{at:?}");
        assert!(at[2] >= 61.0 && (at[3] - at[2]).abs() >= 2.0 * HALF, "{at:?}");
        // Alone each stays where it wants to be; without room it is drawn all the same.
        assert_eq!(heights(&points[..1], 0.0, 200.0), [50.0]);
        assert_eq!(heights(&points[..1], 49.0, 51.0), [50.0]);
    }
}
