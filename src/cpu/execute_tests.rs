//! Recipe execution against a plain f64 evaluation, and the bits that must not depend on threads or batches.

use rayon::iter::{IntoParallelRefMutIterator, ParallelIterator};

use super::execute::{MatrixBuffers, execute, polar_factor_svd};
use super::narrow;
use crate::coefficients::presets::preset;
use crate::coefficients::{CoefficientSchedule, Normalization, OddPolynomial, Tail};
use crate::precision::Precision;
use crate::recipe::{Iterate, Method, Op, Recipe};
use crate::shape::{MatrixShape, Orientation};

const SHAPES: [(usize, usize); 13] = [
    (1, 1),
    (1, 7),
    (2, 2),
    (7, 13),
    (13, 7),
    (31, 33),
    (33, 31),
    (64, 64),
    (13, 200),
    (127, 257),
    (257, 127),
    (200, 600),
    (600, 200),
];

struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn normal(&mut self) -> f64 {
        (0..12).map(|_| (self.bits() >> 11) as f64 / (1u64 << 53) as f64).sum::<f64>() - 6.0
    }

    fn normalised(&mut self, shape: MatrixShape) -> Vec<f32> {
        let x: Vec<f64> = (0..shape.len()).map(|_| self.normal()).collect();
        let norm = 1.02 * x.iter().map(|x| x * x).sum::<f64>().sqrt();
        x.iter().map(|x| narrow(x / norm)).collect()
    }
}

fn shape((rows, cols): (usize, usize)) -> MatrixShape {
    MatrixShape { rows, cols }
}

fn buffers(recipe: &Recipe, shape: MatrixShape, precision: Precision, x: &[f32]) -> MatrixBuffers {
    let mut b = MatrixBuffers::new(recipe, shape, precision).unwrap();
    b.x[0].copy_from_slice(x);
    b
}

fn result<'a>(recipe: &Recipe, b: &'a MatrixBuffers) -> &'a [f32] {
    &b.x[usize::from(recipe.result() == Iterate::X1)]
}

fn orthogonalized(
    recipe: &Recipe,
    shape: MatrixShape,
    precision: Precision,
    x: &[f32],
) -> Vec<f32> {
    let mut b = buffers(recipe, shape, precision, x);
    execute(recipe, shape, precision, &mut b, false);
    result(recipe, &b).to_vec()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// A pool of its own; 1 runs on one rayon thread.
fn on_threads(threads: usize, work: impl FnOnce() + Send) {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work);
}

/// The same operations by three loops in f64, nothing rounded.
fn plain(recipe: &Recipe, shape: MatrixShape, x: &[f32]) -> Vec<f64> {
    let (n, m) = (shape.short(), shape.long());
    let wide = shape.orientation() == Orientation::Wide;
    // Everything on the wide matrix; a tall one is transposed here, never in `execute`.
    let at = |i: usize, j: usize| {
        f64::from(if wide { x[i * shape.cols + j] } else { x[j * shape.cols + i] })
    };
    let first = (0..n * m).map(|i| at(i / m, i % m)).collect::<Vec<_>>();
    let mut iterates = [first, vec![0.0; n * m]];
    let mut small = vec![vec![0.0; n * n]; recipe.small_buffers()];
    let index = |x: Iterate| usize::from(x == Iterate::X1);
    for op in recipe.ops() {
        match *op {
            Op::Gram { x, out } => {
                let x = &iterates[index(x)];
                small[out.0] = (0..n * n)
                    .map(|i| (0..m).map(|k| x[i / n * m + k] * x[i % n * m + k]).sum())
                    .collect();
            }
            Op::AolScale { x, r } => {
                let d: Vec<f64> = small[r.0]
                    .chunks(n)
                    .map(|row| 1.0 / row.iter().map(|x| x.abs()).sum::<f64>().sqrt())
                    .collect();
                small[r.0].iter_mut().enumerate().for_each(|(i, x)| *x *= d[i / n] * d[i % n]);
                iterates[index(x)].iter_mut().enumerate().for_each(|(i, x)| *x *= d[i / m]);
            }
            Op::Symmetric { out, alpha, a, b, beta, c, gamma, d } => {
                let [alpha, beta, gamma] = [alpha, beta, gamma].map(f64::from);
                small[out.0] = (0..n * n)
                    .map(|i| {
                        let dot: f64 = (0..n)
                            .map(|k| small[a.0][i / n * n + k] * small[b.0][k * n + i % n])
                            .sum();
                        alpha * dot + beta * small[c.0][i] + gamma * small[d.0][i]
                    })
                    .collect();
            }
            Op::Apply { out, alpha, q, x, beta } => {
                let x = &iterates[index(x)];
                iterates[index(out)] = (0..n * m)
                    .map(|i| {
                        let dot: f64 =
                            (0..n).map(|k| small[q.0][i / m * n + k] * x[k * m + i % m]).sum();
                        f64::from(alpha) * dot + f64::from(beta) * x[i]
                    })
                    .collect();
            }
        }
    }
    let wide_result = &iterates[index(recipe.result())];
    (0..shape.len())
        .map(|i| {
            let (row, col) = (i / shape.cols, i % shape.cols);
            if wide { wide_result[row * m + col] } else { wide_result[col * m + row] }
        })
        .collect()
}

