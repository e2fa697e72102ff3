//! The names of a recording's fields, and reading one by its name.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::OptimizerKind;
use crate::error::{Error, Result};

/// Fields that say something to a reader and nothing to the replay; so do those that start with `rel_`.
const INFORMATIONAL: [&str; 7] =
    ["spectrum", "grad_scale", "gradients", "note", "reference", "commit", "file"];

/// Fields of the whole recording.
pub(super) const OF_THE_RECORDING: [&str; 3] = ["optimizer", "framework", "cases"];

/// Fields of a case under either optimizer.
const OF_EVERY_CASE: [&str; 10] = [
    "name",
    "rows",
    "cols",
    "shape",
    "steps",
    "lr",
    "weight_decay",
    "eps",
    "param_dtype",
    "bf16_params",
];

/// Fields of a case under Muon.
const OF_MUON: [&str; 13] = [
    "ns_coefficients",
    "ns_steps",
    "momentum",
    "momentum_mode",
    "nesterov",
    "adjust_lr_fn",
    "weight_decay_mode",
    "layout",
    "heads",
    "split",
    "split_interleaved",
    "view",
    "arithmetic",
];

/// Fields of a case under AdamW.
const OF_ADAMW: [&str; 1] = ["betas"];

/// Refuses fields that nobody knows or that belong to the other optimizer.
pub(super) fn known(
    fields: &Map<String, Value>,
    optimizer: OptimizerKind,
    more: &[&str],
) -> Result<()> {
    let (own, foreign, other): (&[&str], &[&str], _) = match optimizer {
        OptimizerKind::Muon => (&OF_MUON, &OF_ADAMW, "AdamW"),
        OptimizerKind::AdamW => (&OF_ADAMW, &OF_MUON, "Muon"),
    };
    for name in fields.keys().map(String::as_str) {
        if foreign.contains(&name) {
            return Err(Error::parse(format!(
                "field `{name}` belongs to recordings of {other}; it has no meaning here"
            )));
        }
        let mut all = OF_EVERY_CASE.iter().chain(own).chain(more).chain(&INFORMATIONAL).copied();
        if !name.starts_with("rel_") && !all.clone().any(|n| n == name) {
            return Err(Error::unknown_name("field of a recording", name, &mut all));
        }
    }
    Ok(())
}

/// Removes a field and reads it; `null` is an absent field.
pub(super) fn take<T: DeserializeOwned>(
    fields: &mut Map<String, Value>,
    name: &str,
) -> Result<Option<T>> {
    match fields.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => serde_json::from_value(value)
            .map(Some)
            .map_err(|e| Error::parse(format!("field `{name}`: {e}"))),
    }
}

/// Removes a field that is one of these names; the first where it is absent.
pub(super) fn one_of<T: Copy>(
    fields: &mut Map<String, Value>,
    field: &'static str,
    names: &[(&'static str, T)],
) -> Result<T> {
    let name: Option<String> = take(fields, field)?;
    let name = name.as_deref().unwrap_or(names[0].0);
    named(field, name, names)
}

pub(super) fn named<T: Copy>(
    field: &'static str,
    name: &str,
    names: &[(&'static str, T)],
) -> Result<T> {
    let found = names.iter().find(|(n, _)| *n == name).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let known = names.iter().map(|(n, _)| *n);
        let list = known.clone().collect::<Vec<_>>().join("`, `");
        Error::unknown_name(field, name, known).context(format!("expected one of `{list}`"))
    })
}
