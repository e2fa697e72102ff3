//! Which method evaluates a schedule on a shape: the cheapest one whose rounding is small enough to be no loss.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::coefficients::{CoefficientSchedule, Normalization};
use crate::error::Result;
use crate::precision::Precision;
use crate::prediction::rounded_image;
use crate::recipe::{Method, Recipe};
use crate::rounding::{Size, polar_distances, rounding_errors};
use crate::shape::MatrixShape;
use crate::symmetric::{BANDWIDTH, rate};

/// In 16 bit and tf32 a Gram grouping may round at most this many times worse than the standard form, on each
/// spectrum: a worst case over spectra would let it round twice as badly on the Gaussian matrices that gradients
/// resemble most.
const TOLERATED: f64 = 1.5;

/// In f32 a Gram grouping may err by this part of the schedule's own distance to the polar factor, on each spectrum.
/// Adding it, in quadrature, changes the distance by half of its square: five parts in 100,000. A schedule
/// that converges to 1e-6 therefore keeps its 1e-6, and one that ends at 0.1 keeps its Gram form.
const PART_OF_DISTANCE: f64 = 0.01;

/// In f32 no Gram grouping may err by more, however far the schedule ends from the polar factor: the tolerance by which
/// f32 results are checked.
const ALLOWED_F32: f64 = 1e-4;

/// A Gram grouping must save at least this part of the standard form's FLOPs: below that, its additional
/// operations and the larger number of symmetric products, which never reach half cost, eat the gain.
const LEAST_SAVING: f64 = 0.05;

/// Shorter sides run in standard form: overheads dominate, and the emulated size is far from theirs.
const SMALLEST: usize = 32;

/// Longer schedules run in standard form: their groupings are too many to try.
const MOST_ITERATIONS: usize = 12;

/// Groupings emulated for one shape at most, cheapest first. All of them up to six iterations.
const MOST_CANDIDATES: usize = 32;

/// A method and the reason for it, for the plan.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Choice {
    pub method: Method,
    pub reason: String,
}

