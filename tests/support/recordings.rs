//! Small recordings, one for each field that a recording may have, with right values by f64 arithmetic that shares nothing
//! with the library, and the change that must not hold.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "no program uses all of it; tests stop at the first surprise and narrow on purpose"
)]

use muon_cuda::checkpoint::{TensorFile, TensorFileWriter};
use serde_json::{Map, Value, json};

/// One recorded case.
pub struct Sample {
    /// The field that it is about.
    pub field: &'static str,
    /// All fields of the case, `name` included.
    pub case: Value,
    /// What is put over them to say something that is not so; `null` removes a field.
    pub wrong: Value,
    /// Tensors without the name of the case.
    tensors: Vec<(String, Vec<usize>, Vec<f64>)>,
    /// What is wrong about its tensors.
    change: Change,
}

#[derive(Clone, Copy, PartialEq)]
enum Change {
    Nothing,
    Without(&'static str),
    /// That tensor is there, and zeros.
    WithZeros(&'static str),
}

impl Sample {
    /// The recording, or the one that is wrong.
    pub fn files(&self, right: bool) -> (String, TensorFile) {
        let mut case = self.case.clone();
        if !right {
            let fields = case.as_object_mut().unwrap();
            fields.extend(self.wrong.as_object().unwrap().clone());
        }
        let change = if right { Change::Nothing } else { self.change };
        (document(&[case]), TensorFile::from_bytes(bytes(&[(self, change)])).unwrap())
    }
}

/// All cases in one recording: JSON and the bytes of its tensors.
pub fn all_in_one(samples: &[Sample]) -> (String, Vec<u8>) {
    let cases: Vec<_> = samples.iter().map(|s| s.case.clone()).collect();
    let with_all: Vec<_> = samples.iter().map(|s| (s, Change::Nothing)).collect();
    (document(&cases), bytes(&with_all))
}

fn document(cases: &[Value]) -> String {
    // What stands outside of the cases holds for all of them, unless a case says otherwise.
    json!({
        "optimizer": "muon", "framework": "the test's own arithmetic", "note": "ignored",
        "ns_coefficients": JORDAN, "ns_steps": 5, "eps": 1e-7, "cases": cases,
    })
    .to_string()
}

fn bytes(samples: &[(&Sample, Change)]) -> Vec<u8> {
    let zeros = [0.0; 60];
    let mut writer = TensorFileWriter::new();
    for (sample, change) in samples {
        let name = sample.case["name"].as_str().unwrap();
        for (what, shape, values) in &sample.tensors {
            if !matches!(change, Change::Without(left_out) if left_out == what) {
                writer.values(&format!("{name}.{what}"), shape, values).unwrap();
            }
        }
        if let Change::WithZeros(what) = change {
            writer.values(&format!("{name}.{what}"), &[6, 10], &zeros).unwrap();
        }
    }
    writer.to_bytes().unwrap()
}

pub const JORDAN: [f64; 3] = [3.4445, -4.775, 2.0315];
const STEPS: usize = 4;

/// How a matrix lies in its parameter: the place of each of its elements, row by row.
struct Place {
    rows: usize,
    cols: usize,
    at: Vec<usize>,
    fan_out: usize,
    fan_in: usize,
}

/// A matrix of these rows of a parameter with `cols` columns, from `offset` on.
fn of_rows(offset: usize, rows: impl Iterator<Item = usize>, cols: usize) -> Place {
    let rows: Vec<usize> = rows.collect();
    let at = rows.iter().flat_map(|r| (0..cols).map(move |c| offset + r * cols + c)).collect();
    Place { rows: rows.len(), cols, at, fan_out: rows.len(), fan_in: cols }
}

/// A matrix of these columns of a parameter `[rows, cols]` whose columns are fan-out.
fn of_columns(rows: usize, cols: usize, columns: impl Iterator<Item = usize>) -> Place {
    let columns: Vec<usize> = columns.collect();
    let at = (0..rows).flat_map(|r| columns.iter().map(move |c| r * cols + c)).collect();
    Place { rows, cols: columns.len(), at, fan_out: columns.len(), fan_in: rows }
}

/// What the steps do; the defaults are PyTorch's.
struct Steps {
    shape: Vec<usize>,
    places: Vec<Place>,
    lr: [f64; STEPS],
    beta: [f64; STEPS],
    is_sum: bool,
    decay: &'static str,
    scale: fn(f64, f64) -> f64,
    rows: Vec<[f64; 3]>,
    has_grad: [bool; STEPS],
    has_momentum0: bool,
    bf16: Option<&'static str>,
}

impl Default for Steps {
    fn default() -> Self {
        Self {
            shape: vec![6, 10],
            places: vec![of_rows(0, 0..6, 10)],
            lr: [0.05; STEPS],
            beta: [0.95; STEPS],
            is_sum: false,
            decay: "decoupled",
            scale: |out, fan_in| (out / fan_in).max(1.0).sqrt(),
            rows: vec![JORDAN; 5],
            has_grad: [true; STEPS],
            has_momentum0: false,
            bf16: None,
        }
    }
}

/// Xorshift; sums of twelve uniform numbers.
struct Random(u64);

impl Random {
    fn normals(&mut self, n: usize) -> Vec<f64> {
        let mut uniform = || {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 11) as f64 / f64::powi(2.0, 53)
        };
        let normal = |_| f64::from((0..12).map(|_| uniform()).sum::<f64>() as f32 - 6.0);
        (0..n).map(normal).collect()
    }
}

fn times(a: &[f64], b: &[f64], rows: usize, inner: usize, cols: usize) -> Vec<f64> {
    let element = |i: usize, j: usize| (0..inner).map(|k| a[i * inner + k] * b[k * cols + j]).sum();
    (0..rows * cols).map(|e| element(e / cols, e % cols)).collect()
}

/// `x ← a·x + (b·A + c·A²)·x`, `A = x·xᵀ`, of the normalised direction; each store through `round`. What is not fused
/// rounds every product and sum.
fn iterate(
    d: &[f64],
    (rows, cols): (usize, usize),
    coefficients: &[[f64; 3]],
    is_fused: bool,
    round: impl Fn(f64) -> f64,
) -> Vec<f64> {
    let norm = d.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-7);
    let mut x: Vec<f64> = d.iter().map(|x| round(x / norm)).collect();
    let inner = |x: f64| if is_fused { x } else { round(x) };
    for [a, b, c] in coefficients {
        let transposed: Vec<f64> =
            (0..rows * cols).map(|e| x[e % rows * cols + e / rows]).collect();
        let gram: Vec<f64> =
            times(&x, &transposed, rows, cols, rows).into_iter().map(&round).collect();
        let square = times(&gram, &gram, rows, rows, rows);
        let s: Vec<f64> = gram
            .iter()
            .zip(square)
            .map(|(g, q)| round(inner(b * g) + inner(c * inner(q))))
            .collect();
        let sx = times(&s, &x, rows, rows, cols);
        x = x.iter().zip(sx).map(|(x, y)| round(inner(a * x) + inner(y))).collect();
    }
    x
}

