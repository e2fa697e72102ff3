//! Kernels with one planted bug each, and their fixed twins: the bug is found with the right
//! diagnosis, the twin gives the exact output, without a finding, under 20 seeds.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail loudly")]

#[path = "planted_kernels/blocks.rs"]
mod blocks;
#[path = "nvrtc/device.rs"]
mod device;
#[path = "nvrtc/driver.rs"]
mod driver;
mod nvrtc;
#[path = "planted_kernels/seeds.rs"]
mod seeds;

use cuda_emulator::FindingKind::{self, *};
use cuda_emulator::exec::LaunchOptions;
use device::{Arg, Device};
use nvrtc::{Cuda, nvrtc};

const SOURCE: &str = include_str!("../kernels/planted.cu");

/// One kernel: what must be found, how it is launched, and what the twin computes.
struct Case {
    kernel: &'static str,
    kind: FindingKind,
    grid: [u32; 3],
    block: [u32; 3],
    /// The lowest offending lane of the warp that is found first.
    lane: Option<u32>,
    /// Arguments; the output is the buffer named by the second value.
    arguments: fn(&Device, bool) -> (Vec<Arg>, Arg),
    expected: fn() -> Vec<f32>,
}

fn ramp(count: usize) -> Vec<f32> {
    (0..count).map(|i| i as f32).collect()
}

fn words(count: u32) -> Vec<u32> {
    (0..count).collect()
}

/// Input `x` of `n` floats 0, 1, …, output of `m` floats, then further arguments.
fn in_out(device: &Device, n: usize, m: usize, rest: &[Arg]) -> (Vec<Arg>, Arg) {
    let (x, y) = (device.upload("x", &ramp(n)), device.alloc::<f32>("y", m));
    let mut args = vec![x, y];
    args.extend_from_slice(rest);
    (args, y)
}

fn case(
    kernel: &'static str,
    kind: FindingKind,
    grid: u32,
    block: u32,
    lane: Option<u32>,
    arguments: fn(&Device, bool) -> (Vec<Arg>, Arg),
    expected: fn() -> Vec<f32>,
) -> Case {
    let (grid, block) = ([grid, 1, 1], [block, 1, 1]);
    Case { kernel, kind, grid, block, lane, arguments, expected }
}

/// Two warps, 64 floats 0, 1, … in and out.
fn warps(kernel: &'static str, kind: FindingKind, expected: fn() -> Vec<f32>) -> Case {
    case(kernel, kind, 1, 64, None, |d, _| in_out(d, 64, 64, &[]), expected)
}

