//! The survey of published sets, figure by figure.

use super::tests::{UNIT, rows_of, schedule};
use super::*;
use crate::coefficients::Tail;
use crate::coefficients::presets::preset;

struct Row {
    what: &'static str,
    schedule: CoefficientSchedule,
    /// As published, with the number of significant digits.
    slope: f64,
    /// Output on [0.1, 1], [0.01, 1], [0.003, 1], [0.001, 1], to three decimals.
    bands: [(f64, f64); 4],
    /// p(1), to three decimals.
    at_one: f64,
    /// Safe sigma of the survey: a 0.001 grid from 1 upwards, image inside (0.2, 1.5).
    safe: f64,
}

/// The survey of published sets (scalar evaluation in f64). Half a unit of the last printed digit
/// is the tolerance of every figure.
fn survey() -> Vec<Row> {
    let jordan = |n| preset("jordan").unwrap().with_iterations(n).unwrap();
    let guarded = preset("polar_express_raw").unwrap().with_safety(1.01).unwrap();
    let last_five = CoefficientSchedule::new(
        "test",
        guarded.polynomials()[3..].to_vec(),
        UNIT,
        Tail::Exact,
        "",
    )
    .unwrap();
    let row = |what, schedule, slope, bands, at_one, safe| Row {
        what,
        schedule,
        slope,
        bands,
        at_one,
        safe,
    };
    let same = |band| [band; 4];
    vec![
        row(
            "Jordan, 5",
            jordan(5),
            484.9,
            [(0.682, 1.134), (0.682, 1.134), (0.682, 1.202), (0.471, 1.202)],
            0.696,
            1.263,
        ),
        row(
            "Jordan, 6",
            jordan(6),
            1670.0,
            [(0.682, 1.134), (0.682, 1.134), (0.682, 1.134), (0.682, 1.202)],
            1.119,
            1.263,
        ),
        row(
            "Jordan, 4",
            jordan(4),
            140.8,
            [(0.682, 1.134), (0.682, 1.202), (0.413, 1.202), (0.140, 1.202)],
            1.090,
            1.263,
        ),
        row(
            "Jordan, 3",
            jordan(3),
            40.9,
            [(0.682, 1.134), (0.400, 1.202), (0.122, 1.202), (0.041, 1.202)],
            0.721,
            1.264,
        ),
        row(
            "You",
            preset("you").unwrap(),
            492.7,
            [(0.978, 1.032), (0.978, 1.032), (0.978, 1.145), (0.475, 1.145)],
            0.978,
            1.324,
        ),
        row(
            "Turbo-Muon",
            preset("turbo_muon").unwrap(),
            120.6,
            [(0.978, 1.032), (0.973, 1.145), (0.355, 1.145), (0.120, 1.145)],
            0.994,
            1.322,
        ),
        row(
            "Polar Express, first 5 rows, all divided by 1.01",
            rows_of("polar_express_raw", 0, 5, 1.01),
            976.3,
            [(0.870, 1.124), (0.870, 1.124), (0.870, 1.124), (0.846, 1.124)],
            1.029,
            1.010,
        ),
        row(
            "Polar Express, 8 rows, safety 1.01 but for the last",
            guarded,
            6363.0,
            same((1.0, 1.0)),
            1.0,
            1.010,
        ),
        row(
            "Polar Express, five-row set",
            preset("polar_express_5").unwrap(),
            989.5,
            same((0.859, 1.141)),
            0.859,
            1.021,
        ),
        row(
            "Gram-NS: Polar Express, first 5 rows, all divided by 1.05",
            rows_of("polar_express_raw", 0, 5, 1.05),
            803.9,
            [(0.846, 1.124), (0.846, 1.124), (0.846, 1.124), (0.729, 1.124)],
            1.019,
            1.054,
        ),
        row(
            "Polar Express, last 5 of 8",
            last_five,
            48.8,
            [(1.0, 1.0), (0.459, 1.0), (0.146, 1.0), (0.049, 1.0)],
            1.0,
            // The survey's grid ended at 1.6; see `agrees_with_the_survey`.
            1.600,
        ),
        row("CANS", preset("cans").unwrap(), 1049.0, same((0.884, 1.120)), 1.005, 1.0),
        row(
            "AOL 4, genetic search",
            schedule(&[
                [4.6051, -9.6552, 5.6769],
                [4.7505, -6.0861, 2.1790],
                [2.7763, -2.3190, 0.5523],
                [2.4231, -2.2861, 0.8193],
            ]),
            147.2,
            [(0.941, 1.050), (0.941, 1.050), (0.426, 1.050), (0.147, 1.050)],
            0.944,
            1.104,
        ),
        row(
            "DeepSeek-V4",
            preset("deepseek_v4").unwrap(),
            79263.0,
            [(1.0, 1.0), (1.0, 1.0), (1.0, 1.001), (1.0, 1.001)],
            1.0,
            1.263,
        ),
        row(
            "cubic5",
            preset("cubic5").unwrap(),
            119.3,
            [(0.774, 1.300), (0.774, 1.300), (0.353, 1.300), (0.119, 1.300)],
            0.774,
            1.002,
        ),
        row(
            "nmoe",
            schedule(&[
                [7.2086, -15.5131, 9.0178],
                [3.9623, -2.5813, 0.4542],
                [3.9466, -2.5765, 0.4544],
                [3.8991, -2.5671, 0.4566],
                [3.7186, -2.5308, 0.4653],
                [3.1390, -2.3073, 0.4733],
                [2.1715, -1.5246, 0.3885],
                [1.8648, -1.2224, 0.3577],
            ]),
            20775.0,
            same((0.999, 1.0)),
            1.0,
            1.112,
        ),
        row(
            "(2, -1.5, 0.5), 10",
            schedule(&[[2.0, -1.5, 0.5]; 10]),
            1024.0,
            [(1.0, 1.0), (1.0, 1.0), (1.0, 1.001), (0.807, 1.002)],
            1.0,
            1.414,
        ),
        row(
            "(15/8, -10/8, 3/8), 5",
            schedule(&[[1.875, -1.25, 0.375]; 5]),
            23.2,
            [(0.996, 1.0), (0.228, 1.0), (0.069, 1.0), (0.023, 1.0)],
            1.0,
            1.527,
        ),
    ]
}