fn relative_error(found: &[f32], expected: &[f64]) -> f64 {
    let (mut d, mut n) = (0.0, 0.0);
    for (&f, &e) in found.iter().zip(expected) {
        d += (f64::from(f) - e).powi(2);
        n += e * e;
    }
    (d / n).sqrt()
}

fn recipes() -> Vec<(CoefficientSchedule, Recipe)> {
    let gram = |groups: &[usize]| Method::Gram { groups: groups.to_vec() };
    [
        ("classical_cubic", gram(&[2, 3])),
        ("jordan", Method::Standard),
        ("polar_express_5", gram(&[2, 2, 1])),
        ("turbo_muon", Method::Standard),
        ("nonic3_band12", Method::Standard),
        ("nonic3_band12", gram(&[2, 1])),
    ]
    .into_iter()
    .map(|(name, method)| {
        let schedule = preset(name).unwrap();
        let recipe = Recipe::new(&schedule, &method).unwrap();
        (schedule, recipe)
    })
    .collect()
}

/// Product of the slopes: how much an error in the input can grow.
fn slope(schedule: &CoefficientSchedule) -> f64 {
    schedule.polynomials().iter().map(OddPolynomial::slope).product()
}

#[test]
fn every_recipe_equals_its_plain_evaluation() {
    for (schedule, recipe) in recipes() {
        for dims in SHAPES {
            let s = shape(dims);
            let x = Random(7).normalised(s);
            let expected = plain(&recipe, s, &x);
            let found = orthogonalized(&recipe, s, Precision::F32, &x);
            let bound = 8.0 * Precision::F32.unit_roundoff() * slope(&schedule).max(64.0);
            let error = relative_error(&found, &expected);
            assert!(error < bound, "{} {s}: {error:e} {bound:e}", schedule.name());
        }
    }
}

#[test]
fn emulated_bf16_rounds_and_rounds_once_a_store() {
    let schedule = preset("classical_cubic").unwrap();
    let recipe = Recipe::new(&schedule, &Method::Standard).unwrap();
    let s = shape((127, 257));
    let rounded: Vec<f32> =
        Random(3).normalised(s).iter().map(|&x| Precision::Bf16.round(x)).collect();
    let expected = plain(&recipe, s, &rounded);
    for (precision, low, high) in
        [(Precision::Bf16, 1e-3, 2e-2), (Precision::Fp16, 1e-4, 2e-3), (Precision::F32, 0.0, 2e-6)]
    {
        let found = orthogonalized(&recipe, s, precision, &rounded);
        let error = relative_error(&found, &expected);
        assert!(low <= error && error <= high, "{precision}: {error:e}");
        assert!(found.iter().all(|&x| precision.round(x) == x), "{precision}: an unrounded store");
    }
}

#[test]
fn tf32_cuts_what_products_read_and_nothing_else() {
    let s = shape((31, 33));
    let x = Random(3).normalised(s);
    for (schedule, recipe) in recipes() {
        let found = orthogonalized(&recipe, s, Precision::Tf32, &x);
        let (f32, expected) =
            (orthogonalized(&recipe, s, Precision::F32, &x), plain(&recipe, s, &x));
        let (error, f32_error) =
            (relative_error(&found, &expected), relative_error(&f32, &expected));
        println!("{}: {error:.2e}, f32 {f32_error:.2e}", schedule.name());
        assert!(error > 20.0 * f32_error, "{}: {error:e} {f32_error:e}", schedule.name());
    }
    // One product by hand: X' = a·X + b·R·X with R = XXᵀ from cut X, R cut again, and a·X from X as it is.
    let p = OddPolynomial::new(&[1.5, -0.5]).unwrap();
    let normalization = Normalization::Frobenius { safety: 1.0 };
    let schedule =
        CoefficientSchedule::new("one", vec![p], normalization, Tail::Exact, "test").unwrap();
    let recipe = Recipe::new(&schedule, &Method::Standard).unwrap();
    let found = orthogonalized(&recipe, s, Precision::Tf32, &x);
    let cut = |x: f32| Precision::Tf32.round_operand(x);
    let (n, m) = (s.short(), s.long());
    let read: Vec<f32> = x.iter().map(|x| cut(*x)).collect();
    let r: Vec<f32> = (0..n * n)
        .map(|i| {
            let dot: f64 = (0..m)
                .map(|k| f64::from(read[i / n * m + k]) * f64::from(read[i % n * m + k]))
                .sum();
            cut(narrow(dot))
        })
        .collect();
    let product: Vec<f64> = (0..n * m)
        .map(|i| {
            let terms =
                (0..n).map(|k| f64::from(r[i / m * n + k]) * f64::from(read[k * m + i % m]));
            terms.sum()
        })
        .collect();
    let of_found = found.iter().zip(&x).map(|(f, x)| (1.5 * f64::from(*x) - f64::from(*f)) / 0.5);
    let of_found: Vec<f32> = of_found.map(narrow).collect();
    let error = relative_error(&of_found, &product);
    // Stores of f32 numbers fifty times larger: 2e-6; an entry of R on the edge of a cut may go to the other side. With one
    // operand not cut: 1e-4 and more.
    assert!(error < 4e-5, "{error:e}");
}