fn cases() -> Vec<Case> {
    vec![
        case(
            "tail_off_by_one",
            OutOfBounds,
            4,
            256,
            Some(1000 % 32),
            |d, _| in_out(d, 1000, 1000, &[Arg::U32(1000)]),
            || ramp(1000).iter().map(|x| 2.0 * x).collect(),
        ),
        case(
            "missing_barrier",
            SharedRace,
            3,
            256,
            None,
            |d, _| in_out(d, 768, 768, &[]),
            || (0..768).map(|i| (i / 256 * 256 + 255 - i % 256) as f32).collect(),
        ),
        case(
            "barrier_in_branch",
            BarrierDivergence,
            1,
            64,
            Some(0),
            |d, _| in_out(d, 64, 64, &[]),
            || (0..64).map(|i| if i < 40 { (39 - i) as f32 } else { 0.0 }).collect(),
        ),
        case(
            "return_before_barrier",
            Uninitialised,
            3,
            128,
            None,
            |d, _| in_out(d, 300, 300, &[Arg::U32(300)]),
            || {
                let mirror = |i: u32| i / 128 * 128 + 127 - i % 128;
                let other = |i: u32| if mirror(i) < 300 { mirror(i) } else { 0 };
                (0..300).map(|i| (i + other(i)) as f32).collect()
            },
        ),
        case(
            "half_shuffle_mask",
            WarpMask,
            2,
            64,
            Some(16),
            |d, _| in_out(d, 128, 128, &[]),
            || (0..128).map(|i| (0..32).map(|k| (i / 32 * 32 + k) as f32).sum()).collect(),
        ),
        case(
            "shuffle_in_branch",
            WarpMask,
            1,
            64,
            None,
            |d, _| in_out(d, 64, 64, &[]),
            || (0..64).map(|i| if i % 32 < 16 { (2 * i + 8) as f32 } else { 0.0 }).collect(),
        ),
        case(
            "exited_lanes_shuffle",
            UndefinedStore,
            1,
            64,
            None,
            |d, _| in_out(d, 64, 64, &[]),
            || (0..64).map(|i| (if i % 32 < 28 { i + 4 } else { i }) as f32).collect(),
        ),
        warps("shuffle_passed_by", WarpMask, || {
            (0..64).map(|i| if i % 32 < 16 { (2 * i + 8) as f32 } else { 0.0 }).collect()
        }),
        warps("vote_passed_by", WarpMask, || {
            let votes = |i| (i / 32 * 32..i / 32 * 32 + 32).filter(|t| t % 3 == 0).count();
            (0..64).map(|i| votes(i) as f32).collect()
        }),
        warps("match_passed_by", WarpMask, || vec![8.0; 64]),
        warps("reduction_passed_by", WarpMask, || vec![496.0; 64]),
        warps("syncwarp_passed_by", WarpMask, || (1..=64).map(|i| i as f32).collect()),
        warps("left_the_loop", WarpMask, || ramp(64)),
        warps("two_barriers_in_one_warp", BarrierDivergence, || {
            let from = |i| if i % 2 == 1 { i } else { 2 * i };
            (0..64).map(|i| from(63 - i) as f32).collect()
        }),
        warps("returned_in_a_branch", BarrierDivergence, || {
            let from = |i| if i % 2 == 1 { 3 * (i - 1) } else { i };
            (0..64).map(|i| from(63 - i) as f32).collect()
        }),
        warps("wrote_and_returned", BarrierDivergence, || vec![63.0; 64]),
        Case {
            kernel: "stride_mix_up",
            kind: OutOfBounds,
            grid: [2, 12, 1],
            block: [32, 8, 1],

            lane: None,
            arguments: |d, _| in_out(d, 90 * 50, 90 * 50, &[Arg::U32(90), Arg::U32(50)]),
            expected: || ramp(90 * 50).iter().map(|x| x + 1.0).collect(),
        },
        case(
            "shared_too_small",
            OutOfBounds,
            1,
            256,
            None,
            |d, _| in_out(d, 256, 256, &[]),
            || (0..256).map(|i| (2 * (255 - i) + i) as f32).collect(),
        ),
        case(
            "dynamic_shared_in_elements",
            OutOfBounds,
            1,
            256,
            None,
            |d, _| in_out(d, 256, 256, &[]),
            || (0..256).map(|i| (255 - i) as f32).collect(),
        ),
        case(
            "uninitialised_accumulator",
            Uninitialised,
            4,
            64,
            None,
            |d, buggy| {
                let (args, y) = in_out(d, 200, 200, &[Arg::U32(200)]);
                if !buggy {
                    let Arg::Ptr(address) = y else { panic!() };
                    d.memory.fill(address, 0, 4, 200).unwrap();
                }
                (args, y)
            },
            || ramp(200),
        ),
        case(
            "uninitialised_bins",
            Uninitialised,
            1,
            256,
            None,
            |d, _| {
                let (x, y) = (d.upload("x", &words(256)), d.alloc::<f32>("y", 64));
                (vec![x, y], y)
            },
            || vec![f32::from_bits(4); 64],
        ),
        case(
            "uninitialised_local",
            Uninitialised,
            2,
            64,
            Some(15),
            |d, buggy| {
                let (x, y) = (d.upload("x", &words(128)), d.alloc::<f32>("y", 128));
                (vec![x, y, Arg::U32(if buggy { 15 } else { 16 })], y)
            },
            || (0..128).map(|i| f32::from_bits(i % 16 * i)).collect(),
        ),
        case(
            "two_blocks_one_element",
            GlobalRace,
            4,
            64,
            Some(0),
            |d, _| in_out(d, 256, 256, &[]),
            || ramp(256),
        ),
        case(
            "stencil_in_place",
            GlobalRace,
            4,
            64,
            None,
            |d, _| {
                let (args, y) = in_out(d, 256, 256, &[Arg::U32(256)]);
                let Arg::Ptr(address) = y else { panic!() };
                d.memory.fill(address, 0, 4, 256).unwrap();
                (args, y)
            },
            || (0..256).map(|i| if i == 0 || i == 255 { 0.0 } else { 2.0 * i as f32 }).collect(),
        ),
        case(
            "next_block_in_place",
            GlobalRace,
            4,
            64,
            None,
            |d, _| {
                let (args, y) = in_out(d, 256, 256, &[]);
                let Arg::Ptr(address) = y else { panic!() };
                d.memory.fill(address, 0, 4, 256).unwrap();
                (args, y)
            },
            || (0..256).map(|i| ((i + 64) % 256 + 1) as f32).collect(),
        ),
        case(
            "exchange_through_global",
            GlobalRace,
            2,
            256,
            None,
            |d, _| in_out(d, 512, 512, &[]),
            || (0..512).map(|i| (255 - i % 256) as f32).collect(),
        ),
        case(
            "stride_of_one_block",
            GlobalRace,
            4,
            64,
            None,
            |d, _| in_out(d, 700, 700, &[Arg::U32(700)]),
            || ramp(700).iter().map(|x| 3.0 * x).collect(),
        ),
        case(
            "index_overflow",
            OutOfBounds,
            3,
            128,
            None,
            |d, _| {
                let y = d.alloc::<f32>("y", 3 * 128);
                let Arg::Ptr(address) = y else { panic!() };
                // The matrix starts at row 40 000; with a pitch of 60 000 its index exceeds 2^32.
                let (first, pitch) = (40_000u64, 128u64);
                let (first, pitch) = (first * 1000, pitch);
                let base = address.wrapping_sub(4 * first * pitch);
                (vec![Arg::Ptr(base), Arg::U32(first as u32), Arg::U32(pitch as u32)], y)
            },
            || (0..3 * 128).map(|i| (i % 128) as f32).collect(),
        ),
        case(
            "misaligned_vector",
            Misaligned,
            2,
            32,
            Some(0),
            |d, _| in_out(d, 260, 64, &[]),
            || (0..64).map(|i| (16 * i + 6) as f32).collect(),
        ),
        case(
            "pair_tail",
            OutOfBounds,
            2,
            64,
            Some(50 % 32),
            |d, _| {
                let x: Vec<u16> =
                    (0..101).map(|i| half::bf16::from_f32(i as f32).to_bits()).collect();
                let (x, y) = (d.upload("x", &x), d.alloc::<f32>("y", 50));
                (vec![x, y, Arg::U32(101)], y)
            },
            || (0..50).map(|i| (4 * i + 1) as f32).collect(),
        ),
        case(
            "missing_syncwarp",
            SharedRace,
            1,
            128,
            None,
            |d, _| in_out(d, 128, 128, &[]),
            || (0..128).map(|i| (i ^ 1) as f32).collect(),
        ),
        case(
            "buffer_reused_too_early",
            SharedRace,
            1,
            128,
            None,
            |d, _| in_out(d, 512, 128, &[Arg::U32(4)]),
            || (0..128).map(|i| (4 * (127 - i) + 768) as f32).collect(),
        ),
        case(
            "plain_read_of_counter",
            GlobalRace,
            8,
            32,
            Some(0),
            |d, _| {
                let (counter, y) = (d.upload("counter", &[0u32]), d.alloc::<f32>("y", 8));
                (vec![counter, y], y)
            },
            || vec![f32::from_bits(1); 8],
        ),
        case(
            "write_to_constant",
            ReadOnlyWrite,
            1,
            64,
            Some(0),
            |d, buggy| {
                let x = d.upload("x", &ramp(64));
                let table = if buggy {
                    Arg::Ptr(d.memory.alloc_read_only(256, "table").unwrap())
                } else {
                    d.alloc::<f32>("table", 64)
                };
                (vec![table, x], table)
            },
            || ramp(64).iter().map(|x| 2.0 * x).collect(),
        ),
        case(
            "freed_input",
            UseAfterFree,
            2,
            64,
            Some(0),
            |d, buggy| {
                let (args, y) = in_out(d, 128, 128, &[]);
                if buggy {
                    let Arg::Ptr(address) = args[0] else { panic!() };
                    d.memory.free(address).unwrap();
                }
                (args, y)
            },
            || (0..128).map(|i| (i + 1) as f32).collect(),
        ),
        case(
            "null_output",
            OutOfBounds,
            2,
            64,
            Some(0),
            |d, _| in_out(d, 128, 128, &[Arg::Ptr(0)]),
            || ramp(128),
        ),
        case(
            "barrier_count",
            Deadlock,
            1,
            64,
            Some(0),
            |d, _| in_out(d, 64, 64, &[]),
            || (0..64).map(|i| (63 - i) as f32).collect(),
        ),
        case(
            "uneven_barriers",
            BarrierDivergence,
            1,
            128,
            None,
            |d, _| {
                let y = d.alloc::<f32>("y", 128);
                (vec![y], y)
            },
            || vec![6.0; 128],
        ),
        case(
            "never_ends",
            InstructionBudget,
            1,
            32,
            None,
            |d, _| {
                let y = d.alloc::<f32>("y", 32);
                (vec![y, Arg::U32(100)], y)
            },
            || (0..32).map(|i| f32::from_bits((100u32 - i).div_ceil(2))).collect(),
        ),
        case("checked_input", Trap, 2, 64, Some(0), |d, _| in_out(d, 128, 128, &[]), || ramp(128)),
    ]
}

