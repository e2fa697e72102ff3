//! The loss in f64, token by token with plain loops, sharing no code with the model; and the gradient
//! checked against differences of it.

use super::*;

/// Parameters by name, in f64.
struct Oracle {
    shape: TransformerShape,
    params: Vec<(String, Vec<f64>)>,
}

impl Oracle {
    fn get(&self, name: &str) -> &[f64] {
        &self.params.iter().find(|(n, _)| n == name).unwrap().1
    }

    fn apply(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let w = self.get(name);
        w.chunks_exact(x.len()).map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let root = (mean + f64::from(layers::NORM_FLOOR)).sqrt();
        x.iter().zip(self.get(name)).map(|(x, g)| g * x / root).collect()
    }

    fn loss(&self, windows: &[u8]) -> f64 {
        let TransformerShape { width, layers, heads, context } = self.shape;
        let columns = width / heads;
        let (mut total, mut count) = (0.0, 0.0);
        for window in windows.chunks_exact(context + 1) {
            let mut stream: Vec<Vec<f64>> = (0..context)
                .map(|t| {
                    let token = &self.get("token_embed.weight")[usize::from(window[t]) * width..];
                    let position = &self.get("position_embed.weight")[t * width..];
                    (0..width).map(|c| token[c] + position[c]).collect()
                })
                .collect();
            for l in 0..layers {
                let normed: Vec<Vec<f64>> = stream
                    .iter()
                    .map(|x| self.norm(&format!("blocks.{l}.norm1.gain"), x))
                    .collect();
                let of = |part: &str| -> Vec<Vec<f64>> {
                    let name = format!("blocks.{l}.attention.{part}.weight");
                    normed.iter().map(|x| self.apply(&name, x)).collect()
                };
                let (q, k, v) = (of("q"), of("k"), of("v"));
                for t in 0..context {
                    let mut mixed = vec![0.0; width];
                    for head in 0..heads {
                        let range = head * columns..(head + 1) * columns;
                        let score = |s: usize| -> f64 {
                            let dot: f64 = range.clone().map(|c| q[t][c] * k[s][c]).sum();
                            (dot / (columns as f64).sqrt()).exp()
                        };
                        let sum: f64 = (0..=t).map(score).sum();
                        for (s, value) in v.iter().enumerate().take(t + 1) {
                            for c in range.clone() {
                                mixed[c] += score(s) / sum * value[c];
                            }
                        }
                    }
                    let out = self.apply(&format!("blocks.{l}.attention.out.weight"), &mixed);
                    stream[t].iter_mut().zip(out).for_each(|(x, o)| *x += o);
                }
                for x in &mut stream {
                    let normed = self.norm(&format!("blocks.{l}.norm2.gain"), x);
                    let up = self.apply(&format!("blocks.{l}.mlp.up.weight"), &normed);
                    let act: Vec<f64> = up.iter().map(|u| u.max(0.0) * u.max(0.0)).collect();
                    let down = self.apply(&format!("blocks.{l}.mlp.down.weight"), &act);
                    x.iter_mut().zip(down).for_each(|(x, o)| *x += o);
                }
            }
            for (t, x) in stream.iter().enumerate() {
                let logits = self.apply("head.weight", &self.norm("norm.gain", x));
                let sum: f64 = logits.iter().map(|z| z.exp()).sum();
                total += sum.ln() - logits[usize::from(window[t + 1])];
                count += 1.0;
            }
        }
        total / count
    }
}

/// A model with every parameter well away from zero and one, so that each matters.
fn model() -> Transformer {
    let shape = TransformerShape { width: 6, layers: 2, heads: 2, context: 4 };
    let mut model = Transformer::new(shape, 3).unwrap();
    let mut rng = Rng::new(11, Stream::Split);
    for p in &mut model.params {
        let (offset, limit) = if p.shape.len() == 1 { (1.0, 0.4) } else { (0.0, 0.9) };
        p.data.iter_mut().for_each(|x| *x = offset + rng.symmetric(limit));
    }
    model
}

const WINDOWS: &[u8] = b"nosce teipsum!?";

#[test]
fn gradient_matches_finite_differences_of_an_independent_f64_loss() {
    let mut model = model();
    let loss = model.backward(WINDOWS);
    let to_f64 = |p: &Param| (p.name.clone(), p.data.iter().map(|x| f64::from(*x)).collect());
    let mut oracle =
        Oracle { shape: model.shape, params: model.params.iter().map(to_f64).collect() };
    let reference = oracle.loss(WINDOWS);
    // f32 sums of at most 256 terms: a few ulp of 2⁻²⁴ relative.
    assert!((loss - reference).abs() < 1e-5 * reference, "{loss} {reference}");
    let mean = model.score(WINDOWS).mean().0;
    assert_eq!(mean.to_bits(), loss.to_bits());
    for p in 0..oracle.params.len() {
        let (mut largest, mut size) = (0.0f64, 0.0f64);
        for i in 0..oracle.params[p].1.len() {
            let h = 1e-5;
            let x = oracle.params[p].1[i];
            oracle.params[p].1[i] = x + h;
            let up = oracle.loss(WINDOWS);
            oracle.params[p].1[i] = x - h;
            let down = oracle.loss(WINDOWS);
            oracle.params[p].1[i] = x;
            let exact = (up - down) / (2.0 * h);
            let found = f64::from(model.params[p].grad[i]);
            largest = largest.max((found - exact).abs());
            size = size.max(exact.abs());
        }
        let name = &model.params[p].name;
        assert!(size > 1e-3, "{name}: the gradient is too small to tell anything, {size}");
        // Differences: 1e-16/1e-5 plus h²; f32 backward pass through two blocks: some 2⁻²⁴ of the largest
        // intermediate gradient.
        assert!(largest < 5e-6 * size.max(0.1), "{name}: off by {largest}, largest entry {size}");
    }
}

#[test]
fn a_prediction_does_not_see_what_comes_after_it() {
    let mut model = model();
    model.forward(b"abcd?");
    let first = model.logits.clone();
    model.forward(b"abxd?");
    for (t, (a, b)) in
        first.chunks_exact(VOCABULARY).zip(model.logits.chunks_exact(VOCABULARY)).enumerate()
    {
        assert_eq!(a == b, t < 2, "position {t}");
    }
}

#[test]
fn hidden_matrices_are_what_the_routing_rule_says() {
    let rule = muon_cuda::RoutingRule::default();
    let model = model();
    for p in &model.params {
        let hidden = p.name.contains("attention") || p.name.contains("mlp");
        assert_eq!(rule.route(&p.name, &p.shape).is_muon(), hidden, "{}", p.name);
    }
    assert_eq!(model.params.iter().filter(|p| rule.route(&p.name, &p.shape).is_muon()).count(), 12);
}
