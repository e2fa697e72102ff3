//! Which parameters of a model are hidden matrices: a rule over names and shapes, with a reason for each answer.

use crate::config::{AdamWRule, MuonRule};
use crate::error::{Error, Result};

/// Where one parameter goes, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Under the Muon rule if true, under AdamW if not.
    pub muon: bool,
    /// For the routing report.
    pub reason: String,
}

/// Hidden matrices to Muon; embeddings, output heads and vectors to AdamW.
///
/// A name is cut into segments at `.`, `/` and `:`. The decision is, in this order: an override; fewer than 2
/// or more than 4 dimensions, or a side of 1: AdamW; a segment that contains `embed`, or is one of `wte`, `wpe`,
/// `lm_head`, `head`, `classifier`, `score`, or a first segment `output`: AdamW; otherwise Muon.
///
/// ```
/// use muon_cuda::RoutingRule;
/// let rule = RoutingRule::default().adamw_for("router");
/// assert!(rule.route("blocks.0.attn.output.weight", &[768, 768]).muon);
/// assert!(!rule.route("tok_embeddings.weight", &[50304, 768]).muon);
/// assert!(!rule.route("blocks.0.router.weight", &[8, 768]).muon);
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RoutingRule {
    /// Hyper-parameters of the hidden matrices.
    pub muon: MuonRule,
    /// Hyper-parameters of the rest.
    pub adamw: AdamWRule,
    overrides: Vec<(String, bool)>,
}

const NOT_HIDDEN: [&str; 6] = ["wte", "wpe", "lm_head", "head", "classifier", "score"];

impl RoutingRule {
    /// A rule with these hyper-parameters.
    #[must_use]
    pub fn new(muon: MuonRule, adamw: AdamWRule) -> Self {
        Self { muon, adamw, overrides: Vec::new() }
    }

    /// Sends parameters whose name contains `fragment` to AdamW; later overrides win.
    #[must_use]
    pub fn adamw_for(mut self, fragment: impl Into<String>) -> Self {
        self.overrides.push((fragment.into(), false));
        self
    }

    /// Sends parameters whose name contains `fragment` to Muon; later overrides win.
    #[must_use]
    pub fn muon_for(mut self, fragment: impl Into<String>) -> Self {
        self.overrides.push((fragment.into(), true));
        self
    }

    /// The decision for one parameter.
    #[must_use]
    pub fn route(&self, name: &str, shape: &[usize]) -> Decision {
        let decide = |muon, reason: String| Decision { muon, reason };
        if let Some((fragment, muon)) = self.overrides.iter().rev().find(|(f, _)| name.contains(f))
        {
            return decide(*muon, format!("override `{fragment}`"));
        }
        if !(2..=4).contains(&shape.len()) {
            return decide(false, format!("{} dimension(s)", shape.len()));
        }
        if shape.len() == 2 && shape.contains(&1) {
            return decide(false, "a matrix with a side of 1 is a vector".into());
        }
        let mut segments = name.split(['.', '/', ':']);
        if segments.clone().next() == Some("output") {
            return decide(false, "output head by its name".into());
        }
        match segments.find(|s| s.contains("embed") || NOT_HIDDEN.contains(s)) {
            Some(segment) => decide(false, format!("not a hidden matrix by its name: `{segment}`")),
            None => decide(true, "hidden matrix".into()),
        }
    }

    /// Every override must match a parameter, and some parameter must be under the Muon rule.
    ///
    /// # Errors
    /// Otherwise: a rule that matches nothing is a misspelling, and an optimizer without a matrix is not Muon.
    pub fn check<'a>(
        &self,
        params: impl IntoIterator<Item = (&'a str, &'a [usize])>,
    ) -> Result<()> {
        let params: Vec<_> = params.into_iter().collect();
        for (fragment, _) in &self.overrides {
            if !params.iter().any(|(name, _)| name.contains(fragment)) {
                return Err(Error::unknown_name(
                    "routing override",
                    fragment,
                    params.iter().map(|(name, _)| *name),
                ));
            }
        }
        if params.iter().any(|(name, shape)| self.route(name, shape).muon) {
            return Ok(());
        }
        let reasons: Vec<_> =
            params.iter().map(|(n, s)| format!("`{n}`: {}", self.route(n, s).reason)).collect();
        Err(Error::invalid_config(format!(
            "no parameter would be orthogonalized ({}); name the hidden matrices with `muon_for`",
            reasons.join(", ")
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_well_known_models_go_where_they_should() {
        let rule = RoutingRule::default();
        for (name, shape, muon) in [
            ("transformer.wte.weight", &[50257, 768][..], false),
            ("transformer.wpe.weight", &[1024, 768], false),
            ("transformer.h.0.attn.c_attn.weight", &[2304, 768], true),
            ("transformer.h.0.mlp.c_proj.weight", &[768, 3072], true),
            ("transformer.h.0.ln_1.weight", &[768], false),
            ("lm_head.weight", &[50257, 768], false),
            ("tok_embeddings.weight", &[32000, 4096], false),
            ("output.weight", &[32000, 4096], false),
            ("layers.0.attention.wo.weight", &[4096, 4096], true),
            ("encoder.layer.0.attention.output.dense.weight", &[768, 768], true),
            ("encoder.layer.0.attention.heads.q.weight", &[768, 768], true),
            ("experts.w1", &[8, 1024, 4096], true),
            ("conv1.weight", &[64, 3, 7, 7], true),
            ("gate.weight", &[1, 768], false),
            ("scale", &[], false),
        ] {
            let d = rule.route(name, shape);
            assert_eq!(d.muon, muon, "{name}: {}", d.reason);
        }
    }

    #[test]
    fn an_override_that_matches_nothing_and_an_empty_match_are_refused() {
        let shape = [4usize, 4];
        let params = [("layer.weight", &shape[..]), ("head.weight", &shape[..])];
        let e = RoutingRule::default().adamw_for("layre").check(params).unwrap_err();
        assert!(e.is_unknown_name(), "{e}");
        let e = RoutingRule::default().adamw_for("layer").check(params).unwrap_err();
        assert!(e.is_invalid_config() && e.to_string().contains("muon_for"), "{e}");
        RoutingRule::default().muon_for("head").check(params).unwrap();
        assert!(
            RoutingRule::default()
                .adamw_for("h")
                .muon_for("head")
                .route("head.weight", &shape)
                .muon
        );
    }
}
