//! The seed alone decides a run: its results and its finding, on one worker or many.

use cuda_emulator::exec::{LaunchOptions, LaunchReport};

use super::device::{Arg, Device};
use super::nvrtc::{Cuda, nvrtc};

const SOURCE: &str = include_str!("../../kernels/blocks.cu");
/// More than there are processors, so that blocks change places between workers.
const WORKERS: [usize; 3] = [1, 2, 8];
const BLOCKS: u32 = 64;
const THREADS: u32 = 256;
const COUNT: usize = (BLOCKS * THREADS) as usize;

fn options(seed: u64, threads: usize) -> LaunchOptions {
    LaunchOptions { seed, threads, ..LaunchOptions::default() }
}

/// Numbers whose sum depends on the order of adding.
fn uneven() -> Vec<f32> {
    (0..COUNT).map(|i| (1.0 + i as f32 / 7.0) * 10_f32.powi((i * 37 % 13) as i32 - 6)).collect()
}

fn launch(
    device: &Device,
    kernel: &str,
    args: &[Arg],
    options: &LaunchOptions,
) -> cuda_emulator::Checked<LaunchReport> {
    device.launch(kernel, [BLOCKS, 1, 1], [THREADS, 1, 1], args, options)
}

#[test]
fn the_order_of_atomics_belongs_to_the_seed_and_not_to_the_workers() {
    let Some(compiler) = nvrtc(Cuda::V13) else { return };
    let ptx = compiler.compile("blocks.cu", SOURCE, "90", &[]);
    let sums = |seed, threads| {
        let device = Device::new(&ptx);
        let (x, y) = (device.upload("x", &uneven()), device.upload("y", &[0f32; 32]));
        launch(&device, "float_sums", &[x, y], &options(seed, threads)).unwrap();
        device.download::<u32>(y, 32)
    };
    let tickets = |seed, threads| {
        let device = Device::new(&ptx);
        let (counter, y) = (device.upload("counter", &[0u32]), device.alloc::<u32>("y", COUNT));
        launch(&device, "tickets", &[counter, y], &options(seed, threads)).unwrap();
        device.download::<u32>(y, COUNT)
    };
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..20 {
        let (sum, ticket) = (sums(seed, 1), tickets(seed, 1));
        for threads in WORKERS {
            assert_eq!(sums(seed, threads), sum, "seed {seed}, {threads} workers");
            assert_eq!(tickets(seed, threads), ticket, "seed {seed}, {threads} workers");
        }
        seen.insert(sum);
    }
    assert!(seen.len() > 15, "other seeds must add in other orders: {} of 20", seen.len());
}

#[test]
fn the_finding_belongs_to_the_seed_and_not_to_the_workers() {
    let Some(compiler) = nvrtc(Cuda::V13) else { return };
    let ptx = compiler.compile("blocks.cu", SOURCE, "90", &[]);
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..40 {
        let found = |threads| {
            let device = Device::new(&ptx);
            let x: Vec<f32> = (0..COUNT).map(|i| i as f32).collect();
            let (x, y) = (device.upload("x", &x), device.alloc::<f32>("y", COUNT));
            let outcome = launch(&device, "blocks_collide", &[x, y], &options(seed, threads));
            let written = |i: usize| {
                let Arg::Ptr(address) = y else { panic!() };
                let mut bytes = [0u8; 4];
                let policy = cuda_emulator::ReadPolicy::AllowUninitialised;
                device.memory.copy_out(address + 4 * i as u64, &mut bytes, policy).unwrap();
                f32::from_le_bytes(bytes).to_bits()
            };
            let memory: Vec<u32> = (0..COUNT).map(written).collect();
            (outcome.unwrap_err().to_string(), memory)
        };
        let expected = found(1);
        for threads in WORKERS {
            assert!(found(threads) == expected, "seed {seed}, {threads} workers");
        }
        seen.insert(expected.0);
    }
    assert!(seen.len() > 20, "other seeds must find it elsewhere: {} of 40", seen.len());
}
