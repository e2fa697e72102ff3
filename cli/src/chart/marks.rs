//! Points on a chart with a name beside each.

use plotters::style::RGBColor;

use super::shown;

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

/// Where a label is put: its side, and the height of its middle.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Place {
    pub(super) side: Side,
    pub(super) height: f64,
}

impl Place {
    /// What a label takes beside a point.
    pub(super) fn area(self, (x, _): Point, label: &str) -> Rectangle {
        let width = LETTER * shown(label).chars().count() as f64;
        match self.side {
            Side::Right => [x + GAP, self.height - HALF, x + GAP + width, self.height + HALF],
            Side::LowerLeft => [x - GAP - width, self.height - HALF, x - GAP, self.height + HALF],
        }
    }
}

/// Left, top, right, bottom.
pub(super) type Rectangle = [f64; 4];
type Point = (f64, f64);

/// Half the height of a label, and the width of one of its letters.
const HALF: f64 = 7.0;
const LETTER: f64 = 7.0;
/// From a point to its label.
const GAP: f64 = 8.5;
/// Half a strong line, and some paper between it and a letter.
const CLEAR: f64 = 3.0;
/// A label that is further away than this has a leader.
pub(super) const NEAR: f64 = 10.0;

/// Places of the labels of points (in units of the paper, y downwards) so that none covers another or a point, and no
/// line or leader crosses one, as far as there is room in the frame.
pub(super) fn places(
    points: &[(Point, &Mark)],
    lines: &[Vec<Point>],
    frame: Rectangle,
) -> Vec<Place> {
    let [left, top, right, bottom] = frame;
    let mut taken: Vec<Rectangle> =
        points.iter().map(|((x, y), _)| [x - 5.0, y - 5.0, x + 5.0, y + 5.0]).collect();
    let mut segments: Vec<[Point; 2]> = Vec::new();
    for line in lines {
        segments.extend(line.windows(2).map(|ends| [ends[0], ends[1]]));
    }
    let mut out = Vec::new();
    for (number, ((x, y), mark)) in points.iter().enumerate() {
        let rectangle = |place: Place| place.area((*x, *y), &mark.label);
        let free = |place: Place, within: Rectangle| {
            let [l, t, r, b] = rectangle(place);
            let wide = [l - CLEAR, t - CLEAR + 1.0, r + CLEAR, b + CLEAR - 1.0];
            let leader = leader((*x, *y), place);
            l >= within[0]
                && t >= within[1]
                && r <= within[2]
                && b <= within[3]
                && !taken.iter().any(|other| overlap([l, t, r, b], *other))
                && !segments.iter().any(|s| crosses(*s, wide))
                && !leader.is_some_and(|leader| {
                    let mut others = taken.iter().enumerate().filter(|(i, _)| *i != number);
                    others.any(|(_, other)| crosses(leader, *other))
                })
        };
        let other = |side| match side {
            Side::Right => Side::LowerLeft,
            Side::LowerLeft => Side::Right,
        };
        let candidates = || {
            (0..60).map(f64::from).flat_map(|i| {
                let heights = move |side| match side {
                    Side::Right => [y + i * HALF, y - i * HALF],
                    Side::LowerLeft => [y + 9.0 + i * HALF, y - 9.0 - i * HALF],
                };
                [mark.side, other(mark.side)]
                    .into_iter()
                    .flat_map(move |side| heights(side).map(|height| Place { side, height }))
            })
        };
        let anywhere = [0.0, top, f64::INFINITY, bottom];
        let place = candidates()
            .find(|place| free(*place, [left, top, right, bottom]))
            .or_else(|| candidates().find(|place| free(*place, anywhere)))
            .unwrap_or(Place { side: mark.side, height: *y });
        taken.push(rectangle(place));
        segments.extend(leader((*x, *y), place));
        out.push(place);
    }
    out
}

/// The thin line from a point to a label that had to move.
pub(super) fn leader((x, y): Point, place: Place) -> Option<[Point; 2]> {
    let side = match place.side {
        Side::Right => 1.0,
        Side::LowerLeft => -1.0,
    };
    let end = (x + side * (GAP - 1.0), place.height);
    ((place.height - y).abs() > NEAR).then_some([(x + side * 4.5, y), end])
}

fn overlap(a: Rectangle, b: Rectangle) -> bool {
    a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]
}

