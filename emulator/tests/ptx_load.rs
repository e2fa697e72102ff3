//! What the loader accepts and refuses, without NVRTC.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail loudly")]

use std::sync::Arc;

use cuda_emulator::exec::{DeviceLimits, LaunchOptions, LaunchParams, launch};
use cuda_emulator::ptx::capabilities::{CAPABILITIES, Fidelity, markdown};
use cuda_emulator::ptx::{LoadError, Module};
use cuda_emulator::{Checked, DeviceMemory, FindingKind};

/// A kernel `k(u64, u32)` with one statement on line 14.
fn kernel(statement: &str) -> String {
    format!(
        ".version 8.8\n.target sm_90\n.address_size 64\n\n\
         .visible .entry k(.param .u64 k_param_0, .param .u32 k_param_1)\n{{\n\
         .reg .pred %p<8>;\n.reg .b16 %h<8>;\n.reg .b32 %r<8>;\n.reg .b64 %d<8>;\n\
         .reg .f32 %f<8>; .reg .f64 %g<8>;\n.shared .align 16 .b8 buffer[64];\n\
         ld.param.u64 %d7, [k_param_0];\n{statement}\nEND:\nret;\n}}\n"
    )
}

fn parse(statement: &str) -> Result<Module, LoadError> {
    Module::parse(&kernel(statement))
}

fn run(ptx: &str) -> Checked<()> {
    let memory = DeviceMemory::new(1 << 20);
    let module = Arc::new(Module::parse(ptx).unwrap_or_else(|error| panic!("{error}")));
    let module = module.load(&memory).unwrap();
    let buffer = memory.alloc(256, "buffer").unwrap();
    memory.fill(buffer, 0, 4, 64).unwrap();
    let params = [&buffer.to_le_bytes()[..], &7u32.to_le_bytes()].concat();
    let params = LaunchParams {
        grid: [2, 1, 1],
        block: [64, 1, 1],
        dynamic_shared: 0,
        max_dynamic_shared: None,
        params: &params,
        limits: DeviceLimits::H100,
    };
    let options = LaunchOptions { instruction_budget: 20_000, threads: 1, ..Default::default() };
    launch(&module, "k", &memory, &params, &options).map(|_| ())
}

#[test]
fn the_capability_table_is_true() {
    for row in CAPABILITIES {
        for example in row.examples.split(';') {
            let statement = format!("{};", example.trim());
            let outcome = parse(&statement);
            if row.fidelity == Fidelity::Unsupported {
                let error = outcome.expect_err(&statement);
                assert_eq!(error.line, 14, "{error}");
                assert!(error.message.contains("not modelled"), "{error}");
                assert!(statement.starts_with(error.text.trim_end_matches(';')), "{error}");
                continue;
            }
            let module = outcome.unwrap_or_else(|error| panic!("{error}"));
            assert!(module.entry("k").is_some());
        }
    }
}

#[test]
fn approximate_instructions_are_reported_and_others_are_not() {
    for row in CAPABILITIES {
        let approximate = match row.fidelity {
            Fidelity::Approximate => true,
            Fidelity::Exact => false,
            _ => continue,
        };
        for example in row.examples.split(';').map(str::trim) {
            let opcode = example.trim_start_matches("@%p1 ").split(' ').next().unwrap();
            if example.contains('[') || opcode.starts_with("tr") || opcode.starts_with("bar") {
                continue;
            }
            // Every register gets a value first, so that nothing undefined is in the way.
            let mut setup = String::new();
            for i in 0..7 {
                setup += &format!(
                    "setp.eq.u32 %p{i}, 1, 2; mov.b16 %h{i}, 0x3c00; mov.b32 %r{i}, 3; \
                     mov.b64 %d{i}, 5; mov.f32 %f{i}, 0f3F800000; mov.f64 %g{i}, 0d3FF0000000000000; "
                );
            }
            let ptx = kernel(&format!("{setup}{example};"));
            let memory = DeviceMemory::new(1 << 20);
            let module = Arc::new(Module::parse(&ptx).unwrap()).load(&memory).unwrap();
            let params = LaunchParams {
                grid: [1, 1, 1],
                block: [32, 1, 1],
                dynamic_shared: 0,
                max_dynamic_shared: None,
                params: &[0; 12],
                limits: DeviceLimits::H100,
            };
            let report = launch(&module, "k", &memory, &params, &LaunchOptions::default());
            let report = report.unwrap_or_else(|finding| panic!("{finding}"));
            let expected: Vec<&str> = if approximate { vec![opcode] } else { vec![] };
            assert_eq!(report.approximate, expected, "{example}");
        }
    }
}

#[test]
fn the_capability_document_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/CAPABILITIES.md");
    if std::env::var_os("CUDA_EMULATOR_BLESS").is_some() {
        std::fs::write(path, markdown()).unwrap();
    }
    let document = std::fs::read_to_string(path).unwrap();
    assert_eq!(document, markdown(), "run this test with CUDA_EMULATOR_BLESS=1");
}

