use super::*;
use crate::coefficients::Generator;
use proptest::prelude::*;

const FILE: &str = "name = \"mine\"\nnormalization = \"frobenius\"\ncoefficients = [[1.5, -0.5]]\n";

#[test]
fn reads_defaults_and_every_key() {
    let s = CoefficientSchedule::from_toml_str(FILE).unwrap();
    assert_eq!(s.name(), "mine");
    assert_eq!(s.normalization(), Normalization::Frobenius { safety: 1.0 });
    assert_eq!((s.tail(), s.source(), s.provenance()), (Tail::Exact, "", None));
    assert_eq!(s.polynomials()[0].coefficients(), [1.5, -0.5]);
    let s = CoefficientSchedule::from_toml_str(
        r#"
        name = "all"
        source = "by hand"
        normalization = "frobenius"
        safety = 1.02
        tail = "repeat_last"
        coefficients = [[2, -1.5, 0.5], [1.5, -0.5], [1.0, 2.0, 3.0, 4.0, 5e-1]]
        [provenance]
        input_safety = [1.01]
        generator = { method = "final_band", degrees = [5, 3, 9], band = 0.25 }
        "#,
    )
    .unwrap();
    assert_eq!(s.normalization(), Normalization::Frobenius { safety: 1.02 });
    assert_eq!((s.tail(), s.source()), (Tail::RepeatLast, "by hand"));
    assert_eq!(s.polynomials()[0].coefficients(), [2.0, -1.5, 0.5]);
    assert_eq!(s.polynomials()[2].coefficients(), [1.0, 2.0, 3.0, 4.0, 0.5]);
    assert_eq!(
        s.provenance(),
        Some(&Provenance {
            input_safety: vec![1.01],
            generator: Generator::FinalBand { degrees: vec![5, 3, 9], band: 0.25 },
        })
    );
}

#[test]
fn every_mistake_is_named_with_its_place() {
    for (change, with, parts) in [
        ("name = \"mine\"", "nam = \"mine\"", vec!["line 1, column 1", "unknown field `nam`"]),
        ("name = \"mine\"\n", "", vec!["missing field `name`"]),
        ("\"mine\"", "\"\"", vec!["line 1, column 8", "needs a name"]),
        ("\"frobenius\"", "\"forbenius\"", vec!["line 2, column 17", "`forbenius`", "`aol`"]),
        ("\"frobenius\"", "\"aol\"\nsafety = 1.1", vec!["line 3, column 10", "no meaning"]),
        ("\"frobenius\"", "\"frobenius\"\nsafety = 0.9", vec!["line 3, column 10", "`0.9`"]),
        ("\"frobenius\"", "\"frobenius\"\nsafety = nan", vec!["line 3, column 10", "`NaN`"]),
        ("\"frobenius\"", "\"frobenius\"\ntail = \"last\"", vec!["line 3, column 8", "`last`"]),
        ("[[1.5, -0.5]]", "[[1.5, -0.5],\n [1.0]]", vec!["line 4, column 2", "found 1"]),
        ("[[1.5, -0.5]]", "[[1.5, inf]]", vec!["line 3, column 17", "finite", "`inf`"]),
        ("[[1.5, -0.5]]", "[[1.5, \"x\"]]", vec!["line 3, column 23", "string \"x\""]),
        ("[[1.5, -0.5]]", "[]", vec!["no polynomial"]),
        ("[[1.5, -0.5]]", "[[1.5, -0.5]", vec!["line 3"]),
        (
            "[[1.5, -0.5]]",
            "[[1.5, -0.5]]\n[provenance]\nx = 1",
            vec!["line 5, column 1", "unknown field `x`"],
        ),
        (
            "[[1.5, -0.5]]",
            "[[1.5, -0.5]]\nprovenance.generator = { method = \"guess\" }",
            vec!["line 4", "`guess`", "`final_band`"],
        ),
        (
            "[[1.5, -0.5]]",
            "[[1.5, -0.5]]\n[provenance.generator]\nmethod = \"final_band\"\ndegrees = [5]\nband \
             = 0.1\nbond = 0.2",
            vec!["unknown field `bond`"],
        ),
    ] {
        assert!(FILE.contains(change));
        let text = FILE.replace(change, with);
        let e = CoefficientSchedule::from_toml_str(&text).unwrap_err();
        assert!(e.is_parse() || e.is_invalid_config(), "{e}");
        let message = e.to_string();
        assert!(!message.contains('\n'), "{message}");
        for part in parts {
            assert!(message.contains(part), "`{part}` is not in: {message}\n{text}");
        }
    }
}

#[test]
fn every_preset_and_a_generated_schedule_survive_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let made = Generator::Composition {
        degrees: vec![5, 9, 3],
        lower: 1e-3,
        cushion: 0.024,
        safety: 1.01,
    }
    .schedule("made", Normalization::Frobenius { safety: 1.02 })
    .unwrap()
    .with_safety(1.003)
    .unwrap();
    let all = presets::names().map(|n| presets::preset(n).unwrap()).chain([made]);
    for schedule in all {
        let path = folder.path().join("schedule.toml");
        std::fs::write(&path, schedule.to_toml_string().unwrap()).unwrap();
        let read = CoefficientSchedule::preset_or_file(path.to_str().unwrap()).unwrap();
        assert_eq!(read, schedule);
        if let Some(again) = read.regenerate().unwrap() {
            assert_eq!(again, schedule);
        }
    }
}

