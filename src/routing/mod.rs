//! Which parameters of a model are hidden matrices: a rule over names, shapes and dtypes, with a reason for each answer.

#[cfg(test)]
mod model_tests;
mod names;

use serde::{Deserialize, Serialize};

use crate::checkpoint::TensorDtype;
use crate::config::{AdamWRule, MuonRule, WithoutMuon};
use crate::error::{Error, Result};

use names::Path;

/// How the elements of a parameter under Muon make matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reading {
    /// `[rows, cols]`.
    Matrix,
    /// `[experts, rows, cols]`: one matrix for each expert.
    Experts,
    /// `[out, in, k]` or `[out, in, kh, kw]`: the matrix `[out, in·k]`.
    Convolution,
}

/// Where one parameter goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Destination {
    /// It is orthogonalized.
    Muon(Reading),
    /// It is no hidden matrix.
    AdamW,
    /// It is not trained: integers, masks, running statistics, parts of quantised tensors. Only a file holds such.
    NoParameter,
    /// Name and shape can mean two things. The reason says how to say which.
    Undecided,
}

/// Where one parameter goes, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Decision {
    /// Where it goes.
    pub destination: Destination,
    /// For the routing report.
    pub reason: String,
    /// What a person should look at: a matrix under Muon with a side as long as a vocabulary.
    pub doubt: Option<String>,
}

impl Decision {
    fn new(destination: Destination, reason: impl Into<String>) -> Self {
        Self { destination, reason: reason.into(), doubt: None }
    }

    fn muon(shape: &[usize], reading: Reading, reason: String) -> Self {
        let matrix = match (reading, shape) {
            (Reading::Convolution, [out, rest @ ..]) => {
                [*out, rest.iter().fold(1, |n: usize, d| n.saturating_mul(*d))]
            }
            (_, [.., rows, cols]) => [*rows, *cols],
            _ => [0, 0],
        };
        let doubt = vocabulary_side(matrix).map(|side| {
            format!("{side} looks like a vocabulary: is it an embedding or an output head?")
        });
        Self { destination: Destination::Muon(reading), reason, doubt }
    }

    /// Whether it is orthogonalized.
    #[must_use]
    pub fn is_muon(&self) -> bool {
        matches!(self.destination, Destination::Muon(_))
    }

    /// The shape under which [`Muon::add_param`](crate::Muon::add_param) reads the parameter in this way: a convolution
    /// `[out, in, k]` is registered as `[out, in, 1, k]`, everything else as it is.
    #[must_use]
    pub fn registered_shape(&self, shape: &[usize]) -> Vec<usize> {
        match (self.destination, shape) {
            (Destination::Muon(Reading::Convolution), [out, input, k]) => vec![*out, *input, 1, *k],
            _ => shape.to_vec(),
        }
    }
}

/// Shortest side that looks like a vocabulary, and how many times the other side it must be. Vocabularies have 30,000
/// entries (BERT) to 262,144 (Gemma 3) at 3.9 (Llama 2 70B) to 66 times the width; a feed-forward layer that large is
/// about 3 times its width (Llama 3.1 405B: 53,248 × 16,384).
const VOCABULARY: usize = 30_000;
const VOCABULARY_RATIO: usize = 7;
/// Largest side of the kernel of a convolution that is taken for one without its name saying so.
const LARGEST_KERNEL: usize = 32;

/// The longer side of a matrix that may be an embedding or an output head.
pub(crate) fn vocabulary_side([rows, cols]: [usize; 2]) -> Option<usize> {
    let (short, long) = (rows.min(cols), rows.max(cols));
    // 3.5 times.
    let is_wide = long.saturating_mul(2) >= short.saturating_mul(VOCABULARY_RATIO);
    (long >= VOCABULARY && is_wide).then_some(long)
}

