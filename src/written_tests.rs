//! Rules, configurations, specifications and reports in files: what is written is read again, and nothing else is read.

use std::fmt::Debug;
use std::num::NonZeroUsize;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::coefficients::generate;
use crate::{
    AdamWRule, Bf16Params, CoefficientSchedule, Counters, Cpu, Dtype, FoundNonFinite, GroupScalars,
    Layout, MatrixShape, MethodChoice, Mismatch, MomentumMode, Muon, MuonConfig, MuonRule,
    Nesterov, NonFinite, Normalization, OddPolynomial, OrthogonalizeOptions, Orthogonalizer,
    ParamSpec, Precision, RestoreReport, Route, RoutingReport, RoutingRule, Rule, Safety, Split,
    StepOptions, StepReport, SymmetricProducts, Tail, UpdateScale, WeightDecayMode, WithoutMuon,
};

/// The same through JSON and TOML; the text of the TOML.
fn round<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) -> String {
    let json = serde_json::to_string(value).unwrap();
    assert_eq!(&serde_json::from_str::<T>(&json).unwrap(), value, "{json}");
    let toml = toml::to_string(value).unwrap();
    assert_eq!(&toml::from_str::<T>(&toml).unwrap(), value, "{toml}");
    toml
}

/// A word of a file and back.
fn word<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T, json: &str) {
    assert_eq!(serde_json::to_string(value).unwrap(), json);
    assert_eq!(&serde_json::from_str::<T>(json).unwrap(), value);
}

/// Reading this fails, and says so in these words.
fn refused<T: DeserializeOwned + Debug>(toml: &str, words: &str) {
    let e = toml::from_str::<T>(toml).unwrap_err().to_string();
    assert!(e.contains(words), "{toml}: {e}");
    let value: serde_json::Value = toml::from_str(toml).unwrap();
    let e = serde_json::from_value::<T>(value).unwrap_err().to_string();
    assert!(e.contains(words), "{toml} as JSON: {e}");
}

fn polynomial(schedule: CoefficientSchedule, iterations: Option<usize>) -> Orthogonalizer {
    Orthogonalizer::Polynomial { schedule, iterations }
}

#[test]
fn every_choice_has_its_documented_word() {
    word(&MomentumMode::Ema, "\"ema\"");
    word(&MomentumMode::Sum, "\"sum\"");
    word(&Nesterov::On, "\"on\"");
    word(&Nesterov::Off, "\"off\"");
    word(&WeightDecayMode::Decoupled, "\"decoupled\"");
    word(&WeightDecayMode::Cautious, "\"cautious\"");
    word(&WeightDecayMode::Independent, "\"independent\"");
    word(&WeightDecayMode::L2, "\"l2\"");
    word(&NonFinite::Skip, "\"skip\"");
    word(&NonFinite::Error, "\"error\"");
    word(&UpdateScale::MatchRms(0.3), "{\"match_rms\":0.3}");
    word(&WeightDecayMode::Palm, "\"palm\"");
    word(&Safety::Refuse, "\"refuse\"");
    word(&Safety::RunAnyway, "\"run_anyway\"");
    word(&WithoutMuon::Refuse, "\"refuse\"");
    word(&WithoutMuon::Allow, "\"allow\"");
    word(&FoundNonFinite::Yes, "\"yes\"");
    word(&FoundNonFinite::No, "\"no\"");
    word(&Bf16Params::Master, "\"master\"");
    word(&Bf16Params::Nearest, "\"nearest\"");
    word(&Bf16Params::Stochastic { seed: 7 }, "{\"stochastic\":{\"seed\":7}}");
    word(&UpdateScale::Original, "\"original\"");
    word(&UpdateScale::MatchRmsAdamW, "\"match_rms_adamw\"");
    word(&UpdateScale::Spectral, "\"spectral\"");
    word(&UpdateScale::None, "\"none\"");
    word(&UpdateScale::Custom(0.25), "{\"custom\":0.25}");
    word(&MethodChoice::Auto, "\"auto\"");
    word(&MethodChoice::Standard, "\"standard\"");
    word(&MethodChoice::Gram(vec![2, 1]), "{\"gram\":[2,1]}");
    word(&SymmetricProducts::Auto, "\"auto\"");
    word(&SymmetricProducts::Full, "\"full\"");
    word(&SymmetricProducts::Strips(4), "{\"strips\":4}");
    word(&Layout::OutIn, "\"out_in\"");
    word(&Layout::InOut, "\"in_out\"");
    word(&Split::Whole, "\"whole\"");
    word(&Split::FanOut(vec![4, 2]), "{\"fan_out\":[4,2]}");
    word(&Split::Heads(NonZeroUsize::new(12).unwrap()), "{\"heads\":12}");
    word(&Tail::Exact, "\"exact\"");
    word(&Tail::RepeatLast, "\"repeat_last\"");
    word(&Orthogonalizer::Identity, "\"identity\"");
    word(&Orthogonalizer::Frobenius, "\"frobenius\"");
    word(&Orthogonalizer::ExactSvd, "\"exact_svd\"");
    // The words that `Display` prints.
    for precision in [Precision::F32, Precision::Tf32, Precision::Bf16, Precision::Fp16] {
        word(&precision, &format!("\"{precision}\""));
    }
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        word(&dtype, &format!("\"{dtype}\""));
    }
}

