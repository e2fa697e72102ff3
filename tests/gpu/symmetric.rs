//! Symmetric products cut into strips: the bits of full products on the emulator, whose sums are the same; on a GPU,
//! where other sizes may get other kernels, the same to rounding.

use half::bf16;
use muon_cuda::{
    Bf16Params, CoefficientSchedule, CostInputs, Dtype, MethodChoice, MuonConfig, MuonRule,
    Normalization, OddPolynomial, Orthogonalizer, ParamSpec, Plan, Precision, StepCost,
    StepOptions, StepTensor, SymmetricProducts, Tail,
};

use crate::device::{Offset, muon, on_gpu, stream, with_device};
use crate::support::{Random, bits, degree_nine, rule, update_error};

/// Three matrices of one shape through one step; all of them, one after the other.
fn step(
    rule: &MuonRule,
    precision: Precision,
    symmetric_products: SymmetricProducts,
    shape: [usize; 2],
) -> (Vec<f32>, Vec<f32>) {
    let config =
        MuonConfig { precision: Some(precision), symmetric_products, ..MuonConfig::default() };
    let mut muon = muon(config);
    let group = muon.add_group("hidden", rule.clone()).unwrap();
    let stream = stream(&muon);
    let mut random = Random::new(13);
    let len = shape[0] * shape[1];
    let (mut start, mut params) = (Vec::new(), Vec::new());
    for i in 0..3 {
        let id = muon.add_param(group, ParamSpec::new(format!("w{i}"), &shape)).unwrap();
        let param = random.normals(len);
        params.push((
            id,
            Offset::new(&stream, &param, 0),
            Offset::new(&stream, &random.normals(len), 0),
        ));
        start.extend(param);
    }
    let mut tensors: Vec<_> =
        params.iter_mut().map(|(id, p, g)| StepTensor::new(*id, p.param(), g.grad())).collect();
    muon.step(&StepOptions::default(), &mut tensors).unwrap();
    let found = params.iter().flat_map(|(_, p, _)| p.download()).collect();
    (start, found)
}

#[test]
fn strips_give_what_full_products_give_at_every_shape_and_alignment() {
    with_device(7, |_| {
        let shapes =
            [[31, 33], [33, 31], [1, 9], [5, 3], [64, 64], [66, 130], [127, 257], [160, 72]];
        let precisions = [Precision::Bf16, Precision::Fp16, Precision::Tf32, Precision::F32];
        let mut counts = [2, 3, 7].into_iter().cycle();
        for (shape, precision) in shapes.into_iter().flat_map(|s| precisions.map(|p| (s, p))) {
            let nine = degree_nine(precision);
            let groups = if precision == Precision::F32 { vec![2, 1] } else { vec![2, 1, 1] };
            for (preset, method) in [
                ("jordan", MethodChoice::Standard),
                ("turbo_muon", MethodChoice::Standard),
                (nine, MethodChoice::Standard),
                (nine, MethodChoice::Gram(groups)),
            ] {
                let strips = counts.next().unwrap();
                let rule = MuonRule { method: method.clone(), ..rule(preset) };
                let (start, full) = step(&rule, precision, SymmetricProducts::Full, shape);
                let (_, found) = step(&rule, precision, SymmetricProducts::Strips(strips), shape);
                let what = format!("{preset} {method:?} {shape:?} {precision} {strips}");
                if on_gpu() {
                    let full: Vec<f64> = full.iter().map(|x| f64::from(*x)).collect();
                    let error = update_error(&found, &full, &start);
                    // Other orders of summation, amplified as rounding is.
                    let limit = 500.0 * precision.unit_roundoff().max(1e-6);
                    assert!(error < limit, "{what}: {error:e}");
                } else {
                    assert!(bits(&found) == bits(&full), "{what}");
                }
            }
        }
    });
}

/// A schedule of one quintic, so that large matrices stay affordable: the first of Jordan's.
fn one_quintic() -> MuonRule {
    let quintic = OddPolynomial::new(&[3.4445, -4.7750, 2.0315]).unwrap();
    let normalization = Normalization::Frobenius { safety: 1.0 };
    let schedule =
        CoefficientSchedule::new("one", vec![quintic], normalization, Tail::Exact, "test").unwrap();
    let orthogonalizer = Orthogonalizer::Polynomial { schedule, iterations: None };
    MuonRule { orthogonalizer, method: MethodChoice::Standard, ..MuonRule::default() }
}

/// What the plan of so many matrices says: strips of `X·Xᵀ` and of squares, and what a step costs.
fn planned(
    config: &MuonConfig,
    rule: &MuonRule,
    count: usize,
    shape: [usize; 2],
) -> ([usize; 2], StepCost) {
    let plan = Plan::for_shapes(config, rule, [(&shape[..], count)]).unwrap();
    let cost = plan
        .cuda_cost(&CostInputs {
            grad: Dtype::Bf16,
            param: Dtype::F32,
            momentum: Dtype::F32,
            bf16_params: Bf16Params::Master,
            adamw_elements: 0,
        })
        .unwrap();
    let [bucket] = plan.buckets() else { panic!("one shape is one bucket") };
    let strips = [bucket.symmetric.gram, bucket.symmetric.square];
    assert_eq!(bucket.symmetric.is_cut(), strips != [1, 1], "{}", bucket.symmetric.reason);
    (strips, cost)
}