/// The cheapest method for that shape by FLOPs with symmetric products at half cost, among the standard form and
/// the Gram groupings that pass on every emulated spectrum. In f32 a grouping passes that errs by at most a hundredth of
/// the schedule's distance to the polar factor there, and by at most 1e-4. In the other precisions one passes that rounds at
/// most 1.5 times worse than the standard form.
///
/// The rounding error is emulated ([`rounding_error`]), deterministically and from coefficients and precision
/// alone, so that every machine makes the same choice.
pub(crate) fn choose(
    schedule: &CoefficientSchedule,
    precision: Precision,
    shape: MatrixShape,
) -> Choice {
    let standard = |reason: String| Choice { method: Method::Standard, reason };
    let iterations = schedule.polynomials().len();
    let Ok(recipe) = Recipe::new(schedule, &Method::Standard) else {
        return standard("standard form".into());
    };
    if iterations > MOST_ITERATIONS {
        return standard(format!(
            "standard form: Gram groupings of more than {MOST_ITERATIONS} iterations are not searched"
        ));
    }
    let (size, smallest) = match precision {
        Precision::F32 => (Size::SMALL, SMALLEST),
        // Smaller matrices round worse in Gram form, relative to the standard form; down to eighteen times
        // on a single row, whose singular value is 1.
        _ => (Size::LARGE, Size::LARGE.short()),
    };
    if shape.short() < smallest {
        return standard(format!(
            "standard form: in {precision} Gram groupings are considered from a short side of {smallest} on"
        ));
    }
    let n3 = f64::powi(shape.short() as f64, 3);
    let cost = |recipe: &Recipe| recipe.flops(shape).symmetric as f64 / n3;
    let standard_cost = cost(&recipe);
    let mut candidates: Vec<(f64, usize, Vec<usize>, Recipe)> = groupings(iterations)
        .filter_map(|groups| {
            let recipe = Recipe::new(schedule, &Method::Gram { groups: groups.clone() }).ok()?;
            let largest = groups.iter().copied().max()?;
            let cost = cost(&recipe);
            (cost <= standard_cost * (1.0 - LEAST_SAVING))
                .then_some((cost, largest, groups, recipe))
        })
        .collect();
    if candidates.is_empty() {
        return standard(format!(
            "standard form, {standard_cost:.1} n^3 FLOPs: no Gram grouping saves {}% on this shape",
            LEAST_SAVING * 100.0
        ));
    }
    // Equally cheap groupings: balanced groups first, since noise grows with the slopes of one group; then
    // large groups first, since the first Gram matrix has the smallest norm and so the least noise.
    candidates.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)).then_with(|| b.2.cmp(&a.2)));
    let worst = |errors: &[f64; 8]| errors.iter().copied().fold(0.0, f64::max);
    let Some(reference) = emulated(schedule, precision, size, &[], &recipe, &[f64::INFINITY; 8])
    else {
        return standard(format!("standard form; it is not finite in emulated {precision}"));
    };
    let limits = match precision {
        Precision::F32 => {
            distances(schedule, size, &recipe).map(|d| (PART_OF_DISTANCE * d).min(ALLOWED_F32))
        }
        _ => reference.map(|e| TOLERATED * e),
    };
    for (cost, _, groups, recipe) in candidates.into_iter().take(MOST_CANDIDATES) {
        if let Some(errors) = emulated(schedule, precision, size, &groups, &recipe, &limits) {
            let method = Method::Gram { groups };
            let reason = format!(
                "{method} costs {cost:.1} n^3 FLOPs against {standard_cost:.1} in standard form; \
                 worst emulated {precision} rounding error {:.1e} against {:.1e}",
                worst(&errors),
                worst(&reference)
            );
            return Choice { method, reason };
        }
    }
    let too_much = match precision {
        Precision::F32 => format!(
            "errs by more than {ALLOWED_F32:e}, or than {PART_OF_DISTANCE} of the schedule's own distance to the polar factor,"
        ),
        _ => format!("rounds more than {TOLERATED} times worse"),
    };
    standard(format!(
        "standard form, {standard_cost:.1} n^3 FLOPs: every cheaper Gram grouping {too_much} in {precision} on one of \
         eight spectra (standard form: worst {:.1e})",
        worst(&reference)
    ))
}

/// The choice again, or the standard form where reading for the check of a Gram form's update
/// ([`Commit::AfterCheck`](crate::plan::Commit::AfterCheck)) costs more than the FLOPs that it saves, by the same model of an
/// H100 as [`crate::symmetric`]. In f32 nothing is checked.
pub(crate) fn if_it_pays(
    choice: Choice,
    schedule: &CoefficientSchedule,
    precision: Precision,
    shape: MatrixShape,
) -> Choice {
    if precision == Precision::F32 || choice.method == Method::Standard {
        return choice;
    }
    let flops = |method: &Method| -> Option<u64> {
        Some(Recipe::new(schedule, method).ok()?.flops(shape).symmetric)
    };
    let (Some(standard), Some(gram)) = (flops(&Method::Standard), flops(&choice.method)) else {
        return choice;
    };
    let saved = standard.saturating_sub(gram) as f64 / rate(precision);
    // The result, a 16-bit gradient, and an f32 momentum, which is read once more.
    let bytes = shape.len() * (precision.bytes() + 2 + 4);
    let spent = bytes as f64 / BANDWIDTH;
    if saved > spent {
        return choice;
    }
    let n3 = f64::powi(shape.short() as f64, 3);
    let reason = format!(
        "standard form, {:.1} n^3 FLOPs: {} would take {:.1}, {:.2} us less, and the check of its update {:.2} us \
         (modelled)",
        standard as f64 / n3,
        choice.method,
        gram as f64 / n3,
        1e6 * saved,
        1e6 * spent
    );
    Choice { method: Method::Standard, reason }
}