#[test]
fn refusals_name_the_instruction_its_line_and_text() {
    let cases = [
        ("frobnicate.b32 %r1, %r2;", "`frobnicate.b32` is not known"),
        ("add.rn.fancy.f32 %f1, %f2, %f3;", "is not known"),
        ("add.s32 %r1, %r2;", "takes 2 operands, found 1"),
        ("add.s32 %r1, %r2, %unknown;", "`%unknown` is not defined"),
        ("add.s32 %r1, %r2, %r8;", "`%r8` is not defined"),
        ("bra NOWHERE;", "label `NOWHERE` is not defined"),
        ("ld.global.f32 %f1, [%d1+%d2];", "address"),
        ("ld.shared::cluster.f32 %f1, [%r1];", "shared::cluster"),
        ("call (%r1), %d1, (%r2);", "not modelled"),
        ("{ .param .b32 a; call vprintf, (a); }", "`vprintf` is not modelled"),
        ("ld.global.v2.f32 %f1, [%d1];", "vector length"),
        (".tex .u64 t;", "not modelled"),
        (".reg .b32 many<4000000000>;", "too many registers"),
        (".local .align 4000000000 .b8 a[4];", "alignment"),
        (".local .b8 a[4000000000][4000000000];", "too large"),
        (".shared .b8 a[99999999];", "too large"),
    ];
    for (statement, message) in cases {
        let error = parse(statement).unwrap_err();
        assert_eq!(error.line, 14, "{error}");
        assert!(error.message.contains(message), "{error}");
        assert!(error.to_string().contains(statement.split(' ').next().unwrap()), "{error}");
    }
}

#[test]
fn nesting_and_sizes_are_bounded() {
    let nested = format!("mov.b32 %r1, {};", "{".repeat(100_000));
    assert!(parse(&nested).unwrap_err().message.contains("nested too deeply"));
    let large = ".version 8.8\n.target sm_90\n.address_size 64\n\
                 .visible .entry k(.param .align 8 .b8 p[32760], .param .u64 q) { ret; }\n";
    let error = Module::parse(large).unwrap_err();
    assert!(error.message.contains("32764 bytes"), "{error}");
    assert_eq!(error.line, 4);
}

#[test]
fn recursion_is_refused() {
    let ptx = ".version 8.8\n.target sm_90\n.address_size 64\n\
               .func f() { call f; ret; }\n.visible .entry k() { call f; ret; }\n";
    assert!(Module::parse(ptx).unwrap_err().message.contains("recursion through `f`"));
}

#[test]
fn undefined_registers_are_found_where_they_matter() {
    let find = |statement: &str| run(&kernel(statement)).map_err(|finding| finding.kind);
    assert_eq!(find("add.s32 %r1, %r2, 1;"), Ok(()));
    assert_eq!(find("ld.global.u32 %r1, [%d1];"), Err(FindingKind::UndefinedAddress));
    assert_eq!(find("@%p1 bra END;"), Err(FindingKind::UndefinedPredicate));
    assert_eq!(
        find("setp.eq.s32 %p1, %r1, 0; @%p1 mov.u32 %r2, 1;"),
        Err(FindingKind::UndefinedPredicate)
    );
    assert_eq!(find("st.shared.u32 [buffer], %r1;"), Err(FindingKind::UndefinedStore));
    // Half of the word is known: storing all of it is a bug only for who reads the other half.
    let half = "mov.b16 %h1, 7; mov.b32 %r1, {%h1, %h2}; bar.warp.sync -1; mov.u32 %r3, %tid.x; \
                setp.ne.u32 %p1, %r3, 0; @%p1 bra END; st.shared.u32 [buffer], %r1;";
    assert_eq!(find(half), Ok(()));
    assert_eq!(find(&format!("{half} ld.shared.u16 %h3, [buffer];")), Ok(()));
    let other = format!("{half} ld.shared.u16 %h3, [buffer+2];");
    assert_eq!(find(&other), Err(FindingKind::Uninitialised));
    // A select between a known and an unknown value is as good as the one it takes.
    let select = |value: u32| {
        format!(
            "mov.u32 %r1, 5; setp.eq.s32 %p1, {value}, 1; selp.b32 %r3, %r1, %r2, %p1; \
             mov.u32 %r4, %laneid; setp.ne.u32 %p2, %r4, 0; @%p2 bra END; \
             mov.u32 %r5, %ctaid.x; mul.wide.u32 %d1, %r5, 128; add.s64 %d2, %d7, %d1; \
             mov.u32 %r6, %warpid; mul.wide.u32 %d3, %r6, 64; add.s64 %d2, %d2, %d3; \
             st.global.u32 [%d2], %r3;"
        )
    };
    assert_eq!(find(&select(1)), Ok(()));
    assert_eq!(find(&select(2)), Err(FindingKind::UndefinedStore));
}