/// Plans for `count` matrices and steps the first of them, as many as there are gradients; what the emulator counts of the
/// plan's rehearsal, which is of all matrices, and of the step must be what the plan says. The stepped matrices, one after
/// the other.
fn step_some(
    config: &MuonConfig,
    cost: &StepCost,
    count: usize,
    shape: [usize; 2],
    start: &[Vec<f32>],
    grads: &[Vec<bf16>],
) -> Vec<f32> {
    with_device(9, |session| {
        let mut muon = muon(config.clone());
        let stream = stream(&muon);
        let group = muon.add_group("hidden", one_quintic()).unwrap();
        let ids: Vec<_> = (0..count)
            .map(|i| muon.add_param(group, ParamSpec::new(format!("w{i}"), &shape)).unwrap())
            .collect();
        let mut params: Vec<_> = start.iter().map(|p| Offset::new(&stream, p, 0)).collect();
        let grads: Vec<_> = grads.iter().map(|g| Offset::new(&stream, g, 0)).collect();
        session.reset();
        muon.plan().unwrap();
        muon.synchronize().unwrap();
        let rehearsed = session.counters();
        session.reset();
        let mut tensors: Vec<_> = ids
            .iter()
            .zip(&mut params)
            .zip(&grads)
            .map(|((id, p), g)| StepTensor::new(*id, p.param(), g.grad()))
            .collect();
        muon.step(&StepOptions::default(), &mut tensors).unwrap();
        muon.synchronize().unwrap();
        if let Some((rehearsed, stepped)) = rehearsed.zip(session.counters()) {
            let launches: u64 = stepped.kernels.values().map(|k| k.launches).sum();
            assert_eq!(
                (rehearsed.gemm_flops, rehearsed.blas_calls),
                (cost.executed_flops, cost.products),
                "{config:?}"
            );
            assert_eq!(
                (stepped.gemm_flops, stepped.blas_calls, launches),
                (
                    cost.executed_flops / count as u64 * start.len() as u64,
                    cost.products,
                    cost.kernel_launches
                ),
                "{config:?}"
            );
        }
        params.iter().flat_map(Offset::download).collect()
    })
}

#[test]
fn strips_that_auto_chooses_are_executed_and_change_no_bit() {
    let rule = one_quintic();
    // 100 matrices of 2 × 2 tiles take four rounds of 132 in full and three in strips: the least number that does, and 129
    // is the least side of two tiles. In f32 a round of sums that short already costs more than the launches and the mirror
    // that save it; in bf16, where a square is never worth it at this size, sums must be nine times as long. Interpreting
    // the passes over all of those would take the emulator 40 s, so there only some of the planned matrices are stepped.
    for (precision, shape, strips, uncut, stepped) in [
        (Precision::F32, [129, 129], [2, 2], (99, [129, 129]), 100),
        (Precision::Bf16, [129, 1208], [2, 1], (100, [129, 1200]), 3),
    ] {
        let config = |symmetric_products| MuonConfig {
            precision: Some(precision),
            symmetric_products,
            ..MuonConfig::default()
        };
        let (auto, full) = (config(SymmetricProducts::default()), config(SymmetricProducts::Full));
        assert_eq!(auto.symmetric_products, SymmetricProducts::Auto);
        assert_eq!(planned(&auto, &rule, uncut.0, uncut.1).0, [1, 1], "{precision} {uncut:?}");
        let (chosen, cut) = planned(&auto, &rule, 100, shape);
        assert_eq!(chosen, strips, "{precision}");
        let (_, whole) = planned(&full, &rule, 100, shape);
        assert_eq!(whole.executed_flops, whole.flops.full);
        assert!(cut.executed_flops < whole.executed_flops && cut.products > whole.products);

        let mut random = Random::new(17);
        let len = shape[0] * shape[1];
        let start: Vec<_> = (0..stepped).map(|_| random.normals(len)).collect();
        let grads: Vec<Vec<bf16>> = (0..stepped)
            .map(|_| random.normals(len).into_iter().map(bf16::from_f32).collect())
            .collect();
        let found = step_some(&auto, &cut, 100, shape, &start, &grads);
        let expected = step_some(&full, &whole, 100, shape, &start, &grads);
        let start = start.concat();
        assert!(bits(&found) != bits(&start));
        if on_gpu() {
            let expected: Vec<f64> = expected.iter().map(|x| f64::from(*x)).collect();
            let error = update_error(&found, &expected, &start);
            // As above; one iteration amplifies rounding less than those do.
            assert!(error < 500.0 * precision.unit_roundoff().max(1e-6), "{precision}: {error:e}");
        } else {
            assert!(bits(&found) == bits(&expected), "{precision}");
        }
    }
}
