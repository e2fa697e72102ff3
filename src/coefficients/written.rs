//! Schedules and orthogonalizers in any format of serde: a preset by its name, or every number.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::file::NormalizationName;
use super::{CoefficientSchedule, Normalization, OddPolynomial, Provenance, Tail, presets};
use crate::config::Orthogonalizer;
use crate::error::{Error, Result};

/// A schedule as a table; see [`CoefficientSchedule::from_toml_str`], which reads the same with line and column in its errors.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    source: String,
    normalization: NormalizationName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    safety: Option<f64>,
    #[serde(default)]
    tail: Tail,
    coefficients: Vec<Vec<f64>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    provenance: Option<Provenance>,
}

impl From<&CoefficientSchedule> for Table {
    fn from(schedule: &CoefficientSchedule) -> Self {
        let (normalization, safety) = match schedule.normalization() {
            Normalization::Frobenius { safety } => (NormalizationName::Frobenius, Some(safety)),
            Normalization::Aol => (NormalizationName::Aol, None),
        };
        Self {
            name: schedule.name().to_owned(),
            source: schedule.source().to_owned(),
            normalization,
            safety,
            tail: schedule.tail(),
            coefficients: schedule
                .polynomials()
                .iter()
                .map(|p| p.coefficients().to_vec())
                .collect(),
            provenance: schedule.provenance().cloned(),
        }
    }
}

impl TryFrom<Table> for CoefficientSchedule {
    type Error = Error;

    fn try_from(table: Table) -> Result<Self> {
        let polynomials =
            table.coefficients.iter().map(|row| OddPolynomial::new(row)).collect::<Result<_>>()?;
        let normalization = table.normalization.with(table.safety)?;
        let schedule = Self::new(table.name, polynomials, normalization, table.tail, table.source)?;
        Ok(match table.provenance {
            Some(provenance) => schedule.with_provenance(provenance),
            None => schedule,
        })
    }
}

impl Serialize for CoefficientSchedule {
    /// Always every number, so that a file means the same when a preset has changed.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Table::from(self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for CoefficientSchedule {
    /// # Errors
    /// An unknown preset, an unknown field, and what [`CoefficientSchedule::new`] refuses.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = CoefficientSchedule;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a preset or a table of coefficients")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Self::Value, E> {
                presets::preset(name).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                let table = Table::deserialize(MapAccessDeserializer::new(map))?;
                table.try_into().map_err(de::Error::custom)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// A polynomial orthogonalizer as a table.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Polynomials {
    schedule: CoefficientSchedule,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    iterations: Option<usize>,
}

impl Serialize for Orthogonalizer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Polynomial { schedule, iterations } => {
                Polynomials { schedule: schedule.clone(), iterations: *iterations }
                    .serialize(serializer)
            }
            other => serializer.serialize_str(&other.name()),
        }
    }
}

impl<'de> Deserialize<'de> for Orthogonalizer {
    /// # Errors
    /// A name that is none of the three and no preset; an unknown field; a schedule that is refused.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Orthogonalizer;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "`identity`, `frobenius`, `exact_svd`, the name of a preset, or a table with a schedule",
                )
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Self::Value, E> {
                match name {
                    "identity" => Ok(Orthogonalizer::Identity),
                    "frobenius" => Ok(Orthogonalizer::Frobenius),
                    "exact_svd" => Ok(Orthogonalizer::ExactSvd),
                    preset => Orthogonalizer::preset(preset).map_err(E::custom),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                let Polynomials { schedule, iterations } =
                    Polynomials::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Orthogonalizer::Polynomial { schedule, iterations })
            }
        }
        deserializer.deserialize_any(Either)
    }
}
