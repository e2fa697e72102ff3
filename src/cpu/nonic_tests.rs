//! Degree 9 in 16 bit at the size its errors are quoted for: 384 × 1536, eight spectra, down to 1e-9.

use super::execute::{MatrixBuffers, execute};
use crate::coefficients::presets::preset;
use crate::coefficients::{CoefficientSchedule, Normalization};
use crate::precision::Precision;
use crate::recipe::{Iterate, Method, Recipe};
use crate::shape::MatrixShape;
use crate::spectrum::{Spectrum, SpectrumFamily};

const SHAPE: MatrixShape = MatrixShape { rows: 384, cols: 1536 };

const SPECTRA: [&str; 8] = [
    "gaussian",
    "exponential:3",
    "exponential:5",
    "exponential:9",
    "linear",
    "two-level:0.5:0",
    "two-level:0.001:0.003",
    "power:1",
];

fn spectrum(text: &str) -> Spectrum {
    text.parse::<SpectrumFamily>().unwrap().spectrum(SHAPE).unwrap()
}

/// The normalised and rounded matrix a schedule starts from.
fn start(x: &[f32], schedule: &CoefficientSchedule, precision: Precision) -> Vec<f32> {
    let Normalization::Frobenius { safety } = schedule.normalization() else { panic!() };
    x.iter().map(|x| precision.round(super::narrow(f64::from(*x) / safety))).collect()
}

fn mat(x: &[f32]) -> faer::Mat<f64> {
    faer::Mat::from_fn(SHAPE.rows, SHAPE.cols, |i, j| f64::from(x[i * SHAPE.cols + j]))
}

/// The exact composition, in f64: `U·φ(Σ)·Vᵀ` through the eigenvectors of `X·Xᵀ`.
///
/// `X·Xᵀ` in f64 resolves σ down to 1e-8 of the largest, and `φ(σ)/σ` is flat there.
fn exact(x: &[f32], schedule: &CoefficientSchedule) -> faer::Mat<f64> {
    let x = mat(x);
    let gram = &x * x.transpose();
    let eigen = gram.self_adjoint_eigen(faer::Side::Lower).unwrap();
    let (u, values) = (eigen.U(), eigen.S().column_vector());
    let mut scaled = u.to_owned();
    for j in 0..SHAPE.rows {
        let sigma = values[j].max(0.0).sqrt();
        let factor = if sigma > 1e-9 { schedule.eval(sigma) / sigma } else { schedule.slope() };
        scaled.col_mut(j).iter_mut().for_each(|x| *x *= factor);
    }
    scaled * (u.transpose() * &x)
}

fn distance(found: &[f32], exact: &faer::Mat<f64>) -> f64 {
    (mat(found) - exact).norm_l2() / exact.norm_l2()
}

fn run(recipe: &Recipe, precision: Precision, x: Vec<f32>) -> Vec<f32> {
    let mut buffers = MatrixBuffers::new(recipe, SHAPE, precision).unwrap();
    buffers.x[0] = x;
    execute(recipe, SHAPE, precision, &mut buffers, false);
    std::mem::take(&mut buffers.x[usize::from(recipe.result() == Iterate::X1)])
}

const CASES: [(&str, Precision, f64); 4] = [
    ("nonic3_band12", Precision::Bf16, 0.1),
    ("nonic3_band25", Precision::Bf16, 0.1),
    ("nonic3_band12", Precision::Fp16, 0.02),
    ("nonic3_band25", Precision::Fp16, 0.02),
];

#[test]
fn degree_nine_keeps_its_bar_where_the_monomial_form_errs_ten_times_more() {
    let cases = CASES.map(|(name, precision, bar)| (preset(name).unwrap(), precision, bar));
    let mut worst = [0.0f64; 4];
    let mut monomial = [0.0f64; 4];
    for text in SPECTRA {
        let matrix = spectrum(text).matrix(1);
        for (i, (schedule, precision, bar)) in cases.iter().enumerate() {
            let recipe = Recipe::new(schedule, &Method::Standard).unwrap();
            let x = start(&matrix, schedule, *precision);
            let exact = exact(&x, schedule);
            let error = distance(&run(&recipe, *precision, x.clone()), &exact);
            println!("{} {precision} {text}: {error:.4}", schedule.name());
            // Worst of the eight in numpy: 0.045 and 0.071 in bf16, 0.0056 and 0.0090 in fp16.
            assert!(error <= *bar, "{} {precision} {text}: {error}", schedule.name());
            worst[i] = worst[i].max(error);
            // One of the spectra on which it is bad enough; a worst case is no smaller.
            if text == "exponential:9" {
                monomial[i] = distance(&monomial_on_the_iterate(schedule, *precision, &x), &exact);
            }
        }
    }
    // In numpy: 0.97 and 1.2 in bf16, 0.13 and 0.17 in fp16; 22, 17, 23 and 19 times the worst of the other.
    for ((worst, monomial), (name, precision, _)) in worst.into_iter().zip(monomial).zip(CASES) {
        println!("{name} {precision}: completed square {worst:.4}, monomial {monomial:.3}");
        assert!(monomial > 10.0 * worst, "{name} {precision}: {monomial} {worst}");
    }
}

