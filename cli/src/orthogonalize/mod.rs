//! `muon orthogonalize`: every matrix of a safetensors file, with the error of each result.

pub(crate) mod compare;
mod measure;

use std::fs;
use std::io::Write as _;

use anyhow::{Context, Result};
use muon_cuda::checkpoint::{TensorDtype, TensorFile, TensorFileWriter};
use muon_cuda::reference::{self, Matrix};
use muon_cuda::{
    CoefficientSchedule, Cpu, MatrixShape, OrthogonalizeOptions, Orthogonalizer, Transfer,
};
use serde::Serialize;

use self::measure::{Errors, Exact};
use crate::args::{OrthogonalizeArgs, PrecisionName};
use crate::devices::DeviceName;
use crate::exit::{Ended, usage};
use crate::glob::matches;
use crate::tables::table;
use crate::terminal::Notes;

/// What was done to one tensor.
#[derive(Debug, Serialize)]
struct Treated {
    name: String,
    shape: Vec<usize>,
    dtype: String,
    method: String,
    #[serde(flatten)]
    errors: Errors,
}

/// Runs the command.
///
/// # Errors
/// Of the arguments, the files, or the library.
pub(crate) fn orthogonalize(args: &OrthogonalizeArgs) -> Result<Ended> {
    refuse_overwriting(args)?;
    let notes = Notes::new(args.quiet);
    let orthogonalizer = if args.exact {
        Orthogonalizer::ExactSvd
    } else {
        Orthogonalizer::Polynomial {
            schedule: CoefficientSchedule::preset_or_file(&args.schedule)?,
            iterations: None,
        }
    };
    let session = args.device.open()?;
    let mut engine = Engine::new(args.device, args.precision, orthogonalizer)?;
    let file = TensorFile::load(&args.input)?;
    let names: Vec<String> = file.names().map(str::to_owned).collect();
    let bar = notes.bar("orthogonalize", names.len() as u64);
    let mut writer = TensorFileWriter::new();
    for (key, text) in file.metadata() {
        writer.metadata(key, text);
    }
    let mut treated = Vec::new();
    for name in &names {
        bar.set_message(muon_cuda::Printable(name).to_string());
        let (dtype, shape) = (file.dtype(name)?, file.shape(name)?);
        let chosen = args.only.as_ref().is_none_or(|glob| matches(glob, name));
        if chosen && is_matrix(dtype, shape) {
            let (bytes, report) = engine
                .treat(&file, name, args)
                .with_context(|| format!("tensor `{name}` {shape:?}"))?;
            writer.tensor(name, dtype, shape, bytes)?;
            treated.push(report);
        } else {
            writer.tensor(name, dtype, shape, file.bytes(name)?)?;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    if treated.is_empty() {
        return Err(usage(match &args.only {
            Some(glob) => format!("no matrix of {} matches `{glob}`", args.input.display()),
            None => format!("{} holds no matrix of floating-point numbers", args.input.display()),
        }));
    }
    writer.save(&args.output)?;
    report(args, &treated)?;
    notes.say(&format!(
        "wrote {}: {} tensors orthogonalized, {} copied",
        args.output.display(),
        treated.len(),
        names.len() - treated.len()
    ));
    drop(engine);
    session.close(Ended::Well)
}

/// The input stays what it is, whatever name it goes by.
fn refuse_overwriting(args: &OrthogonalizeArgs) -> Result<()> {
    let same = match (fs::canonicalize(&args.input), fs::canonicalize(&args.output)) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    };
    if same {
        return Err(usage(format!(
            "{} is the input; the output needs another name",
            args.output.display()
        )));
    }
    Ok(())
}

fn is_matrix(dtype: TensorDtype, shape: &[usize]) -> bool {
    let float = [TensorDtype::F32, TensorDtype::F64, TensorDtype::BF16, TensorDtype::F16];
    matches!(shape.len(), 2 | 3) && !shape.contains(&0) && float.contains(&dtype)
}

/// Who orthogonalizes, and how.
struct Engine {
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

impl Engine {
    fn new(
        device: DeviceName,
        precision: Option<PrecisionName>,
        orthogonalizer: Orthogonalizer,
    ) -> Result<Self> {
        let precision = precision.unwrap_or(device.default_precision());
        if device == DeviceName::Reference && precision != PrecisionName::F32 {
            return Err(usage(
                "device `reference` computes in f64; --precision belongs to the others",
            ));
        }
        let options = OrthogonalizeOptions {
            orthogonalizer,
            precision: Some(precision.into()),
            ..OrthogonalizeOptions::default()
        };
        let mut engine = Self { arithmetic: Arithmetic::new(device)?, options };
        // A schedule that this precision makes unsafe is found before the file is read.
        engine.run(&[1, 1], &[1.0])?;
        Ok(engine)
    }

    fn treat(
        &mut self,
        file: &TensorFile,
        name: &str,
        args: &OrthogonalizeArgs,
    ) -> Result<(Vec<u8>, Treated)> {
        let (dtype, shape) = (file.dtype(name)?, file.shape(name)?.to_vec());
        let (result, method) = self.run(&shape, &file.f64(name)?)?;
        let bytes = encode(dtype, &result);
        // The errors are those of what is written, its rounding included.
        let mut probe = TensorFileWriter::new();
        probe.tensor("x", dtype, &shape, bytes.as_slice())?;
        let written = TensorFile::from_bytes(probe.to_bytes()?)?.f64("x")?;
        let input = file.f64(name)?;
        let [.., rows, cols] = *shape.as_slice() else { return Err(usage("not a matrix")) };
        let exact = if args.no_exact_error { Exact::Skip } else { Exact::Compare };
        let mut errors = Errors::default();
        for (a, x) in input.chunks_exact(rows * cols).zip(written.chunks_exact(rows * cols)) {
            errors = errors.or(measure::errors(a, x, rows, cols, exact)?);
        }
        let report =
            Treated { name: name.to_owned(), shape, dtype: dtype.to_string(), method, errors };
        Ok((bytes, report))
    }

    /// The orthogonalized matrices, and the method in words.
    fn run(&mut self, shape: &[usize], input: &[f64]) -> Result<(Vec<f64>, String)> {
        match &mut self.arithmetic {
            Arithmetic::Cpu(cpu) => on(cpu, &self.options, shape, input),
            #[cfg(feature = "cuda")]
            Arithmetic::Cuda(cuda) => on(cuda.as_mut(), &self.options, shape, input),
            Arithmetic::Reference => {
                let [.., rows, cols] = *shape else { return Err(usage("not a matrix")) };
                let mut out = Vec::with_capacity(input.len());
                for matrix in input.chunks_exact(rows * cols) {
                    if let Some(x) = matrix.iter().find(|x| !x.is_finite()) {
                        anyhow::bail!("it holds a `{x}`");
                    }
                    let matrix = Matrix::new(rows, cols, matrix.to_vec())?;
                    let x = reference::orthogonalize(
                        &self.options.orthogonalizer,
                        &matrix,
                        f64::MIN_POSITIVE,
                    );
                    out.extend_from_slice(x.data());
                }
                Ok((out, format!("{}, f64", self.options.orthogonalizer.name())))
            }
        }
    }
}

/// As [`Engine::run`], on a device of the library.
fn on<D: Transfer>(
    device: &mut D,
    options: &OrthogonalizeOptions,
    shape: &[usize],
    input: &[f64],
) -> Result<(Vec<f64>, String)> {
    let [.., rows, cols] = *shape else { return Err(usage("not a matrix")) };
    let input: Vec<f32> = input.iter().map(|x| narrow(*x)).collect();
    let mut output = vec![0.0f32; input.len()];
    let mut method = String::new();
    let count = rows * cols;
    for (a, x) in input.chunks_exact(count).zip(output.chunks_exact_mut(count)) {
        let shape = MatrixShape { rows, cols };
        let (a, mut out) = (device.upload(a)?, device.upload(x)?);
        let done =
            muon_cuda::orthogonalize(device, shape, D::grad(&a), D::param(&mut out), options)?;
        device.read(&out, x)?;
        let name = options.orthogonalizer.name();
        method = match done.method {
            Some(m) => format!("{name}, {m}, {}", done.precision),
            None => name,
        };
    }
    Ok((output.iter().map(|x| f64::from(*x)).collect(), method))
}
/// Numbers in the file's own type.
fn encode(dtype: TensorDtype, values: &[f64]) -> Vec<u8> {
    match dtype {
        TensorDtype::F64 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        TensorDtype::BF16 => {
            values.iter().flat_map(|x| half::bf16::from_f64(*x).to_le_bytes()).collect()
        }
        TensorDtype::F16 => {
            values.iter().flat_map(|x| half::f16::from_f64(*x).to_le_bytes()).collect()
        }
        _ => values.iter().flat_map(|x| narrow(*x).to_le_bytes()).collect(),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to the device's format is meant")]
fn narrow(x: f64) -> f32 {
    x as f32
}

fn report(args: &OrthogonalizeArgs, treated: &[Treated]) -> Result<()> {
    let mut stdout = crate::output::stdout();
    if args.json {
        writeln!(stdout, "{}", serde_json::to_string_pretty(treated)?)?;
        return Ok(());
    }
    let mut table =
        table(["tensor", "shape", "method", "|XXᵀ−I|", "diagonal", "off-diagonal", "to exact"]);
    for t in treated {
        let shape = t.shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(" × ");
        table.add_row([
            t.name.clone(),
            shape,
            t.method.clone(),
            format!("{:.1e}", t.errors.gram),
            format!("{:.1e}", t.errors.gram_diagonal),
            format!("{:.1e}", t.errors.gram_off_diagonal),
            t.errors.polar.map_or("-".into(), |e| format!("{e:.1e}")),
        ]);
    }
    writeln!(stdout, "{table}")?;
    writeln!(
        stdout,
        "|XXᵀ−I|: Frobenius norm over √n on the short side; diagonal, off-diagonal: largest entry; to exact:\n\
         relative Frobenius distance to the polar factor by SVD. Of several matrices the worst."
    )?;
    Ok(())
}
