//! Which matrices a plan is made for: from flags, the headers of safetensors files, or a known model.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result};
use muon_cuda::checkpoint::{ModelFiles, ModelTensor};
use muon_cuda::{Destination, RoutingRule};

use super::models::MODELS;
use crate::args::PlanArgs;
use crate::exit::usage;

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

/// `PATTERN=WHAT`: where parameters go, and how they are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pattern: String,
    to: To,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    AdamW,
    Muon,
    Experts,
    Convolution,
}

impl Route {
    /// The rule with this override.
    fn applied(rule: RoutingRule, route: &Self) -> RoutingRule {
        match route.to {
            To::AdamW => rule.adamw_for(&route.pattern),
            To::Muon => rule.muon_for(&route.pattern),
            To::Experts => rule.experts_for(&route.pattern),
            To::Convolution => rule.convolution_for(&route.pattern),
        }
    }
}

impl FromStr for Route {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "expected NAME=adamw, NAME=muon, NAME=experts or NAME=convolution";
        let (pattern, to) = text.rsplit_once('=').ok_or(expected)?;
        let to = match to {
            "adamw" => To::AdamW,
            "muon" => To::Muon,
            "experts" => To::Experts,
            "convolution" => To::Convolution,
            _ => return Err(expected.into()),
        };
        if pattern.is_empty() {
            return Err(expected.into());
        }
        Ok(Self { pattern: pattern.to_owned(), to })
    }
}

/// What is optimized.
#[derive(Debug, Default)]
pub(crate) struct Shapes {
    /// Shapes under the Muon rule, each with its count.
    pub(crate) muon: Vec<(Vec<usize>, usize)>,
    /// Elements under the AdamW rule.
    pub(crate) adamw_elements: u64,
    /// Tensors of a file that are no parameters, and their elements.
    pub(crate) left_out: usize,
    pub(crate) left_out_elements: u64,
    /// What a person should look at.
    pub(crate) doubts: Vec<String>,
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
                ..Shapes::default()
            }
        }
        (None, Some(path)) => of_files(path, &args.route)?,
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

/// The parameters that the headers describe, routed by name, dtype and shape.
///
/// # Errors
/// What cannot be read, a `--route` that matches nothing, a parameter that can be two things.
fn of_files(path: &Path, routes: &[Route]) -> Result<Shapes> {
    let files = ModelFiles::open(path)?;
    let rule = routes.iter().fold(RoutingRule::default(), Route::applied);
    rule.check_overrides(files.tensors().iter().map(|t| t.name.as_str()))?;
    let source = match files.paths() {
        [file] => file.display().to_string(),
        shards => format!("{}: {} shards", path.display(), shards.len()),
    };
    let mut shapes = Shapes { source, ..Shapes::default() };
    let mut muon: BTreeMap<Vec<usize>, Kind> = BTreeMap::new();
    let mut undecided = Vec::new();
    for (position, tensor) in files.tensors().iter().enumerate() {
        let ModelTensor { name, dtype, shape, .. } = tensor;
        let elements = shape.iter().try_fold(1u64, |n, d| n.checked_mul(u64::try_from(*d).ok()?));
        let too_many = || format!("`{name}` {shape:?} is too large");
        let elements = elements.with_context(too_many)?;
        let decision = rule.route_stored(name, *dtype, shape);
        let sum = match decision.destination {
            Destination::Muon(_) => {
                let kind = muon.entry(decision.registered_shape(shape)).or_insert_with(|| Kind {
                    first: position,
                    name: name.clone(),
                    count: 0,
                    doubt: decision.doubt,
                });
                kind.count += 1;
                continue;
            }
            Destination::AdamW => &mut shapes.adamw_elements,
            Destination::NoParameter => {
                shapes.left_out += 1;
                &mut shapes.left_out_elements
            }
            _ => {
                undecided.push(format!("`{name}` {shape:?}: {}", decision.reason));
                continue;
            }
        };
        *sum = sum.checked_add(elements).with_context(too_many)?;
    }
    if !undecided.is_empty() {
        return Err(undecided_error(&undecided));
    }
    // In the order of the names, as an optimizer would meet them.
    let mut muon: Vec<_> = muon.into_iter().collect();
    muon.sort_by_key(|(_, kind)| kind.first);
    for (shape, kind) in muon {
        if let Some(doubt) = kind.doubt {
            shapes.doubts.push(format!(
                "{} x {shape:?} under Muon, such as `{}`: {doubt}",
                kind.count, kind.name
            ));
        }
        shapes.muon.push((shape, kind.count));
    }
    Ok(shapes)
}

/// Parameters under Muon of one shape.
struct Kind {
    /// Position of the first one.
    first: usize,
    /// Its name.
    name: String,
    count: usize,
    doubt: Option<String>,
}

fn undecided_error(undecided: &[String]) -> anyhow::Error {
    const SHOWN: usize = 8;
    let mut list = undecided.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
    if undecided.len() > SHOWN {
        list.push_str(&format!("; and {} more", undecided.len() - SHOWN));
    }
    usage(format!(
        "{} tensor(s) can be two things: {list}; say which with --route NAME=experts, NAME=convolution or NAME=adamw, where NAME \
         is one or more whole parts of the tensor's name",
        undecided.len()
    ))
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
