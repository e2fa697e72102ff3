//! `muon train --schedules`: which schedule each hidden matrix gets, by patterns of its name.
//!
//! ```toml
//! name = "by layer"              # in tables; the file's name without it
//!
//! [[schedule]]
//! param = "hidden1.weight"       # `*` is anything, `?` one character; the first pattern that matches decides
//! use = "hidden1/tuned.toml"     # a file, relative to this one; a preset; or "exact"
//!
//! [[schedule]]
//! param = "*"
//! use = "polar_express_5"
//! ```

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use muon_cuda::CoefficientSchedule;
use serde::Deserialize;

use super::config::{LayerMethod, MuonMethod};
use crate::exit::usage;
use crate::files::{MOST_OF_A_LIST, read_text};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    name: Option<String>,
    #[serde(default)]
    schedule: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    param: String,
    #[serde(rename = "use")]
    source: String,
}

/// The method of a table, its schedules read and written out.
///
/// # Errors
/// A file that does not read or is no such table, a schedule that does not exist or does not read, no row.
pub(crate) fn load(path: &Path) -> Result<MuonMethod> {
    let context = || format!("schedules by layer, {}", path.display());
    let text = read_text(path, MOST_OF_A_LIST).context("schedules by layer")?;
    let document: Document =
        toml::from_str(&text).map_err(|e| usage(one_line(&text, &e))).with_context(context)?;
    if document.schedule.is_empty() {
        return Err(usage("it has no row `[[schedule]]` with `param` and `use`"))
            .with_context(context);
    }
    let directory = path.parent().unwrap_or(Path::new(""));
    let layers = document
        .schedule
        .into_iter()
        .map(|row| {
            let method = method(&row.source, directory)
                .with_context(|| format!("`{}`", row.param))
                .with_context(context)?;
            Ok(LayerMethod { param: row.param, method })
        })
        .collect::<Result<Vec<_>>>()?;
    let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned());
    let name = document.name.or(stem).unwrap_or_default();
    ensure!(!name.is_empty(), "{}: the name is empty", context());
    Ok(MuonMethod::PerLayer { name, layers })
}

/// A mistake in TOML with its place, without the excerpt that the parser draws below it.
fn one_line(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = before.map_or(1, |before| before.split('\n').count());
    format!("TOML parse error at line {line}: {}", error.message().trim().replace('\n', "; "))
}

/// What a row means by its `use`.
fn method(source: &str, directory: &Path) -> Result<MuonMethod> {
    let path = directory.join(source);
    if source == "exact" && !path.is_file() {
        return Ok(MuonMethod::ExactSvd);
    }
    let is_path = source.contains(['/', '\\']) || source.ends_with(".toml") || path.is_file();
    let schedule = if is_path {
        CoefficientSchedule::load(&path)?
    } else {
        CoefficientSchedule::preset_or_file(source)?
    };
    Ok(MuonMethod::from_schedule(&schedule))
}

/// The table as a file: a first comment, then parameters with their schedules.
pub(crate) fn to_toml(comment: &str, rows: impl IntoIterator<Item = (String, String)>) -> String {
    let string = |s: String| toml::Value::String(s).to_string();
    let mut out = format!("# {comment}\n");
    for (param, source) in rows {
        out += &format!("\n[[schedule]]\nparam = {}\nuse = {}\n", string(param), string(source));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use muon_cuda::coefficients::presets::preset;

    #[test]
    fn a_table_is_read_as_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let text = preset("cubic5").unwrap().to_toml_string().unwrap();
        std::fs::create_dir(dir.path().join("01-w")).unwrap();
        std::fs::write(dir.path().join("01-w/mine.toml"), text).unwrap();
        let rows = [("w \"1\"", "01-w/mine.toml"), ("*", "jordan"), ("never", "exact")];
        let table = to_toml("Made here.", rows.map(|(a, b)| (a.to_owned(), b.to_owned())));
        let path = dir.path().join("layers.toml");
        std::fs::write(&path, table).unwrap();
        let MuonMethod::PerLayer { name, layers } = load(&path).unwrap() else { panic!() };
        assert_eq!(name, "layers");
        let of = |name: &str| MuonMethod::from_schedule(&preset(name).unwrap());
        let expected =
            [("w \"1\"", of("cubic5")), ("*", of("jordan")), ("never", MuonMethod::ExactSvd)];
        assert_eq!(
            layers,
            expected.map(|(param, method)| LayerMethod { param: param.into(), method })
        );
    }

    #[test]
    fn damage_is_said_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layers.toml");
        let error = |text: &str| {
            std::fs::write(&path, text).unwrap();
            format!("{:#}", load(&path).unwrap_err())
        };
        for (text, message) in [
            ("", "no row"),
            ("[[schedule]]\nparam = \"*\"\n", "missing field `use`"),
            ("[[schedule]]\nparam = \"*\"\nuse = \"jordan\"\nlr = 1\n", "unknown field `lr`"),
            ("[[schedule]]\nparam = \"w\"\nuse = \"jordon\"\n", "did you mean `jordan`"),
            ("[[schedule]]\nparam = \"w\"\nuse = \"a/b.toml\"\n", "b.toml"),
            ("name = \"\"\n[[schedule]]\nparam = \"w\"\nuse = \"jordan\"\n", "the name is empty"),
            ("[[schedule", "TOML parse error"),
        ] {
            let said = error(text);
            assert!(said.contains(message) && said.contains("layers.toml"), "{text}: {said}");
        }
        assert!(format!("{:#}", load(&dir.path().join("none")).unwrap_err()).contains("none"));
    }
}
