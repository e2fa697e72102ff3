//! Output directories: nothing is lost to a second run, to another process, or to a kill.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Child;

use crate::support::{command, metrics, muon, ok, tiny};
use crate::wait_for;

/// Every file below a directory, with its bytes.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut out = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            for (name, bytes) in contents(&path) {
                out.insert(format!("{}/{name}", path.display()), bytes);
            }
        } else {
            out.insert(path.display().to_string(), fs::read(&path).unwrap());
        }
    }
    out
}

/// A study of some milliseconds.
const STUDY: &str = "tune -q --size 8 --aspect 1 --iterations 2 --degrees 3 --polish 1 --evaluations 5 --spectrum gaussian";

/// Small commands that write a directory, each with the file that it ends with.
fn jobs() -> Vec<(Vec<&'static str>, &'static str)> {
    let job = "train -q --optimizer adamw --steps 4 --batch-size 8 --hidden 5";
    let grid = "train -q --lr-grid --optimizer adamw --steps 2 --batch-size 8 --hidden 5";
    let sweep = "train -q --sweep --schedule jordan --schedule you --lr 0.02 --seeds 2 --steps 2 --hidden 5,4";
    [(job, "metrics.json"), (grid, "lr-grid.json"), (sweep, "sweep.json"), (STUDY, "record.json")]
        .map(|(args, file)| (args.split(' ').collect(), file))
        .to_vec()
}

#[test]
fn results_are_never_replaced_without_being_asked() {
    for (args, result) in jobs() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let named = [&args[..], &["--out", "d"]].concat();
        ok(dir, &named);
        let before = contents(dir);
        let of_result = fs::read(dir.join("d").join(result)).unwrap();
        // Another job, and one that fails before it could run.
        for (other, _) in jobs().iter().filter(|(other, _)| *other != args) {
            let said = muon(dir, &[&other[..], &["--out", "d"]].concat());
            assert_eq!(said.code, Some(2), "{other:?}: {}{}", said.out, said.err);
            assert!(said.err.contains("--force"), "{}", said.err);
            assert_eq!(contents(dir), before, "{args:?} then {other:?}");
        }
        let again = muon(dir, &named);
        if args.contains(&"--lr-grid") || args.contains(&"--sweep") {
            // The same command goes on from its journal, and writes the same again.
            assert_eq!(again.code, Some(0), "{}", again.err);
        } else {
            assert_eq!(again.code, Some(2), "{}", again.err);
            assert!(
                again.err.contains("--force") && again.err.contains("--resume"),
                "{}",
                again.err
            );
        }
        assert_eq!(contents(dir), before, "{args:?} twice");
        if args[0] == "train" {
            let said = muon(dir, &[&named[..], &["--device", "cuda:99"]].concat());
            assert_eq!(said.code, Some(1), "{}", said.err);
            assert_eq!(contents(dir), before);
            let new = muon(dir, &[&args[..], &["--device", "cuda:99", "--out", "new"]].concat());
            assert_eq!(new.code, Some(1), "{}", new.err);
            assert!(!dir.join("new").exists(), "{}", new.err);
        }
        // When asked, only what we wrote is replaced.
        fs::write(dir.join("d/notes.txt"), "mine").unwrap();
        fs::create_dir_all(dir.join("d/checkpoints")).unwrap();
        fs::write(dir.join("d/checkpoints/mine.safetensors"), "mine").unwrap();
        ok(dir, &[&named[..], &["--force"]].concat());
        for file in ["d/notes.txt", "d/checkpoints/mine.safetensors"] {
            assert_eq!(fs::read_to_string(dir.join(file)).unwrap(), "mine");
        }
        if args[0] == "tune" || result.starts_with("lr-grid") || result.starts_with("sweep") {
            assert_eq!(fs::read(dir.join("d").join(result)).unwrap(), of_result);
        }
    }
}

#[test]
fn files_of_others_are_never_replaced() {
    for (args, result) in jobs() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let foreign =
            ["config.json", "metrics.json", "loss.svg", "checkpoints/a.safetensors", result];
        fs::create_dir_all(dir.join("d/checkpoints")).unwrap();
        for file in foreign {
            fs::write(dir.join("d").join(file), "somebody's").unwrap();
        }
        let before = contents(dir);
        let named = [&args[..], &["--out", "d"]].concat();
        let said = muon(dir, &named);
        assert_eq!(said.code, Some(2), "{args:?}: {}", said.err);
        for part in ["is not a directory of ours", "--force", "--resume"] {
            assert!(said.err.contains(part), "{args:?}: no {part} in {}", said.err);
        }
        assert_eq!(contents(dir), before, "{args:?}");
        let said = muon(dir, &[&named[..], &["--force"]].concat());
        assert_eq!(said.code, Some(2), "{args:?}: {}", said.err);
        assert!(said.err.contains("was not written by this program"), "{}", said.err);
        let after = contents(dir);
        assert!(before.iter().all(|(file, bytes)| after.get(file) == Some(bytes)), "{args:?}");
        // Without the names that are needed it is written beside the rest.
        for file in ["config.json", "metrics.json", "loss.svg", result] {
            let _ = fs::remove_file(dir.join("d").join(file));
        }
        ok(dir, &[&named[..], &["--force"]].concat());
        assert!(dir.join("d").join(result).exists());
        let kept = fs::read_to_string(dir.join("d/checkpoints/a.safetensors")).unwrap();
        assert_eq!(kept, "somebody's");
    }
}

