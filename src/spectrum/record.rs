//! Recorded spectra: one line of JSON for each matrix and step, written during training and read by the
//! tuner.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Spectrum, singular_values};
use crate::checkpoint::read_text_file;
use crate::error::{Error, Result, ResultExt as _};
use crate::shape::MatrixShape;

/// Bins of a recorded histogram for each factor of two in `σ/‖X‖_F`: a resolution of ±4.4 %.
pub const BINS_PER_OCTAVE: i32 = 8;

/// `log₂(σ/‖X‖_F)` below which a singular value is counted as zero: no schedule lifts it.
pub const LOWEST_OCTAVE: i32 = -40;

/// Longest short side of a recorded matrix: bounds what a line of a file can cost.
const MOST_VALUES: usize = 1 << 20;

/// The histogram of the singular values of one matrix at one step.
///
/// As a line of JSON: `{"step":100,"name":"h.0.w","rows":4,"cols":8,"norm":0.5,"zeros":1,"bins":{"-9":2,"-8":1}}`.
/// Bin `k` counts the values with `2^(k/8) ≤ σ/‖X‖_F < 2^((k+1)/8)`; `zeros` those below `2^−40`.
/// All counts add up to the short side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpectrumRecord {
    /// Optimizer steps taken before.
    pub step: u64,
    /// Name of the parameter, with the matrix's number where it has several.
    pub name: String,
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub cols: usize,
    /// Frobenius norm of the matrix; zero only for a zero matrix, whose values are all in `zeros`.
    pub norm: f64,
    /// Values below the lowest bin.
    pub zeros: usize,
    /// Number of values by bin.
    pub bins: BTreeMap<i32, usize>,
}

impl SpectrumRecord {
    /// Measures a row-major matrix.
    ///
    /// # Errors
    /// A length that is not `rows · cols`, a NaN or an infinity, a decomposition that does not
    /// converge.
    ///
    /// # Cost
    /// As [`Spectrum::of_matrix`].
    pub fn measure(
        step: u64,
        name: impl Into<String>,
        shape: MatrixShape,
        matrix: &[f32],
    ) -> Result<Self> {
        let name = name.into();
        let matrix: Vec<f64> = matrix.iter().map(|x| f64::from(*x)).collect();
        let (norm, values) = singular_values(&name, shape, &matrix)?;
        let sum = values.iter().map(|x| x * x).sum::<f64>().sqrt();
        let (mut zeros, mut bins) = (0, BTreeMap::new());
        for value in values {
            match bin(value / sum) {
                Some(k) => *bins.entry(k).or_insert(0) += 1,
                None => zeros += 1,
            }
        }
        Ok(Self { step, name, rows: shape.rows, cols: shape.cols, norm, zeros, bins })
    }

    /// The spectrum it describes: the values of a bin are spread evenly, in the logarithm, over it.
    ///
    /// # Errors
    /// Counts that do not add up to the short side, a bin outside `[8·−40, 0]`, a zero matrix, a short side above 2²⁰.
    pub fn spectrum(&self) -> Result<Spectrum> {
        let shape = MatrixShape { rows: self.rows, cols: self.cols };
        let what = || format!("recorded spectrum `{}` of step {}", self.name, self.step);
        let lowest = LOWEST_OCTAVE * BINS_PER_OCTAVE;
        if let Some(k) = self.bins.keys().find(|k| !(lowest..=0).contains(*k)) {
            return Err(Error::parse(format!(
                "bin `{k}` lies outside [{lowest}, 0]: σ/‖X‖_F is at most 1"
            ))
            .context(what()));
        }
        let counted = self.bins.values().try_fold(self.zeros, |sum, n| sum.checked_add(*n));
        // Checked before anything is allocated by these counts.
        if counted != Some(shape.short()) {
            return Err(Error::shape_mismatch(
                format!("singular values of a {shape} matrix"),
                shape.short(),
                counted.map_or_else(|| "more than fit".to_owned(), |n| n.to_string()),
            )
            .context(what()));
        }
        if shape.short() > MOST_VALUES || shape.rows.checked_mul(shape.cols).is_none() {
            let most = format!("a matrix with a short side of at most {MOST_VALUES}");
            return Err(Error::shape_mismatch("recorded spectrum", most, shape).context(what()));
        }
        let mut values = vec![0.0; self.zeros];
        for (&k, &count) in &self.bins {
            values.extend((0..count).map(|i| {
                let within = (i as f64 + 0.5) / count as f64;
                ((f64::from(k) + within) / f64::from(BINS_PER_OCTAVE)).exp2()
            }));
        }
        Spectrum::new(format!("{}@{}", self.name, self.step), shape, values).context(what)
    }

    /// The record as one line, newline included.
    ///
    /// # Errors
    /// A norm that is not finite.
    pub fn to_line(&self) -> Result<String> {
        if !self.norm.is_finite() {
            return Err(Error::non_finite(format!(
                "spectrum of `{}`: the norm is `{}`",
                self.name, self.norm
            )));
        }
        let mut line = serde_json::to_string(self)
            .map_err(|e| Error::parse(format!("spectrum of `{}`: {e}", self.name)))?;
        line.push('\n');
        Ok(line)
    }
}

/// The bin of a singular value of a matrix of norm 1; `None` if it counts as zero.
#[expect(clippy::cast_possible_truncation, reason = "between −320 and 0")]
fn bin(sigma: f64) -> Option<i32> {
    let place = sigma.log2() * f64::from(BINS_PER_OCTAVE);
    // Rank one has σ = 1 up to rounding.
    (place >= f64::from(LOWEST_OCTAVE * BINS_PER_OCTAVE)).then(|| (place.floor() as i32).min(0))
}

