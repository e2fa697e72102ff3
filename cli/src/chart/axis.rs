//! Axes: where a value lies, and which values are named.

/// What an axis shows.
#[derive(Debug, Clone)]
pub(crate) struct Axis {
    /// Its title.
    pub(crate) title: String,
    /// First and last value.
    pub(crate) range: (f64, f64),
    /// Its spacing.
    pub(crate) scale: Scale,
    /// Values that are named, ascending; round ones where there are none.
    pub(crate) named: Vec<f64>,
}

impl Axis {
    /// An axis with round values named.
    pub(crate) fn new(title: impl Into<String>, range: (f64, f64), scale: Scale) -> Self {
        Self { title: title.into(), range, scale, named: Vec::new() }
    }
}

/// Spacing of an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    /// Even.
    Linear,
    /// By decades; both ends positive.
    Log,
}

/// How far along the axis a value lies, 0 at its start and 1 at its end.
pub(super) fn fraction(axis: &Axis, value: f64) -> f64 {
    let (low, high) = axis.range;
    match axis.scale {
        Scale::Linear => (value - low) / (high - low),
        Scale::Log => (value / low).ln() / (high / low).ln(),
    }
}

/// The values that are named, or round ones inside the range, with their names.
pub(super) fn ticks(axis: &Axis) -> Vec<(f64, String)> {
    let (low, high) = axis.range;
    if !axis.named.is_empty() {
        return axis.named.iter().map(|v| (*v, v.to_string())).collect();
    }
    match axis.scale {
        // Less than two decades: their halves and fifths too, so that there is something to read.
        Scale::Log if high / low < 100.0 => (-30i32..=30)
            .flat_map(|k| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(k)))
            .filter(|v| (low * 0.999..=high * 1.001).contains(v))
            .map(|v| (v, short(v)))
            .collect(),
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

/// The row below the axis that each name stands in, from 0, so that none covers another; the places are on the paper.
pub(super) fn rows(names: &[(f64, String)]) -> Vec<usize> {
    // Where each row is taken up to.
    let mut ends: Vec<f64> = Vec::new();
    names
        .iter()
        .map(|(at, name)| {
            let half = 0.5 * LETTER * name.chars().count() as f64;
            let row = ends.iter().position(|end| at - half >= *end).unwrap_or(ends.len());
            if row == ends.len() {
                ends.push(f64::NEG_INFINITY);
            }
            ends[row] = at + half + LETTER;
            row
        })
        .collect()
}

/// Width of a letter of a name, and of the space between two names.
const LETTER: f64 = 7.8;

/// One significant digit in the usual notation, or with an exponent where that would be long.
fn short(v: f64) -> String {
    if (1e-4..1e5).contains(&v) { format!("{}", (v * 1e6).round() / 1e6) } else { format!("{v:e}") }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let axis = |range, scale| Axis::new("", range, scale);
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
        let narrow = names(&axis((0.009, 0.11), Scale::Log));
        assert_eq!(narrow, ["0.01", "0.02", "0.05", "0.1"]);
        assert_eq!(names(&axis((1e-12, 10.0), Scale::Log)).last().unwrap(), "10¹");
        let mut rates = axis((0.01, 0.1), Scale::Log);
        rates.named = vec![0.015, 0.02, 0.07];
        assert_eq!(names(&rates), ["0.015", "0.02", "0.07"]);
    }

    #[test]
    fn names_that_would_cover_each_other_go_to_another_row() {
        let names = |at: &[f64]| at.iter().map(|x| (*x, "0.02".to_owned())).collect::<Vec<_>>();
        assert_eq!(rows(&names(&[0.0, 100.0, 200.0])), [0, 0, 0]);
        assert_eq!(rows(&names(&[0.0, 10.0, 20.0, 30.0, 45.0])), [0, 1, 2, 3, 0]);
    }
}