/// What an operation of a device stores.
fn store(precision: Precision, m: &faer::Mat<f32>) -> faer::Mat<f32> {
    faer::Mat::<f32>::from_fn(m.nrows(), m.ncols(), |i, j| precision.round(m[(i, j)]))
}

/// Products of symmetric matrices: the lower triangle is formed and mirrored.
fn symmetric(precision: Precision, m: &faer::Mat<f32>) -> faer::Mat<f32> {
    let m = store(precision, m);
    faer::Mat::<f32>::from_fn(m.nrows(), m.nrows(), |i, j| m[(i.max(j), i.min(j))])
}

fn iterate(x: &[f32]) -> faer::Mat<f32> {
    faer::Mat::<f32>::from_fn(SHAPE.rows, SHAPE.cols, |i, j| x[i * SHAPE.cols + j])
}

fn row_major(x: &faer::Mat<f32>) -> Vec<f32> {
    (0..SHAPE.len()).map(|k| x[(k / SHAPE.cols, k % SHAPE.cols)]).collect()
}

fn coefficients(p: &crate::coefficients::OddPolynomial) -> [f32; 5] {
    let c: Vec<f32> = p.coefficients().iter().map(|c| super::narrow(*c)).collect();
    c.try_into().unwrap()
}

/// `p(X) = a·X + b·RX + c·R²X + d·R³X + e·R⁴X`, each power of the iterate stored: the definition, as it stands.
fn monomial_on_the_iterate(
    schedule: &CoefficientSchedule,
    precision: Precision,
    x: &[f32],
) -> Vec<f32> {
    let mut x = iterate(x);
    for p in schedule.polynomials() {
        let r = symmetric(precision, &(&x * x.transpose()));
        let c = coefficients(p);
        let mut power = x.clone();
        let mut sum = &x * faer::Scale(c[0]);
        for c in &c[1..] {
            power = store(precision, &(&r * &power));
            sum += &power * faer::Scale(*c);
        }
        x = store(precision, &sum);
    }
    row_major(&x)
}

/// `S = b·R + c·R² + d·R³ + e·R⁴` of stored powers, two polynomials on the Gram matrix before the iterate is multiplied,
/// as the factored groups (2, 1) do.
fn monomial_in_groups(schedule: &CoefficientSchedule, precision: Precision, x: &[f32]) -> Vec<f32> {
    let symmetric = |m: &faer::Mat<f32>| symmetric(precision, m);
    let mut x = iterate(x);
    for (g, group) in
        [&schedule.polynomials()[..2], &schedule.polynomials()[2..]].iter().enumerate()
    {
        let mut r = symmetric(&(&x * x.transpose()));
        let mut q: Option<(faer::Mat<f32>, f32)> = None;
        for (k, p) in group.iter().enumerate() {
            let c = coefficients(p);
            let r2 = symmetric(&(&r * &r));
            let (r3, r4) = (symmetric(&(&r2 * &r)), symmetric(&(&r2 * &r2)));
            let low = &r * faer::Scale(c[1]) + &r2 * faer::Scale(c[2]);
            let s = symmetric(&(low + &r3 * faer::Scale(c[3]) + &r4 * faer::Scale(c[4])));
            if k + 1 < group.len() {
                let w = symmetric(&(&r * &s + &r * faer::Scale(c[0])));
                r = symmetric(&(&s * &w + &w * faer::Scale(c[0])));
            }
            q = Some(match q {
                None => (s, c[0]),
                Some((before, a)) => {
                    let sum = &s * &before + &before * faer::Scale(c[0]) + &s * faer::Scale(a);
                    (symmetric(&sum), a * c[0])
                }
            });
        }
        let Some((s, a)) = q else { panic!("group {g} is empty") };
        x = store(precision, &(&s * &x + &x * faer::Scale(a)));
    }
    row_major(&x)
}

#[test]
fn in_gram_groups_the_monomial_form_exceeds_the_bar_itself_ten_times() {
    let outlier = spectrum("two-level:0.001:0.003").matrix(1);
    let groups = Method::Gram { groups: vec![2, 1] };
    // In groups (2, 1), where degree 9 saves most. In numpy: 3e10 against 0.044, 2e11 against 0.045, 1.7e3 against
    // 0.0059. Only band12 in fp16 stays below ten times the bar: 0.093, 16 times its error.
    for (name, precision, bar) in CASES {
        let schedule = preset(name).unwrap();
        let recipe = Recipe::new(&schedule, &groups).unwrap();
        let x = start(&outlier, &schedule, precision);
        let exact = exact(&x, &schedule);
        let factored = distance(&run(&recipe, precision, x.clone()), &exact);
        let monomial = distance(&monomial_in_groups(&schedule, precision, &x), &exact);
        println!("{name} {precision}: completed square {factored:.4}, monomial {monomial:.3e}");
        assert!(factored <= bar, "{name} {precision}: {factored}");
        let least = if (name, precision) == ("nonic3_band12", Precision::Fp16) {
            10.0 * factored
        } else {
            10.0 * bar
        };
        // A NaN is no number at all, and so no small one.
        assert!(monomial.is_nan() || monomial > least, "{name} {precision}: {monomial}");
    }
}