/// Linear maps between hidden layers to Muon; embeddings, output heads, routers, tables and vectors to AdamW.
///
/// A name is a path: it is cut into parts at `.`, `/` and `:`. The decision is, in this order:
///
/// 1. What the caller said with [`adamw_for`](Self::adamw_for), [`muon_for`](Self::muon_for),
///    [`experts_for`](Self::experts_for) or [`convolution_for`](Self::convolution_for).
/// 2. The shape, in any number of dimensions. AdamW: fewer than 2 or more than 4 dimensions; a matrix with a side of 1;
///    a leading 1 (a table that is broadcast); `[channels, 1, …]` (a depthwise convolution).
/// 3. The name. AdamW: embeddings, output heads, routers, biases, norms, learned tokens and tables, the `A_log` of a
///    state-space mixer. Words are compared whole. `output`, `score`, `fc_out` and their like are heads at the top of a
///    model and hidden matrices inside a block.
/// 4. A convolution over 3 channels with a square kernel of even size is a patch embedding: AdamW.
/// 5. Everything else is a linear map: Muon. `[a, b, c]` is a stack of experts or a convolution. Where the name says
///    neither, the decision is [`Destination::Undecided`] and the caller must say which.
///
/// ```
/// use muon_cuda::{Destination, RoutingRule};
/// let rule = RoutingRule::default();
/// assert!(rule.route("blocks.0.attn.output.weight", &[768, 768]).is_muon());
/// assert!(!rule.route("tok_embeddings.weight", &[50304, 768]).is_muon());
/// assert!(!rule.route("blocks.0.router.weight", &[8, 768]).is_muon());
/// assert_eq!(rule.route("blocks.0.w", &[8, 768, 256]).destination, Destination::Undecided);
/// assert!(rule.experts_for("blocks.0.w").route("blocks.0.w", &[8, 768, 256]).is_muon());
/// ```
///
/// In a file the overrides are pairs of a pattern and `adamw`, `muon`, `experts` or `convolution`:
///
/// ```
/// use muon_cuda::RoutingRule;
/// let rule: RoutingRule = serde_json::from_str(r#"{ "overrides": [["blocks.0.w", "experts"]], "muon": { "lr": 0.01 } }"#)?;
/// assert!(rule == RoutingRule::new(rule.muon.clone(), rule.adamw).experts_for("blocks.0.w") && rule.muon.lr == 0.01);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RoutingRule {
    overrides: Vec<(String, Override)>,
    /// Hyper-parameters of the hidden matrices.
    pub muon: MuonRule,
    /// Hyper-parameters of the rest.
    pub adamw: AdamWRule,
}

/// What a caller said of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Override {
    AdamW,
    Muon,
    Experts,
    Convolution,
}

impl RoutingRule {
    /// A rule with these hyper-parameters.
    #[must_use]
    pub fn new(muon: MuonRule, adamw: AdamWRule) -> Self {
        Self { muon, adamw, overrides: Vec::new() }
    }

    fn with(mut self, pattern: impl Into<String>, what: Override) -> Self {
        self.overrides.push((pattern.into(), what));
        self
    }

    /// Sends parameters to AdamW. The pattern is one or more whole parts of their name, such as `h.1` or `attn.c_attn`;
    /// `h.1` is not in `h.11`. Later overrides win.
    #[must_use]
    pub fn adamw_for(self, pattern: impl Into<String>) -> Self {
        self.with(pattern, Override::AdamW)
    }

    /// Sends parameters to Muon; patterns as in [`adamw_for`](Self::adamw_for).
    #[must_use]
    pub fn muon_for(self, pattern: impl Into<String>) -> Self {
        self.with(pattern, Override::Muon)
    }

    /// Sends parameters `[experts, rows, cols]` to Muon, one matrix for each expert; patterns as in
    /// [`adamw_for`](Self::adamw_for).
    #[must_use]
    pub fn experts_for(self, pattern: impl Into<String>) -> Self {
        self.with(pattern, Override::Experts)
    }

    /// Sends parameters `[out, in, k]` or `[out, in, kh, kw]` to Muon as the matrix `[out, in·k]`; patterns as in
    /// [`adamw_for`](Self::adamw_for).
    #[must_use]
    pub fn convolution_for(self, pattern: impl Into<String>) -> Self {
        self.with(pattern, Override::Convolution)
    }

