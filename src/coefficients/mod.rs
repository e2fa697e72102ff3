//! Odd polynomials, schedules of them (one polynomial an iteration), and what a schedule can tell
//! about itself.

mod factor;
mod file;
pub mod generate;
mod linear;
mod polynomial;
pub mod presets;
mod properties;
mod roots;
mod schedule;
mod written;

pub use factor::NonicFactors;
pub use generate::{Generator, Provenance};
pub use polynomial::OddPolynomial;
pub use properties::{GemmCost, LIFTED, PRESET_SAFETY, SAFE_IMAGE, ScheduleProperties};
pub use schedule::{CoefficientSchedule, MOST_POLYNOMIALS, Normalization, Tail};
