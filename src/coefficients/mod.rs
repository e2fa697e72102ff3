//! Odd polynomials, schedules of them (one polynomial an iteration), and what a schedule can tell
//! about itself.

mod polynomial;
pub mod presets;
mod schedule;

pub use polynomial::{NonicFactors, OddPolynomial};
pub use schedule::{CoefficientSchedule, Normalization, Tail};