    /// The decision for one parameter.
    #[must_use]
    pub fn route(&self, name: &str, shape: &[usize]) -> Decision {
        let path = Path::new(name);
        if let Some((pattern, what)) = self.overrides.iter().rev().find(|(p, _)| path.contains(p)) {
            return overridden(&path, shape, pattern, *what);
        }
        let not_hidden =
            path.no_parameter(shape).or_else(|| vector(shape)).or_else(|| path.not_hidden(shape));
        if let Some(reason) = not_hidden {
            return Decision::new(Destination::AdamW, reason);
        }
        if let [_, 3, kh, kw] = shape
            && kh == kw
            && kh.is_multiple_of(2)
        {
            return Decision::new(Destination::AdamW, "a patch embedding by its shape");
        }
        match reading(&path, shape) {
            Ok(reading) => Decision::muon(shape, reading, "hidden matrix".into()),
            Err(reason) => Decision::new(Destination::Undecided, reason),
        }
    }

    /// The decision for a tensor of a file, which may be no parameter at all: integers and booleans are none, nor are
    /// masks, running statistics and the scales of quantised tensors.
    #[must_use]
    pub fn route_stored(&self, name: &str, dtype: TensorDtype, shape: &[usize]) -> Decision {
        if !dtype.is_trainable() {
            return Decision::new(
                Destination::NoParameter,
                format!("{dtype} elements are no parameters"),
            );
        }
        let path = Path::new(name);
        let said = self.overrides.iter().any(|(pattern, _)| path.contains(pattern));
        match path.no_parameter(shape) {
            Some(reason) if !said => Decision::new(Destination::NoParameter, reason),
            _ => self.route(name, shape),
        }
    }

    /// Every override must match a parameter.
    ///
    /// # Errors
    /// Otherwise: a rule that matches nothing is a misspelling.
    pub fn check_overrides<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<()> {
        if self.overrides.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = names.into_iter().collect();
        let mut waiting: Vec<&str> = self.overrides.iter().map(|(p, _)| p.as_str()).collect();
        for name in &names {
            if waiting.is_empty() {
                break;
            }
            let path = Path::new(name);
            waiting.retain(|pattern| !path.contains(pattern));
        }
        match waiting.first() {
            None => Ok(()),
            Some(pattern) => Err(Error::unknown_name("routing override", pattern, names)),
        }
    }

    /// Every override must match a parameter, every parameter must be decided, and some parameter must be under the Muon
    /// rule.
    ///
    /// # Errors
    /// Otherwise: a rule that matches nothing is a misspelling, a guess at a shape would be silent, and an optimizer
    /// without a matrix is not Muon.
    pub fn check<'a>(
        &self,
        params: impl IntoIterator<Item = (&'a str, &'a [usize])>,
    ) -> Result<()> {
        self.check_for(params, WithoutMuon::Refuse)
    }

    /// As [`RoutingRule::check`], for a caller who may mean a model without a hidden matrix.
    pub(crate) fn check_for<'a>(
        &self,
        params: impl IntoIterator<Item = (&'a str, &'a [usize])>,
        without_muon: WithoutMuon,
    ) -> Result<()> {
        let params: Vec<_> = params.into_iter().collect();
        self.check_overrides(params.iter().map(|(name, _)| *name))?;
        let decisions: Vec<_> = params.iter().map(|(n, s)| (*n, *s, self.route(n, s))).collect();
        let undecided =
            decisions.iter().filter(|(_, _, d)| d.destination == Destination::Undecided);
        refuse_undecided(undecided.map(|(name, shape, d)| (*name, *shape, d.reason.as_str())))?;
        if without_muon == WithoutMuon::Allow || decisions.iter().any(|(_, _, d)| d.is_muon()) {
            return Ok(());
        }
        let reasons = decisions.iter().map(|(n, _, d)| format!("`{n}`: {}", d.reason));
        Err(Error::invalid_config(format!(
            "no parameter would be orthogonalized ({}); name the hidden matrices with `muon_for`",
            first_of(reasons, decisions.len())
        )))
    }
}

