//! The classifier: a multilayer perceptron with ReLU and softmax cross-entropy, its gradient by hand.

use anyhow::Result;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

use super::data::{CLASSES, FEATURES, Samples};
use super::param::{Param, Score, cross_entropy, make_room};
use super::rng::{Rng, Stream};

/// The perceptron with its work space for one batch size.
#[derive(Debug, Clone)]
pub(crate) struct Mlp {
    /// Widths from the pixels to the classes.
    sizes: Vec<usize>,
    /// Weight and bias of each layer in turn.
    pub(crate) params: Vec<Param>,
    /// Output of each layer after ReLU (of the last: the logits), `[batch, width]`.
    outputs: Vec<Vec<f32>>,
    /// Gradient with respect to the same.
    deltas: Vec<Vec<f32>>,
}

impl Mlp {
    /// Pixels → `hidden` layers → classes; weights uniform in ±√(6/fan_in) (He), biases zero.
    ///
    /// # Errors
    /// No memory for it.
    pub(crate) fn new(hidden: &[usize], seed: u64) -> Result<Self> {
        let mut rng = Rng::new(seed, Stream::Init);
        let mut sizes = vec![FEATURES];
        sizes.extend_from_slice(hidden);
        sizes.push(CLASSES);
        let layers = sizes.len() - 1;
        let mut params = Vec::new();
        for (i, pair) in sizes.windows(2).enumerate() {
            let [fan_in, fan_out] = *pair else { continue };
            let last = i + 1 == layers;
            let stem = if last { "head".to_owned() } else { format!("hidden{}", i + 1) };
            let limit = (6.0 / fan_in as f32).sqrt();
            let weight = || rng.symmetric(limit);
            params.push(Param::new(format!("{stem}.weight"), vec![fan_out, fan_in], weight)?);
            params.push(Param::new(format!("{stem}.bias"), vec![fan_out], || 0.0)?);
        }
        let lists = vec![Vec::new(); layers];
        Ok(Self { sizes, params, outputs: lists.clone(), deltas: lists })
    }

    /// Makes room for the work on that many samples at once.
    ///
    /// # Errors
    /// No memory for it.
    pub(crate) fn make_room(&mut self, samples: usize) -> Result<()> {
        for lists in [&mut self.outputs, &mut self.deltas] {
            for (list, width) in lists.iter_mut().zip(&self.sizes[1..]) {
                make_room(list, samples.checked_mul(*width))?;
            }
        }
        Ok(())
    }

    /// Logits of `[batch, FEATURES]` pixels.
    fn forward(&mut self, pixels: &[f32]) {
        let batch = pixels.len() / FEATURES;
        let layers = self.outputs.len();
        for layer in 0..layers {
            let (fan_in, fan_out) = (self.sizes[layer], self.sizes[layer + 1]);
            let (before, rest) = self.outputs.split_at_mut(layer);
            let input = before.last().map_or(pixels, Vec::as_slice);
            let out = &mut rest[0];
            let bias = &self.params[2 * layer + 1].data;
            out.clear();
            for _ in 0..batch {
                out.extend_from_slice(bias);
            }
            product(
                MatMut::from_row_major_slice_mut(out, batch, fan_out),
                Accum::Add,
                MatRef::from_row_major_slice(input, batch, fan_in),
                MatRef::from_row_major_slice(&self.params[2 * layer].data, fan_out, fan_in)
                    .transpose(),
            );
            if layer + 1 < layers {
                for x in out {
                    *x = x.max(0.0);
                }
            }
        }
    }

    /// Mean cross-entropy of a batch; leaves its gradient in the parameters.
    pub(crate) fn backward(&mut self, pixels: &[f32], labels: &[u8]) -> f64 {
        self.forward(pixels);
        let batch = labels.len();
        let layers = self.outputs.len();
        let targets = labels.iter().map(|l| usize::from(*l));
        let loss = {
            let delta = &mut self.deltas[layers - 1];
            cross_entropy(&self.outputs[layers - 1], CLASSES, targets, delta)
        };
        for layer in (0..layers).rev() {
            let (fan_in, fan_out) = (self.sizes[layer], self.sizes[layer + 1]);
            let (lower, upper) = self.deltas.split_at_mut(layer);
            let delta = MatRef::from_row_major_slice(&upper[0], batch, fan_out);
            let input = if layer == 0 { pixels } else { &self.outputs[layer - 1] };
            let weight_grad = &mut self.params[2 * layer].grad;
            product(
                MatMut::from_row_major_slice_mut(weight_grad, fan_out, fan_in),
                Accum::Replace,
                delta.transpose(),
                MatRef::from_row_major_slice(input, batch, fan_in),
            );
            let bias_grad = &mut self.params[2 * layer + 1].grad;
            bias_grad.fill(0.0);
            for row in upper[0].chunks_exact(fan_out) {
                for (g, d) in bias_grad.iter_mut().zip(row) {
                    *g += d;
                }
            }
            let Some(below) = lower.last_mut() else { break };
            below.clear();
            below.resize(batch * fan_in, 0.0);
            product(
                MatMut::from_row_major_slice_mut(below, batch, fan_in),
                Accum::Replace,
                delta,
                MatRef::from_row_major_slice(&self.params[2 * layer].data, fan_out, fan_in),
            );
            for (d, x) in below.iter_mut().zip(input) {
                if *x <= 0.0 {
                    *d = 0.0;
                }
            }
        }
        loss
    }