/// Every way to cut that many iterations into consecutive groups, but the one with a cut everywhere, which
/// is the standard form.
fn groupings(iterations: usize) -> impl Iterator<Item = Vec<usize>> {
    let cuts = iterations.saturating_sub(1);
    (0..(1usize << cuts) - 1).map(move |mask| {
        let mut groups = vec![1];
        for i in 0..cuts {
            if mask >> i & 1 == 1 {
                groups.push(1);
            } else if let Some(last) = groups.last_mut() {
                *last += 1;
            }
        }
        groups
    })
}

/// What an emulated rounding error depends on.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    coefficients: Vec<u64>,
    lengths: Vec<usize>,
    /// Bits of the Frobenius safety; `None` for AOL.
    safety: Option<u64>,
    precision: Precision,
    size: Size,
    /// Empty for the standard form.
    groups: Vec<usize>,
}

impl Key {
    fn new(
        schedule: &CoefficientSchedule,
        precision: Precision,
        size: Size,
        groups: &[usize],
    ) -> Self {
        let polynomials = schedule.polynomials();
        Self {
            coefficients: polynomials
                .iter()
                .flat_map(|p| p.coefficients().iter().map(|c| c.to_bits()))
                .collect(),
            lengths: polynomials.iter().map(|p| p.coefficients().len()).collect(),
            safety: match schedule.normalization() {
                Normalization::Frobenius { safety } => Some(safety.to_bits()),
                Normalization::Aol => None,
            },
            precision,
            size,
            groups: groups.to_vec(),
        }
    }
}

static EMULATED: Mutex<Option<HashMap<Key, Option<[f64; 8]>>>> = Mutex::new(None);

/// [`rounding_errors`], each computed once a process. `limits` must depend on the other arguments alone.
fn emulated(
    schedule: &CoefficientSchedule,
    precision: Precision,
    size: Size,
    groups: &[usize],
    recipe: &Recipe,
    limits: &[f64; 8],
) -> Option<[f64; 8]> {
    let key = Key::new(schedule, precision, size, groups);
    let mut memory = EMULATED.lock().unwrap_or_else(PoisonError::into_inner);
    *memory
        .get_or_insert_default()
        .entry(key)
        .or_insert_with(|| rounding_errors(schedule, recipe, precision, size, limits))
}

static DISTANCES: Mutex<Option<HashMap<Key, [f64; 8]>>> = Mutex::new(None);

/// [`polar_distances`] of the standard form, each computed once a process.
fn distances(schedule: &CoefficientSchedule, size: Size, recipe: &Recipe) -> [f64; 8] {
    let key = Key::new(schedule, Precision::F32, size, &[]);
    let mut memory = DISTANCES.lock().unwrap_or_else(PoisonError::into_inner);
    *memory
        .get_or_insert_default()
        .entry(key)
        .or_insert_with(|| polar_distances(schedule, recipe, size))
}

static LARGEST: Mutex<Option<HashMap<Key, f64>>> = Mutex::new(None);

