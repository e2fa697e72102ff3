//! `muon orthogonalize`: every matrix of safetensors files, with the error of each result.

pub(crate) mod compare;
mod engine;
mod measure;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use muon_cuda::checkpoint::{ModelFiles, TensorDtype, TensorFile, TensorFileWriter};
use muon_cuda::{CoefficientSchedule, MatrixShape, Orthogonalizer, Safety};
use serde::Serialize;

use self::engine::{Engine, Matrices, narrow};
use self::measure::{Errors, Exact};
use crate::args::OrthogonalizeArgs;
use crate::devices::DeviceName;
use crate::exit::{Ended, usage};
use crate::files::refuse_to_replace;
use crate::glob::matches;
use crate::tables::table;
use crate::terminal::Notes;

/// What was done to one tensor.
#[derive(Debug, Serialize)]
struct Treated {
    name: String,
    shape: Vec<usize>,
    /// How many matrices it was read as, and what shape each has.
    matrices: usize,
    rows: usize,
    cols: usize,
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
    if args.device == DeviceName::Reference {
        refuse_unused(args)?;
    }
    let notes = Notes::new(args.quiet);
    let orthogonalizer = if args.exact {
        Orthogonalizer::ExactSvd
    } else {
        Orthogonalizer::Polynomial {
            schedule: CoefficientSchedule::preset_or_file(&args.schedule)?,
            iterations: args.iterations,
        }
    };
    let safety = if args.accept_unsafe { Safety::RunAnyway } else { Safety::Refuse };
    let session = args.device.open()?;
    let mut engine =
        Engine::new(args.device, args.precision, orthogonalizer, args.method.clone(), safety)?;
    let files = ModelFiles::open(&args.input)?;
    let chosen = |name: &str, dtype, shape: &[usize]| {
        args.only.as_ref().is_none_or(|glob| matches(glob, name)) && is_matrix(dtype, shape)
    };
    if !files.tensors().iter().any(|t| chosen(&t.name, t.dtype, &t.shape)) {
        return Err(usage(match &args.only {
            Some(glob) => format!("no matrix of {} matches `{glob}`", args.input.display()),
            None => format!("{} holds no matrix of floating-point numbers", args.input.display()),
        }));
    }
    let target = Target::new(args, &files)?;
    let bar = notes.bar("orthogonalize", files.tensors().len() as u64);
    let (mut treated, mut copied) = (Vec::new(), 0);
    for path in files.paths() {
        let file = TensorFile::load(path)?;
        let names: Vec<String> = file.names().map(str::to_owned).collect();
        let mut writer = TensorFileWriter::new();
        for (key, text) in file.metadata() {
            writer.metadata(key, text);
        }
        for name in &names {
            bar.set_message(muon_cuda::Printable(name).to_string());
            let (dtype, shape) = (file.dtype(name)?, file.shape(name)?);
            if chosen(name, dtype, shape) {
                let (bytes, report) = treat(&mut engine, &file, name, args)
                    .with_context(|| format!("tensor `{name}` {shape:?}"))?;
                writer.tensor(name, dtype, shape, bytes)?;
                treated.push(report);
            } else {
                writer.tensor(name, dtype, shape, file.bytes(name)?)?;
                copied += 1;
            }
            bar.inc(1);
        }
        writer.save(target.of(path)?)?;
    }
    bar.finish_and_clear();
    target.finish(&files)?;
    treated.sort_by(|a, b| a.name.cmp(&b.name));
    report(args, &treated)?;
    notes.say(&format!(
        "wrote {}: {} tensors orthogonalized, {copied} copied{}",
        args.output.display(),
        treated.len(),
        match files.paths() {
            [_] if !args.input.is_dir() && files.index().is_none() => String::new(),
            paths => format!(
                "; a folder with {} of the same names as the input's{}, and nothing else",
                if paths.len() == 1 { "a file" } else { "shards" },
                if files.index().is_some() { " and its index" } else { "" }
            ),
        }
    ));
    drop(engine);
    session.close(Ended::Well)
}

/// What the oracle has no use for.
fn refuse_unused(args: &OrthogonalizeArgs) -> Result<()> {
    if args.method != muon_cuda::MethodChoice::Auto {
        return Err(usage(
            "device `reference` evaluates polynomials as they are written; --method belongs to the others",
        ));
    }
    if args.accept_unsafe {
        return Err(usage(
            "device `reference` runs every schedule; --accept-unsafe belongs to the others",
        ));
    }
    Ok(())
}

