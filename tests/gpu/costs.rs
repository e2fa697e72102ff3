//! What a step costs, as the emulator counts it: bytes and sectors per element, launches, products, FLOPs, allocations,
//! synchronisations. A GPU counts nothing, so there these tests only run the steps.

use cuda_emulator::Counters;
use half::bf16;
use muon_cuda::{
    AdamWRule, Cuda, MethodChoice, Muon, MuonConfig, ParamId, ParamSpec, Precision, StepOptions,
    StepTensor, SymmetricProducts,
};

use crate::device::{Offset, Session, muon, stream, with_device};
use crate::support::{Random, rule};

/// The matrices and vectors of a GPT-2-small, every dimension divided by `divisor`.
struct Gpt2 {
    muon: Muon<Cuda>,
    params: Vec<(ParamId, Offset<f32>, Offset<bf16>)>,
    matrix_elements: usize,
    other_elements: usize,
}

impl Gpt2 {
    fn new(divisor: usize, preset: &str, method: MethodChoice, precision: Precision) -> Self {
        let width = 768 / divisor;
        let mut muon = muon(MuonConfig {
            precision: Some(precision),
            symmetric_products: SymmetricProducts::Full,
            ..MuonConfig::default()
        });
        let hidden = crate::support::rule(preset);
        let hidden = muon_cuda::MuonRule { method, weight_decay: 0.1, ..hidden };
        let hidden = muon.add_group("hidden", hidden).unwrap();
        let rest = muon.add_group("rest", AdamWRule::default()).unwrap();
        let stream = stream(&muon);
        let mut random = Random::new(5);
        let mut model = Self { muon, params: Vec::new(), matrix_elements: 0, other_elements: 0 };
        let mut add = |model: &mut Self, group, name: String, shape: &[usize]| {
            let len = shape.iter().product();
            let id = model.muon.add_param(group, ParamSpec::new(name, shape)).unwrap();
            let grad: Vec<bf16> = random.normals(len).into_iter().map(bf16::from_f32).collect();
            let param = Offset::new(&stream, &random.normals(len), 0);
            model.params.push((id, param, Offset::new(&stream, &grad, 0)));
            len
        };
        for layer in 0..12 {
            for part in ["q", "k", "v", "o"] {
                model.matrix_elements +=
                    add(&mut model, hidden, format!("{layer}.{part}"), &[width, width]);
            }
            model.matrix_elements +=
                add(&mut model, hidden, format!("{layer}.up"), &[4 * width, width]);
            model.matrix_elements +=
                add(&mut model, hidden, format!("{layer}.down"), &[width, 4 * width]);
            for part in ["ln1", "ln2"] {
                model.other_elements += add(&mut model, rest, format!("{layer}.{part}"), &[width]);
            }
        }
        model.other_elements += add(&mut model, rest, "wte".into(), &[50257 / divisor / 8, width]);
        model
    }

    fn step(&mut self, lr_factor: f64) {
        let options = StepOptions { lr_factor, ..StepOptions::default() };
        let mut tensors: Vec<_> = self
            .params
            .iter_mut()
            .map(|(id, p, g)| StepTensor::new(*id, p.param(), g.grad()))
            .collect();
        self.muon.step(&options, &mut tensors).unwrap();
    }

    fn full_flops(&mut self) -> u64 {
        let plan = self.muon.plan().unwrap();
        plan.buckets()
            .iter()
            .map(|b| match &b.treatment {
                muon_cuda::Treatment::Polynomial { recipe, .. } => {
                    recipe.flops(b.shape).full * b.matrices.len() as u64
                }
                _ => 0,
            })
            .sum()
    }
}

/// Counters of the second step alone.
fn second_step(session: &Session, model: &mut Gpt2) -> Option<Counters> {
    model.step(1.0);
    model.muon.synchronize().unwrap();
    session.reset();
    model.step(0.5);
    // What the step itself did: everything after is this call's.
    let queued = session.counters();
    model.muon.synchronize().unwrap();
    let done = session.counters();
    queued.zip(done).map(|(queued, done)| {
        assert_eq!(queued.allocations, 0, "allocations");
        assert_eq!(queued.synchronisations, 0, "synchronisations");
        assert_eq!(queued.blocking_copies, 0, "copies that wait");
        assert_eq!(queued.device_to_host.calls, 0, "copies to the host");
        done
    })
}

/// Bytes requested per element by a kernel.
fn bytes(counters: &Counters, kernel: &str, elements: usize) -> f64 {
    let k = &counters.kernels[kernel];
    (k.global_load_bytes + k.global_store_bytes) as f64 / elements as f64
}

#[test]
fn a_gpt2_step_costs_what_the_plan_says() {
    with_device(1, |session| {
        let mut model = Gpt2::new(8, "jordan", MethodChoice::Standard, Precision::Bf16);
        let Some(c) = second_step(session, &mut model) else { return };
        let (n, adam) = (model.matrix_elements, model.other_elements);
        let launches: u64 = c.kernels.values().map(|k| k.launches).sum();
        println!("launches {launches} + products {} = {}", c.blas_calls, launches + c.blas_calls);
        for kernel in c.kernels.keys() {
            let elements = if kernel.starts_with("adamw") || kernel.starts_with("gradient") {
                adam
            } else {
                n
            };
            println!("{kernel}: {:.3} B per element", bytes(&c, kernel, elements));
        }
        assert!(launches + c.blas_calls <= 60, "{launches} launches, {} products", c.blas_calls);
        assert_eq!(c.gemm_flops, model.full_flops());
        // bf16 gradient and iterate, f32 momentum and parameter; at most 1 % for tables and partial sums.
        let a = bytes(&c, "direction_scan", n)
            + bytes(&c, "momentum_blend", n)
            + bytes(&c, "norm_finish", n);
        assert!(a <= 18.0 * 1.01, "pass A and normalisation: {a} B per element");
        let b = bytes(&c, "update_apply", n);
        assert!(b <= 10.0 * 1.01, "pass B: {b} B per element");
        // Whole sectors: every 32 bytes that are asked for are used.
        for kernel in ["direction_scan", "momentum_blend", "update_apply"] {
            let k = &c.kernels[kernel];
            let ideal = (k.global_load_bytes + k.global_store_bytes) as f64 / 32.0;
            let ratio = (k.global_load_sectors + k.global_store_sectors) as f64 / ideal;
            println!("{kernel}: {ratio:.4} sectors over bytes/32");
            assert!(ratio <= 1.02, "{kernel}: {ratio} sectors over bytes/32");
        }
    });
}

#[test]
fn two_hundred_steps_take_no_more_memory_than_two() {
    with_device(2, |session| {
        let mut model = Gpt2::new(48, "jordan", MethodChoice::Auto, Precision::Bf16);
        for _ in 0..2 {
            model.step(1.0);
        }
        model.muon.synchronize().unwrap();
        let before = session.counters();
        for i in 0..198 {
            model.step(1.0 / f64::from(i + 1));
            if i % 20 == 0 {
                model.muon.synchronize().unwrap();
            }
        }
        model.muon.synchronize().unwrap();
        if let Some((before, after)) = before.zip(session.counters()) {
            assert_eq!(
                (before.live_bytes, before.allocations),
                (after.live_bytes, after.allocations)
            );
        }
        let _ = rule("jordan");
    });
}