/// Refuses parameters that can be two things.
///
/// # Errors
/// There is one.
fn refuse_undecided<'a>(
    undecided: impl Iterator<Item = (&'a str, &'a [usize], &'a str)>,
) -> Result<()> {
    let all: Vec<_> = undecided.collect();
    let Some((_, _, reason)) = all.first() else { return Ok(()) };
    let names = all.iter().map(|(name, shape, _)| format!("`{name}` {shape:?}"));
    Err(Error::invalid_config(format!(
        "{}: {reason}; say which with `experts_for`, `convolution_for` or `adamw_for`",
        first_of(names, all.len())
    )))
}

/// The first few of many, for a message.
fn first_of(texts: impl Iterator<Item = String>, count: usize) -> String {
    const SHOWN: usize = 8;
    let mut text = texts.take(SHOWN).collect::<Vec<_>>().join(", ");
    if count > SHOWN {
        text.push_str(&format!(" and {} more", count - SHOWN));
    }
    text
}

fn overridden(path: &Path<'_>, shape: &[usize], pattern: &str, what: Override) -> Decision {
    let reason = format!("override `{pattern}`");
    let undecided = |why: &str| Decision::new(Destination::Undecided, format!("{reason}: {why}"));
    let reading = match (what, shape.len()) {
        (Override::AdamW, _) => return Decision::new(Destination::AdamW, reason),
        (Override::Muon, 2..=4) => match reading(path, shape) {
            Ok(reading) => reading,
            Err(why) => return undecided(&why),
        },
        (Override::Experts, 3) => Reading::Experts,
        (Override::Convolution, 3 | 4) => Reading::Convolution,
        (Override::Muon, _) => return undecided("Muon takes 2 to 4 dimensions"),
        (Override::Experts, _) => return undecided("a stack of experts has 3 dimensions"),
        (Override::Convolution, _) => return undecided("a convolution has 3 or 4 dimensions"),
    };
    Decision::muon(shape, reading, reason)
}

/// Why a shape is that of no matrix.
fn vector(shape: &[usize]) -> Option<String> {
    match shape {
        [] | [_] | [_, _, _, _, _, ..] => Some(format!("{} dimension(s)", shape.len())),
        _ if shape.contains(&0) => Some("no elements".into()),
        [1, _] | [_, 1] => Some("a matrix with a side of 1 is a vector".into()),
        [1, ..] => Some("a leading 1 is a table that is broadcast".into()),
        [_, 1, ..] => Some("[channels, 1, …] is a depthwise convolution, or vectors".into()),
        _ => None,
    }
}