#[test]
fn rules_and_configurations_are_read_as_they_were_written() {
    let generated = generate::for_band(&[9, 9], 0.3).unwrap().polynomials;
    let schedules = [
        crate::coefficients::presets::preset("turbo_muon").unwrap(),
        crate::coefficients::presets::preset("polar_express_raw")
            .unwrap()
            .with_safety(1.01)
            .unwrap(),
        CoefficientSchedule::new(
            "mine",
            generated,
            Normalization::Frobenius { safety: 1.0 + f64::EPSILON },
            Tail::RepeatLast,
            "",
        )
        .unwrap(),
    ];
    for schedule in schedules {
        round(&schedule);
        for iterations in [None, Some(3)] {
            let rule = MuonRule {
                lr: 1.0 / 3.0,
                momentum: 0.9,
                momentum_mode: MomentumMode::Sum,
                nesterov: Nesterov::Off,
                weight_decay: 0.3,
                weight_decay_mode: WeightDecayMode::Independent,
                update_scale: UpdateScale::Custom(0.1),
                orthogonalizer: polynomial(schedule.clone(), iterations),
                method: MethodChoice::Gram(vec![1, 1, 1]),
                norm_floor: 1e-7,
            };
            round(&rule);
            round(&Rule::from(rule));
        }
    }
    round(&MuonRule::default());
    round(&AdamWRule::default());
    let text = round(&Rule::from(AdamWRule { beta2: 0.95, ..AdamWRule::default() }));
    assert!(text.starts_with("rule = \"adamw\"\n"), "{text}");
    round(&MuonConfig::default());
    round(&MuonConfig {
        precision: Some(Precision::Tf32),
        momentum_dtype: Dtype::Bf16,
        bf16_params: Bf16Params::Stochastic { seed: 3 },
        non_finite: NonFinite::Error,
        without_muon: WithoutMuon::Allow,
        symmetric_products: SymmetricProducts::Strips(2),
        workspace_limit: 1 << 20,
    });
    round(&OrthogonalizeOptions::default());
    round(&StepOptions::default());
    round(&StepOptions {
        lr_factor: 0.1,
        inverse_loss_scale: 1.0 / 65536.0,
        found_non_finite: FoundNonFinite::Yes,
        clip_norm: Some(1.0),
    });
    round(&GroupScalars { lr: Some(0.1), betas: Some((0.9, 0.99)), ..GroupScalars::default() });
    round(&MatrixShape { rows: 3, cols: 4 });
}

#[test]
fn specifications_and_reports_are_read_as_they_were_written() {
    let routing =
        RoutingRule::new(MuonRule { lr: 0.01, ..MuonRule::default() }, AdamWRule::default());
    let routing = routing.adamw_for("h.1").muon_for("a").experts_for("b").convolution_for("c");
    let toml = round(&routing);
    assert!(toml.contains("experts") && toml.contains("convolution"), "{toml}");
    refused::<RoutingRule>("overrides = [[\"a\", \"sgd\"]]", "sgd");
    refused::<RoutingRule>("override = []", "override");
    round(&ParamSpec::new("w", &[3, 4]));
    let heads = Split::Heads(NonZeroUsize::new(2).unwrap());
    round(&ParamSpec::new("qkv", &[4, 8]).dtype(Dtype::Bf16).layout(Layout::InOut).split(heads));
    let spec: ParamSpec = toml::from_str("name = 'w'\nshape = [3, 4]").unwrap();
    assert_eq!(spec, ParamSpec::new("w", &[3, 4]));
    round(&StepReport { orthogonalized: 3, adamw: 2, untouched: 1, ..StepReport::default() });
    round(&Counters { steps: 4, skipped: vec![0, 1] });
    round(&RestoreReport {
        restored: vec!["a".into()],
        mismatched: vec![Mismatch { name: "b".into(), reason: "another shape".into() }],
        ..RestoreReport::default()
    });
    let route = |orthogonalizer: Option<&str>| Route {
        name: "w".into(),
        shape: vec![2, 3],
        group: "hidden".into(),
        orthogonalizer: orthogonalizer.map(Into::into),
        matrices: 1,
        elements: 6,
    };
    round(&RoutingReport { routes: vec![route(Some("jordan")), route(None)] });
}

