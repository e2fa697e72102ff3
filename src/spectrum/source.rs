//! Spectra from files: matrices of a safetensors file, or recorded histograms.

use std::path::Path;

use super::{Spectrum, read_records};
use crate::checkpoint::{TensorDtype, TensorFile};
use crate::error::{Error, Result, ResultExt as _};
use crate::shape::MatrixShape;

/// The spectra of a file.
///
/// `.safetensors`: of every two-dimensional floating-point tensor, and of every matrix of a
/// three-dimensional one (`name[i]`), by singular value decomposition. Any other ending: the lines of
/// [`read_records`]. Zero matrices are left out: they have no direction.
///
/// # Errors
/// A file that cannot be read or is damaged, a matrix or a record with a NaN or an infinity, a file
/// without any spectrum.
pub fn load(path: impl AsRef<Path>) -> Result<Vec<Spectrum>> {
    let path = path.as_ref();
    let is_tensors = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("safetensors"));
    let spectra = if is_tensors { measured(path)? } else { recorded(path)? };
    if spectra.is_empty() {
        return Err(Error::invalid_config(format!(
            "{} holds no spectrum: expected matrices other than zero, or recorded ones",
            path.display()
        )));
    }
    Ok(spectra)
}

fn recorded(path: &Path) -> Result<Vec<Spectrum>> {
    let recording = read_records(path)?;
    recording
        .records
        .iter()
        .filter(|r| r.norm != 0.0)
        .map(|r| r.spectrum().context(|| path.display().to_string()))
        .collect()
}

fn measured(path: &Path) -> Result<Vec<Spectrum>> {
    const FLOATS: [TensorDtype; 4] =
        [TensorDtype::F32, TensorDtype::F64, TensorDtype::BF16, TensorDtype::F16];
    let file = TensorFile::load(path)?;
    let names: Vec<String> = file.names().map(str::to_owned).collect();
    let mut spectra = Vec::new();
    for name in &names {
        let shape = file.shape(name)?.to_vec();
        if !FLOATS.contains(&file.dtype(name)?) || shape.contains(&0) {
            continue;
        }
        let (&[rows, cols] | &[_, rows, cols]) = shape.as_slice() else { continue };
        let matrix = MatrixShape { rows, cols };
        for (i, values) in file.f64(name)?.chunks_exact(matrix.len()).enumerate() {
            if values.iter().all(|x| *x == 0.0) {
                continue;
            }
            let name = if shape.len() == 3 { format!("{name}[{i}]") } else { name.clone() };
            let spectrum = Spectrum::of_matrix(name, matrix, values);
            spectra.push(spectrum.context(|| path.display().to_string())?);
        }
    }
    Ok(spectra)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::TensorFileWriter;
    use crate::spectrum::SpectrumRecord;

    #[test]
    fn both_kinds_of_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = TensorFileWriter::new();
        writer.values::<f64>("w", &[2, 3], &[3.0, 0.0, 0.0, 0.0, 4.0, 0.0]).unwrap();
        writer.values::<f64>("experts", &[2, 1, 2], &[0.0, 0.0, 0.0, 2.0]).unwrap();
        writer.values::<f64>("bias", &[3], &[1.0; 3]).unwrap();
        let path = dir.path().join("x.safetensors");
        writer.save(&path).unwrap();
        let spectra = load(&path).unwrap();
        let names: Vec<&str> = spectra.iter().map(Spectrum::name).collect();
        // The first expert is a zero matrix.
        assert_eq!(names, ["experts[1]", "w"]);
        for (found, exact) in spectra[1].values().iter().zip([0.8, 0.6]) {
            assert!((found - exact).abs() < 1e-15, "{found} {exact}");
        }

        let shape = MatrixShape { rows: 1, cols: 2 };
        let lines: String = [[0.0f32, 0.0], [0.0, 2.0]]
            .iter()
            .map(|x| SpectrumRecord::measure(3, "w", shape, x).unwrap().to_line().unwrap())
            .collect();
        let path = dir.path().join("x.jsonl");
        std::fs::write(&path, lines).unwrap();
        let spectra = load(&path).unwrap();
        assert_eq!((spectra.len(), spectra[0].values()), (1, &[1.0][..]));
    }

    #[test]
    fn files_without_a_spectrum_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("empty.jsonl");
        std::fs::write(&path, "").unwrap();
        let e = load(&path).unwrap_err();
        assert!(e.is_invalid_config() && e.to_string().contains("no spectrum"), "{e}");
        let mut writer = TensorFileWriter::new();
        writer.values::<f64>("w", &[1, 2], &[f64::NAN, 1.0]).unwrap();
        let path = dir.path().join("nan.safetensors");
        writer.save(&path).unwrap();
        let e = load(&path).unwrap_err();
        assert!(e.is_non_finite() && e.to_string().contains("nan.safetensors"), "{e}");
        assert!(load(dir.path().join("none.jsonl")).unwrap_err().is_io());
    }
}
