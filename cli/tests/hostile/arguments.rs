//! Numbers and names that no command can honour.

use super::check;

const MANY: &str = "99999999999999999999999999";

#[test]
fn what_a_number_chooses_is_bounded_and_the_bound_has_a_reason() {
    check(&[
        ("muon train --hidden 1000000000", 2, "GiB of memory"),
        ("muon train --hidden 18446744073709551615", 2, "GiB of memory"),
        ("muon train --hidden 100000,100000", 2, "expected a smaller --hidden"),
        ("muon train --hidden \"$(seq -s, 1 65)\"", 2, "expected at most 64 layers, found 65"),
        ("muon train --task text --width 1000000000", 2, "GiB of memory"),
        ("muon train --task text --layers 1000000000", 2, "expected at most 1000: each has eight"),
        ("muon train --task text --context 1000000000", 2, "is too short"),
        ("muon train --task text --context 18446744073709551615", 2, "is too short"),
        ("muon train --task text --batch-size 100000000000", 2, "--batch-size"),
        ("muon train --batch-size 18446744073709551615", 2, "samples that there are to train on"),
        ("muon train --threads 5000", 2, "expected at most 1024: more threads than"),
        ("muon train --jobs 18446744073709551615", 2, "expected at most 1024: more threads than"),
        ("muon train --jobs 64 --threads 64", 2, "expected at most 1024, found 64 times 64"),
        ("muon train --steps 18446744073709551615", 2, "expected at most 100000000: the loss of"),
        ("muon train --seeds 18446744073709551615", 2, "expected at most 10000: each is a whole"),
        ("muon train --seed 18446744073709551615 --seeds 2", 2, "the last seed is too large"),
        (
            "muon train --iterations 100000 --schedule jordan",
            2,
            "at most 128 iterations, found `100000`",
        ),
        ("muon train --iterations 129 --schedule classical_cubic", 2, "at most 128 iterations"),
        ("muon tune --time 18446744073709551615", 2, "expected at most 31536000: that is a year"),
        ("muon tune --time 0", 2, "expected at least 1"),
        ("muon tune --jobs 100000", 2, "expected at most 1024"),
        ("muon tune --evaluations 18446744073709551615", 2, "expected at most 10000000"),
        ("muon tune --evaluations 0", 2, "expected at least 1"),
        ("muon tune --degrees 3,3 --iterations 8 --max-cost 1", 2, "--degrees names `3` twice"),
        ("muon tune --iterations 3,3", 2, "--iterations names `3` twice"),
        ("muon tune --iterations 9", 2, "--iterations lie between 1 and 8"),
        ("muon tune --size 4097", 2, "--size lies between 2 and 4096"),
        ("muon tune --size 4096 --aspect 17", 2, "--size times --aspect is at most 65536"),
        ("muon tune --aspect 1e308", 2, "--size times --aspect is at most 65536"),
    ]);
    let said = super::shell(std::path::Path::new("."), &format!("muon train --steps {MANY}"));
    assert!(said.err.contains("expected at most 100000000"), "{}", said.err);
}