#[test]
fn small_integers_are_exact_in_every_precision() {
    // One cubic step 2x - x³ on entries in {-1, 0, 1} and few of them: every sum is a small integer.
    let p = OddPolynomial::new(&[2.0, -1.0]).unwrap();
    let schedule = CoefficientSchedule::new(
        "integers",
        vec![p],
        Normalization::Frobenius { safety: 1.0 },
        Tail::Exact,
        "test",
    )
    .unwrap();
    let recipe = Recipe::new(&schedule, &Method::Standard).unwrap();
    for dims in [(7, 13), (13, 7), (31, 31), (127, 257), (600, 200)] {
        let s = shape(dims);
        let mut random = Random(5);
        let x: Vec<f32> = (0..s.len())
            .map(|i| {
                // At most a few nonzeros in every row and column keep the sums below 2⁸.
                let near = (i / s.cols * 3).abs_diff(i % s.cols) < 4;
                if near {
                    [-1.0, 0.0, 1.0][usize::try_from(random.bits() >> 33).unwrap() % 3]
                } else {
                    0.0
                }
            })
            .collect();
        let expected = plain(&recipe, s, &x);
        for precision in [Precision::F32, Precision::Tf32, Precision::Fp16, Precision::Bf16] {
            let found = orthogonalized(&recipe, s, precision, &x);
            assert!(
                found.iter().zip(&expected).all(|(&f, &e)| f64::from(f) == e),
                "{s} {precision}"
            );
        }
    }
}

#[test]
fn singular_values_go_through_the_composed_polynomial() {
    for (schedule, recipe) in recipes() {
        if schedule.normalization() == Normalization::Aol {
            continue; // Scales rows: singular values are not kept.
        }
        for dims in [(31, 33), (33, 31), (64, 64)] {
            let s = shape(dims);
            let mut x = vec![0.0f32; s.len()];
            for k in 0..s.short() {
                x[k * s.cols + k] = 0.9 * (k as f32 + 1.0) / s.short() as f32;
            }
            let found = orthogonalized(&recipe, s, Precision::F32, &x);
            for (i, &f) in found.iter().enumerate() {
                let (row, col) = (i / s.cols, i % s.cols);
                let expected = if row == col { schedule.eval(f64::from(x[i])) } else { 0.0 };
                assert!(
                    (f64::from(f) - expected).abs() < 2e-4,
                    "{} {s} {row} {col}",
                    schedule.name()
                );
            }
        }
    }
}

#[test]
fn a_transposed_matrix_gives_the_transposed_result() {
    for (schedule, recipe) in recipes() {
        for dims in [(7, 13), (127, 257), (200, 600)] {
            let (s, t) = (shape(dims), shape((dims.1, dims.0)));
            let x = Random(11).normalised(s);
            let transposed: Vec<f32> =
                (0..s.len()).map(|i| x[i % t.cols * s.cols + i / t.cols]).collect();
            let a = orthogonalized(&recipe, s, Precision::F32, &x);
            let b = orthogonalized(&recipe, t, Precision::F32, &transposed);
            let back: Vec<f64> =
                (0..s.len()).map(|i| f64::from(b[i % s.cols * t.cols + i / s.cols])).collect();
            let bound = 8.0 * Precision::F32.unit_roundoff() * slope(&schedule);
            assert!(relative_error(&a, &back) <= bound, "{} {s}", schedule.name());
        }
    }
}

