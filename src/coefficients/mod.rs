//! Odd polynomials, schedules of them (one polynomial an iteration), and what a schedule can tell
//! about itself.

mod factor;
mod linear;
mod polynomial;
pub mod presets;
mod roots;
mod schedule;

pub use factor::NonicFactors;
pub use polynomial::OddPolynomial;
pub use schedule::{CoefficientSchedule, Normalization, Tail};
