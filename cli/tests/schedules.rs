//! Schedules: tables, JSON, plots.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod support;

use std::fs;

use support::{muon, ok};

#[test]
fn the_list_has_every_preset_with_its_figures() {
    let dir = tempfile::tempdir().unwrap();
    let table = ok(dir.path(), &["schedules"]).out;
    let json: serde_json::Value =
        serde_json::from_str(&ok(dir.path(), &["schedules", "--json"]).out).unwrap();
    let all = json.as_array().unwrap();
    let names: Vec<&str> = all.iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(names, muon_cuda::coefficients::presets::names().collect::<Vec<_>>());
    for s in all {
        assert!(
            table.contains(s["name"].as_str().unwrap())
                && table.contains(s["source"].as_str().unwrap())
        );
        assert_eq!(
            s["polynomials"].as_array().unwrap().len() as u64,
            s["iterations"].as_u64().unwrap()
        );
        assert!(
            s["slope"].as_f64().unwrap() > 1.0 && s["safe_sigma"].as_f64().unwrap() > 0.8,
            "{s}"
        );
    }
    // Degree 9 three times: (3α + 2) each, in n³.
    let nonic = all.iter().find(|s| s["name"] == "nonic3_band12").unwrap();
    assert_eq!(nonic["flops_square"]["symmetric"], 15.0);
    assert_eq!(nonic["flops_four_to_one"]["symmetric"], 42.0);
}

#[test]
fn one_schedule_in_detail_and_as_a_plot() {
    let dir = tempfile::tempdir().unwrap();
    let page = ok(dir.path(), &["schedules", "jordan", "--plot", "jordan.svg"]).out;
    assert_eq!(page.matches("3.4445σ − 4.775σ³ + 2.0315σ⁵").count(), 5, "{page}");
    for line in ["safe σ", "lifts from", "normalisation", "repeats the last polynomial"] {
        assert!(page.contains(line), "{line} is missing from\n{page}");
    }
    let svg = fs::read_to_string(dir.path().join("jordan.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("after 5") && svg.contains("jordan:"));
    ok(dir.path(), &["schedules", "you", "--plot", "you.png", "--json"]);
    let file = fs::File::open(dir.path().join("you.png")).unwrap();
    let reader = png::Decoder::new(std::io::BufReader::new(file)).read_info().unwrap();
    assert_eq!((reader.info().width, reader.info().height), (2200, 1320));
    // A file that is there is replaced only when asked.
    let again = ["schedules", "you", "--plot", "jordan.svg"];
    let said = muon(dir.path(), &again);
    assert_eq!(said.code, Some(2), "{}", said.err);
    assert!(
        said.err.contains("jordan.svg is there already") && said.err.contains("--force"),
        "{}",
        said.err
    );
    assert!(said.out.is_empty(), "{}", said.out);
    assert_eq!(fs::read_to_string(dir.path().join("jordan.svg")).unwrap(), svg);
    ok(dir.path(), &[&again[..], &["--force"]].concat());
    assert_ne!(fs::read_to_string(dir.path().join("jordan.svg")).unwrap(), svg);
}

const MINE: &str = r#"
name = "mine"
source = "a test"
normalization = "frobenius"
safety = 1.0
tail = "repeat_last"
coefficients = [[2.0, -1.0], [1.5, -0.5]]
"#;

#[test]
fn files_are_taken_wherever_a_name_is() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("mine.toml"), MINE).unwrap();
    let page = ok(dir.path(), &["schedules", "mine.toml"]).out;
    assert!(page.contains("2σ − 1σ³") && page.contains("1.5σ − 0.5σ³"), "{page}");
    let run =
        ["--schedule", "mine.toml", "--schedule", "jordan", "--iterations", "7", "--out", "run"];
    ok(dir.path(), &support::tiny(&run));
    let metrics = support::metrics(&dir.path().join("run"));
    let rows: Vec<&str> = metrics["summary"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["optimizer"].as_str().unwrap())
        .collect();
    assert_eq!(rows, ["muon_mine_7", "muon_jordan_7"]);
    // The record has the numbers: it needs no file beside it to be resumed.
    fs::remove_file(dir.path().join("mine.toml")).unwrap();
    ok(dir.path(), &["train", "--resume", "--out", "run", "--quiet"]);
    assert_eq!(support::metrics(&dir.path().join("run")), metrics);

    fs::write(dir.path().join("bad.toml"), "name = 3").unwrap();
    let said = support::muon(dir.path(), &["schedules", "bad.toml"]);
    assert_eq!(said.code, Some(1), "{}", said.err);
    assert!(said.err.contains("bad.toml"), "{}", said.err);
}

#[test]
fn the_comparison_refuses_the_set_that_flips_signs() {
    let dir = tempfile::tempdir().unwrap();
    let json: serde_json::Value =
        serde_json::from_str(&ok(dir.path(), &["schedules", "--table", "--json"]).out).unwrap();
    let find = |name: &str| json.as_array().unwrap().iter().find(|s| s["name"] == name).unwrap();
    // With its preconditioner and without: sigma 0.884 is below what either guarantees.
    for name in ["aol_early", "aol_early, Frobenius"] {
        let set = find(name);
        assert_eq!(set["runs"], "refused");
        assert!((set["safe_sigma"].as_f64().unwrap() - 0.884).abs() < 1e-3, "{set}");
    }
    assert_eq!(find("jordan")["runs"], "raw");
    assert_eq!(find("polar_express_raw")["runs"], "1.01");
    // NUMERICS.md, at 384 x 1536.
    assert!((find("jordan")["error_bf16"].as_f64().unwrap() - 0.078).abs() < 1e-3);
}