#[test]
fn barriers_can_be_named_arrived_at_and_reduced_over() {
    // Warp 0 produces and does not wait; warp 1 waits and consumes.
    let handover = "mov.u32 %r1, %tid.x; setp.ge.u32 %p1, %r1, 32; mov.u32 %r4, buffer; \
                    and.b32 %r2, %r1, 15; shl.b32 %r2, %r2, 2; add.s32 %r2, %r4, %r2; \
                    setp.ge.u32 %p2, %r1, 16; @%p1 bra CONSUME; \
                    @!%p2 st.shared.u32 [%r2], %r1; bar.arrive 3, 64; bra END; \
                    CONSUME: bar.sync 3, 64; ld.shared.u32 %r3, [%r2];";
    run(&kernel(handover)).unwrap();
    let without = handover.replace("bar.sync 3, 64;", "").replace("bar.arrive 3, 64;", "");
    let kind = run(&kernel(&without)).unwrap_err().kind;
    assert!(matches!(kind, FindingKind::SharedRace | FindingKind::Uninitialised), "{kind:?}");
    let error = run(&kernel("bar.sync 16;")).unwrap_err();
    assert_eq!(error.kind, FindingKind::InvalidInstruction);
    assert_eq!(run(&kernel("bar.sync 1, 33;")).unwrap_err().kind, FindingKind::InvalidInstruction);
}

#[test]
fn atomics_between_blocks_are_exact_and_generic_addresses_find_their_space() {
    run(&kernel("red.global.add.u32 [%d7], 1; atom.global.max.s32 %r1, [%d7+4], -3;")).unwrap();
    let generic = "mov.u32 %r1, %laneid; setp.ne.u32 %p1, %r1, 0; @%p1 bra END; \
                   mov.u64 %d1, buffer; cvta.shared.u64 %d2, %d1; mov.u32 %r2, 9; \
                   mov.u32 %r3, %warpid; mul.wide.u32 %d3, %r3, 4; add.s64 %d2, %d2, %d3; \
                   st.u32 [%d2], %r2; isspacep.shared %p2, %d2; @!%p2 trap; \
                   isspacep.global %p2, %d2; @%p2 trap; ld.u32 %r4, [%d2];";
    run(&kernel(generic)).unwrap();
    let error = run(&kernel(&generic.replace("ld.u32", "ld.global.u32"))).unwrap_err();
    assert_eq!(error.kind, FindingKind::OutOfBounds);
    assert!(error.message.contains("window of shared memory"), "{error}");
}

#[test]
fn no_text_makes_the_loader_or_the_interpreter_panic() {
    let examples: Vec<&str> = CAPABILITIES
        .iter()
        .filter(|row| row.fidelity != Fidelity::Unsupported)
        .flat_map(|row| row.examples.split(';').map(str::trim))
        .collect();
    let base = kernel(&format!("{};", examples.join(";\n")));
    let mut state = 3u64;
    let mut next = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as usize % bound
    };
    let words: Vec<&str> = base.split_inclusive([' ', '\n', ',', ';', '.']).collect();
    let (mut loaded, mut ran) = (0, 0);
    for round in 0..3000 {
        let mut mutated: Vec<&str> = if round % 2 == 0 {
            words.clone()
        } else {
            // A short program of examples, so that it loads often enough to run.
            let mut pieces = kernel("@;");
            let body: Vec<&str> = (0..4).map(|_| examples[next(examples.len())]).collect();
            pieces = pieces.replace("@;", &format!("{};", body.join("; ")));
            let leaked: &str = Box::leak(pieces.into_boxed_str());
            leaked.split_inclusive([' ', '\n', ',', ';', '.']).collect()
        };
        for _ in 0..1 + next(3) {
            let (at, from) = (next(mutated.len()), next(words.len()));
            match next(3) {
                0 => mutated[at] = words[from],
                1 => {
                    mutated.remove(at);
                }
                _ => mutated.insert(at, words[from]),
            }
        }
        let text = mutated.concat();
        let Ok(module) = Module::parse(&text) else { continue };
        loaded += 1;
        let memory = DeviceMemory::new(1 << 20);
        let Ok(module) = Arc::new(module).load(&memory) else { continue };
        let names: Vec<(String, usize)> = module
            .module()
            .entries()
            .iter()
            .map(|entry| (entry.name.clone(), entry.param_bytes as usize))
            .collect();
        for (name, bytes) in names {
            let params = vec![0u8; bytes.min(4096)];
            let params = LaunchParams {
                grid: [2, 1, 1],
                block: [40, 1, 1],
                dynamic_shared: 16,
                max_dynamic_shared: None,
                params: &params,
                limits: DeviceLimits::H100,
            };
            let options = LaunchOptions {
                instruction_budget: 5000,
                threads: 1,
                seed: round,
                ..Default::default()
            };
            ran += usize::from(launch(&module, &name, &memory, &params, &options).is_ok());
        }
    }
    assert!(loaded > 100 && ran > 10, "{loaded} loaded, {ran} ran: the test lost its point");
}
