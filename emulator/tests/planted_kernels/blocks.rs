//! Blocks that hear of each other: fences, locks, waiting; and findings that say more than one thing.

use cuda_emulator::FindingKind::{self, *};
use cuda_emulator::exec::LaunchOptions;

use super::device::{Arg, Device};
use super::nvrtc::{Cuda, nvrtc};
use super::{Case, lines_of, ramp};

pub(super) const SOURCE: &str = include_str!("../../kernels/blocks.cu");
const BLOCKS: u32 = 6;
const THREADS: u32 = 64;
const COUNT: usize = (BLOCKS * THREADS) as usize;

/// A message from block 0, a flag, an output.
fn message(kernel: &'static str) -> Case {
    Case {
        kernel,
        kind: GlobalRace,
        grid: [BLOCKS, 1, 1],
        block: [THREADS, 1, 1],
        lane: None,
        arguments: |d, _| {
            let (data, flag) = (d.alloc::<f32>("data", 64), d.upload("flag", &[0u32]));
            let y = d.alloc::<f32>("y", COUNT);
            (vec![data, flag, y], y)
        },
        expected: || (0..COUNT).map(|i| if i < 64 { 0.0 } else { (3 * (i % 64)) as f32 }).collect(),
    }
}

fn case(
    kernel: &'static str,
    kind: FindingKind,
    arguments: fn(&Device, bool) -> (Vec<Arg>, Arg),
    expected: fn() -> Vec<f32>,
) -> Case {
    let (grid, block) = ([BLOCKS, 1, 1], [THREADS, 1, 1]);
    Case { kernel, kind, grid, block, lane: None, arguments, expected }
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        message("message_without_fence"),
        message("message_block_fence"),
        message("message_block_atomic"),
        message("message_not_acquired"),
        message("message_by_release"),
        case(
            "last_block",
            GlobalRace,
            |d, _| {
                let x = d.upload("x", &ramp(COUNT));
                let (partial, count) = (d.alloc::<f32>("partial", 6), d.upload("count", &[0u32]));
                let y = d.alloc::<f32>("y", 1);
                (vec![x, partial, count, y], y)
            },
            || vec![ramp(COUNT).iter().sum()],
        ),
        case(
            "under_a_lock",
            GlobalRace,
            |d, _| {
                let (lock, sum) = (d.upload("lock", &[0u32]), d.upload("sum", &[0u32]));
                (vec![lock, sum], sum)
            },
            || vec![f32::from_bits(BLOCKS * (THREADS * (THREADS - 1) / 2))],
        ),
        Case {
            grid: [16, 1, 1],
            ..case(
                "barrier_of_blocks",
                GlobalRace,
                |d, _| {
                    let (data, count) = (d.alloc::<f32>("data", 1024), d.upload("n", &[0u32]));
                    let y = d.alloc::<f32>("y", 1024);
                    (vec![data, count, y], y)
                },
                || (0..1024).map(|i| ((i / 64 + 1) % 16) as f32).collect(),
            )
        },
        Case {
            grid: [1, 1, 1],
            ..case(
                "flag_in_shared",
                SharedRace,
                |d, _| {
                    let y = d.alloc::<f32>("y", 64);
                    (vec![y], y)
                },
                || (0..64).map(|i| if i < 32 { 0.0 } else { (i - 32) as f32 }).collect(),
            )
        },
        Case {
            lane: Some(5),
            ..case(
                "waits_for_ever",
                InstructionBudget,
                |d, _| {
                    let (flag, y) = (d.upload("flag", &[0u32]), d.alloc::<u32>("y", COUNT));
                    (vec![flag, y], y)
                },
                || (0..COUNT as u32).map(|i| f32::from_bits(i % 64)).collect(),
            )
        },
        case("other_values", GlobalRace, same_value_arguments, || vec![0.0; BLOCKS as usize]),
    ]
}

fn same_value_arguments(device: &Device, _: bool) -> (Vec<Arg>, Arg) {
    let (y, z) = (device.alloc::<f32>("y", 6), device.alloc::<u32>("z", COUNT));
    (vec![y, z], y)
}

#[test]
fn one_value_stored_by_all_lanes_is_noted_and_fails_nothing() {
    let Some(compiler) = nvrtc(Cuda::V13) else { return };
    for (flags, buggy) in [(["-DBUGGY"].as_slice(), true), (&[], false)] {
        let ptx = compiler.compile("blocks.cu", SOURCE, "90", flags);
        let mut first = None;
        for (seed, threads) in [(1, 1), (1, 8), (2, 1)] {
            let device = Device::new(&ptx);
            let (y, z) = (device.alloc::<f32>("y", 640), device.alloc::<u32>("z", 640 * 32));
            let options = LaunchOptions { seed, threads, ..LaunchOptions::default() };
            let report = device
                .launch("same_value", [640, 1, 1], [32, 1, 1], &[y, z], &options)
                .unwrap_or_else(|finding| panic!("{finding}"));
            assert_eq!(device.download::<f32>(y, 640), vec![7.0; 640]);
            assert_eq!(device.download::<u32>(z, 640 * 32), vec![3; 640 * 32]);
            let mut lines: Vec<u32> =
                report.notes.iter().map(|note| note.source.as_ref().unwrap().line).collect();
            lines.sort_unstable();
            let expected = if buggy { lines_of(SOURCE, "same_value") } else { vec![] };
            assert_eq!(lines, expected);
            assert!(report.notes.iter().all(|note| note.kind == SameValue));
            if seed == 1 {
                let first = first.get_or_insert_with(|| report.notes.clone());
                assert_eq!(*first, report.notes, "the seed's note, on any number of workers");
            }
        }
    }
}

#[test]
fn a_missing_barrier_found_as_an_unwritten_read_says_both() {
    let Some(compiler) = nvrtc(Cuda::V13) else { return };
    let buggy = compiler.compile("blocks.cu", SOURCE, "90", &["-DBUGGY"]);
    let fixed = compiler.compile("blocks.cu", SOURCE, "90", &[]);
    for kernel in ["unwritten_or_race", "unwritten_or_race_global"] {
        let mut unwritten = 0;
        for seed in 0..20 {
            let launch = |ptx: &str| {
                let device = Device::new(ptx);
                let (x, y) = (device.upload("x", &ramp(512)), device.alloc::<f32>("y", 512));
                let mut args = vec![x, y];
                if kernel.ends_with("global") {
                    args.push(device.alloc::<f32>("scratch", 512));
                }
                let options = LaunchOptions { seed, ..LaunchOptions::default() };
                let outcome = device.launch(kernel, [2, 1, 1], [256, 1, 1], &args, &options);
                outcome.map(|_| device.download::<f32>(y, 512))
            };
            let expected: Vec<f32> =
                (0..512).map(|i| (i / 256 * 256 + 255 - i % 256) as f32).collect();
            assert_eq!(launch(&fixed).unwrap_or_else(|finding| panic!("{finding}")), expected);
            let finding = launch(&buggy).unwrap_err();
            let line = finding.source.as_ref().unwrap().line;
            assert!(lines_of(SOURCE, kernel).contains(&line), "seed {seed}: {finding}");
            assert!(finding.message.contains("a barrier is missing"), "seed {seed}: {finding}");
            if finding.kind == Uninitialised {
                assert!(finding.message.contains("that nothing has written"), "{finding}");
                assert!(finding.message.contains("writes it later"), "{finding}");
                unwritten += 1;
            }
        }
        assert!(unwritten > 5, "{kernel}: {unwritten} of 20");
    }
}
