//! The language model: a decoder-only transformer over bytes, its gradient by hand.
//!
//! Pre-normalised blocks of causal attention and a two-layer perceptron with squared ReLU, learned
//! positions, no biases: the architecture that Muon's speed records are set with, small enough for a CPU.

mod layers;
#[cfg(test)]
mod oracle;

use anyhow::Result;
use faer::Accum;
use serde::{Deserialize, Serialize};

use self::layers::Heads;
use super::param::{Param, Score, cross_entropy, make_room};
use super::rng::{Rng, Stream};

/// Different bytes.
const VOCABULARY: usize = 256;
/// Parameters of a block, in this order: norm, q, k, v, out, norm, up, down.
const BLOCK: usize = 8;
/// Inner width of the perceptron over that of the model.
const EXPANSION: usize = 4;

/// Dimensions of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TransformerShape {
    /// Columns of the residual stream.
    pub(crate) width: usize,
    /// Blocks.
    pub(crate) layers: usize,
    /// Heads of an attention; they divide the width.
    pub(crate) heads: usize,
    /// Bytes that a prediction may look at.
    pub(crate) context: usize,
}

/// How many numbers a model and its work on one window have, as far as the largest ones go.
pub(crate) struct Counts {
    pub(crate) params: u128,
    pub(crate) work_of_a_window: u128,
}

/// Counted before anything is allocated; what overflows is as large as can be counted.
pub(crate) fn numbers(shape: TransformerShape) -> Counts {
    let product =
        |factors: &[usize]| factors.iter().fold(1u128, |n, f| n.saturating_mul(*f as u128));
    let TransformerShape { width: d, layers, heads, context } = shape;
    let inner = product(&[d, EXPANSION]);
    let block = product(&[4, d, d]).saturating_add(inner.saturating_mul(2 * d as u128));
    let embeddings = product(&[2 * VOCABULARY, d]).saturating_add(product(&[context, d]));
    let params = block.saturating_mul(layers as u128).saturating_add(embeddings);
    let attention = product(&[heads, context, context]);
    // Eight lists of a block have the width, two the inner one; two are of logits.
    let kept = product(&[8 + 2 * EXPANSION, d, context]).saturating_add(attention);
    let passing = product(&[12 + EXPANSION, d, context]).saturating_add(attention);
    let logits = product(&[2, VOCABULARY, context]);
    let work = kept.saturating_mul(layers as u128).saturating_add(passing).saturating_add(logits);
    Counts { params, work_of_a_window: work }
}

/// The model with its work space.
#[derive(Debug, Clone)]
pub(crate) struct Transformer {
    shape: TransformerShape,
    /// Token and position embedding, the blocks' parameters, last norm, head.
    pub(crate) params: Vec<Param>,
    blocks: Vec<Block>,
    /// Output of the last block, `[tokens, width]`.
    stream: Vec<f32>,
    /// The same, normalised, and what it was normalised by.
    normed: Vec<f32>,
    inverse: Vec<f32>,
    logits: Vec<f32>,
    /// Gradients on the way down.
    back: Backward,
}

/// What a block's backward pass needs of its forward pass; one row a token.
#[derive(Debug, Clone, Default)]
struct Block {
    stream: Vec<f32>,
    normed: Vec<f32>,
    inverse: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attention: Vec<f32>,
    mixed: Vec<f32>,
    middle: Vec<f32>,
    middle_normed: Vec<f32>,
    middle_inverse: Vec<f32>,
    up: Vec<f32>,
    act: Vec<f32>,
}

