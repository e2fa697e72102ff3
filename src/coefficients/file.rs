//! Schedules as TOML files: strict reading, exact writing, and names that mean a preset or a file.

use std::fmt::Write as _;
use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::{CoefficientSchedule, Normalization, OddPolynomial, Provenance, Tail, presets};
use crate::checkpoint::read_text_file;
use crate::error::{Error, Result, ResultExt as _};

/// Largest file read: a schedule of 32 polynomials is 4 KiB. Bounds what a wrong path can cost.
const MAX_BYTES: u64 = 1 << 20;

/// The file as it is written; see [`CoefficientSchedule::from_toml_str`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    name: Spanned<String>,
    #[serde(default)]
    source: String,
    normalization: NormalizationName,
    safety: Option<Spanned<f64>>,
    #[serde(default)]
    tail: Tail,
    coefficients: Vec<Spanned<Vec<f64>>>,
    provenance: Option<Provenance>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum NormalizationName {
    Frobenius,
    Aol,
}

impl NormalizationName {
    /// The normalisation with that divisor of the Frobenius norm, 1 if there is none.
    pub(super) fn with(self, safety: Option<f64>) -> Result<Normalization> {
        match (self, safety) {
            (Self::Frobenius, safety) => {
                Ok(Normalization::Frobenius { safety: safety.unwrap_or(1.0) })
            }
            (Self::Aol, None) => Ok(Normalization::Aol),
            (Self::Aol, Some(_)) => Err(Error::invalid_config(
                "`safety` divides the Frobenius norm and has no meaning with normalization \"aol\"; \
                 remove it, or divide the coefficients",
            )),
        }
    }
}

impl CoefficientSchedule {
    /// A schedule from the text of a TOML file.
    ///
    /// | key | value |
    /// |---|---|
    /// | `name` | not empty |
    /// | `coefficients` | a list of 2, 3 or 5 finite numbers (lowest degree first) per iteration |
    /// | `normalization` | `"frobenius"` or `"aol"` |
    /// | `safety` | ≥ 1, the divisor of the Frobenius norm; 1 if absent; not with `"aol"` |
    /// | `tail` | `"exact"` (if absent) or `"repeat_last"` |
    /// | `source` | where the numbers come from; may be absent |
    /// | `provenance` | the record of a generated schedule ([`Provenance`]); may be absent |
    ///
    /// # Errors
    /// Text that is not TOML, a missing or unknown key, a value of another type (all with line and
    /// column); coefficients, safety or a name that [`CoefficientSchedule::new`] refuses.
    ///
    /// # Example
    /// ```
    /// use muon_cuda::coefficients::CoefficientSchedule;
    ///
    /// let schedule = CoefficientSchedule::from_toml_str(
    ///     r#"
    ///     name = "two_cubics"
    ///     normalization = "frobenius"
    ///     coefficients = [[2.5, -1.4], [1.5, -0.5]]
    ///     "#,
    /// )?;
    /// assert_eq!(schedule.polynomials().len(), 2);
    /// let again = CoefficientSchedule::from_toml_str(&schedule.to_toml_string()?)?;
    /// assert_eq!(again, schedule);
    /// # Ok::<(), muon_cuda::Error>(())
    /// ```
    pub fn from_toml_str(text: &str) -> Result<Self> {
        let document: Document = toml::from_str(text).map_err(|e| {
            let place = e.span().map(|span| format!("{}: ", place(text, &span)));
            let message = e.message().trim().replace('\n', "; ");
            Error::parse(format!(
                "coefficient schedule file: {}{message}",
                place.unwrap_or_default()
            ))
        })?;
        let at = |span: Range<usize>| move || place(text, &span);
        if document.coefficients.is_empty() {
            return Err(Error::invalid_config(format!(
                "coefficient schedule `{}` has no polynomial: `coefficients` is empty",
                document.name.get_ref()
            )));
        }
        let polynomials = document
            .coefficients
            .iter()
            .map(|row| OddPolynomial::new(row.get_ref()).context(at(row.span())))
            .collect::<Result<Vec<_>>>()?;
        let safety_span = document.safety.as_ref().map(Spanned::span);
        let safety = document.safety.map(Spanned::into_inner);
        let normalization =
            document.normalization.with(safety).context(at(safety_span.clone().unwrap_or(0..0)))?;
        let name_span = document.name.span();
        let schedule = Self::new(
            document.name.into_inner(),
            polynomials,
            normalization,
            document.tail,
            document.source,
        )
        .context(at(safety_span.unwrap_or(name_span)))?;
        Ok(match document.provenance {
            Some(provenance) => schedule.with_provenance(provenance),
            None => schedule,
        })
    }

