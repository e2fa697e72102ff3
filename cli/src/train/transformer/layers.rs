//! The layers of the transformer, forward and backward: linear maps, root-mean-square normalisation,
//! causal attention. Matrices are row-major slices; one row a token.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// Added to the mean square before its root, so that a zero row has a normalisation.
pub(super) const NORM_FLOOR: f32 = 1e-6;

/// One thread: the bits of a run do not depend on how many cores there are.
fn product(out: MatMut<'_, f32>, accum: Accum, a: MatRef<'_, f32>, b: MatRef<'_, f32>, by: f32) {
    matmul(out, accum, a, b, by, Par::Seq);
}

fn rows(data: &[f32], width: usize) -> MatRef<'_, f32> {
    MatRef::from_row_major_slice(data, data.len() / width, width)
}

fn rows_mut(data: &mut [f32], width: usize) -> MatMut<'_, f32> {
    let height = data.len() / width;
    MatMut::from_row_major_slice_mut(data, height, width)
}

/// `out = x·weightᵀ`, or `out += x·weightᵀ`; `weight` is `[fan_out, fan_in]`.
pub(super) fn linear(out: &mut [f32], accum: Accum, x: &[f32], weight: &[f32], fan_in: usize) {
    let fan_out = weight.len() / fan_in;
    product(rows_mut(out, fan_out), accum, rows(x, fan_in), rows(weight, fan_in).transpose(), 1.0);
}

/// `weight_grad = deltaᵀ·x`.
pub(super) fn linear_weight(weight_grad: &mut [f32], delta: &[f32], x: &[f32], fan_in: usize) {
    let fan_out = weight_grad.len() / fan_in;
    let delta = rows(delta, fan_out).transpose();
    product(rows_mut(weight_grad, fan_in), Accum::Replace, delta, rows(x, fan_in), 1.0);
}

/// `below = delta·weight`, or `below += delta·weight`.
pub(super) fn linear_input(
    below: &mut [f32],
    accum: Accum,
    delta: &[f32],
    weight: &[f32],
    fan_in: usize,
) {
    let fan_out = weight.len() / fan_in;
    product(rows_mut(below, fan_in), accum, rows(delta, fan_out), rows(weight, fan_in), 1.0);
}

/// `out = gain ⊙ x/√(mean x² + floor)`, row by row; `inverse` keeps `1/√(…)` of each.
pub(super) fn norm(out: &mut [f32], inverse: &mut [f32], x: &[f32], gain: &[f32]) {
    let width = gain.len();
    for ((out, inverse), x) in out.chunks_exact_mut(width).zip(inverse).zip(x.chunks_exact(width)) {
        let square: f32 = x.iter().map(|x| x * x).sum();
        *inverse = (square / width as f32 + NORM_FLOOR).sqrt().recip();
        for ((out, x), gain) in out.iter_mut().zip(x).zip(gain) {
            *out = x * *inverse * gain;
        }
    }
}

/// Adds to `below` the gradient that `delta` has with respect to `x`; sets that of the gain.
pub(super) fn norm_backward(
    below: &mut [f32],
    gain_grad: &mut [f32],
    delta: &[f32],
    x: &[f32],
    inverse: &[f32],
    gain: &[f32],
) {
    let width = gain.len();
    gain_grad.fill(0.0);
    let tokens = below.chunks_exact_mut(width).zip(delta.chunks_exact(width));
    for ((below, delta), (x, inverse)) in tokens.zip(x.chunks_exact(width).zip(inverse)) {
        let mut along = 0.0;
        for (((d, x), gain), gain_grad) in delta.iter().zip(x).zip(gain).zip(&mut *gain_grad) {
            *gain_grad += d * x * inverse;
            along += d * gain * x;
        }
        let back = along * inverse * inverse / width as f32;
        for (((below, d), x), gain) in below.iter_mut().zip(delta).zip(x).zip(gain) {
            *below += inverse * (d * gain - x * back);
        }
    }
}

/// `max(0, x)²`.
pub(super) fn squared_relu(out: &mut [f32], x: &[f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        let x = x.max(0.0);
        *out = x * x;
    }
}

