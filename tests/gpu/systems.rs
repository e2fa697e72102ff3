//! Ways to orthogonalize as rows of one table: gradient descent, the exact factor, and three schedules, each with its
//! error to the polar factor, FLOPs and launches. `muon compare` prints such a table.

use muon_cuda::reference::{self, Matrix};
use muon_cuda::{
    Bf16Params, CostInputs, Dtype, MuonConfig, MuonRule, Nesterov, Orthogonalizer, ParamSpec, Plan,
    Precision, StepOptions, StepTensor, UpdateScale,
};

use crate::device::{Offset, muon, stream, with_device};
use crate::support::{Random, update_error};

const SHAPE: [usize; 2] = [96, 160];

/// Error to the polar factor, FLOPs, products and launches of a step.
struct Row {
    error: f64,
    flops: u64,
    products: u64,
    launches: u64,
}

/// Two steps on one matrix: the first one's update is the result, the second one is counted.
fn row(orthogonalizer: Orthogonalizer, precision: Precision, grad: &[f32], polar: &[f64]) -> Row {
    with_device(3, |session| {
        let config = MuonConfig { precision: Some(precision), ..MuonConfig::default() };
        // The update is what was orthogonalized: no momentum, decay or scale.
        let rule = MuonRule {
            lr: 1.0,
            momentum: 0.0,
            nesterov: Nesterov::Off,
            weight_decay: 0.0,
            update_scale: UpdateScale::None,
            orthogonalizer,
            ..MuonRule::default()
        };
        let cost = Plan::for_shapes(&config, &rule, [(&SHAPE[..], 1)])
            .unwrap()
            .cuda_cost(&CostInputs {
                grad: Dtype::F32,
                param: Dtype::F32,
                momentum: Dtype::F32,
                bf16_params: Bf16Params::Master,
                adamw_elements: 0,
            })
            .unwrap();
        let mut muon = muon(config);
        let group = muon.add_group("hidden", rule).unwrap();
        let id = muon.add_param(group, ParamSpec::new("w", &SHAPE)).unwrap();
        let stream = stream(&muon);
        let zeros = vec![0.0; grad.len()];
        let mut param = Offset::new(&stream, &zeros, 0);
        let grad = Offset::new(&stream, grad, 0);
        let mut step = |param: &mut Offset<f32>| {
            let mut tensors = [StepTensor::new(id, param.param(), grad.grad())];
            muon.step(&StepOptions::default(), &mut tensors).unwrap();
            muon.synchronize().unwrap();
        };
        step(&mut param);
        let update: Vec<f32> = param.download().iter().map(|x| -x).collect();
        session.reset();
        step(&mut param);
        if let Some(c) = session.counters() {
            let launches: u64 = c.kernels.values().map(|k| k.launches).sum();
            assert_eq!(
                (launches, c.blas_calls, c.gemm_flops),
                (cost.kernel_launches, cost.products, cost.executed_flops)
            );
        }
        Row {
            error: update_error(&update, polar, &zeros),
            flops: cost.executed_flops,
            products: cost.products,
            launches: cost.kernel_launches,
        }
    })
}

#[test]
fn from_gradient_descent_to_the_exact_factor() {
    let grad = Random::new(41).normals(SHAPE[0] * SHAPE[1]);
    let polar = reference::polar_factor(&Matrix::from_f32(SHAPE[0], SHAPE[1], &grad).unwrap());
    for precision in [Precision::F32, Precision::Bf16] {
        let row = |orthogonalizer| row(orthogonalizer, precision, &grad, polar.data());
        let preset = |name| row(Orthogonalizer::preset(name).unwrap());
        let descent = row(Orthogonalizer::Frobenius);
        let exact = row(Orthogonalizer::ExactSvd);
        let (cubic, jordan, express) =
            (preset("classical_cubic"), preset("jordan"), preset("polar_express_5"));
        for (name, r) in [
            ("gradient descent", &descent),
            ("exact SVD", &exact),
            ("cubic", &cubic),
            ("Jordan", &jordan),
            ("Polar Express", &express),
        ] {
            println!(
                "{precision} {name}: error {:.3e}, {} FLOPs, {} products, {} launches",
                r.error, r.flops, r.products, r.launches
            );
        }
        // Better polynomials are nearer to the polar factor, and none is the factor.
        let errors = [&descent, &cubic, &jordan, &express, &exact].map(|r| r.error);
        assert!(errors.windows(2).all(|e| e[0] > e[1]), "{precision}: {errors:?}");
        // Unit Frobenius norm: X = G/‖G‖ has singular values of some 1/√96, so nearly all of Q is missing.
        assert!((0.85..0.95).contains(&descent.error), "{}", descent.error);
        // f32 in and out, the decomposition in f64.
        assert!(exact.error < 1e-6, "{}", exact.error);
        // The bands of the schedules, NUMERICS.md: the cubic has not converged, Jordan's ends within 0.30 of 1, Polar
        // Express within 0.14.
        assert!((0.30..0.60).contains(&cubic.error), "{}", cubic.error);
        assert!((0.05..0.30).contains(&jordan.error), "{}", jordan.error);
        assert!((0.02..0.15).contains(&express.error), "{}", express.error);
        // 2α and 2α + … of n³: five iterations each, the cubic without the square.
        let n3 = (SHAPE[0] as u64).pow(3);
        let long = (SHAPE[0] * SHAPE[0] * SHAPE[1]) as u64;
        if precision == Precision::Bf16 {
            assert_eq!(cubic.flops, 5 * 4 * long);
            assert_eq!([jordan.flops, express.flops], [5 * (4 * long + 2 * n3); 2]);
            assert_eq!([jordan.products, express.products], [15; 2]);
        }
        assert_eq!((descent.flops, exact.flops), (0, 0));
    }
}
