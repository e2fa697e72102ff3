//! Which method evaluates a schedule on a shape.
use crate::{
    coefficients::CoefficientSchedule, precision::Precision, recipe::Method, shape::MatrixShape,
};
pub(crate) struct Choice {
    pub method: Method,
    pub reason: String,
}
pub(crate) fn choose(_s: &CoefficientSchedule, _p: Precision, _shape: MatrixShape) -> Choice {
    Choice { method: Method::Standard, reason: "standard form".into() }
}
