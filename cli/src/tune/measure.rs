//! What schedules do to actual matrices on the CPU device, rounded at every store.

use anyhow::{Result, ensure};
use muon_cuda::recipe::Method;
use muon_cuda::spectrum::Sample;
use muon_cuda::{
    CoefficientSchedule, Cpu, MatrixShape, MethodChoice, OrthogonalizeOptions, Orthogonalizer,
    Precision, Spectrum,
};
use serde::{Deserialize, Serialize};

use crate::terminal::is_stopping;

/// Errors of one schedule on several matrices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Measured {
    /// Relative Frobenius distance to the polar factor, on each.
    pub(crate) to_polar: Vec<f64>,
    /// Cosine with the polar factor, on each.
    pub(crate) cosine: Vec<f64>,
}

impl Measured {
    pub(crate) fn mean(&self) -> f64 {
        self.to_polar.iter().sum::<f64>() / self.to_polar.len() as f64
    }

    pub(crate) fn worst(&self) -> f64 {
        self.to_polar.iter().fold(0.0, |a, x| if x.is_nan() { f64::NAN } else { a.max(*x) })
    }
}

/// Matrices to measure on: made once, used for every schedule.
#[derive(Debug)]
pub(crate) struct Bench {
    precision: Precision,
    samples: Vec<(MatrixShape, Sample)>,
}

impl Bench {
    /// One matrix for each spectrum; fewer once the user wants to stop.
    pub(crate) fn new(spectra: &[Spectrum], precision: Precision, seed: u64) -> Self {
        let numbered = (seed..).zip(spectra).take_while(|_| !is_stopping());
        let samples = numbered.map(|(seed, s)| (s.shape(), s.sample(seed))).collect();
        Self { precision, samples }
    }

    /// Orthogonalizes every matrix.
    ///
    /// # Errors
    /// A schedule that the precision makes unsafe; a result that is not finite; the user's wish to stop.
    pub(crate) fn measure(
        &self,
        schedule: &CoefficientSchedule,
        method: &Method,
    ) -> Result<Measured> {
        let method = match method {
            Method::Standard => MethodChoice::Standard,
            Method::Gram { groups } => MethodChoice::Gram(groups.clone()),
        };
        let options = OrthogonalizeOptions {
            orthogonalizer: Orthogonalizer::Polynomial {
                schedule: schedule.clone(),
                iterations: None,
            },
            precision: Some(self.precision),
            method,
            ..OrthogonalizeOptions::default()
        };
        let mut cpu = Cpu::with_threads(1)?;
        let mut out = Measured { to_polar: Vec::new(), cosine: Vec::new() };
        for (shape, sample) in &self.samples {
            ensure!(!is_stopping(), "stopped");
            let mut x = vec![0.0f32; shape.len()];
            muon_cuda::orthogonalize(&mut cpu, *shape, &sample.matrix[..], &mut x[..], &options)?;
            let (mut distance, mut overlap, mut norm, mut polar) = (0.0, 0.0, 0.0, 0.0);
            for (&x, &q) in x.iter().zip(&sample.polar_factor) {
                let (x, q) = (f64::from(x), f64::from(q));
                distance += (x - q) * (x - q);
                overlap += x * q;
                norm += x * x;
                polar += q * q;
            }
            out.to_polar.push((distance / polar).sqrt());
            out.cosine.push(overlap / (norm * polar).sqrt());
        }
        Ok(out)
    }
}
