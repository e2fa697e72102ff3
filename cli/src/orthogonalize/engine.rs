//! Who orthogonalizes a matrix, and how: the oracle or a device of the library.

use anyhow::{Context as _, Result, anyhow, bail};
use muon_cuda::reference::{self, Matrix};
use muon_cuda::{
    Cpu, MatrixShape, MethodChoice, OrthogonalizeOptions, Orthogonalizer, Safety, Transfer,
};

use crate::args::PrecisionName;
use crate::devices::DeviceName;
use crate::exit::usage;

/// Who orthogonalizes, and how.
pub(crate) struct Engine {
    arithmetic: Arithmetic,
    options: OrthogonalizeOptions,
}

/// Where the arithmetic is done.
enum Arithmetic {
    Reference,
    Cpu(Cpu),
    #[cfg(feature = "cuda")]
    Cuda(Box<muon_cuda::Cuda>),
}

impl Arithmetic {
    fn new(device: DeviceName) -> muon_cuda::Result<Self> {
        match device {
            DeviceName::Reference => Ok(Self::Reference),
            DeviceName::Cpu => Cpu::new().map(Self::Cpu),
            #[cfg(feature = "cuda")]
            DeviceName::Cuda(gpu) => Ok(Self::Cuda(Box::new(muon_cuda::Cuda::new(gpu.ordinal())?))),
        }
    }
}

/// The matrices of a tensor, one after the other in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Matrices {
    pub(crate) count: usize,
    pub(crate) shape: MatrixShape,
}

impl Matrices {
    /// As the library reads a shape: `[rows, cols]`, `[experts, rows, cols]`, or the convolution `[out, in, kh, kw]` as
    /// `[out, in·kh·kw]`. `None` for what holds no matrix.
    pub(crate) fn of(shape: &[usize]) -> Option<Self> {
        let (count, rows, cols) = match *shape {
            [rows, cols] => (1, rows, cols),
            [experts, rows, cols] => (experts, rows, cols),
            [out, input, kh, kw] => (1, out, input.checked_mul(kh)?.checked_mul(kw)?),
            _ => return None,
        };
        let shape = MatrixShape { rows, cols };
        (count > 0 && !shape.is_empty()).then_some(Self { count, shape })
    }
}

impl Engine {
    /// Finds out whether the options can be honoured before any file is read.
    ///
    /// # Errors
    /// A device that is not there, a precision that the oracle does not have, a schedule or method that is refused.
    pub(crate) fn new(
        device: DeviceName,
        precision: Option<PrecisionName>,
        orthogonalizer: Orthogonalizer,
        method: MethodChoice,
        safety: Safety,
    ) -> Result<Self> {
        let precision = precision.unwrap_or(device.default_precision());
        let mut options = OrthogonalizeOptions {
            orthogonalizer,
            precision: Some(precision.into()),
            method,
            safety,
            ..OrthogonalizeOptions::default()
        };
        if device == DeviceName::Reference {
            if precision != PrecisionName::F32 {
                return Err(usage(
                    "device `reference` computes in f64; --precision belongs to the others",
                ));
            }
            // The oracle runs every schedule.
            options.safety = Safety::RunAnyway;
        }
        options.check(precision.into()).map_err(|e| {
            let anyway = OrthogonalizeOptions { safety: Safety::RunAnyway, ..options.clone() };
            match anyway.check(precision.into()) {
                Ok(()) => anyhow!(e).context("--accept-unsafe runs it all the same"),
                Err(_) => anyhow!(e),
            }
        })?;
        Ok(Self { arithmetic: Arithmetic::new(device)?, options })
    }

    /// The orthogonalized matrices, and the method in words.
    ///
    /// # Errors
    /// A NaN or an infinity in the input or in the result, no memory, a failed device.
    pub(crate) fn run(&mut self, matrices: Matrices, input: &[f64]) -> Result<(Vec<f64>, String)> {
        let MatrixShape { rows, cols } = matrices.shape;
        let mut result = Vec::new();
        // The copy, the result, and what the device makes of it.
        Vec::<f64>::new()
            .try_reserve_exact(input.len().saturating_mul(4))
            .and_then(|()| result.try_reserve_exact(input.len()))
            .with_context(|| format!("no memory for {} elements", input.len()))?;
        let mut method = String::new();
        for matrix in input.chunks_exact(matrices.shape.len()) {
            if let Some(x) = matrix.iter().find(|x| !x.is_finite()) {
                bail!("it holds a `{x}`");
            }
            // A power of two brings the largest element near 1: no bit of the result changes, and f64 that is beyond f32 is
            // narrowed without loss.
            let (matrix, _) = Matrix::new(rows, cols, matrix.to_vec())?.leveled();
            method = match &mut self.arithmetic {
                Arithmetic::Cpu(cpu) => on(cpu, &self.options, &matrix, &mut result)?,
                #[cfg(feature = "cuda")]
                Arithmetic::Cuda(cuda) => on(cuda.as_mut(), &self.options, &matrix, &mut result)?,
                Arithmetic::Reference => {
                    let orthogonalizer = &self.options.orthogonalizer;
                    let x = reference::orthogonalize(orthogonalizer, &matrix, f64::MIN_POSITIVE);
                    if x.data().iter().any(|x| !x.is_finite()) {
                        bail!("the schedule makes a NaN or an infinity of it");
                    }
                    result.extend_from_slice(x.data());
                    format!("{}, f64", orthogonalizer.name())
                }
            };
        }
        Ok((result, method))
    }
}

/// As [`Engine::run`], one matrix on a device of the library.
fn on<D: Transfer>(
    device: &mut D,
    options: &OrthogonalizeOptions,
    matrix: &Matrix,
    result: &mut Vec<f64>,
) -> Result<String> {
    let shape = MatrixShape { rows: matrix.rows(), cols: matrix.cols() };
    let mut host: Vec<f32> = matrix.data().iter().map(|x| narrow(*x)).collect();
    let input = device.upload(&host)?;
    host.fill(0.0);
    let mut output = device.upload(&host)?;
    let done =
        muon_cuda::orthogonalize(device, shape, D::grad(&input), D::param(&mut output), options)?;
    device.read(&output, &mut host)?;
    result.extend(host.iter().map(|x| f64::from(*x)));
    let name = options.orthogonalizer.name();
    Ok(match done.method {
        Some(m) => format!("{name}, {m}, {}", done.precision),
        None => name,
    })
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to the device's format is meant")]
pub(super) fn narrow(x: f64) -> f32 {
    x as f32
}
