//! Points on a chart with a name beside each.

use plotters::style::RGBColor;

/// One point.
#[derive(Debug, Clone)]
pub(crate) struct Mark {
    /// Beside it.
    pub(crate) label: String,
    /// Its colour, and the label's.
    pub(crate) color: RGBColor,
    /// x and y.
    pub(crate) at: (f64, f64),
}