#[test]
fn names_and_paths() {
    let get = CoefficientSchedule::preset_or_file;
    assert_eq!(get("jordan").unwrap(), presets::preset("jordan").unwrap());
    let e = get("polar_expres_5").unwrap_err();
    assert!(e.is_unknown_name() && e.to_string().contains("mean `polar_express_5`?"), "{e}");
    let e = get("jordan.toml").unwrap_err();
    assert!(e.is_io() && e.to_string().starts_with("jordan.toml: read"), "{e}");
    assert!(get("no/such/file").unwrap_err().is_io());
    assert!(get("").unwrap_err().is_unknown_name());

    let folder = tempfile::tempdir().unwrap();
    assert!(CoefficientSchedule::load(folder.path()).unwrap_err().is_io());
    let path = folder.path().join("bad.toml");
    std::fs::write(&path, b"name = \"\xff\"").unwrap();
    let e = CoefficientSchedule::load(&path).unwrap_err();
    let said = "bad.toml: expected UTF-8 text, found another byte at 8";
    assert!(e.is_parse() && e.to_string().ends_with(said), "{e}");
    std::fs::write(&path, " ".repeat(1 << 20)).unwrap();
    assert!(CoefficientSchedule::load(&path).unwrap_err().to_string().contains("missing field"));
    std::fs::write(&path, " ".repeat((1 << 20) + 1)).unwrap();
    assert!(CoefficientSchedule::load(&path).unwrap_err().to_string().contains("1048576 bytes"));
}

fn any_schedule() -> impl Strategy<Value = CoefficientSchedule> {
    use proptest::num::f64::{NEGATIVE, NORMAL, POSITIVE, SUBNORMAL, ZERO};
    let number = || NORMAL | SUBNORMAL | ZERO | POSITIVE | NEGATIVE;
    let row = prop_oneof![
        proptest::collection::vec(number(), 2),
        proptest::collection::vec(number(), 3),
        proptest::collection::vec(number(), 5)
    ]
    .prop_map(|row| OddPolynomial::new(&row).unwrap());
    let normalization = prop_oneof![
        Just(Normalization::Aol),
        (1.0f64..1e300).prop_map(|safety| Normalization::Frobenius { safety })
    ];
    let generator = prop_oneof![
        (proptest::collection::vec(0usize..1000, 0..4), number(), number(), number()).prop_map(
            |(degrees, lower, cushion, safety)| Generator::Composition {
                degrees,
                lower,
                cushion,
                safety
            }
        ),
        (proptest::collection::vec(0usize..1000, 0..4), number())
            .prop_map(|(degrees, band)| Generator::FinalBand { degrees, band })
    ];
    let provenance = (proptest::collection::vec(number(), 0..3), generator)
        .prop_map(|(input_safety, generator)| Provenance { input_safety, generator });
    (
        any::<String>(),
        proptest::collection::vec(row, 1..6),
        normalization,
        prop_oneof![Just(Tail::Exact), Just(Tail::RepeatLast)],
        any::<String>(),
        proptest::option::of(provenance),
    )
        .prop_map(|(name, polynomials, normalization, tail, source, provenance)| {
            let s = CoefficientSchedule::new(
                format!("n{name}"),
                polynomials,
                normalization,
                tail,
                source,
            )
            .unwrap();
            match provenance {
                Some(p) => s.with_provenance(p),
                None => s,
            }
        })
}

proptest! {
    #[test]
    fn writing_and_reading_gives_the_same_bits(schedule in any_schedule()) {
        let text = schedule.to_toml_string().unwrap();
        let read = CoefficientSchedule::from_toml_str(&text).unwrap();
        prop_assert_eq!(&read, &schedule, "{}", text);
        // Equality calls 0 and −0 equal; the text tells them apart.
        prop_assert_eq!(read.to_toml_string().unwrap(), text);
    }

    #[test]
    fn arbitrary_text_is_an_error_or_a_schedule(text in any::<String>()) {
        if let Err(e) = CoefficientSchedule::from_toml_str(&text) {
            prop_assert!(e.is_parse() || e.is_invalid_config());
        }
    }

    /// Damage to a real file, which reaches deeper than random bytes do.
    #[test]
    fn damaged_files_are_an_error_or_a_schedule(
        schedule in any_schedule(),
        at in any::<proptest::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<bool>(),
    ) {
        let mut bytes = schedule.to_toml_string().unwrap().into_bytes();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] = byte }
        let Ok(text) = std::str::from_utf8(&bytes) else { return Ok(()) };
        match CoefficientSchedule::from_toml_str(text) {
            Err(e) => prop_assert!(e.is_parse() || e.is_invalid_config()),
            Ok(s) => {
                let _ = s.regenerate();
                let mut all = s.polynomials().iter().flat_map(|p| p.coefficients());
                prop_assert!(all.all(|c| c.is_finite()));
            }
        }
    }
}