#[test]
fn threads_batches_and_repetition_change_no_bit() {
    for (schedule, recipe) in recipes() {
        for (dims, precision) in [
            ((33, 31), Precision::F32),
            ((300, 700), Precision::Bf16),
            ((700, 300), Precision::F32),
            ((300, 700), Precision::Tf32),
        ] {
            let s = shape(dims);
            let inputs: Vec<Vec<f32>> = (1..4).map(|i| Random(i).normalised(s)).collect();
            let alone: Vec<Vec<u32>> =
                inputs.iter().map(|x| bits(&orthogonalized(&recipe, s, precision, x))).collect();
            for threads in [1, 2, 3] {
                let mut batch: Vec<_> =
                    inputs.iter().map(|x| buffers(&recipe, s, precision, x)).collect();
                on_threads(threads, || {
                    batch.par_iter_mut().for_each(|b| execute(&recipe, s, precision, b, true));
                });
                for (b, expected) in batch.iter().zip(&alone) {
                    let found = bits(result(&recipe, b));
                    assert!(found == *expected, "{} {s} {threads}", schedule.name());
                }
            }
        }
    }
}

#[test]
fn symmetric_results_are_symmetric_to_the_bit() {
    let s = shape((300, 500));
    let schedule = preset("nonic3_band12").unwrap();
    let recipe = Recipe::new(&schedule, &Method::Gram { groups: vec![2, 1] }).unwrap();
    let mut b = buffers(&recipe, s, Precision::F32, &Random(2).normalised(s));
    execute(&recipe, s, Precision::F32, &mut b, false);
    for small in b.small() {
        for i in 0..300 {
            for j in 0..i {
                assert_eq!(small[i * 300 + j].to_bits(), small[j * 300 + i].to_bits(), "{i} {j}");
            }
        }
    }
}

#[test]
fn a_nan_stays_in_its_own_matrix() {
    let s = shape((31, 33));
    let recipe = Recipe::new(&preset("jordan").unwrap(), &Method::Standard).unwrap();
    let good = Random(1).normalised(s);
    let mut bad = good.clone();
    bad[40] = f32::NAN;
    let mut batch = [&good, &bad, &good].map(|x| buffers(&recipe, s, Precision::Bf16, x));
    batch.par_iter_mut().for_each(|b| execute(&recipe, s, Precision::Bf16, b, true));
    let expected = bits(&orthogonalized(&recipe, s, Precision::Bf16, &good));
    assert_eq!(bits(result(&recipe, &batch[0])), expected);
    assert!(result(&recipe, &batch[1]).iter().any(|x| x.is_nan()));
    assert_eq!(bits(result(&recipe, &batch[2])), expected);
}

#[test]
fn only_products_allocate_and_always_the_same_number() {
    for precision in [Precision::F32, Precision::Bf16, Precision::Tf32] {
        let s = shape((200, 600));
        let schedule = preset("polar_express_5").unwrap();
        let recipe = Recipe::new(&schedule, &Method::Gram { groups: vec![2, 2, 1] }).unwrap();
        let x = Random(1).normalised(s);
        let mut b = buffers(&recipe, s, precision, &x);
        execute(&recipe, s, precision, &mut b, false);
        let mut count = || {
            b.x[0].copy_from_slice(&x);
            allocation_counter::measure(|| execute(&recipe, s, precision, &mut b, false))
                .count_total
        };
        let first = count();
        assert_eq!(first, count());
        // The elementwise operations alone allocate nothing: a recipe of one product has its allocations.
        assert!(first <= 4 * recipe.gemms() as u64, "{first} for {} products", recipe.gemms());
    }
}

#[test]
fn the_exact_polar_factor_drops_null_directions_and_scales_away() {
    let s = shape((7, 13));
    let x = Random(9).normalised(s);
    let mut polar = x.clone();
    polar_factor_svd(s, &mut polar).unwrap();
    for i in 0..7 {
        for j in 0..7 {
            let dot: f64 =
                (0..13).map(|k| f64::from(polar[i * 13 + k]) * f64::from(polar[j * 13 + k])).sum();
            assert!((dot - f64::from(u8::from(i == j))).abs() < 1e-6, "{i} {j} {dot}");
        }
    }
    let mut scaled: Vec<f32> = x.iter().map(|x| x * f32::powi(2.0, -100)).collect();
    polar_factor_svd(s, &mut scaled).unwrap();
    assert_eq!(bits(&scaled), bits(&polar));
    let mut zero = vec![0.0f32; s.len()];
    polar_factor_svd(s, &mut zero).unwrap();
    assert!(zero.iter().all(|&x| x == 0.0));
    // Rank one: u·vᵀ and nothing else.
    let mut one: Vec<f32> = (0..s.len()).map(|i| ((i / 13 + 1) * (i % 13 + 1)) as f32).collect();
    polar_factor_svd(s, &mut one).unwrap();
    let norm: f64 = one.iter().map(|&x| f64::from(x).powi(2)).sum();
    assert!((norm - 1.0).abs() < 1e-6, "{norm}");
}
