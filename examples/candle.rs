//! Trains a small candle classifier on two interleaved spirals with Muon on its hidden matrices.
//!
//! `cargo run --release --features candle --example candle`

use candle_core::{DType, Device, Tensor};
use candle_nn::{Module, Optimizer, VarBuilder, VarMap, linear, loss::cross_entropy};
use muon_cuda::candle::CandleMuon;
use muon_cuda::{AdamWRule, LrSchedule, MuonConfig, MuonRule, RoutingRule};

const POINTS: usize = 400;
const STEPS: u64 = 300;

/// Two arms of a spiral, half a turn apart.
fn spirals() -> candle_core::Result<(Tensor, Tensor)> {
    let mut points = Vec::with_capacity(2 * POINTS);
    let mut arms = Vec::with_capacity(POINTS);
    for i in 0..POINTS {
        let arm = i % 2;
        let t = i as f32 / POINTS as f32;
        let angle = 10.0 * t + arm as f32 * std::f32::consts::PI;
        points.extend([t * angle.cos(), t * angle.sin()]);
        arms.push(u32::from(arm == 1));
    }
    let points = Tensor::from_vec(points, (POINTS, 2), &Device::Cpu)?;
    Ok((points, Tensor::from_vec(arms, POINTS, &Device::Cpu)?))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    let model = candle_nn::seq()
        .add(linear(2, 64, vb.pp("embed"))?)
        .add_fn(|x| x.silu())
        .add(linear(64, 64, vb.pp("hidden.0"))?)
        .add_fn(|x| x.silu())
        .add(linear(64, 64, vb.pp("hidden.1"))?)
        .add_fn(|x| x.silu())
        .add(linear(64, 2, vb.pp("head"))?);

    let rules = RoutingRule::new(
        MuonRule { lr: 0.02, weight_decay: 0.01, ..MuonRule::default() },
        AdamWRule { lr: 0.005, ..AdamWRule::default() },
    );
    let mut muon = CandleMuon::new_from_varmap(&varmap, MuonConfig::default(), &rules)?;
    print!("{}{}", muon.routing(), muon.plan()?);

    let (points, arms) = spirals()?;
    let schedule = LrSchedule::cosine(20, STEPS)?;
    for step in 0..STEPS {
        muon.set_learning_rate(0.02 * schedule.factor(step));
        let logits = model.forward(&points)?;
        let loss = cross_entropy(&logits, &arms)?;
        muon.backward_step(&loss)?;
        if step % 50 == 0 || step + 1 == STEPS {
            let right = logits.argmax(1)?.eq(&arms)?.to_dtype(DType::F32)?.mean_all()?;
            println!(
                "step {step:>3}  loss {:.4}  accuracy {:.1} %",
                loss.to_scalar::<f32>()?,
                100.0 * right.to_scalar::<f32>()?
            );
        }
    }
    Ok(())
}