/// The nearest bf16 number. By way of f32, so twice rounded: that differs from once for one number in 2¹⁶, and for none here.
fn to_bf16(x: f64) -> f64 {
    let bits = (x as f32).to_bits();
    let up = 0x7fff + (bits >> 16 & 1);
    f64::from(f32::from_bits((bits + up) & 0xffff_0000))
}

/// Tensors of the trajectory: inputs and results. `orthogonalize` makes the update of a direction.
fn trajectory(
    s: &Steps,
    seed: u64,
    orthogonalize: impl Fn(&[f64], (usize, usize)) -> Vec<f64>,
) -> Vec<(String, Vec<f64>)> {
    let len = s.shape.iter().product();
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ seed);
    let mut start: Vec<f64> = random.normals(len).iter().map(|x| x / 2.0).collect();
    if s.bf16.is_some() {
        start.iter_mut().for_each(|x| *x = to_bf16(*x));
    }
    let grads: Vec<Vec<f64>> = (0..STEPS).map(|_| random.normals(len)).collect();
    let momentum0 = random.normals(len);
    let mut w = start.clone();
    let mut m = if s.has_momentum0 { momentum0.clone() } else { vec![0.0; len] };
    for (k, grad) in grads.iter().enumerate() {
        if !s.has_grad[k] {
            continue;
        }
        let (lr, beta) = (s.lr[k], s.beta[k]);
        let fresh = if s.is_sum { 1.0 } else { 1.0 - beta };
        for p in &s.places {
            let g = |&i: &usize| grad[i] + if s.decay == "l2" { DECAY * w[i] } else { 0.0 };
            let gradient: Vec<f64> = p.at.iter().map(g).collect();
            for (&i, g) in p.at.iter().zip(&gradient) {
                m[i] = beta * m[i] + fresh * g;
            }
            let blended = p.at.iter().zip(&gradient).map(|(&i, g)| fresh * g + beta * m[i]);
            let update = orthogonalize(&blended.collect::<Vec<_>>(), (p.rows, p.cols));
            let scale = (s.scale)(p.fan_out as f64, p.fan_in as f64);
            for (&i, u) in p.at.iter().zip(update) {
                let kept = match s.decay {
                    "decoupled" => 1.0 - lr * DECAY,
                    "independent" => 1.0 - DECAY,
                    "palm" => 1.0 - lr * lr * DECAY,
                    "cautious" if w[i] * u >= 0.0 => 1.0 - lr * DECAY,
                    _ => 1.0,
                };
                w[i] = w[i] * kept - lr * scale * u;
                if s.bf16 == Some("nearest") {
                    w[i] = to_bf16(w[i]);
                }
            }
        }
    }
    if s.bf16 == Some("master") {
        w.iter_mut().for_each(|x| *x = to_bf16(*x));
    }
    let mut out = vec![("param0".to_owned(), start)];
    for (k, grad) in grads.into_iter().enumerate().filter(|(k, _)| s.has_grad[*k]) {
        out.push((format!("grad{k}"), grad));
    }
    if s.has_momentum0 {
        out.push(("momentum0".to_owned(), momentum0));
    }
    out.push(("momentum_f64".to_owned(), m));
    out.push(("param_f64".to_owned(), w));
    out
}