#[test]
fn numbers_that_are_none_are_refused_before_anything_is_done() {
    let values = ["NaN", "inf", "-inf", "-1", "''", "1e", "٣", "0x10"];
    let mut wrong = Vec::new();
    for option in [
        "train --lr=",
        "train --momentum=",
        "train --weight-decay=",
        "train --head-lr=",
        "train --sweep --seeds 2 --margin=",
        "train --steps=",
        "train --hidden=",
        "train --threads=",
        "train --checkpoint-every=",
        "tune --aspect=",
        "tune --lower=",
        "tune --max-cost=",
        "tune --max-slope=",
        "tune --min-safe-sigma=",
        "tune --band=1,",
        "tune --size=",
        "tune --polish=",
        "tune --seed=",
        "verify a.json --tolerance=",
        "compare --seed=",
        "compare --shape=",
        "compare --spectrum=power:",
        "tune --spectrum=exponential:",
        "plan --matrix=",
        "plan --adamw=",
        "plan --gram=",
        "plan --workspace-mib=",
        "plan --symmetric=",
    ] {
        for value in values {
            let dir = tempfile::tempdir().unwrap();
            let command = format!("muon {option}{value}");
            let said = super::shell(dir.path(), &command);
            let left = std::fs::read_dir(dir.path()).unwrap().count();
            if said.code != Some(2) || said.err.contains("panicked") || left > 0 {
                wrong.push(format!("{command}: {:?}, {left} files: {}", said.code, said.err));
            }
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn names_of_nothing_are_refused_with_what_there_is() {
    check(&[
        ("muon", 2, "muon train"),
        ("muon ''", 2, "unrecognized subcommand"),
        ("muon trian", 2, "train"),
        ("muon completions", 2, "<SHELL>"),
        ("muon completions tcsh", 2, "tcsh"),
        ("muon schedules ''", 2, "is not known"),
        ("muon schedules 'jordan '", 2, "did you mean `jordan`?"),
        ("muon schedules jordan --plot plot.gif", 2, "ends in .svg or .png"),
        ("muon schedules jordan --plot ''", 2, "a value is required"),
        ("muon schedules --plot a.svg", 2, "--plot shows one schedule"),
        ("muon schedules jordan --plot nowhere/a.svg", 1, "nowhere"),
        ("muon train --optimizer ''", 2, "--optimizer"),
        ("muon train --schedule ''", 2, "is not known"),
        ("muon train --schedule jordan --schedule jordan", 2, "is asked for twice"),
        ("muon train --sweep --seeds 2 --lr 0.1,0.1", 2, "--lr names `0.1` twice"),
        ("muon train --device gpu", 2, "expected `cpu`"),
        ("muon train --task text --heads 3", 2, "a divisor of the width 64"),
        ("muon train --sweep", 2, "at least 2 with --seeds"),
        ("muon train --sweep --seeds 2 --baseline x", 2, "is not in the sweep"),
        ("muon train --resume --out directory", 2, "nothing to resume"),
        ("muon tune --resume --out directory", 2, "nothing to resume"),
        ("muon tune --spectrum ''", 2, "is not known"),
        ("muon tune --spectrum gaussian::", 2, "one part too many"),
        ("muon tune --spectrum power", 2, "is missing"),
        ("muon tune --spectrum power:nan", 2, "cannot be `NaN`"),
        ("muon tune --spectrum outliers:1e300:2", 2, "whole number"),
        ("muon tune --spectrum staircase:1:1", 2, "levels"),
        ("muon tune --band 1", 2, "two numbers"),
        ("muon tune --band 1,2,3", 2, "two numbers"),
        ("muon tune --per-layer", 2, "--spectra"),
        ("muon tune --cost roofline:x", 2, "known are h100"),
        ("muon tune --max-cost 1", 2, "infeasible"),
        ("muon compare --shape 0x4", 2, "ROWSxCOLS"),
        ("muon compare --shape 4x4x4", 2, "ROWSxCOLS"),
        ("muon compare --spectrum zero", 2, "is not known"),
        ("muon compare --device emulated:1", 2, "expected `cpu`"),
        ("muon compare --device cuda:99999999999999999999", 2, "expected `cpu`"),
        ("muon orthogonalize red.safetensors red.safetensors", 2, "needs another name"),
        ("muon orthogonalize red.safetensors ./directory/../red.safetensors", 2, "another name"),
        ("muon orthogonalize red.safetensors out --only nothing", 2, "matches `nothing`"),
        ("muon orthogonalize red.safetensors out --schedule ''", 2, "is not known"),
        ("muon plan", 2, "nothing to orthogonalize"),
        ("muon plan --model x", 2, "known are gpt2-small"),
        ("muon plan --matrix 4x4 --profile x", 2, "known are h100"),
        ("muon plan --matrix 0x4", 2, "ROWSxCOLS"),
        ("muon plan --matrix 4x4 --gram 1,2", 2, "add up to 5"),
    ]);
}