/// Where results go: one file, or a folder that gets its name when it is complete.
enum Target<'a> {
    File(&'a Path),
    Folder { partial: PathBuf, output: &'a Path },
}

impl<'a> Target<'a> {
    fn new(args: &'a OrthogonalizeArgs, files: &ModelFiles) -> Result<Self> {
        let output = args.output.as_path();
        if !args.input.is_dir() && files.index().is_none() {
            refuse_to_replace(output, args.force)?;
            return Ok(Self::File(output));
        }
        if output.exists() {
            return Err(usage(format!(
                "the output of {} is a folder, and {} is there already; name one that is not",
                args.input.display(),
                output.display()
            )));
        }
        let name = output
            .file_name()
            .ok_or_else(|| usage(format!("{} is no name of a folder", output.display())))?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.partial", std::process::id()));
        let partial = output.with_file_name(hidden);
        fs::create_dir(&partial).with_context(|| format!("create {}", partial.display()))?;
        Ok(Self::Folder { partial, output })
    }

    /// Where the results of one input file go.
    fn of(&self, input: &Path) -> Result<PathBuf> {
        match self {
            Self::File(output) => Ok(output.to_path_buf()),
            Self::Folder { partial, .. } => {
                Ok(partial.join(input.file_name().context("a shard has a name")?))
            }
        }
    }

    /// Adds the index and gives the folder its name.
    fn finish(&self, files: &ModelFiles) -> Result<()> {
        let Self::Folder { partial, output } = self else { return Ok(()) };
        if let Some(index) = files.index() {
            let copy = self.of(index)?;
            fs::copy(index, &copy).with_context(|| format!("write {}", copy.display()))?;
        }
        fs::rename(partial, output).with_context(|| format!("write {}", output.display()))
    }
}

impl Drop for Target<'_> {
    /// What was not finished is cleared away; what was has another name by now.
    fn drop(&mut self) {
        if let Self::Folder { partial, .. } = self {
            // The error that ended the command says what went wrong.
            let _ = fs::remove_dir_all(partial);
        }
    }
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
    Matrices::of(shape).is_some() && float.contains(&dtype)
}

/// The bytes of the orthogonalized tensor, and the errors of what they hold.
fn treat(
    engine: &mut Engine,
    file: &TensorFile,
    name: &str,
    args: &OrthogonalizeArgs,
) -> Result<(Vec<u8>, Treated)> {
    let (dtype, shape) = (file.dtype(name)?, file.shape(name)?.to_vec());
    let matrices = Matrices::of(&shape).ok_or_else(|| usage("not a matrix"))?;
    let input = file.f64(name)?;
    let (result, method) = engine.run(matrices, &input)?;
    let bytes = encode(dtype, &result);
    // The errors are those of what is written, its rounding included.
    let mut probe = TensorFileWriter::new();
    probe.tensor("x", dtype, &shape, bytes.as_slice())?;
    let written = TensorFile::from_bytes(probe.to_bytes()?)?.f64("x")?;
    let MatrixShape { rows, cols } = matrices.shape;
    let exact = if args.no_exact_error { Exact::Skip } else { Exact::Compare };
    let mut errors = Errors::default();
    for (a, x) in input.chunks_exact(rows * cols).zip(written.chunks_exact(rows * cols)) {
        errors = errors.or(measure::errors(a, x, rows, cols, exact)?);
    }
    let report = Treated {
        name: name.to_owned(),
        shape,
        matrices: matrices.count,
        rows,
        cols,
        dtype: dtype.to_string(),
        method,
        errors,
    };
    Ok((bytes, report))
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

fn report(args: &OrthogonalizeArgs, treated: &[Treated]) -> Result<()> {
    let mut stdout = crate::output::stdout();
    if args.json {
        writeln!(stdout, "{}", serde_json::to_string_pretty(treated)?)?;
        return Ok(());
    }
    let mut table = table([
        "tensor",
        "shape",
        "matrices",
        "method",
        "|XXᵀ−I|",
        "diagonal",
        "off-diagonal",
        "to exact",
    ]);
    for t in treated {
        let shape = t.shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(" × ");
        table.add_row([
            t.name.clone(),
            shape,
            format!("{} of {} × {}", t.matrices, t.rows, t.cols),
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