/// Upper end of [`rounded_image`] in standard form, each computed once a process; 1 where it is not known (AOL).
///
/// # Errors
/// A schedule no recipe can be made of.
pub(crate) fn largest_rounded(schedule: &CoefficientSchedule, precision: Precision) -> Result<f64> {
    if schedule.normalization() == Normalization::Aol {
        return Ok(1.0);
    }
    let key = Key::new(schedule, precision, Size::SMALL, &[]);
    let mut memory = LARGEST.lock().unwrap_or_else(PoisonError::into_inner);
    let memory = memory.get_or_insert_default();
    if let Some(largest) = memory.get(&key) {
        return Ok(*largest);
    }
    let (_, largest) = rounded_image(schedule, &Method::Standard, precision)?;
    memory.insert(key, largest);
    Ok(largest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coefficients::presets::{names, preset};

    fn error(name: &str, precision: Precision, groups: &[usize]) -> f64 {
        error_at(Size::SMALL, name, precision, groups)
    }

    fn error_at(size: Size, name: &str, precision: Precision, groups: &[usize]) -> f64 {
        let schedule = preset(name).unwrap();
        let method = if groups.is_empty() {
            Method::Standard
        } else {
            Method::Gram { groups: groups.to_vec() }
        };
        let recipe = Recipe::new(&schedule, &method).unwrap();
        rounding_errors(&schedule, &recipe, precision, size, &[f64::INFINITY; 8])
            .map_or(f64::INFINITY, |e| e.into_iter().fold(0.0, f64::max))
    }

    fn choice(name: &str, precision: Precision, rows: usize, cols: usize) -> Choice {
        choose(&preset(name).unwrap(), precision, MatrixShape { rows, cols })
    }

    #[test]
    fn degree_nine_rounds_like_published_quintics_and_not_like_its_monomial_form() {
        let row: [f64; 5] = [14.800_609_8, -144.455_149, 480.245_807, -617.009_508, 268.373_807];
        // Largest relative error in bf16 of one step on scalars in (0, 1]: powers stored and summed with
        // their coefficients, against the completed square.
        let round = |x: f64| f64::from(Precision::Bf16.round(crate::cpu::narrow(x)));
        let (root, half) = (row[4].sqrt(), row[3] / (2.0 * row[4]));
        let beta = (row[2] - row[4] * half * half) / root;
        let gamma = row[1] - beta * root * half;
        let (mut monomial, mut square) = (0.0f64, 0.0f64);
        for i in 1..=100 {
            let r = round(f64::from(i) * 0.01);
            let exact = row.iter().rev().fold(0.0, |acc, c| acc * r + c);
            let r2 = round(r * r);
            let (low, high) = (round(row[2] * r2 + row[1] * r), round(row[4] * r2 + row[3] * r));
            monomial = monomial.max((round(high * r2 + low) + row[0] - exact).abs());
            let z = round(root * r2 + root * half * r);
            square = square.max((round(z * z + beta * z + gamma * r) + row[0] - exact).abs());
        }
        assert!(square < 0.11 && monomial > 10.0 * square, "{square} {monomial}");
        // The whole schedules, on eight spectra down to 1e-9: no worse than the published quintics.
        for (precision, limit) in [(Precision::Bf16, 0.1), (Precision::Fp16, 0.02)] {
            for name in ["nonic3_band12", "nonic3_band25"] {
                let found = error_at(Size::LARGE, name, precision, &[]);
                assert!(found < limit, "{name} {precision}: {found}");
            }
        }
    }

    #[test]
    fn standard_rounding_errors_are_those_of_the_table() {
        // NUMERICS.md: eight spectra, 128 x 256. A change here changes plans.
        for (name, bf16, fp16, tf32) in [
            ("jordan", 0.108, 0.0138, 0.00219),
            ("you", 0.0849, 0.0105, 0.00146),
            ("polar_express_5", 0.1349, 0.0182, 0.00503),
            ("nonic3_band12", 0.0442, 0.0056, 0.0154),
            ("nonic3_band25", 0.0783, 0.0095, 0.0193),
        ] {
            for (precision, expected) in
                [(Precision::Bf16, bf16), (Precision::Fp16, fp16), (Precision::Tf32, tf32)]
            {
                let found = error_at(Size::LARGE, name, precision, &[]);
                assert!((found / expected - 1.0).abs() < 0.01, "{name} {precision}: {found}");
            }
        }
    }

    #[test]
    fn square_matrices_stay_in_standard_form() {
        for name in names() {
            assert_eq!(choice(name, Precision::Bf16, 256, 256).method, Method::Standard, "{name}");
        }
    }

    #[test]
    fn rectangular_quintics_get_a_gram_form_but_not_one_that_blows_up() {
        let c = choice("polar_express_5", Precision::F32, 256, 1024);
        // The cheapest cut in two that errs by less than 1e-4 and a hundredth of the distance; one group errs by 2.4e-3.
        assert_eq!(c.method, Method::Gram { groups: vec![3, 2] }, "{}", c.reason);
        let nonic = choice("nonic3_band12", Precision::F32, 256, 1024);
        assert_eq!(nonic.method, Method::Gram { groups: vec![2, 1] }, "{}", nonic.reason);
        // The orientation is no part of the choice.
        assert_eq!(c, choice("polar_express_5", Precision::F32, 1024, 256));
        // In 16 bit from a short side of 128 on; there it rounds less than the standard form.
        for precision in [Precision::Bf16, Precision::Fp16] {
            let large = choice("jordan", precision, 256, 1024);
            assert_eq!(large.method, Method::Gram { groups: vec![2, 1, 1, 1] }, "{}", large.reason);
            assert_eq!(choice("jordan", precision, 127, 1024).method, Method::Standard);
            // On one outlier 3.4 times the standard form's error.
            assert_eq!(choice("nonic3_band12", precision, 256, 1024).method, Method::Standard);
        }
        assert_eq!(choice("jordan", Precision::F32, 1, 16).method, Method::Standard);
        let limit = TOLERATED * error("polar_express_5", Precision::Bf16, &[]);
        for refused in [&[5][..], &[2, 3], &[3, 2], &[4, 1]] {
            assert!(error("polar_express_5", Precision::Bf16, refused) > limit, "{refused:?}");
        }
    }

    #[test]
    fn choices_are_those_of_the_table() {
        // NUMERICS.md, at alpha = 4; `[]` is the standard form.
        // f32, bf16, fp16, tf32.
        let table: [(&str, [&[usize]; 4]); 6] = [
            ("jordan", [&[3, 2], &[2, 1, 1, 1], &[2, 1, 1, 1], &[2, 1, 1, 1]]),
            ("you", [&[3, 2], &[2, 1, 1, 1], &[2, 1, 1, 1], &[]]),
            ("cubic5", [&[3, 2], &[2, 2, 1], &[2, 2, 1], &[2, 1, 1, 1]]),
            ("polar_express_5", [&[3, 2], &[2, 1, 1, 1], &[2, 1, 1, 1], &[]]),
            ("nonic3_band12", [&[2, 1], &[], &[], &[]]),
            ("nonic3_band25", [&[2, 1], &[], &[], &[]]),
        ];
        for (name, expected) in table {
            for (precision, groups) in
                [Precision::F32, Precision::Bf16, Precision::Fp16, Precision::Tf32]
                    .into_iter()
                    .zip(expected)
            {
                let c = choice(name, precision, 128, 512);
                let method = match groups {
                    [] => Method::Standard,
                    _ => Method::Gram { groups: groups.to_vec() },
                };
                assert_eq!(c.method, method, "{name} {precision}: {}", c.reason);
            }
        }
    }

    #[test]
    fn in_f32_a_schedule_that_converges_keeps_the_standard_form_and_a_cheap_one_its_gram_form() {
        // At alpha = 4. `deepseek_v4` ends 2.3e-4 from the polar factor of the Gaussian matrix, and its best Gram grouping
        // would round 4 to 25 times worse than the standard form. `tuned_bf16` ends at 2.0e-3 on one outlier,
        // where (2,2) and (2,1,1) err by 4.5e-5.
        let table: [(&str, &[usize]); 13] = [
            ("classical_cubic", &[5]),
            ("jordan", &[3, 2]),
            ("you", &[3, 2]),
            ("polar_express_raw", &[]),
            ("polar_express_5", &[3, 2]),
            ("cans", &[3, 2]),
            ("turbo_muon", &[4]),
            ("deepseek_v4", &[]),
            ("cubic5", &[3, 2]),
            ("nonic3_band25", &[2, 1]),
            ("nonic3_band12", &[2, 1]),
            ("tuned_bf16", &[1, 1, 2]),
            ("tuned_fp16", &[2, 2]),
        ];
        assert_eq!(table.map(|(name, _)| name).to_vec(), names().collect::<Vec<_>>());
        for (name, groups) in table {
            let c = choice(name, Precision::F32, 128, 512);
            let expected = match groups {
                [] => Method::Standard,
                _ => Method::Gram { groups: groups.to_vec() },
            };
            assert_eq!(c.method, expected, "{name}: {}", c.reason);
        }
        let why = choice("deepseek_v4", Precision::F32, 257, 511).reason;
        assert!(why.contains("0.01 of the schedule's own distance to the polar factor"), "{why}");
    }

    #[test]
    fn distances_to_the_polar_factor_are_those_of_the_singular_values() {
        // All but the Gaussian spectrum have singular values that are known: there the distance is a sum over scalars.
        let schedule = preset("jordan").unwrap();
        let recipe = Recipe::new(&schedule, &Method::Standard).unwrap();
        let found = polar_distances(&schedule, &recipe, Size::SMALL);
        let of = |values: Vec<f64>| {
            let norm = values.iter().map(|v| v * v).sum::<f64>().sqrt();
            let of = |v: &f64| (schedule.eval(v / norm) - 1.0).powi(2);
            (values.iter().map(of).sum::<f64>() / values.len() as f64).sqrt()
        };
        let half_rank = of(vec![1.0; 24]);
        let linear = of((0..48).map(|k| 1.0 - f64::from(k) / 48.0).collect());
        let harmonic = of((0..48).map(|k| 1.0 / (f64::from(k) + 1.0)).collect());
        for (found, expected) in [(found[1], half_rank), (found[5], linear), (found[4], harmonic)] {
            // Recipes hold their coefficients in f32.
            assert!((found / expected - 1.0).abs() < 1e-6, "{found} {expected}");
        }
        // The Gaussian one: NUMERICS.md's schedule that converges everywhere leaves nothing but its own limit.
        let exact = preset("polar_express_raw").unwrap();
        let recipe = Recipe::new(&exact, &Method::Standard).unwrap();
        assert!(polar_distances(&exact, &recipe, Size::SMALL)[7] < 1e-12);
    }

    #[test]
    fn a_gram_form_has_to_save_more_than_its_check_costs() {
        let schedule = preset("jordan").unwrap();
        let at = |precision, n| {
            let shape = MatrixShape { rows: n, cols: 4 * n };
            if_it_pays(choose(&schedule, precision, shape), &schedule, precision, shape)
        };
        // 9 n^3 of products at 798 TFLOP/s against 8 bytes for each of 4 n^2 elements at 3 TB/s: equal at n = 945.8.
        let small = at(Precision::Bf16, 945);
        assert_eq!(small.method, Method::Standard, "{}", small.reason);
        assert!(small.reason.contains("would take 56.0"), "{}", small.reason);
        let gram = Method::Gram { groups: vec![2, 1, 1, 1] };
        assert_eq!(at(Precision::Bf16, 946).method, gram);
        // Nothing is checked in f32, where other groups are chosen.
        assert_eq!(at(Precision::F32, 256).method, Method::Gram { groups: vec![3, 2] });
    }

    #[test]
    fn long_schedules_are_not_searched() {
        let long = preset("classical_cubic").unwrap().with_iterations(40).unwrap();
        let c = choose(&long, Precision::F32, MatrixShape { rows: 16, cols: 64 });
        assert_eq!(c.method, Method::Standard);
    }

    #[test]
    fn groupings_are_all_compositions_but_the_finest() {
        assert_eq!(groupings(1).count(), 0);
        let all: Vec<_> = groupings(3).collect();
        assert_eq!(all, [vec![3], vec![1, 2], vec![2, 1]]);
        assert!(groupings(6).all(|g| g.iter().sum::<usize>() == 6));
    }
}
