//! Symmetric products cut into strips: the bits of full products on the emulator, whose sums are the same; on a GPU,
//! where other sizes may get other kernels, the same to rounding.

use muon_cuda::{
    MethodChoice, MuonConfig, MuonRule, ParamSpec, Precision, StepOptions, StepTensor,
    SymmetricProducts,
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
