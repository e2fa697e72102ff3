//! Settings that the unit tests of this command begin with.

use super::cost::CostModel;
use super::settings::{Settings, VERSION};
use crate::args::{AggregateName, ObjectiveName, TuneMethodName, TunePrecisionName};

pub(super) fn settings() -> Settings {
    Settings {
        version: VERSION,
        precision: TunePrecisionName::Bf16,
        aspect: 2.0,
        short: 32,
        families: vec!["gaussian".into(), "power:1".into()],
        files: Vec::new(),
        layer: None,
        fingerprint: 0xcbf2_9ce4_8422_2325,
        iterations: vec![2],
        degrees: vec![3, 5],
        method: TuneMethodName::Standard,
        cost: CostModel::Flops,
        max_cost: None,
        objective: ObjectiveName::Error,
        aggregate: AggregateName::Mean,
        lower: 1e-3,
        band: None,
        min_safe_sigma: 1.0,
        max_slope: None,
        rounding_safe: true,
        seed: 0,
        polish: 2,
        evaluations: 50,
        held_out: Vec::new(),
    }
}

#[test]
fn settings_that_cannot_be_met_are_refused_by_name() {
    let refused = |change: &dyn Fn(&mut Settings)| {
        let mut s = settings();
        change(&mut s);
        s.check().unwrap_err().to_string()
    };
    assert!(settings().check().is_ok());
    assert!(refused(&|s| s.aspect = 0.5).contains("--aspect"));
    assert!(refused(&|s| s.aspect = f64::NAN).contains("--aspect"));
    assert!(refused(&|s| s.lower = 1.0).contains("--lower"));
    assert!(refused(&|s| s.short = 1).contains("--size"));
    assert!(refused(&|s| s.degrees = vec![7]).contains("--degrees"));
    assert!(refused(&|s| s.degrees = vec![]).contains("--degrees"));
    assert!(refused(&|s| s.iterations = vec![0]).contains("--iterations"));
    assert!(refused(&|s| s.evaluations = 0).contains("budget of 0"));
    assert!(refused(&|s| s.max_slope = Some(0.0)).contains("--max-slope"));
    assert!(refused(&|s| s.version = 2).contains("format 2"));
}