#[test]
fn what_is_absent_is_the_default_and_a_preset_has_a_name() {
    assert_eq!(toml::from_str::<MuonRule>("").unwrap(), MuonRule::default());
    assert_eq!(toml::from_str::<AdamWRule>("").unwrap(), AdamWRule::default());
    assert_eq!(toml::from_str::<MuonConfig>("").unwrap(), MuonConfig::default());
    assert_eq!(toml::from_str::<StepOptions>("").unwrap(), StepOptions::default());
    assert_eq!(toml::from_str::<Rule>("rule = 'muon'").unwrap(), Rule::from(MuonRule::default()));
    let jordan = Orthogonalizer::preset("jordan").unwrap();
    for text in ["orthogonalizer = 'jordan'", "orthogonalizer = { schedule = 'jordan' }"] {
        assert_eq!(toml::from_str::<MuonRule>(text).unwrap().orthogonalizer, jordan);
    }
    let own: MuonRule = toml::from_str(
        "[orthogonalizer]\niterations = 2\n[orthogonalizer.schedule]\nname = 'two'\n\
         normalization = 'frobenius'\ntail = 'repeat_last'\ncoefficients = [[1.5, -0.5]]",
    )
    .unwrap();
    let schedule = CoefficientSchedule::new(
        "two",
        vec![OddPolynomial::new(&[1.5, -0.5]).unwrap()],
        Normalization::Frobenius { safety: 1.0 },
        Tail::RepeatLast,
        "",
    )
    .unwrap();
    assert_eq!(own.orthogonalizer, polynomial(schedule, Some(2)));
}

#[test]
fn unknown_names_and_values_that_a_call_refuses_are_refused() {
    refused::<MuonRule>("learning_rate = 0.1", "unknown field `learning_rate`");
    refused::<AdamWRule>("beta3 = 0.1", "unknown field `beta3`");
    refused::<MuonConfig>("precison = 'bf16'", "unknown field `precison`");
    refused::<MuonConfig>("precision = 'BF16'", "unknown variant `BF16`");
    refused::<StepOptions>("lr = 0.1", "unknown field `lr`");
    refused::<Rule>("rule = 'muon'\nbeta1 = 0.9", "unknown field `beta1`");
    refused::<Rule>("rule = 'sgd'", "unknown variant `sgd`");
    refused::<Rule>("lr = 0.1", "missing field `rule`");
    refused::<ParamSpec>("name = 'w'\nshape = [2]\nsize = 2", "unknown field `size`");
    refused::<ParamSpec>("name = 'w'", "missing field `shape`");
    refused::<MuonRule>("orthogonalizer = 'jordon'", "did you mean `jordan`?");
    refused::<MuonRule>(
        "orthogonalizer = { schedule = 'jordan', steps = 5 }",
        "unknown field `steps`",
    );
    refused::<MuonRule>("orthogonalizer = 5", "the name of a preset");
    let own = |more: &str| format!("name = 'two'\nnormalization = 'frobenius'\n{more}");
    refused::<CoefficientSchedule>(&own("coefficients = [[1.5]]"), "2, 3 or 5 coefficients");
    refused::<CoefficientSchedule>(&own("coefficients = []"), "no polynomial");
    refused::<CoefficientSchedule>(
        &own("safety = 0.5\ncoefficients = [[1.5, -0.5]]"),
        "safety must be finite and at least 1",
    );
    refused::<CoefficientSchedule>(&own("coeffs = []"), "unknown field `coeffs`");
}

#[test]
fn numbers_out_of_range_are_refused_where_they_are_used() {
    let config: MuonConfig = toml::from_str("momentum_dtype = 'f16'").unwrap();
    assert!(Muon::new(Cpu::new().unwrap(), config).unwrap_err().is_dtype_mismatch());
    let mut muon = Muon::new(Cpu::new().unwrap(), MuonConfig::default()).unwrap();
    for text in ["rule = 'muon'\nlr = -1.0", "rule = 'adamw'\neps = 0.0"] {
        let rule: Rule = toml::from_str(text).unwrap();
        assert!(muon.add_group("g", rule).unwrap_err().is_invalid_config(), "{text}");
    }
}
