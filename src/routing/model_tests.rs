//! The routing of every parameter of well-known models.

use super::*;

/// The right answers; its first lines say how it is read.
const TABLE: &str = include_str!("../../tests/data/routing.tsv");

fn answer(decision: &Decision) -> &'static str {
    match decision.destination {
        Destination::Muon(Reading::Matrix) => "muon",
        Destination::Muon(Reading::Experts) => "experts",
        Destination::Muon(Reading::Convolution) => "convolution",
        Destination::AdamW => "adamw",
        Destination::NoParameter => "none",
        Destination::Undecided => "refused",
    }
}

#[test]
fn every_parameter_of_well_known_models_goes_where_it_belongs() {
    let rule = RoutingRule::default();
    let (mut rows, mut wrong) = (0, Vec::new());
    for row in TABLE.lines().filter(|line| !line.starts_with('#')) {
        let [model, _source, name, shape, dtype, right] =
            row.split('\t').collect::<Vec<_>>().try_into().unwrap();
        let shape: Vec<usize> = match shape {
            "-" => Vec::new(),
            sides => sides.split('x').map(|side| side.parse().unwrap()).collect(),
        };
        let decision = rule.route_stored(name, TensorDtype::named(dtype), &shape);
        rows += 1;
        if answer(&decision) != right {
            let (found, reason) = (answer(&decision), &decision.reason);
            wrong.push(format!("{model}: `{name}` {shape:?}: {right}, found {found} ({reason})"));
        }
        // What a trainer holds is a parameter; a mask that it holds after all is no hidden matrix.
        if right == "none" && !decision.reason.contains("elements") {
            let trained = rule.route(name, &shape);
            assert_eq!(trained.destination, Destination::AdamW, "{name}: {}", trained.reason);
        }
        // A side of 1 is a vector in any number of dimensions.
        let vectors = |view: &[usize]| view.contains(&1);
        if let Destination::Muon(Reading::Matrix | Reading::Experts) = decision.destination {
            assert!(!vectors(&shape[shape.len() - 2..]), "{name} {shape:?}");
        }
    }
    assert!(rows > 450, "{rows} rows are read");
    assert!(wrong.is_empty(), "{} of {rows} rows:\n{}", wrong.len(), wrong.join("\n"));
}