/// How a parameter of 2 to 4 dimensions is read, or what it could be.
fn reading(path: &Path<'_>, shape: &[usize]) -> std::result::Result<Reading, String> {
    let two_ways =
        |what: &str| Err(format!("the shape is that of {what}, and the name does not say"));
    match (shape, path.says_experts(), path.says_convolution()) {
        ([_, _], _, _) => Ok(Reading::Matrix),
        // A kernel of size 1: an expert would be a vector.
        ([_, _, 1], _, _) | ([_, _, _], false, true) => Ok(Reading::Convolution),
        ([_, _, _], true, false) => Ok(Reading::Experts),
        ([_, _, _], _, _) => two_ways("a stack of experts or of a convolution"),
        ([_, _, kh, kw], false, convolution)
            if convolution || (*kh <= LARGEST_KERNEL && *kw <= LARGEST_KERNEL) =>
        {
            Ok(Reading::Convolution)
        }
        ([_, _, _, _], _, _) => two_ways("stacked experts or of a convolution"),
        _ => Err("Muon takes 2 to 4 dimensions".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn muon(name: &str, shape: &[usize]) -> bool {
        RoutingRule::default().route(name, shape).is_muon()
    }

    #[test]
    fn the_shape_rule_holds_in_any_number_of_dimensions() {
        for shape in [
            &[][..],
            &[5],
            &[1, 5],
            &[5, 1],
            &[0, 5],
            &[6, 1, 1],
            &[1, 15, 15, 2],
            &[1, 197, 768],
            &[96, 1, 7, 7],
            &[96, 1, 4],
            &[2, 2, 2, 2, 2],
        ] {
            assert!(!muon("w", shape), "{shape:?}");
        }
        for shape in [&[5, 2][..], &[8, 4, 3, 3], &[8, 4, 1, 1], &[8, 4, 1]] {
            assert!(muon("w", shape), "{shape:?}");
        }
    }

    #[test]
    fn heads_are_heads_at_the_top_alone() {
        for head in ["output", "score", "fc_out", "output_layer", "heads", "proj_out"] {
            for prefix in ["", "model.", "transformer."] {
                assert!(!muon(&format!("{prefix}{head}.weight"), &[40, 30]), "{prefix}{head}");
            }
            for prefix in ["mlp.", "h.3.", "encoder.layer.0.attention.", "blocks_2."] {
                assert!(muon(&format!("{prefix}{head}.weight"), &[40, 30]), "{prefix}{head}");
            }
        }
    }

    #[test]
    fn three_dimensions_are_read_by_name_or_by_the_caller_or_not_at_all() {
        let rule = RoutingRule::default();
        let to = |rule: &RoutingRule, name: &str| rule.route(name, &[8, 16, 4]).destination;
        assert_eq!(to(&rule, "mlp.experts.up"), Destination::Muon(Reading::Experts));
        assert_eq!(to(&rule, "conv1.weight"), Destination::Muon(Reading::Convolution));
        for unclear in ["w", "experts.conv.weight"] {
            assert_eq!(to(&rule, unclear), Destination::Undecided, "{unclear}");
            let e = rule.check([(unclear, &[8, 16, 4][..])]).unwrap_err().to_string();
            for way in ["[8, 16, 4]", "experts_for", "convolution_for", "adamw_for"] {
                assert!(e.contains(way), "{e}");
            }
        }
        let said = rule.clone().experts_for("w");
        assert_eq!(to(&said, "w"), Destination::Muon(Reading::Experts));
        let said = rule.clone().convolution_for("w").route("w", &[8, 16, 4]);
        assert_eq!(said.registered_shape(&[8, 16, 4]), [8, 16, 1, 4]);
        assert_eq!(to(&rule.clone().adamw_for("w"), "w"), Destination::AdamW);
        // Saying Muon does not say how.
        assert_eq!(to(&rule.clone().muon_for("w"), "w"), Destination::Undecided);
        // [layers, experts, rows, cols] is no convolution.
        assert_eq!(rule.route("w", &[4, 8, 256, 64]).destination, Destination::Undecided);
    }

    #[test]
    fn a_side_like_a_vocabulary_is_a_doubt() {
        let doubt = |shape: &[usize]| RoutingRule::default().route("w", shape).doubt;
        for shape in [[50257, 768], [768, 50257], [32000, 8192], [30522, 768]] {
            assert!(doubt(&shape).unwrap().contains("vocabulary"), "{shape:?}");
        }
        for shape in [[768, 768], [3072, 768], [53248, 16384], [18432, 7168]] {
            assert_eq!(doubt(&shape), None, "{shape:?}");
        }
    }

    #[test]
    fn an_override_that_matches_nothing_and_an_empty_match_are_refused() {
        let shape = [4usize, 4];
        let params = [("layer.weight", &shape[..]), ("head.weight", &shape[..])];
        let e = RoutingRule::default().adamw_for("layre").check(params).unwrap_err();
        assert!(e.is_unknown_name(), "{e}");
        // Parts are whole: a part of a part is a misspelling too.
        let e = RoutingRule::default().adamw_for("laye").check(params).unwrap_err();
        assert!(e.is_unknown_name(), "{e}");
        let e = RoutingRule::default().adamw_for("layer").check(params).unwrap_err();
        assert!(e.is_invalid_config() && e.to_string().contains("muon_for"), "{e}");
        RoutingRule::default().muon_for("head").check(params).unwrap();
        let later = RoutingRule::default().adamw_for("head").muon_for("head.weight");
        assert!(later.route("head.weight", &shape).is_muon());
    }
}