const DECAY: f64 = 0.1;

fn sample(
    (name, field): (&'static str, &'static str),
    steps: &Steps,
    fields: Value,
    wrong: Value,
) -> Sample {
    let own = trajectory(steps, name.len() as u64, |d, (rows, cols)| {
        // The Gram matrix of the short side.
        if rows <= cols {
            return iterate(d, (rows, cols), &steps.rows, true, |x| x);
        }
        let turned: Vec<f64> = (0..d.len()).map(|e| d[e % rows * cols + e / rows]).collect();
        let x = iterate(&turned, (cols, rows), &steps.rows, true, |x| x);
        (0..d.len()).map(|e| x[e % cols * rows + e / cols]).collect()
    });
    let mut case = json!({
        "name": name, "shape": steps.shape, "lr": 0.05, "weight_decay": DECAY, "momentum": 0.95,
        "nesterov": true, "steps": STEPS, "spectrum": "ignored", "rel_anything": 1.0,
    });
    case.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let tensors = own.into_iter().map(|(what, x)| (what, steps.shape.clone(), x)).collect();
    Sample { field, case, wrong, tensors, change: Change::Nothing }
}

/// One sample for each field, and for some that interact.
pub fn samples() -> Vec<Sample> {
    let plain = Steps::default;
    let tall = |places| Steps { shape: vec![12, 5], places, ..plain() };
    let decay = |name: &'static str, mode| {
        sample(
            (name, "weight_decay_mode"),
            &Steps { decay: mode, ..plain() },
            json!({ "weight_decay_mode": mode }),
            json!({ "weight_decay_mode": "decoupled" }),
        )
    };
    let bf16 = |name, how, other| {
        let steps = Steps {
            shape: vec![24, 40],
            places: vec![of_rows(0, 0..24, 40)],
            bf16: Some(how),
            ..plain()
        };
        sample(
            (name, "bf16_params"),
            &steps,
            json!({ "param_dtype": "bf16", "bf16_params": how }),
            json!({ "bf16_params": other }),
        )
    };
    let groups = |g: usize, first: usize, rows: usize| {
        (0..g).flat_map(move |i| (0..rows).map(move |r| i * 6 + first + r))
    };
    let rows_of_experts = (0..2).flat_map(|e| {
        [(0, 3), (3, 2), (5, 1)].map(|(first, rows)| of_rows(e * 60, groups(2, first, rows), 5))
    });
    let second = [2.0, -1.5, 0.5];
    let (lr, beta) = ([0.01, 0.05, 0.1, 0.02], [0.85, 0.9, 0.95, 0.5]);
    let split_rows = |sizes: [usize; 3]| {
        let starts = [0, sizes[0], sizes[0] + sizes[1]];
        starts.into_iter().zip(sizes).map(|(s, n)| of_rows(0, s..s + n, 5)).collect()
    };
    let mut out = vec![
        sample(
            ("spectral", "adjust_lr_fn"),
            &Steps { scale: |out, fan_in| (out / fan_in).sqrt(), ..plain() },
            json!({ "adjust_lr_fn": "spectral_unclamped" }),
            json!({ "adjust_lr_fn": "original" }),
        ),
        sample(
            ("rms", "adjust_lr_fn"),
            &Steps { scale: |out, fan_in| 0.3 * out.max(fan_in).sqrt(), ..plain() },
            json!({ "adjust_lr_fn": { "rms": 0.3 } }),
            json!({ "adjust_lr_fn": "match_rms_adamw" }),
        ),
        sample(
            ("rows", "ns_coefficients"),
            &Steps { rows: vec![JORDAN, second, second, second], ..plain() },
            json!({ "ns_coefficients": [JORDAN, second], "ns_steps": 4 }),
            json!({ "ns_coefficients": [second, JORDAN] }),
        ),
        sample(
            ("sum", "momentum_mode"),
            &Steps { is_sum: true, ..plain() },
            json!({ "momentum_mode": "sum" }),
            json!({ "momentum_mode": "ema" }),
        ),
        decay("independent", "independent"),
        decay("cautious", "cautious"),
        decay("l2", "l2"),
        decay("palm", "palm"),
        sample(
            ("rates", "lr"),
            &Steps { lr, ..plain() },
            json!({ "lr": lr }),
            json!({ "lr": [0.01, 0.05, 0.02, 0.1] }),
        ),
        sample(
            ("moments", "momentum"),
            &Steps { beta, ..plain() },
            json!({ "momentum": beta }),
            json!({ "momentum": 0.95 }),
        ),
        Sample {
            change: Change::WithZeros("grad1"),
            ..sample(
                ("without_two", "grad"),
                &Steps { has_grad: [true, false, true, false], ..plain() },
                json!({}),
                json!({}),
            )
        },
        Sample {
            change: Change::Without("momentum0"),
            ..sample(
                ("from_momentum", "momentum0"),
                &Steps { has_momentum0: true, ..plain() },
                json!({}),
                json!({}),
            )
        },
        sample(
            ("in_out", "layout"),
            &Steps { places: vec![of_columns(6, 10, 0..10)], ..plain() },
            json!({ "layout": "in_out" }),
            json!({ "layout": "out_in" }),
        ),
        sample(
            ("heads", "heads"),
            &tall((0..3).map(|h| of_rows(0, 4 * h..4 * h + 4, 5)).collect()),
            json!({ "heads": 3 }),
            json!({ "heads": 2 }),
        ),
        sample(
            ("split", "split"),
            &tall(split_rows([6, 4, 2])),
            json!({ "split": [6, 4, 2] }),
            json!({ "split": [4, 6, 2] }),
        ),
        sample(
            ("interleaved", "split_interleaved"),
            &tall([(0, 3), (3, 2), (5, 1)].map(|(f, n)| of_rows(0, groups(2, f, n), 5)).into()),
            json!({ "split_interleaved": { "groups": 2, "rows": [3, 2, 1] } }),
            json!({ "split_interleaved": { "groups": 1, "rows": [6, 4, 2] } }),
        ),
        sample(
            ("interleaved_columns", "split_interleaved"),
            &Steps {
                shape: vec![5, 12],
                places: [(0, 4), (4, 2)].map(|(f, n)| of_columns(5, 12, groups(2, f, n))).into(),
                ..plain()
            },
            json!({ "layout": "in_out", "split_interleaved": { "groups": 2, "rows": [4, 2] } }),
            json!({ "split_interleaved": { "groups": 2, "rows": [2, 4] } }),
        ),
        sample(
            ("interleaved_experts", "split_interleaved"),
            &Steps { shape: vec![2, 12, 5], places: rows_of_experts.collect(), ..plain() },
            json!({ "split_interleaved": { "groups": 2, "rows": [3, 2, 1] } }),
            json!({ "split_interleaved": { "groups": 3, "rows": [2, 1, 1] } }),
        ),
        sample(
            ("conv1d", "view"),
            &Steps { shape: vec![4, 3, 5], places: vec![of_rows(0, 0..4, 15)], ..plain() },
            json!({ "view": "conv" }),
            json!({ "view": null }),
        ),
        sample(
            ("conv2d", "view"),
            &Steps { shape: vec![6, 2, 3, 3], places: vec![of_rows(0, 0..6, 18)], ..plain() },
            json!({}),
            json!({ "heads": 2 }),
        ),
        sample(
            ("conv3d", "view"),
            &Steps { shape: vec![4, 2, 2, 1, 3], places: vec![of_rows(0, 0..4, 12)], ..plain() },
            json!({ "view": "conv" }),
            json!({ "view": "conv", "heads": 2 }),
        ),
        sample(
            ("experts", "shape"),
            &Steps {
                shape: vec![2, 4, 7],
                places: vec![of_rows(0, 0..4, 7), of_rows(28, 0..4, 7)],
                ..plain()
            },
            json!({}),
            json!({ "view": "conv" }),
        ),
        bf16("nearest", "nearest", "master"),
        bf16("master", "master", "nearest"),
    ];
    out.push(of_a_framework());
    out
}