/// The rule of the survey: the last grid point from 1 upwards, step 0.001, up to which the output
/// stays inside (0.2, 1.5).
pub(super) fn survey_safe_sigma(s: &CoefficientSchedule, end: u32) -> f64 {
    let inside = |i: &u32| {
        let y = s.eval(1.0 + f64::from(*i) * 0.001);
        0.2 < y && y < 1.5
    };
    let count = (0..=end).take_while(inside).count();
    1.0 + (f64::from(u32::try_from(count).unwrap()) - 1.0) * 0.001
}

#[test]
fn agrees_with_the_survey() {
    for row in survey() {
        let Row { what, schedule: s, slope, bands, at_one, safe } = row;
        println!("{what}: slope {:.1}, safe sigma {:.4}", s.slope(), s.safe_sigma());
        // Four significant digits, or one decimal.
        let unit = if slope >= 1000.0 { 1.0 } else { 0.1 };
        assert!((s.slope() - slope).abs() <= 0.5 * unit, "{what}: slope {}", s.slope());
        for (lower, band) in [0.1, 0.01, 0.003, 0.001].into_iter().zip(bands) {
            let (min, max) = s.image(lower, 1.0);
            // One more unit in the fourth decimal than half of the third: the survey sampled, which
            // misses an extremum by less than that.
            assert!(
                (min - band.0).abs() < 6e-4 && (max - band.1).abs() < 6e-4,
                "{what} on [{lower}, 1]: {min:.4} to {max:.4}, published {band:?}"
            );
        }
        assert!((s.eval(1.0) - at_one).abs() < 6e-4, "{what}: p(1) = {}", s.eval(1.0));
        // The survey's rule gives the survey's number on its own grid …
        assert!((survey_safe_sigma(&s, 600) - safe).abs() < 1e-9, "{what}");
        // … and differs from ours by the grid (below 0.001, we are above) and by its lower end 0.2
        // where ours is the sign change: cubic5 passes from 0.2 to 0 between 1.0027 and 1.0035.
        let gap = s.safe_sigma() - safe;
        let allowed = if what == "cubic5" { 0.0016 } else { 0.001 };
        if what == "Polar Express, last 5 of 8" {
            assert!((s.safe_sigma() - survey_safe_sigma(&s, 2000)).abs() < 0.001, "{what}");
        } else {
            assert!((0.0..allowed).contains(&gap), "{what}: {} and {safe}", s.safe_sigma());
        }
    }
}
