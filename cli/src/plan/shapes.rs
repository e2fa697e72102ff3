//! Which matrices a plan is made for: from flags, a safetensors header, or a known model.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use muon_cuda::RoutingRule;

use super::models::MODELS;
use crate::args::PlanArgs;
use crate::exit::usage;

/// Longest header of a safetensors file, as the format's own implementation has it.
const LONGEST_HEADER: u64 = 100_000_000;

/// Matrices of one shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Matrices {
    count: usize,
    shape: Vec<usize>,
}

impl FromStr for Matrices {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Option<Vec<usize>> =
            text.split('x').map(|n| n.parse().ok().filter(|n| *n > 0)).collect();
        match numbers.as_deref() {
            Some([rows, cols]) => Ok(Self { count: 1, shape: vec![*rows, *cols] }),
            Some([count, rows, cols]) => Ok(Self { count: *count, shape: vec![*rows, *cols] }),
            _ => Err("expected ROWSxCOLS or COUNTxROWSxCOLS, such as 48x768x768".into()),
        }
    }
}

/// What is optimized.
#[derive(Debug, Default)]
pub(crate) struct Shapes {
    /// Shapes under the Muon rule, each with its count.
    pub(crate) muon: Vec<(Vec<usize>, usize)>,
    /// Elements under the AdamW rule.
    pub(crate) adamw_elements: u64,
    /// Where they come from, for people.
    pub(crate) source: String,
}

/// The shapes that the arguments name.
///
/// # Errors
/// None or several sources, a file that is no safetensors file, nothing to orthogonalize.
pub(crate) fn shapes(args: &PlanArgs) -> Result<Shapes> {
    let mut shapes = match (&args.model, &args.file) {
        (Some(name), None) => {
            let Some(model) = MODELS.iter().find(|m| m.name == name) else {
                let known: Vec<_> = MODELS.iter().map(|m| m.name).collect();
                return Err(usage(format!("no model `{name}`; known are {}", known.join(", "))));
            };
            Shapes {
                muon: model.matrices.iter().map(|(n, shape)| (shape.to_vec(), *n)).collect(),
                adamw_elements: model.adamw_elements,
                source: format!("{}: {}", model.name, model.source),
            }
        }
        (None, Some(path)) => {
            header(path).with_context(|| format!("header of {}", path.display()))?
        }
        _ => Shapes { source: "shapes from the command line".into(), ..Shapes::default() },
    };
    shapes.muon.extend(args.matrix.iter().map(|m| (m.shape.clone(), m.count)));
    shapes.adamw_elements =
        shapes.adamw_elements.checked_add(args.adamw).ok_or_else(|| usage("--adamw: too many"))?;
    if shapes.muon.is_empty() {
        return Err(usage(
            "nothing to orthogonalize: name matrices (--matrix 48x768x768), a file, or a --model",
        ));
    }
    Ok(shapes)
}

/// Reads the header alone: a checkpoint may be larger than memory.
fn header(path: &Path) -> Result<Shapes> {
    let mut file = File::open(path)?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    ensure!(length <= LONGEST_HEADER, "not a safetensors file: a header of {length} bytes");
    let mut text = Vec::new();
    file.take(length).read_to_end(&mut text)?;
    ensure!(text.len() as u64 == length, "cut short: {} bytes of {length}", text.len());
    let header: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&text).context("not a safetensors file")?;
    let routing = RoutingRule::default();
    let mut shapes = Shapes { source: path.display().to_string(), ..Shapes::default() };
    for (name, tensor) in header.iter().filter(|(name, _)| *name != "__metadata__") {
        let shape: Vec<usize> = serde_json::from_value(tensor["shape"].clone())
            .with_context(|| format!("shape of `{name}`"))?;
        let elements = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let elements = elements.with_context(|| format!("`{name}` {shape:?} is too large"))?;
        if routing.route(name, &shape).muon {
            match shapes.muon.iter_mut().find(|(s, _)| *s == shape) {
                Some((_, count)) => *count += 1,
                None => shapes.muon.push((shape, 1)),
            }
        } else {
            shapes.adamw_elements += elements as u64;
        }
    }
    Ok(shapes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_are_counted_or_single() {
        let parse = |text: &str| text.parse::<Matrices>();
        assert_eq!(parse("3x4"), Ok(Matrices { count: 1, shape: vec![3, 4] }));
        assert_eq!(parse("48x768x64"), Ok(Matrices { count: 48, shape: vec![768, 64] }));
        for nonsense in ["", "3", "3x", "0x4", "2x0x4", "1x2x3x4", "ax3", "3x-4"] {
            assert!(parse(nonsense).is_err(), "{nonsense}");
        }
    }
}