/// Whether a part of the segment lies in the rectangle: what is left of it after cutting at each side.
fn crosses([from, to]: [Point; 2], [left, top, right, bottom]: Rectangle) -> bool {
    let (mut first, mut last) = (0.0f64, 1.0f64);
    for (at, step, low, high) in
        [(from.0, to.0 - from.0, left, right), (from.1, to.1 - from.1, top, bottom)]
    {
        if step == 0.0 {
            if at <= low || at >= high {
                return false;
            }
            continue;
        }
        let (a, b) = ((low - at) / step, (high - at) / step);
        first = first.max(a.min(b));
        last = last.min(a.max(b));
    }
    first < last
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: Rectangle = [0.0, 0.0, 400.0, 200.0];

    fn mark(label: &str, side: Side) -> Mark {
        Mark { label: label.into(), side, color: RGBColor(0, 0, 0), at: (0.0, 0.0) }
    }

    #[test]
    fn labels_cover_neither_each_other_nor_points() {
        let (right, left) = (mark("9,9,9,9", Side::Right), mark("9,9,9,9", Side::LowerLeft));
        let points = [
            ((100.0, 50.0), &right),
            ((100.0, 55.0), &right),
            ((130.0, 52.0), &left),
            ((160.0, 52.0), &left),
        ];
        let places = places(&points, &[], FRAME);
        let rectangles: Vec<Rectangle> = points
            .iter()
            .zip(&places)
            .map(|(((x, _), _), p)| match p.side {
                Side::Right => [x + GAP, p.height - HALF, x + GAP + 49.0, p.height + HALF],
                Side::LowerLeft => [x - GAP - 49.0, p.height - HALF, x - GAP, p.height + HALF],
            })
            .collect();
        for (i, a) in rectangles.iter().enumerate() {
            assert!(rectangles[..i].iter().all(|b| !overlap(*a, *b)), "{places:?}");
            for ((x, y), _) in &points {
                assert!(!overlap(*a, [x - 4.5, y - 4.5, x + 4.5, y + 4.5]), "{places:?}");
            }
        }
        // Alone each stays where it wants to be; without room it is drawn all the same.
        let wanted = Place { side: Side::Right, height: 50.0 };
        assert_eq!(super::places(&points[..1], &[], FRAME), [wanted]);
        assert_eq!(super::places(&points[..1], &[], [0.0, 49.0, 400.0, 51.0]), [wanted]);
    }

    #[test]
    fn no_line_crosses_a_label() {
        let label = mark("jordan", Side::Right);
        let points = [((100.0, 100.0), &label)];
        // A falling step through the point, as that of a Pareto front.
        let step =
            vec![(20.0, 60.0), (100.0, 60.0), (100.0, 100.0), (300.0, 100.0), (300.0, 180.0)];
        let [place] = places(&points, std::slice::from_ref(&step), FRAME)[..] else { panic!() };
        let [l, r] = match place.side {
            Side::Right => [100.0 + GAP, 100.0 + GAP + 42.0],
            Side::LowerLeft => [100.0 - GAP - 42.0, 100.0 - GAP],
        };
        let rectangle = [l, place.height - HALF, r, place.height + HALF];
        for ends in step.windows(2) {
            assert!(!crosses([ends[0], ends[1]], rectangle), "{place:?} {ends:?}");
        }
        // Long names stay on the paper: to the left where there is no room to the right.
        let long = mark("polar_express_safety_1_02", Side::Right);
        let [place] = places(&[((390.0, 100.0), &long)], &[], FRAME)[..] else { panic!() };
        assert_eq!(place.side, Side::LowerLeft);
    }

    #[test]
    fn segments_cross_rectangles() {
        let r = [10.0, 10.0, 20.0, 20.0];
        for (segment, expected) in [
            ([(0.0, 15.0), (30.0, 15.0)], true),
            ([(15.0, 0.0), (15.0, 30.0)], true),
            ([(0.0, 0.0), (30.0, 30.0)], true),
            ([(12.0, 12.0), (13.0, 18.0)], true),
            ([(0.0, 15.0), (9.0, 15.0)], false),
            ([(0.0, 25.0), (25.0, 0.0)], true),
            ([(0.0, 19.0), (19.0, 0.0)], false),
            ([(0.0, 10.0), (30.0, 10.0)], false),
        ] {
            assert_eq!(crosses(segment, r), expected, "{segment:?}");
        }
    }
}