/// Records of a file, and whether its last line was cut off.
#[derive(Debug, Clone, PartialEq)]
pub struct Recording {
    /// In the order of the file.
    pub records: Vec<SpectrumRecord>,
    /// The writer was stopped in the middle of a line: that line is not among the records.
    pub truncated: bool,
}

/// Largest recording that is read, 4 GiB: ten thousand steps of a thousand matrices.
const MOST_BYTES: u64 = 4 << 30;

/// Reads a file of records, one JSON object a line.
///
/// A last line without a newline that does not parse is what a killed writer leaves behind; it is
/// left out and reported. Any other line that does not parse is an error. Empty lines are skipped.
///
/// # Errors
/// A file that cannot be read, is no regular file, is larger than 4 GiB or not UTF-8; a line that is no record (with
/// its number).
pub fn read_records(path: impl AsRef<Path>) -> Result<Recording> {
    let path = path.as_ref();
    let text = read_text_file(path, MOST_BYTES).context(|| "recorded spectra")?;
    parse_records(&text).context(|| path.display().to_string())
}

fn parse_records(text: &str) -> Result<Recording> {
    let mut recording = Recording { records: Vec::new(), truncated: false };
    for (i, line) in text.split_inclusive('\n').enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        match serde_json::from_str(line) {
            Ok(record) => recording.records.push(record),
            Err(_) if !line.ends_with('\n') => recording.truncated = true,
            Err(e) => {
                return Err(Error::parse(format!(
                    "line {}, column {}: not a recorded spectrum: {e}",
                    i + 1,
                    e.column()
                )));
            }
        }
    }
    Ok(recording)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> SpectrumRecord {
        // Singular values 3, 4 and 0 over ‖X‖_F = 5: bins floor(8·log₂ 0.6) = −6 and floor(8·log₂ 0.8) = −3.
        let mut matrix = [0.0f32; 15];
        (matrix[1], matrix[8]) = (3.0, 4.0);
        SpectrumRecord::measure(20, "h.1", MatrixShape { rows: 3, cols: 5 }, &matrix).unwrap()
    }

    #[test]
    fn a_matrix_is_counted_by_octaves() {
        let r = record();
        assert_eq!((r.norm, r.zeros), (5.0, 1));
        assert_eq!(r.bins, BTreeMap::from([(-6, 1), (-3, 1)]));
        let line = r.to_line().unwrap();
        assert_eq!(
            line,
            "{\"step\":20,\"name\":\"h.1\",\"rows\":3,\"cols\":5,\"norm\":5.0,\"zeros\":1,\"bins\":{\"-6\":1,\"-3\":1}}\n"
        );
        assert_eq!(parse_records(&line).unwrap().records, std::slice::from_ref(&r));
        let s = r.spectrum().unwrap();
        assert_eq!((s.name(), s.rank()), ("h.1@20", 2));
        for (found, exact) in s.values().iter().zip([0.8, 0.6, 0.0]) {
            // Half a bin is a factor 2^(1/16).
            assert!((found - exact).abs() <= 0.045 * exact, "{found} {exact}");
        }
    }

    #[test]
    fn zero_and_rank_one_matrices() {
        let shape = MatrixShape { rows: 2, cols: 2 };
        let zero = SpectrumRecord::measure(0, "z", shape, &[0.0; 4]).unwrap();
        assert_eq!((zero.norm, zero.zeros, zero.bins.len()), (0.0, 2, 0));
        assert!(zero.spectrum().unwrap_err().to_string().contains("zero matrix"));
        let one = SpectrumRecord::measure(0, "o", shape, &[1.0, 2.0, 2.0, 4.0]).unwrap();
        assert_eq!((one.zeros, one.bins.clone()), (1, BTreeMap::from([(0, 1)])));
        assert_eq!(one.spectrum().unwrap().values(), [1.0, 0.0]);
    }

    #[test]
    fn a_cut_last_line_is_left_out_and_any_other_damage_is_an_error() {
        let line = record().to_line().unwrap();
        let two = format!("{line}\n{line}");
        assert_eq!(parse_records(&two).unwrap().records.len(), 2);
        for cut in 1..line.len() - 1 {
            let r = parse_records(&format!("{line}{}", &line[..cut])).unwrap();
            assert_eq!((r.records.len(), r.truncated), (1, true), "{cut}");
        }
        // Whole but for the newline.
        let r = parse_records(line.trim_end()).unwrap();
        assert_eq!((r.records.len(), r.truncated), (1, false));
        let e = parse_records(&format!("{line}{}\n{line}", &line[..9])).unwrap_err();
        assert!(e.is_parse() && e.to_string().starts_with("line 2"), "{e}");
    }

    #[test]
    fn counts_that_lie_are_refused() {
        let refused = |change: &dyn Fn(&mut SpectrumRecord)| {
            let mut r = record();
            change(&mut r);
            r.spectrum().unwrap_err().to_string()
        };
        assert!(refused(&|r| r.zeros = 2).contains("expected 3, found 4"));
        assert!(refused(&|r| r.zeros = usize::MAX).contains("more than fit"));
        // Counts that agree with a shape that is a lie.
        let consistent = refused(&|r| {
            (r.rows, r.cols, r.zeros) = (usize::MAX, usize::MAX, usize::MAX);
            r.bins.clear();
        });
        assert!(consistent.contains("a short side of at most 1048576"), "{consistent}");
        assert!(refused(&|r| r.bins.extend([(1, 1)])).contains("bin `1`"));
        assert!(refused(&|r| r.bins.extend([(-999, 1)])).contains("bin `-999`"));
    }
}