    /// Mean cross-entropy and fraction of right answers.
    pub(crate) fn evaluate(&mut self, samples: &Samples) -> (f64, f64) {
        self.forward(&samples.pixels);
        let logits = &self.outputs[self.outputs.len() - 1];
        let mut score = Score::default();
        for (row, label) in logits.chunks_exact(CLASSES).zip(&samples.labels) {
            score.add(row, usize::from(*label));
        }
        score.mean()
    }
}

/// One thread: the bits of a run do not depend on how many cores there are.
fn product(out: MatMut<'_, f32>, accum: Accum, a: MatRef<'_, f32>, b: MatRef<'_, f32>) {
    matmul(out, accum, a, b, 1.0, Par::Seq);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The loss in f64 by plain loops, sharing no code with the model.
    fn loss_f64(sizes: &[usize], params: &[Vec<f64>], pixels: &[f32], labels: &[u8]) -> f64 {
        let mut total = 0.0;
        for (row, label) in pixels.chunks_exact(FEATURES).zip(labels) {
            let mut x: Vec<f64> = row.iter().map(|p| f64::from(*p)).collect();
            for layer in 0..sizes.len() - 1 {
                let (w, b) = (&params[2 * layer], &params[2 * layer + 1]);
                let last = layer + 2 == sizes.len();
                x = (0..sizes[layer + 1])
                    .map(|o| {
                        let z = b[o]
                            + (0..sizes[layer])
                                .map(|i| w[o * sizes[layer] + i] * x[i])
                                .sum::<f64>();
                        if last { z } else { z.max(0.0) }
                    })
                    .collect();
            }
            total += x.iter().map(|z| z.exp()).sum::<f64>().ln() - x[usize::from(*label)];
        }
        total / labels.len() as f64
    }

    #[test]
    fn gradient_matches_finite_differences_of_an_independent_f64_loss() {
        let all = super::super::data::digits().unwrap();
        let mut model = Mlp::new(&[12, 9], 5).unwrap();
        let pixels = &all.pixels[..7 * FEATURES];
        let labels = &all.labels[..7];
        // Biases off zero, so that their part of the forward pass is tested too.
        let mut rng = Rng::new(9, Stream::Init);
        for p in &mut model.params {
            if p.shape.len() == 1 {
                p.data.iter_mut().for_each(|b| *b = rng.symmetric(0.3));
            }
        }
        let loss = model.backward(pixels, labels);
        let mut params: Vec<Vec<f64>> =
            model.params.iter().map(|p| p.data.iter().map(|x| f64::from(*x)).collect()).collect();
        let reference = loss_f64(&model.sizes, &params, pixels, labels);
        // f32 sums of at most 64 terms: a few ulp of 2⁻²⁴ relative.
        assert!((loss - reference).abs() < 1e-5 * reference, "{loss} {reference}");
        for p in 0..params.len() {
            let mut largest = 0.0f64;
            for i in 0..params[p].len() {
                let h = 1e-6;
                let x = params[p][i];
                params[p][i] = x + h;
                let up = loss_f64(&model.sizes, &params, pixels, labels);
                params[p][i] = x - h;
                let down = loss_f64(&model.sizes, &params, pixels, labels);
                params[p][i] = x;
                let found = f64::from(model.params[p].grad[i]);
                largest = largest.max((found - (up - down) / (2.0 * h)).abs());
            }
            // Differences: 1e-16/1e-6 plus h²; f32 backward pass: a few 2⁻²⁴ of entries below 1.
            assert!(largest < 2e-6, "{}: {largest}", model.params[p].name);
        }
    }

    #[test]
    fn evaluation_counts_right_answers_and_agrees_with_the_batch_loss() {
        let all = super::super::data::digits().unwrap();
        let mut model = Mlp::new(&[16], 1).unwrap();
        let (loss, accuracy) = model.evaluate(&all);
        // Untrained: near chance; He initialisation keeps the loss near ln 10.
        assert!((0.0..0.4).contains(&accuracy) && (1.5..6.0).contains(&loss), "{accuracy} {loss}");
        let batch_loss = model.backward(&all.pixels, &all.labels);
        assert_eq!(loss.to_bits(), batch_loss.to_bits());
    }
}