    /// The schedule as TOML; reading it back gives an equal schedule, every number to the bit.
    ///
    /// # Errors
    /// A record that TOML cannot hold (a degree above 2⁶³).
    pub fn to_toml_string(&self) -> Result<String> {
        let string = |s: &str| toml::Value::String(s.to_owned()).to_string();
        let mut out = format!("name = {}\n", string(self.name()));
        if !self.source().is_empty() {
            out += &format!("source = {}\n", string(self.source()));
        }
        match self.normalization() {
            Normalization::Frobenius { safety } => {
                out += &format!("normalization = \"frobenius\"\nsafety = {safety:?}\n");
            }
            Normalization::Aol => out += "normalization = \"aol\"\n",
        }
        out += match self.tail() {
            Tail::Exact => "tail = \"exact\"\n",
            Tail::RepeatLast => "tail = \"repeat_last\"\n",
        };
        // The debug form of a float is the shortest decimal that reads back as the same float.
        out += "coefficients = [\n";
        for p in self.polynomials() {
            out += "    [";
            for (i, c) in p.coefficients().iter().enumerate() {
                let comma = if i == 0 { "" } else { ", " };
                write!(out, "{comma}{c:?}").map_err(|e| Error::parse(e.to_string()))?;
            }
            out += "],\n";
        }
        out += "]\n";
        if let Some(provenance) = self.provenance() {
            #[derive(Serialize)]
            struct Record<'a> {
                provenance: &'a Provenance,
            }
            let record = toml::to_string(&Record { provenance }).map_err(|e| {
                Error::parse(format!("coefficient schedule `{}`: record: {e}", self.name()))
            })?;
            out += "\n";
            out += &record;
        }
        Ok(out)
    }

    /// The schedule in a TOML file; see [`CoefficientSchedule::from_toml_str`].
    ///
    /// # Errors
    /// A file that cannot be read, is larger than 1 MiB or not UTF-8, or whose text is refused; the
    /// message begins with the path.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = read_text_file(path, MAX_BYTES)?;
        Self::from_toml_str(&text).context(|| path.display().to_string())
    }

    /// The preset of that name, or else the schedule in the file at that path.
    ///
    /// A text that is no preset is a path if it contains a `/` or `\`, ends in `.toml`, or names an
    /// existing file.
    ///
    /// # Errors
    /// Neither: the nearest preset is suggested. A path: see [`CoefficientSchedule::load`].
    pub fn preset_or_file(name_or_path: &str) -> Result<Self> {
        let unknown = match presets::preset(name_or_path) {
            Ok(schedule) => return Ok(schedule),
            Err(e) => e,
        };
        let path = Path::new(name_or_path);
        let is_toml = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("toml"));
        if is_toml || name_or_path.contains(['/', '\\']) || path.is_file() {
            Self::load(path)
        } else {
            Err(unknown)
        }
    }
}

/// `line 3, column 7` of the start of a span, both from 1, columns in characters.
fn place(text: &str, span: &Range<usize>) -> String {
    let before = text.get(..span.start).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
    format!("line {line}, column {column}")
}

#[cfg(test)]
mod tests;
