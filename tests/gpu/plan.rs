//! The plan's count of a step against what the emulator sees.

use std::collections::BTreeSet;

use half::bf16;
use muon_cuda::{
    AdamWRule, Bf16Params, CostInputs, Dtype, MethodChoice, MuonConfig, MuonRule, ParamSpec, Plan,
    Precision, StepOptions, StepTensor, SymmetricProducts,
};

use crate::device::{Offset, muon, on_gpu, stream, with_device};
use crate::support::{Random, rule};

/// Elements of the tensor under AdamW.
const ADAMW: usize = 5000;

#[test]
fn launches_products_flops_and_bytes_are_those_of_the_plan() {
    let shapes = [[64, 64], [64, 64], [160, 64], [64, 96]];
    let strips = SymmetricProducts::Strips;
    let mut launched = BTreeSet::new();
    for (preset, method, precision, workspace_limit, symmetric_products) in [
        ("jordan", MethodChoice::Standard, Precision::Bf16, usize::MAX, SymmetricProducts::Full),
        (
            "jordan",
            MethodChoice::Gram(vec![3, 2]),
            Precision::Bf16,
            usize::MAX,
            SymmetricProducts::Full,
        ),
        (
            "jordan",
            MethodChoice::Gram(vec![3, 2]),
            Precision::F32,
            usize::MAX,
            SymmetricProducts::Full,
        ),
        (
            "nonic3_band12",
            MethodChoice::Standard,
            Precision::F32,
            usize::MAX,
            SymmetricProducts::Full,
        ),
        ("jordan", MethodChoice::Standard, Precision::Tf32, usize::MAX, SymmetricProducts::Full),
        (
            "jordan",
            MethodChoice::Gram(vec![3, 2]),
            Precision::Tf32,
            usize::MAX,
            SymmetricProducts::Full,
        ),
        // One matrix of a shape at a time: two chunks, the second of one bucket alone.
        ("polar_express_5", MethodChoice::Auto, Precision::Bf16, 1, SymmetricProducts::Auto),
        ("jordan", MethodChoice::Standard, Precision::Bf16, usize::MAX, strips(2)),
        ("turbo_muon", MethodChoice::Standard, Precision::F32, usize::MAX, strips(3)),
        ("tuned_bf16", MethodChoice::Gram(vec![2, 2]), Precision::Bf16, usize::MAX, strips(4)),
        ("jordan", MethodChoice::Gram(vec![3, 2]), Precision::Tf32, 1, strips(100)),
    ] {
        with_device(1, |session| {
            let config = MuonConfig {
                precision: Some(precision),
                workspace_limit,
                symmetric_products,
                ..MuonConfig::default()
            };
            let rule = MuonRule { method: method.clone(), ..rule(preset) };
            let plan =
                Plan::for_shapes(&config, &rule, shapes.iter().map(|s| (s.as_slice(), 1))).unwrap();
            let mut muon = muon(config);
            let stream = stream(&muon);
            let hidden = muon.add_group("hidden", rule).unwrap();
            let rest = muon.add_group("rest", AdamWRule::default()).unwrap();
            let mut random = Random::new(5);
            let mut params = Vec::new();
            let all = shapes.iter().map(|s| (hidden, s.to_vec())).chain([(rest, vec![ADAMW])]);
            for (i, (group, shape)) in all.enumerate() {
                let len = shape.iter().product();
                let id = muon.add_param(group, ParamSpec::new(format!("p{i}"), &shape)).unwrap();
                let grad: Vec<bf16> = random.normals(len).into_iter().map(bf16::from_f32).collect();
                let param = Offset::new(&stream, &random.normals(len), 0);
                params.push((id, param, Offset::new(&stream, &grad, 0)));
            }
            assert_eq!(muon.plan().unwrap().chunks(), plan.chunks());
            let cost = plan
                .cuda_cost(&CostInputs {
                    grad: Dtype::Bf16,
                    param: Dtype::F32,
                    momentum: Dtype::F32,
                    bf16_params: Bf16Params::Master,
                    adamw_elements: ADAMW as u64,
                })
                .unwrap();
            for step in 0..2 {
                if step == 1 {
                    muon.synchronize().unwrap();
                    session.reset();
                }
                let mut tensors: Vec<_> = params
                    .iter_mut()
                    .map(|(id, p, g)| StepTensor::new(*id, p.param(), g.grad()))
                    .collect();
                muon.step(&StepOptions::default(), &mut tensors).unwrap();
            }
            muon.synchronize().unwrap();
            let Some(c) = session.counters() else { return };
            let what = format!("{preset} {method:?} {precision} {symmetric_products:?}");
            launched.extend(c.kernels.keys().cloned());
            let launches: u64 = c.kernels.values().map(|k| k.launches).sum();
            assert_eq!(
                (launches, c.blas_calls),
                (cost.kernel_launches, cost.products),
                "{what}: {:?}",
                c.kernels.keys()
            );
            assert_eq!(c.gemm_flops, cost.executed_flops, "{what}");
            let in_full = symmetric_products == SymmetricProducts::Full;
            assert!(!in_full || cost.executed_flops == cost.flops.full, "{what}");
            let bytes = |kernels: &[&str]| -> f64 {
                let all = c.kernels.iter().filter(|(name, _)| kernels.contains(&name.as_str()));
                all.map(|(_, k)| (k.global_load_bytes + k.global_store_bytes) as f64).sum()
            };
            // Tables and partial sums come on top: a few hundred bytes a tile, some percent of matrices this small.
            for (name, counted, kernels) in [
                (
                    "pass A",
                    cost.pass_a_bytes,
                    &["direction_scan", "norm_finish", "momentum_blend"][..],
                ),
                ("pass B", cost.pass_b_bytes, &["update_check", "momentum_commit", "update_apply"]),
                (
                    "AdamW",
                    cost.adamw_bytes,
                    &["gradient_sum", "span_finish", "adamw_prepare", "adamw_apply"],
                ),
            ] {
                let ratio = bytes(kernels) / counted as f64;
                assert!((1.0..1.1).contains(&ratio), "{what}, {name}: {ratio}");
            }
        });
    }
    // `tools/gpu-check` runs this test under the sanitizers for the kernels that the others there do not launch.
    let of_recipes = ["aol_factors", "aol_scale", "symmetric_complete", "symmetric_mirror"];
    assert!(on_gpu() || of_recipes.iter().all(|kernel| launched.contains(*kernel)), "{launched:?}");
}