#[test]
fn a_command_that_names_no_directory_can_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let loud = |args: &[&'static str]| -> Vec<&'static str> {
        args.iter().copied().filter(|a| !["-q", "--quiet"].contains(a)).collect()
    };
    let job = loud(&tiny(&["--optimizer", "adamw"]));
    let first = ok(dir, &job);
    assert!(!first.err.contains("is taken"), "{}", first.err);
    let before = contents(&dir.join("muon-run"));
    for n in 2..4 {
        let said = ok(dir, &job);
        let name = format!("muon-run-{n}");
        assert!(
            said.err.contains(&format!("muon-run is taken; this job writes to {name}")),
            "{}",
            said.err
        );
        assert_eq!(metrics(&dir.join(&name)), metrics(&dir.join("muon-run")));
    }
    assert_eq!(contents(&dir.join("muon-run")), before);
    // Without a name --resume means the last one.
    let text = metrics(&dir.join("muon-run-3"));
    fs::remove_file(dir.join("muon-run-3/metrics.json")).unwrap();
    let said = ok(dir, &["train", "--resume"]);
    assert!(said.err.contains("going on in muon-run-3"), "{}", said.err);
    assert_eq!(metrics(&dir.join("muon-run-3")), text);
    // A grid finds its own directory again, and no other's.
    let grid = loud(&jobs()[1].0);
    assert!(ok(dir, &grid).err.contains("this job writes to muon-run-4"));
    let again = ok(dir, &grid);
    assert!(
        again.err.contains("8 of 8 runs are done") && again.err.contains("muon-run-4"),
        "{}",
        again.err
    );
    assert!(!dir.join("muon-run-5").exists());
    assert!(ok(dir, &[&grid[..], &["--seed", "1"]].concat()).err.contains("muon-run-4"));
    let other: Vec<&str> = grid.iter().map(|a| if *a == "8" { "7" } else { a }).collect();
    assert!(ok(dir, &other).err.contains("muon-run-5"));

    let study: Vec<&str> = loud(&STUDY.split(' ').collect::<Vec<_>>());
    ok(dir, &study);
    let before = contents(&dir.join("muon-tune"));
    assert!(ok(dir, &study).err.contains("muon-tune is taken; this job writes to muon-tune-2"));
    assert_eq!(contents(&dir.join("muon-tune")), before);
    fs::remove_file(dir.join("muon-tune-2/record.json")).unwrap();
    ok(dir, &["tune", "--resume", "-q"]);
    assert!(dir.join("muon-tune-2/record.json").exists());
}

/// Starts a job that does not end by itself and waits until it is under way.
fn endless(dir: &Path, args: &str, begun: &str) -> Child {
    let child = command(dir, &args.split(' ').collect::<Vec<_>>()).spawn().unwrap();
    wait_for(&dir.join(begun));
    child
}

#[test]
fn one_process_works_in_a_directory_and_a_kill_lets_it_go() {
    let adamw = "train -q --optimizer adamw --hidden 5 --batch-size 4 --steps 100000000 --checkpoint-every 50";
    let sweep =
        "train -q --sweep --schedule you --lr 0.02 --seeds 2 --steps 100000000 --hidden 5,4";
    let grid = "train -q --lr-grid --optimizer adamw --hidden 5 --steps 100000000";
    let study = "tune -q --size 64 --aspect 4 --evaluations 1000000";
    for (args, begun, resume) in [
        (adamw, "checkpoints/adamw-seed0.safetensors", Some("train")),
        (sweep, "sweep.jsonl", None),
        (grid, "lr-grid.jsonl", None),
        (study, "journal.jsonl", Some("tune")),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let args = format!("{args} --out d");
        let mut child = endless(dir, &args, &format!("d/{begun}"));
        let mut attempts = vec![args.clone(), format!("{args} --force")];
        // Whatever kind of job it is, and whatever the other one wants.
        attempts.extend(jobs().iter().map(|(other, _)| format!("{} --out d", other.join(" "))));
        attempts.extend(resume.map(|command| format!("{command} --resume --out d")));
        for attempt in &attempts {
            let said = muon(dir, &attempt.split(' ').collect::<Vec<_>>());
            assert_eq!(said.code, Some(1), "{attempt}: {}", said.err);
            assert!(
                said.err.contains("another process is working in d; wait for it"),
                "{attempt}: {}",
                said.err
            );
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // Free again, and not lost: only --force starts afresh.
        if resume.is_some() {
            let said = muon(dir, &args.split(' ').collect::<Vec<_>>());
            assert_eq!(said.code, Some(2), "{}", said.err);
            assert!(
                said.err.contains("--resume --out d") && said.err.contains("--force"),
                "{}",
                said.err
            );
        }
        let (short, result) = &jobs()[0];
        ok(dir, &[&short[..], &["--out", "d", "--force"]].concat());
        assert!(dir.join("d").join(result).exists());
    }
}
