//! Times single orthogonalizations and whole steps on request, so that another program can alternate with it
//! in one run (`tools/compare_torch.py`).
//!
//! Requests are lines:
//!
//! - `orthogonalize ROWS COLS SCHEDULE PRECISION INPUT OUTPUT`: `INPUT` is a file of little-endian f32,
//!   row-major; the result goes to `OUTPUT`, or nowhere if that is `-`. Schedule `svd` is the exact polar
//!   factor; `NAME@2,1` forces Gram groups of 2 and 1 iterations. The input is kept while its name stays the
//!   same.
//! - `step LAYERS SCHEDULE`: one step of an optimizer over that many layers of GPT-2 small, kept while the
//!   request stays the same; gradients are fixed normal numbers.
//!
//! The answer to each is a line `SECONDS METHOD GFLOP`.
#![allow(clippy::print_stdout, reason = "an example that answers on stdout")]

use std::error::Error;
use std::io::{BufRead, Write};
use std::time::Instant;

use muon_cuda::{
    Cpu, MatrixShape, MethodChoice, Muon, MuonConfig, MuonRule, OrthogonalizeOptions,
    Orthogonalizer, ParamId, ParamSpec, Precision, StepOptions, StepTensor, orthogonalize,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The matrices of one transformer layer.
const LAYER: [[usize; 2]; 6] =
    [[768, 768], [768, 768], [768, 768], [768, 768], [768, 3072], [3072, 768]];

fn main() -> Result<()> {
    let mut orthogonalizations =
        Orthogonalizations { device: Cpu::new()?, loaded: None, output: Vec::new() };
    let mut training: Option<(String, Training)> = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let fields: Vec<&str> = line.split_whitespace().collect();
        match fields[..] {
            ["orthogonalize", rows, cols, schedule, precision, input, output] => {
                let shape = MatrixShape { rows: rows.parse()?, cols: cols.parse()? };
                orthogonalizations.run(
                    shape,
                    schedule,
                    precision_named(precision)?,
                    input,
                    output,
                )?;
            }
            ["step", layers, schedule] => {
                let training = match &mut training {
                    Some((request, training)) if *request == line => training,
                    other => {
                        let new = Training::new(layers.parse()?, schedule)?;
                        &mut other.insert((line.clone(), new)).1
                    }
                };
                training.step()?;
            }
            _ => {
                return Err(
                    format!("expected `orthogonalize ...` or `step ...`, found `{line}`").into()
                );
            }
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn precision_named(name: &str) -> Result<Precision> {
    Ok(match name {
        "f32" => Precision::F32,
        "bf16" => Precision::Bf16,
        "fp16" => Precision::Fp16,
        _ => return Err(format!("expected precision f32, bf16 or fp16, found `{name}`").into()),
    })
}

struct Orthogonalizations {
    device: Cpu,
    loaded: Option<(String, Vec<f32>)>,
    /// The caller's, so it is not fresh from the system at every call.
    output: Vec<f32>,
}

impl Orthogonalizations {
    fn run(
        &mut self,
        shape: MatrixShape,
        schedule: &str,
        precision: Precision,
        file: &str,
        result: &str,
    ) -> Result<()> {
        if self.loaded.as_ref().is_none_or(|(name, _)| name != file) {
            let bytes = std::fs::read(file)?;
            let input = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            self.loaded = Some((file.to_owned(), input));
        }
        let Some((_, input)) = &self.loaded else { return Ok(()) };
        let (schedule, method) = match schedule.split_once('@') {
            Some((name, groups)) => {
                let groups = groups.split(',').map(str::parse);
                (name, MethodChoice::Gram(groups.collect::<std::result::Result<_, _>>()?))
            }
            None => (schedule, MethodChoice::Auto),
        };
        let orthogonalizer = match schedule {
            "svd" => Orthogonalizer::ExactSvd,
            name => Orthogonalizer::preset(name)?,
        };
        let options = OrthogonalizeOptions {
            orthogonalizer,
            precision: Some(precision),
            method,
            ..Default::default()
        };
        self.output.clear();
        self.output.resize(shape.len(), 0.0);
        let start = Instant::now();
        let done =
            orthogonalize(&mut self.device, shape, &input[..], &mut self.output[..], &options)?;
        let seconds = start.elapsed().as_secs_f64();
        if result != "-" {
            let bytes: Vec<u8> = self.output.iter().flat_map(|x| x.to_le_bytes()).collect();
            std::fs::write(result, bytes)?;
        }
        let method = done.method.map_or_else(|| "svd".to_owned(), |m| m.to_string());
        println!("{seconds:.9} {method} {:.3}", done.flops as f64 / 1e9);
        Ok(())
    }
}

/// An optimizer over layers of GPT-2 small, in f32.
struct Training {
    muon: Muon<Cpu>,
    ids: Vec<ParamId>,
    params: Vec<Vec<f32>>,
    grads: Vec<Vec<f32>>,
}

impl Training {
    fn new(layers: usize, schedule: &str) -> Result<Self> {
        let mut muon = Muon::new(Cpu::new()?, MuonConfig::default())?;
        let rule =
            MuonRule { orthogonalizer: Orthogonalizer::preset(schedule)?, ..MuonRule::default() };
        let group = muon.add_group("hidden", rule)?;
        let (mut ids, mut params, mut grads) = (Vec::new(), Vec::new(), Vec::new());
        for layer in 0..layers {
            for (i, shape) in LAYER.iter().enumerate() {
                let name = format!("layer{layer}.{i}");
                ids.push(muon.add_param(group, ParamSpec::new(name, shape))?);
                let seed = (layer * LAYER.len() + i) as u64;
                params.push(normal(shape[0] * shape[1], 2 * seed + 1));
                grads.push(normal(shape[0] * shape[1], 2 * seed + 2));
            }
        }
        Ok(Self { muon, ids, params, grads })
    }

    fn step(&mut self) -> Result<()> {
        let start = Instant::now();
        let mut tensors: Vec<_> = self
            .ids
            .iter()
            .zip(self.params.iter_mut().zip(&self.grads))
            .map(|(id, (param, grad))| StepTensor::new(*id, &mut param[..], &grad[..]))
            .collect();
        self.muon.step(&StepOptions::default(), &mut tensors)?;
        let seconds = start.elapsed().as_secs_f64();
        println!("{seconds:.9} step {:.3}", self.muon.plan()?.flops() as f64 / 1e9);
        Ok(())
    }
}

/// Sums of four uniform numbers: near enough to normal for spectra like a gradient's.
fn normal(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut uniform = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as f32 / (1u32 << 24) as f32 - 0.5
    };
    (0..len).map(|_| uniform() + uniform() + uniform() + uniform()).collect()
}