/// Gradients with respect to what their names say.
#[derive(Debug, Clone, Default)]
struct Backward {
    logits: Vec<f32>,
    stream: Vec<f32>,
    normed: Vec<f32>,
    inner: Vec<f32>,
    mixed: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Transformer {
    /// Weights uniform with variance 1/fan_in, those that write to the residual stream 1/(2·layers) of it,
    /// embeddings and head with deviation 0.02, gains 1.
    ///
    /// # Errors
    /// No memory for it.
    pub(crate) fn new(shape: TransformerShape, seed: u64) -> Result<Self> {
        let mut rng = Rng::new(seed, Stream::Init);
        let (d, inner) = (shape.width, EXPANSION * shape.width);
        let mut matrix = |name: String, fan_out: usize, fan_in: usize, deviation: f32| {
            let limit = 3f32.sqrt() * deviation;
            Param::new(name, vec![fan_out, fan_in], || rng.symmetric(limit))
        };
        let gain = |name: String| Param::new(name, vec![d], || 1.0);
        let unit = |fan_in: usize| (fan_in as f32).sqrt().recip();
        let residual = ((2 * shape.layers) as f32).sqrt().recip();
        let mut params = vec![
            matrix("token_embed.weight".into(), VOCABULARY, d, 0.02)?,
            matrix("position_embed.weight".into(), shape.context, d, 0.02)?,
        ];
        for i in 0..shape.layers {
            params.push(gain(format!("blocks.{i}.norm1.gain"))?);
            for part in ["q", "k", "v"] {
                params.push(matrix(format!("blocks.{i}.attention.{part}.weight"), d, d, unit(d))?);
            }
            let out = format!("blocks.{i}.attention.out.weight");
            params.push(matrix(out, d, d, residual * unit(d))?);
            params.push(gain(format!("blocks.{i}.norm2.gain"))?);
            params.push(matrix(format!("blocks.{i}.mlp.up.weight"), inner, d, unit(d))?);
            let down = format!("blocks.{i}.mlp.down.weight");
            params.push(matrix(down, d, inner, residual * unit(inner))?);
        }
        params.push(gain("norm.gain".into())?);
        params.push(matrix("head.weight".into(), VOCABULARY, d, 0.02)?);
        Ok(Self {
            shape,
            params,
            blocks: vec![Block::default(); shape.layers],
            stream: Vec::new(),
            normed: Vec::new(),
            inverse: Vec::new(),
            logits: Vec::new(),
            back: Backward::default(),
        })
    }

    /// Makes room for the work on that many windows at once.
    ///
    /// # Errors
    /// No memory for it.
    pub(crate) fn make_room(&mut self, windows: usize) -> Result<()> {
        let TransformerShape { width: d, heads, context, .. } = self.shape;
        let tokens = windows.checked_mul(context);
        let of_width = |width: usize| tokens.and_then(|t| t.checked_mul(width));
        let attention = of_width(heads).and_then(|n| n.checked_mul(context));
        let inner = d.checked_mul(EXPANSION).and_then(of_width);
        for block in &mut self.blocks {
            let Block { stream, normed, inverse, q, k, v, mixed, middle, .. } = block;
            for list in [stream, normed, q, k, v, mixed, middle, &mut block.middle_normed] {
                make_room(list, of_width(d))?;
            }
            for list in [inverse, &mut block.middle_inverse] {
                make_room(list, tokens)?;
            }
            for list in [&mut block.up, &mut block.act] {
                make_room(list, inner)?;
            }
            make_room(&mut block.attention, attention)?;
        }
        let Backward { logits, stream, normed, inner: back, mixed, q, k, v } = &mut self.back;
        for list in [stream, normed, mixed, q, k, v, &mut self.stream, &mut self.normed] {
            make_room(list, of_width(d))?;
        }
        make_room(back, inner)?;
        make_room(&mut self.inverse, tokens)?;
        for list in [logits, &mut self.logits] {
            make_room(list, of_width(VOCABULARY))?;
        }
        Ok(())
    }

    /// Bytes of a window: the context, and one more to predict.
    pub(crate) fn window(&self) -> usize {
        self.shape.context + 1
    }

    /// Mean cross-entropy of the next byte over windows that follow one another in `windows`; leaves its
    /// gradient in the parameters.
    pub(crate) fn backward(&mut self, windows: &[u8]) -> f64 {
        self.forward(windows);
        let labels: Vec<usize> = labels(windows, self.window()).collect();
        let delta = &mut self.back.logits;
        let loss = cross_entropy(&self.logits, VOCABULARY, labels.into_iter(), delta);
        self.propagate(windows);
        loss
    }

    /// How well the windows are predicted.
    pub(crate) fn score(&mut self, windows: &[u8]) -> Score {
        self.forward(windows);
        let mut score = Score::default();
        let labels = labels(windows, self.window());
        for (row, label) in self.logits.chunks_exact(VOCABULARY).zip(labels) {
            score.add(row, label);
        }
        score
    }

    fn heads(&self) -> Heads {
        let TransformerShape { width, heads, context, .. } = self.shape;
        Heads { context, heads, width }
    }

    fn forward(&mut self, windows: &[u8]) {
        let TransformerShape { width: d, context, .. } = self.shape;
        let inner = EXPANSION * d;
        let count = windows.len() / self.window();
        let tokens = count * context;
        let heads = self.heads();
        let p = &self.params;
        self.stream.clear();
        for window in windows.chunks_exact(context + 1) {
            for (byte, position) in window[..context].iter().zip(p[1].data.chunks_exact(d)) {
                let token = &p[0].data[usize::from(*byte) * d..][..d];
                self.stream.extend(token.iter().zip(position).map(|(t, p)| t + p));
            }
        }
        for (i, b) in self.blocks.iter_mut().enumerate() {
            let [norm1, q, k, v, out, norm2, up, down] = block_params(p, i);
            b.resize(tokens, d, inner, count * heads.heads * context * context);
            b.stream.copy_from_slice(&self.stream);
            layers::norm(&mut b.normed, &mut b.inverse, &b.stream, &norm1.data);
            for (to, weight) in [(&mut b.q, q), (&mut b.k, k), (&mut b.v, v)] {
                layers::linear(to, Accum::Replace, &b.normed, &weight.data, d);
            }
            heads.attend(&mut b.mixed, &mut b.attention, [&b.q, &b.k, &b.v]);
            layers::linear(&mut self.stream, Accum::Add, &b.mixed, &out.data, d);
            b.middle.copy_from_slice(&self.stream);
            layers::norm(&mut b.middle_normed, &mut b.middle_inverse, &b.middle, &norm2.data);
            layers::linear(&mut b.up, Accum::Replace, &b.middle_normed, &up.data, d);
            layers::squared_relu(&mut b.act, &b.up);
            layers::linear(&mut self.stream, Accum::Add, &b.act, &down.data, inner);
        }
        self.normed.resize(tokens * d, 0.0);
        self.inverse.resize(tokens, 0.0);
        self.logits.resize(tokens * VOCABULARY, 0.0);
        let (gain, head) = (&p[p.len() - 2].data, &p[p.len() - 1].data);
        layers::norm(&mut self.normed, &mut self.inverse, &self.stream, gain);
        layers::linear(&mut self.logits, Accum::Replace, &self.normed, head, d);
    }

    /// From the gradient of the logits to those of all parameters.
    fn propagate(&mut self, windows: &[u8]) {
        let d = self.shape.width;
        let inner = EXPANSION * d;
        let heads = self.heads();
        let tokens = self.stream.len() / d;
        let back = &mut self.back;
        for v in [&mut back.normed, &mut back.mixed, &mut back.q, &mut back.k, &mut back.v] {
            v.resize(tokens * d, 0.0);
        }
        back.inner.resize(tokens * inner, 0.0);
        back.stream.clear();
        back.stream.resize(tokens * d, 0.0);
        let last = self.params.len();
        if let [norm, head] = &mut self.params[last - 2..] {
            layers::linear_weight(&mut head.grad, &back.logits, &self.normed, d);
            layers::linear_input(&mut back.normed, Accum::Replace, &back.logits, &head.data, d);
            let (down, up) = (&mut back.stream, &back.normed);
            let (x, inverse) = (&self.stream, &self.inverse);
            layers::norm_backward(down, &mut norm.grad, up, x, inverse, &norm.data);
        }
        for (i, b) in self.blocks.iter().enumerate().rev() {
            let params = &mut self.params[2 + BLOCK * i..2 + BLOCK * (i + 1)];
            let [norm1, q, k, v, out, norm2, up, down] = params else { continue };
            layers::linear_weight(&mut down.grad, &back.stream, &b.act, inner);
            let delta = &mut back.inner;
            layers::linear_input(delta, Accum::Replace, &back.stream, &down.data, inner);
            layers::squared_relu_backward(delta, &b.up);
            layers::linear_weight(&mut up.grad, delta, &b.middle_normed, d);
            layers::linear_input(&mut back.normed, Accum::Replace, delta, &up.data, d);
            let (below, above) = (&mut back.stream, &back.normed);
            let inverse = &b.middle_inverse;
            layers::norm_backward(below, &mut norm2.grad, above, &b.middle, inverse, &norm2.data);

            layers::linear_weight(&mut out.grad, &back.stream, &b.mixed, d);
            layers::linear_input(&mut back.mixed, Accum::Replace, &back.stream, &out.data, d);
            let grads = [&mut back.q[..], &mut back.k[..], &mut back.v[..]];
            heads.attend_backward(grads, &back.mixed, &b.attention, [&b.q, &b.k, &b.v]);
            let mut accum = Accum::Replace;
            for (delta, weight) in [(&back.q, q), (&back.k, k), (&back.v, v)] {
                layers::linear_weight(&mut weight.grad, delta, &b.normed, d);
                layers::linear_input(&mut back.normed, accum, delta, &weight.data, d);
                accum = Accum::Add;
            }
            let (below, above) = (&mut back.stream, &back.normed);
            layers::norm_backward(
                below,
                &mut norm1.grad,
                above,
                &b.stream,
                &b.inverse,
                &norm1.data,
            );
        }
        if let [token, position, ..] = &mut self.params[..] {
            token.grad.fill(0.0);
            position.grad.fill(0.0);
            let context = self.shape.context;
            let bytes =
                windows.chunks_exact(context + 1).flat_map(|w| w[..context].iter().enumerate());
            for ((at, byte), delta) in bytes.zip(back.stream.chunks_exact(d)) {
                add(&mut token.grad[usize::from(*byte) * d..][..d], delta);
                add(&mut position.grad[at * d..][..d], delta);
            }
        }
    }
}

impl Block {
    fn resize(&mut self, tokens: usize, width: usize, inner: usize, attention: usize) {
        for v in [
            &mut self.stream,
            &mut self.normed,
            &mut self.q,
            &mut self.k,
            &mut self.v,
            &mut self.mixed,
            &mut self.middle,
            &mut self.middle_normed,
        ] {
            v.resize(tokens * width, 0.0);
        }
        for v in [&mut self.up, &mut self.act] {
            v.resize(tokens * inner, 0.0);
        }
        for v in [&mut self.inverse, &mut self.middle_inverse] {
            v.resize(tokens, 0.0);
        }
        self.attention.resize(attention, 0.0);
    }
}

fn block_params(params: &[Param], block: usize) -> [&Param; BLOCK] {
    std::array::from_fn(|i| &params[2 + BLOCK * block + i])
}

/// The byte after each one of a window, window after window.
fn labels(windows: &[u8], window: usize) -> impl Iterator<Item = usize> + '_ {
    windows.chunks_exact(window).flat_map(|w| w[1..].iter().map(|b| usize::from(*b)))
}

fn add(to: &mut [f32], what: &[f32]) {
    for (to, what) in to.iter_mut().zip(what) {
        *to += what;
    }
}