fn options(seed: u64, buggy: bool) -> LaunchOptions {
    let instruction_budget =
        if buggy { 200_000 } else { LaunchOptions::default().instruction_budget };
    LaunchOptions { seed, instruction_budget, ..LaunchOptions::default() }
}

/// The files of kernels and what is planted in them.
fn files() -> [(&'static str, &'static str, Vec<Case>); 2] {
    [("planted.cu", SOURCE, cases()), ("blocks.cu", blocks::SOURCE, blocks::cases())]
}

/// The lines at which a kernel's bug may be reported (for a race, either side of it).
fn lines_of(source: &str, kernel: &str) -> Vec<u32> {
    let marker = format!("// FINDS {kernel}");
    let marked = source.lines().zip(1u32..).filter(|(line, _)| line.ends_with(&marker));
    let lines: Vec<u32> = marked.map(|(_, number)| number).collect();
    assert!(!lines.is_empty(), "no marker for {kernel}");
    lines
}

#[test]
fn every_planted_bug_is_found_where_it_is() {
    let Some(compiler) = nvrtc(Cuda::V13) else { return };
    for (arch, (file, text, cases)) in
        ["80", "90", "120"].into_iter().flat_map(|arch| files().map(|file| (arch, file)))
    {
        let ptx = compiler.compile(file, text, arch, &["-DBUGGY"]);
        for case in cases {
            for seed in 0..3 {
                let mut device = Device::new(&ptx);
                device.dynamic_shared = if case.kernel.starts_with("dynamic") { 256 } else { 0 };
                let (args, _) = (case.arguments)(&device, true);
                let options = options(seed, true);
                let outcome = device.launch(case.kernel, case.grid, case.block, &args, &options);
                let Err(finding) = outcome else {
                    panic!("sm_{arch} {}: nothing found", case.kernel)
                };
                let name = format!("sm_{arch} seed {seed}: {finding}");
                assert_eq!(finding.kind, case.kind, "{name}");
                assert_eq!(finding.kernel.as_deref(), Some(case.kernel), "{name}");
                assert!(finding.ptx_line.is_some() && finding.ptx_text.is_some(), "{name}");
                let source = finding.source.as_ref().unwrap_or_else(|| panic!("{name}"));
                assert!(source.file.ends_with(file), "{name}");
                assert!(lines_of(text, case.kernel).contains(&source.line), "{name}");
                let thread = finding.thread.unwrap_or_else(|| panic!("{name}"));
                if let Some(expected) = case.lane {
                    assert_eq!(thread[0] % 32, expected, "{name}");
                }
                let block = finding.block.unwrap_or_else(|| panic!("{name}"));
                assert!((0..3).all(|i| block[i] < case.grid[i] && thread[i] < case.block[i]));
            }
        }
    }
}

