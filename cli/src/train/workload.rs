//! What a run learns: the data of its seed and the model, behind the few operations that training needs.

use anyhow::{Context as _, Result};

use super::config::Task;
use super::data::{self, Batches, Samples, Split};
use super::model::Mlp;
use super::param::{Param, Score};
use super::text::{self, Corpus};
use super::transformer::{Transformer, TransformerShape};

/// Windows that are evaluated together: bounds the work space.
pub(crate) const EVALUATED_TOGETHER: usize = 32;

/// A task with its data, read once a job.
#[derive(Debug)]
pub(crate) enum Source {
    /// All digits, and the widths of the perceptron's hidden layers.
    Digits(Samples, Vec<usize>),
    /// All bytes, and the dimensions of the transformer.
    Text(Vec<u8>, TransformerShape),
}

impl Source {
    /// Reads the data of a task.
    ///
    /// # Errors
    /// Embedded data that are not what they should be; a text that cannot be read or has changed.
    pub(crate) fn load(task: &Task) -> Result<Self> {
        match task {
            Task::Digits { hidden } => Ok(Self::Digits(data::digits()?, hidden.clone())),
            Task::Text { text, model } => Ok(Self::Text(text::load(text)?, *model)),
        }
    }
}

/// Losses and accuracy at one time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Scores {
    /// Mean cross-entropy over the training data (of a text: an even sample of them), nats.
    pub(crate) training_loss: f64,
    /// Mean cross-entropy over the held-out data, nats.
    pub(crate) held_out_loss: f64,
    /// Fraction of held-out answers that are right.
    pub(crate) accuracy: f64,
}

/// Data and model of one run.
#[derive(Debug)]
pub(crate) enum Workload {
    /// Digits and a perceptron.
    Digits(Box<Digits>),
    /// Text and a transformer.
    Text(Box<Text>),
}

/// The digits task.
#[derive(Debug)]
pub(crate) struct Digits {
    model: Mlp,
    split: Split,
    batches: Batches,
    pixels: Vec<f32>,
    labels: Vec<u8>,
}

/// The text task.
#[derive(Debug)]
pub(crate) struct Text {
    model: Transformer,
    corpus: Corpus,
    batch_size: usize,
    training_sample: Vec<u8>,
    held_out: Vec<u8>,
}

impl Workload {
    /// Split, initialisation and batches of a seed.
    ///
    /// # Errors
    /// A model or a batch that needs more memory than there is.
    pub(crate) fn new(source: &Source, batch_size: usize, seed: u64) -> Result<Self> {
        Ok(match source {
            Source::Digits(samples, hidden) => {
                let split = data::split(samples, seed);
                let batches = Batches::new(seed, split.train.len(), batch_size);
                let mut model = Mlp::new(hidden, seed)?;
                model.make_room(samples.len()).context("work space of the perceptron")?;
                let (pixels, labels) = (Vec::new(), Vec::new());
                Self::Digits(Box::new(Digits { model, split, batches, pixels, labels }))
            }
            Source::Text(bytes, shape) => {
                let mut model = Transformer::new(*shape, seed)?;
                let windows = batch_size.max(EVALUATED_TOGETHER);
                model.make_room(windows).context("work space of the transformer")?;
                let corpus = Corpus::new(bytes.clone(), model.window(), seed);
                let (training_sample, held_out) = (corpus.training_sample(), corpus.held_out());
                Self::Text(Box::new(Text { model, corpus, batch_size, training_sample, held_out }))
            }
        })
    }

    /// The model's parameters.
    pub(crate) fn params(&self) -> &[Param] {
        match self {
            Self::Digits(d) => &d.model.params,
            Self::Text(t) => &t.model.params,
        }
    }

    /// The same, to be stepped or replaced.
    pub(crate) fn params_mut(&mut self) -> &mut [Param] {
        match self {
            Self::Digits(d) => &mut d.model.params,
            Self::Text(t) => &mut t.model.params,
        }
    }

    /// Loss of a step's batch; leaves its gradient in the parameters.
    pub(crate) fn learn(&mut self, step: usize) -> f64 {
        match self {
            Self::Digits(d) => {
                d.pixels.clear();
                d.labels.clear();
                for &i in d.batches.of_step(step) {
                    d.pixels.extend_from_slice(d.split.train.row(i));
                    d.labels.push(d.split.train.labels[i]);
                }
                d.model.backward(&d.pixels, &d.labels)
            }
            Self::Text(t) => t.model.backward(&t.corpus.batch(step, t.batch_size)),
        }
    }

    /// How good the model is now.
    pub(crate) fn evaluate(&mut self) -> Scores {
        match self {
            Self::Digits(d) => {
                let (training_loss, _) = d.model.evaluate(&d.split.train);
                let (held_out_loss, accuracy) = d.model.evaluate(&d.split.held_out);
                Scores { training_loss, held_out_loss, accuracy }
            }
            Self::Text(t) => {
                let (training_loss, _) = score(&mut t.model, &t.training_sample);
                let (held_out_loss, accuracy) = score(&mut t.model, &t.held_out);
                Scores { training_loss, held_out_loss, accuracy }
            }
        }
    }

    /// Samples, or bytes, to train on and held out.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        match self {
            Self::Digits(d) => (d.split.train.len(), d.split.held_out.len()),
            Self::Text(t) => t.corpus.sizes(),
        }
    }
}

fn score(model: &mut Transformer, windows: &[u8]) -> (f64, f64) {
    let mut score = Score::default();
    for some in windows.chunks(EVALUATED_TOGETHER * model.window()) {
        score.extend(model.score(some));
    }
    score.mean()
}
