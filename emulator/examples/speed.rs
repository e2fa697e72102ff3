//! Thread-instructions per second of the interpreter on three kernels, all checks on:
//! `cargo run --release -p cuda-emulator --example speed`.

use std::sync::Arc;
use std::time::Instant;

use cuda_emulator::DeviceMemory;
use cuda_emulator::exec::{DeviceLimits, LaunchOptions, LaunchParams, launch};
use cuda_emulator::ptx::Module;

/// PTX as NVRTC 13 emits it for the sources quoted in the file.
const PTX: &str = include_str!("speed.ptx");

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let memory = DeviceMemory::new(1 << 30);
    let module = Arc::new(Module::parse(PTX)?).load(&memory)?;
    let n = 1u32 << 20;
    let buffers: Vec<u64> = (0..3)
        .map(|i| memory.alloc(u64::from(n) * 4, &format!("buffer {i}")))
        .collect::<Result<_, _>>()?;
    for buffer in &buffers {
        memory.fill(*buffer, 0x3f80_0000, 4, u64::from(n))?;
    }
    let [a, b, c] = [buffers[0], buffers[1], buffers[2]].map(u64::to_le_bytes);
    let one = 1.0f32.to_le_bytes();
    let blend = [&a[..], &b, &c, &one, &n.to_le_bytes()].concat();
    let size = 256u32.to_le_bytes();
    let gemm = [&a[..], &b, &c, &size, &size, &size].concat();
    let sum = [&a[..], &c, &n.to_le_bytes()].concat();
    let cases = [
        ("fused elementwise, 1 Mi elements", "blend", [1024, 1, 1], &blend),
        ("tiled f32 product, 256 x 256 x 256", "gemm", [8, 8, 1], &gemm),
        ("block sums, 1 Mi elements", "block_sum", [256, 1, 1], &sum),
    ];
    let mut out = String::new();
    for (title, entry, grid, params) in cases {
        for threads in [1, 2] {
            let params = LaunchParams {
                grid,
                block: [256, 1, 1],
                dynamic_shared: 0,
                max_dynamic_shared: None,
                params,
                limits: DeviceLimits::H100,
            };
            let options = LaunchOptions { threads, ..LaunchOptions::default() };
            let (start, cpu) = (Instant::now(), cpu_seconds());
            let report = launch(&module, entry, &memory, &params, &options)?;
            let seconds = start.elapsed().as_secs_f64();
            let cpu = cpu_seconds() - cpu;
            let instructions = report.counters.thread_instructions as f64;
            out += &format!(
                "{title}, {threads} worker(s): {seconds:.3} s, {cpu:.2} s of CPU, {:.1} M thread \
                 instructions, {:.0} M per CPU second\n",
                instructions / 1e6,
                instructions / cpu.max(0.01) / 1e6
            );
        }
    }
    std::io::Write::write_all(&mut std::io::stdout(), out.as_bytes())?;
    Ok(())
}

/// Processor time of this process so far, to 10 ms; what counts on a machine shared with others.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the parenthesised name: state is field 3, user and system ticks are fields 14 and 15.
    let fields = stat.rsplit(')').next().unwrap_or("").split_whitespace();
    let ticks: f64 = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / 100.0
}
