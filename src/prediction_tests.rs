//! Predicted errors against emulated ones, and bounds against scalars.

use super::*;
use crate::coefficients::presets::preset;
use crate::rounding::{Size, rounding_errors};
use crate::shape::MatrixShape;
use crate::spectrum::SpectrumFamily;

/// The spectra of the emulation, in its size.
const SPECTRA: [&str; 8] = [
    "exponential:5",
    "two-level:0.5:0",
    "exponential:9",
    "exponential:3",
    "power:1",
    "linear",
    "two-level:0.02:0.003",
    "gaussian",
];

fn predicted(name: &str, method: &Method, precision: Precision) -> f64 {
    let schedule = preset(name).unwrap();
    let recipe = Recipe::new(&schedule, method).unwrap();
    let shape = MatrixShape { rows: 48, cols: 96 };
    SPECTRA
        .iter()
        .map(|text| {
            let family: SpectrumFamily = text.parse().unwrap();
            let predictor = Predictor::new(&family.spectrum(shape).unwrap());
            let p = predictor.predict(&schedule, &recipe, Some(precision)).unwrap();
            println!("{name} {method} {precision} {text}: {p:?}");
            p.to_composition
        })
        .fold(0.0, f64::max)
}

#[test]
fn predictions_are_what_the_emulation_finds() {
    let gram = |groups: &[usize]| Method::Gram { groups: groups.to_vec() };
    for (name, method) in [
        ("jordan", Method::Standard),
        ("polar_express_5", Method::Standard),
        ("you", Method::Standard),
        ("cubic5", Method::Standard),
        ("nonic3_band12", Method::Standard),
        ("nonic3_band25", Method::Standard),
        ("jordan", gram(&[2, 2, 1])),
        ("polar_express_5", gram(&[2, 2, 1])),
    ] {
        let schedule = preset(name).unwrap();
        let recipe = Recipe::new(&schedule, &method).unwrap();
        for precision in [Precision::Bf16, Precision::Fp16, Precision::Tf32] {
            let emulated =
                rounding_errors(&schedule, &recipe, precision, Size::SMALL, &[f64::INFINITY; 8])
                    .unwrap()
                    .into_iter()
                    .fold(0.0, f64::max);
            let predicted = predicted(name, &method, precision);
            println!("{name} {method} {precision}: {predicted:.4} {emulated:.4}");
            if name.starts_with("nonic3") && precision == Precision::Bf16 {
                // At this size singular values leave the interval of the second polynomial; see `rounded_image`.
                assert!(predicted < 0.5 * emulated, "{predicted} {emulated}");
                continue;
            }
            // Measured 1.01 to 1.19: the noise of one matrix, and mantissas that are not spread evenly. In tf32 0.53 (cubic5
            // on one outlier) to 1.67: terms of second order are a larger part of errors this small.
            let ratio = predicted / emulated;
            let expected = if precision == Precision::Tf32 { 0.5..1.8 } else { 0.9..1.3 };
            assert!(expected.contains(&ratio), "{name} {method} {precision}: {ratio}");
        }
    }
}

/// Smallest and largest result over 1 × 1 matrices, from a 5000th to all of the largest the norm allows.
fn scalars(recipe: &Recipe, precision: Precision, safety: f64) -> (f32, f32) {
    let round = |x: f64| precision.round(crate::cpu::narrow(x));
    let cut = |x: f32| precision.round_operand(x);
    let (mut least, mut most) = (f32::INFINITY, 0.0f32);
    for i in 1..=5000 {
        // A norm that was rounded down leaves (1 + u)².
        let largest = (1.0 + precision.unit_roundoff()).powi(2) / safety;
        let mut x = [round(f64::from(i) / 5000.0 * largest), 0.0];
        let mut small = vec![0.0f32; recipe.small_buffers()];
        let index = |x: Iterate| usize::from(x == Iterate::X1);
        for op in recipe.ops() {
            match *op {
                Op::Gram { x: from, out } => {
                    small[out.0] = precision.round(cut(x[index(from)]) * cut(x[index(from)]));
                }
                Op::Symmetric { out, alpha, a, b, beta, c, gamma, d } => {
                    let sum = alpha * (cut(small[a.0]) * cut(small[b.0])) + beta * small[c.0];
                    small[out.0] = precision.round(sum + gamma * small[d.0]);
                }
                Op::Apply { out, alpha, q, x: from, beta } => {
                    let from = x[index(from)];
                    x[index(out)] =
                        precision.round(alpha * (cut(small[q.0]) * cut(from)) + beta * from);
                }
                Op::AolScale { .. } => {}
            }
        }
        let result = x[index(recipe.result())];
        least = least.min(result);
        // A NaN is no small number.
        most = if result.is_nan() { f32::INFINITY } else { most.max(result) };
    }
    (least, most)
}

#[test]
fn a_schedule_without_room_between_its_iterations_is_seen() {
    let image = |name: &str, precision: Precision| {
        let (schedule, _) = preset(name).unwrap().for_precision(precision.unit_roundoff()).unwrap();
        let image = rounded_image(&schedule, &Method::Standard, precision).unwrap();
        println!("{name} {precision}: {image:?}");
        image
    };
    for name in ["jordan", "you", "deepseek_v4"] {
        let (low, high) = image(name, Precision::Bf16);
        assert!(low >= 0.0 && high < 1.3, "{name} {low} {high}");
    }
    for (name, precision) in [
        ("tuned_bf16", Precision::Bf16),
        ("tuned_fp16", Precision::Fp16),
        ("tuned_bf16", Precision::Tf32),
    ] {
        let (low, high) = image(name, precision);
        assert!(low >= 0.0 && high < 1.3, "{name} {low} {high}");
        // And all scalars there are between 0 and 1, rounded at every store.
        let schedule = preset(name).unwrap();
        let recipe = Recipe::new(&schedule, &Method::Standard).unwrap();
        let (least, most) = scalars(&recipe, precision, 1.0);
        assert!(least > 0.0 && most < 1.1, "{name} {least} {most}");
    }
    for (name, safety) in [("jordan", 1.0), ("you", 1.0), ("polar_express_5", 1.02)] {
        for precision in [Precision::Bf16, Precision::Fp16] {
            let recipe = Recipe::new(&preset(name).unwrap(), &Method::Standard).unwrap();
            let (least, most) = scalars(&recipe, precision, safety);
            // In numpy over all numbers of the formats: 1.203, 1.148 and 1.142 at most.
            assert!(least > 0.0 && most < 1.21, "{name} {precision}: {least} {most}");
        }
    }
    let recipe = Recipe::new(&preset("nonic3_band12").unwrap(), &Method::Standard).unwrap();
    assert!(scalars(&recipe, Precision::Bf16, 1.01).1 > 100.0);
    // In numpy, 1/k along the rows, 384 x 1536: relative error 5.3 in bf16.
    assert!(image("nonic3_band12", Precision::Bf16).1 > 1.5);
    assert!(image("nonic3_band25", Precision::Fp16).1 > 1.5);
    // In tf32 scalars reach 6e15: addends keep the bits that products do not read, which undoes the cancellation that
    // completed squares live on.
    assert!(scalars(&recipe, Precision::Tf32, 1.01).1 > 100.0);
    assert!(image("nonic3_band12", Precision::Tf32).1 > 1.5);
    // Over all scalars, rounded: 1.203, 1.148 and 1.142 in bf16, and 22 for nonic3_band25 in fp16.
    assert!((image("polar_express_5", Precision::Bf16).1 - 1.142).abs() < 0.02);
}