/// A recording that has nothing but the framework's own result in bf16, from an iteration that rounds every product and sum.
fn of_a_framework() -> Sample {
    let steps =
        Steps { shape: vec![12, 20], places: vec![of_rows(0, 0..12, 20)], ..Steps::default() };
    let mut sample = sample(
        ("framework_alone", "param_f64"),
        &steps,
        json!({ "arithmetic": "unfused" }),
        json!({ "lr": 0.06 }),
    );
    sample.tensors =
        unfused(&steps, 3).into_iter().map(|(w, x)| (w, steps.shape.clone(), x)).collect();
    sample
}

fn unfused(steps: &Steps, seed: u64) -> Vec<(String, Vec<f64>)> {
    let mut tensors = trajectory(steps, seed, |d, shape| {
        iterate(
            &d.iter().map(|x| to_bf16(*x)).collect::<Vec<_>>(),
            shape,
            &steps.rows,
            false,
            to_bf16,
        )
    });
    for (what, _) in &mut tensors {
        if what == "param_f64" {
            *what = "param_bf16ns".to_owned();
        }
    }
    tensors
}

/// A case with both results, of a framework whose iteration rounds every product and sum, and the distance of the two.
pub fn unfused_with_f64() -> Sample {
    let steps =
        Steps { shape: vec![12, 20], places: vec![of_rows(0, 0..12, 20)], ..Steps::default() };
    let exact = trajectory(&steps, 3, |d, shape| iterate(d, shape, &steps.rows, true, |x| x));
    let rounded = unfused(&steps, 3);
    let find = |of: &[(String, Vec<f64>)], what: &str| {
        of.iter().find(|(w, _)| w == what).map(|(_, x)| x.clone()).unwrap()
    };
    let (f64_, own) = (find(&exact, "param_f64"), find(&rounded, "param_bf16ns"));
    let start = find(&exact, "param0");
    let norm =
        |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
    let distance = norm(&own, &f64_) / norm(&f64_, &start);
    let mut tensors: Vec<_> = exact.into_iter().map(|(w, x)| (w, steps.shape.clone(), x)).collect();
    tensors.push(("param_bf16ns".to_owned(), steps.shape.clone(), own));
    let mut case = Map::new();
    for (key, value) in [
        ("name", json!("unfused")),
        ("shape", json!(steps.shape)),
        ("lr", json!(0.05)),
        ("weight_decay", json!(DECAY)),
        ("momentum", json!(0.95)),
        ("nesterov", json!(true)),
        ("steps", json!(STEPS)),
        ("arithmetic", json!("unfused")),
        ("rel_bf16_vs_f64_of_update", json!(distance)),
    ] {
        case.insert(key.to_owned(), value);
    }
    Sample {
        field: "arithmetic",
        case: Value::Object(case),
        wrong: json!({ "arithmetic": "fused" }),
        tensors,
        change: Change::Nothing,
    }
}
