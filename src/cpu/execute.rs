//! stub
use crate::{error::Result, precision::Precision, recipe::Recipe, shape::MatrixShape};
#[derive(Debug)]
pub(super) struct MatrixBuffers {
    pub(super) x: [Vec<f32>; 2],
}
impl MatrixBuffers {
    pub(super) fn new(_r: &Recipe, s: MatrixShape) -> Self {
        Self { x: [vec![0.0; s.len()], vec![0.0; s.len()]] }
    }
    pub(super) fn direction_only(s: MatrixShape) -> Self {
        Self { x: [vec![0.0; s.len()], vec![]] }
    }
}
pub(super) fn execute(_: &Recipe, _: MatrixShape, _: Precision, _: &mut MatrixBuffers, _: bool) {}
pub(super) fn polar_factor_svd(_: MatrixShape, _: &mut [f32]) -> Result<()> {
    Ok(())
}