#[test]
fn every_fixed_twin_is_clean_and_the_same_under_20_seeds() {
    let Some(compiler) = nvrtc(Cuda::V13) else { return };
    for (ptx, case) in files().into_iter().flat_map(|(file, text, cases)| {
        let ptx = compiler.compile(file, text, "90", &[]);
        cases.into_iter().map(move |case| (ptx.clone(), case))
    }) {
        let expected: Vec<u32> = (case.expected)().iter().map(|value| value.to_bits()).collect();
        for seed in 0..20 {
            let mut device = Device::new(&ptx);
            device.dynamic_shared = if case.kernel.starts_with("dynamic") { 1024 } else { 0 };
            let (args, output) = (case.arguments)(&device, false);
            let options = options(seed, false);
            device
                .launch(case.kernel, case.grid, case.block, &args, &options)
                .unwrap_or_else(|finding| panic!("{} seed {seed}: {finding}", case.kernel));
            let found = device.download::<u32>(output, expected.len());
            assert_eq!(found, expected, "{} seed {seed}", case.kernel);
        }
    }
}

#[test]
fn launches_over_a_limit_are_refused() {
    let Some(compiler) = nvrtc(Cuda::V13) else { return };
    let device = Device::new(&compiler.compile("planted.cu", SOURCE, "90", &[]));
    let y = device.alloc::<f32>("y", 4096);
    let launch = |grid: [u32; 3], block: [u32; 3], kernel: &str| {
        let outcome = device.launch(kernel, grid, block, &[y], &LaunchOptions::default());
        outcome.map_err(|finding| (finding.kind, finding.message))
    };
    assert!(launch([2, 1, 1], [128, 1, 1], "too_many_threads").is_ok());
    let (kind, message) = launch([2, 1, 1], [129, 1, 1], "too_many_threads").unwrap_err();
    assert_eq!(kind, LimitExceeded);
    assert!(message.contains("129") && message.contains("128"), "{message}");
    for (grid, block) in
        [([0, 1, 1], [32, 1, 1]), ([1, 1, 1], [1, 1, 65]), ([1, 70_000, 1], [1; 3])]
    {
        assert_eq!(launch(grid, block, "uneven_barriers").unwrap_err().0, LimitExceeded);
    }
    assert_eq!(launch([1, 1, 1], [32, 32, 2], "uneven_barriers").unwrap_err().0, LimitExceeded);
}

#[test]
fn findings_read_well_and_serialise() {
    let Some(compiler) = nvrtc(Cuda::V13) else { return };
    let device = Device::new(&compiler.compile("planted.cu", SOURCE, "90", &["-DBUGGY"]));
    let (args, _) = in_out(&device, 1000, 1000, &[Arg::U32(1000)]);
    let outcome =
        device.launch("tail_off_by_one", [4, 1, 1], [256, 1, 1], &args, &LaunchOptions::default());
    let finding = outcome.unwrap_err();
    let text = finding.to_string();
    for part in
        ["OutOfBounds", "0 bytes past the end of", "`x`, 4000 bytes", "(232, 0, 0)", "(3, 0, 0)"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let json = serde_json::to_value(&*finding).unwrap();
    assert_eq!(json["kind"], "OutOfBounds");
    assert_eq!(json["thread"], serde_json::json!([232, 0, 0]));
    assert_eq!(json["source"]["line"], lines_of(SOURCE, "tail_off_by_one")[0]);
}
