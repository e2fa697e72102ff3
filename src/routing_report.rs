//! What is orthogonalized and what is not, for people: Muon that silently is not Muon is the field's worst bug.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::printable::Printable;
use crate::routing;

/// One line of a routing report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// The parameter.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its group.
    pub group: String,
    /// The orthogonalizer's name under the Muon rule, `None` under AdamW.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orthogonalizer: Option<String>,
    /// Number of matrices that are orthogonalized one by one.
    pub matrices: usize,
    /// Number of elements.
    pub elements: usize,
}

impl Route {
    /// The longer side of a matrix under Muon that looks like a vocabulary.
    fn vocabulary_side(&self) -> Option<usize> {
        self.orthogonalizer.as_ref()?;
        match *self.shape.as_slice() {
            [rows, cols] => routing::vocabulary_side([rows, cols]),
            _ => None,
        }
    }
}

/// What is orthogonalized and what is not; see [`Muon::routing`](crate::Muon::routing).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoutingReport {
    /// One entry per parameter, in registration order.
    pub routes: Vec<Route>,
}

impl RoutingReport {
    /// Fraction of all elements that are under the Muon rule, in `[0, 1]`.
    #[must_use]
    pub fn muon_fraction(&self) -> f64 {
        let total: usize = self.routes.iter().map(|r| r.elements).sum();
        let muon: usize =
            self.routes.iter().filter(|r| r.orthogonalizer.is_some()).map(|r| r.elements).sum();
        if total == 0 { 0.0 } else { muon as f64 / total as f64 }
    }
}

impl fmt::Display for RoutingReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let muon = self.routes.iter().filter(|r| r.orthogonalizer.is_some()).count();
        writeln!(
            f,
            "Muon: {muon} of {} parameters, {:.1} % of elements",
            self.routes.len(),
            100.0 * self.muon_fraction()
        )?;
        for r in &self.routes {
            let (name, shape, group) = (Printable(&r.name), &r.shape, Printable(&r.group));
            match r.orthogonalizer.as_deref().map(Printable) {
                Some(o) if r.matrices == 1 => {
                    writeln!(f, "  muon   {name} {shape:?} (group `{group}`, {o})")?;
                }
                Some(o) => writeln!(
                    f,
                    "  muon   {name} {shape:?} as {} matrices (group `{group}`, {o})",
                    r.matrices
                )?,
                None => writeln!(f, "  adamw  {name} {shape:?} (group `{group}`)")?,
            }
            if let Some(side) = r.vocabulary_side() {
                writeln!(
                    f,
                    "         {side} looks like a vocabulary: an embedding or an output head belongs under AdamW"
                )?;
            }
        }
        Ok(())
    }
}
