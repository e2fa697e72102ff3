//! A cust program that fits a matrix to a target: its buffers, its stream and its kernel, with Muon stepping between them.
//!
//! `cargo run --release --features cust --example cust` (on the emulator: see `emulator/toolkit`)

#![allow(clippy::print_stdout, reason = "an example talks to its reader")]
#![allow(unsafe_code, reason = "launching a kernel is unsafe in cust")]

use std::error::Error;
use std::sync::Arc;

use cust::memory::{CopyDestination, DeviceBuffer};
use cust::module::Module;
use cust::stream::{Stream, StreamFlags};
use muon_cuda::{Cuda, LrSchedule, Muon, MuonConfig, MuonRule, ParamSpec, StepOptions, StepTensor};

/// y[i] += a * x[i].
const SAXPY: &str = include_str!("../emulator/cust-program/saxpy.ptx");
const SHAPE: [usize; 2] = [48, 32];
const LEN: u32 = 48 * 32;
const STEPS: u64 = 60;

fn main() -> Result<(), Box<dyn Error>> {
    let _context = cust::quick_init()?;
    let stream = Arc::new(Stream::new(StreamFlags::DEFAULT, None)?);
    let module = Module::from_ptx(SAXPY, &[])?;
    let saxpy = module.get_function("saxpy")?;

    let mut muon = Muon::new(Cuda::with_cust_stream(&stream)?, MuonConfig::default())?;
    let rule = MuonRule { lr: 0.3, ..MuonRule::default() };
    let hidden = muon.add_group("hidden", rule)?;
    let id = muon.add_param(hidden, ParamSpec::new("w", &SHAPE))?;
    println!("{:?}", muon.device());
    println!("{}", muon.plan()?);

    let target: Vec<f32> = (0..LEN).map(|i| (i as f32 * 0.37).sin()).collect();
    let target = DeviceBuffer::from_slice(&target)?;
    let mut param = DeviceBuffer::<f32>::zeroed(LEN as usize)?;
    let mut grad = DeviceBuffer::<f32>::zeroed(LEN as usize)?;
    let schedule = LrSchedule::linear(0, STEPS)?;
    for step in 0..STEPS {
        // grad <- param - target, on the stream that the optimizer shares.
        grad.set_32(0)?;
        for (x, factor) in [(&param, 1.0f32), (&target, -1.0)] {
            // SAFETY: the arguments are those of `saxpy`, and both buffers hold LEN elements.
            unsafe {
                cust::launch!(saxpy<<<LEN.div_ceil(256), 256, 0, stream>>>(
                    grad.as_device_ptr(), x.as_device_ptr(), factor, LEN
                ))?;
            }
        }
        let options = StepOptions { lr_factor: schedule.factor(step), ..StepOptions::default() };
        muon.step(&options, &mut [StepTensor::new(id, &mut param, &grad)])?;
        if step % 10 == 0 || step + 1 == STEPS {
            let mut host = vec![0.0f32; LEN as usize];
            grad.copy_to(&mut host)?;
            let loss = 0.5 * host.iter().map(|g| g * g).sum::<f32>() / LEN as f32;
            println!("step {step:>2}  loss {loss:.5}");
        }
    }
    // Buffers are freed behind their last use.
    muon.synchronize()?;
    Ok(())
}