/// Turns the gradient with respect to `max(0, x)²` into that with respect to `x`.
pub(super) fn squared_relu_backward(delta: &mut [f32], x: &[f32]) {
    for (delta, x) in delta.iter_mut().zip(x) {
        *delta *= 2.0 * x.max(0.0);
    }
}

/// Where the heads of an attention lie in rows of queries, keys and values.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    /// Tokens of a window.
    pub(super) context: usize,
    /// Number of heads.
    pub(super) heads: usize,
    /// Columns of all heads together.
    pub(super) width: usize,
}

impl Heads {
    /// `1/√(columns of a head)`.
    fn scale(self) -> f32 {
        ((self.width / self.heads) as f32).sqrt().recip()
    }

    /// First token and first column of every head of every window.
    fn places(self, tokens: usize) -> impl Iterator<Item = (usize, usize)> {
        let columns = self.width / self.heads;
        let starts = (0..tokens).step_by(self.context);
        starts.flat_map(move |row| (0..self.heads).map(move |h| (row, h * columns)))
    }

    fn part<'a>(self, data: &'a [f32], (row, column): (usize, usize)) -> MatRef<'a, f32> {
        rows(data, self.width).submatrix(row, column, self.context, self.width / self.heads)
    }

    fn part_mut<'a>(self, data: &'a mut [f32], (row, column): (usize, usize)) -> MatMut<'a, f32> {
        let columns = self.width / self.heads;
        rows_mut(data, self.width).submatrix_mut(row, column, self.context, columns)
    }

    /// Writes the mixed values to `out` and the attention of each head, `[context, context]`, to `attention`.
    pub(super) fn attend(self, out: &mut [f32], attention: &mut [f32], [q, k, v]: [&[f32]; 3]) {
        let t = self.context;
        let squares = attention.chunks_exact_mut(t * t);
        for (at, square) in self.places(q.len() / self.width).zip(squares) {
            let (query, key) = (self.part(q, at), self.part(k, at));
            product(rows_mut(square, t), Accum::Replace, query, key.transpose(), self.scale());
            for (i, row) in square.chunks_exact_mut(t).enumerate() {
                causal_softmax(row, i);
            }
            let value = self.part(v, at);
            product(self.part_mut(out, at), Accum::Replace, rows(square, t), value, 1.0);
        }
    }

    /// From the gradient of the mixed values to those of queries, keys and values.
    pub(super) fn attend_backward(
        self,
        [dq, dk, dv]: [&mut [f32]; 3],
        delta: &[f32],
        attention: &[f32],
        [q, k, v]: [&[f32]; 3],
    ) {
        let t = self.context;
        let mut scores = vec![0.0; t * t];
        let squares = attention.chunks_exact(t * t);
        for (at, square) in self.places(q.len() / self.width).zip(squares) {
            let above = self.part(delta, at);
            let p = rows(square, t);
            product(self.part_mut(dv, at), Accum::Replace, p.transpose(), above, 1.0);
            let value = self.part(v, at).transpose();
            product(rows_mut(&mut scores, t), Accum::Replace, above, value, 1.0);
            for (d, p) in scores.chunks_exact_mut(t).zip(square.chunks_exact(t)) {
                let mean: f32 = d.iter().zip(p).map(|(d, p)| d * p).sum();
                for (d, p) in d.iter_mut().zip(p) {
                    *d = p * (*d - mean);
                }
            }
            let (s, scale) = (rows(&scores, t), self.scale());
            product(self.part_mut(dq, at), Accum::Replace, s, self.part(k, at), scale);
            product(self.part_mut(dk, at), Accum::Replace, s.transpose(), self.part(q, at), scale);
        }
    }
}

/// Softmax over the scores of the tokens up to number `last`; later ones get 0.
fn causal_softmax(scores: &mut [f32], last: usize) {
    let (seen, later) = scores.split_at_mut(last + 1);
    let max = seen.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for s in seen.iter_mut() {
        *s = (*s - max).exp();
        sum += *s;
    }
    for s in seen {
        *s /= sum;
    }
    later.fill(0.0);
}
