//! What may be replaced, whatever lies in the way and wherever a job was killed.

use super::*;

fn named(path: &Path, force: bool) -> Out<'_> {
    Out { named: Some(path), default: "muon-run", force }
}

fn start(path: &Path, force: bool) -> Result<OutDirectory> {
    let files = ["config.json", "checkpoints/a", "metrics.json"].map(str::to_owned);
    OutDirectory::start(named(path, force), Kind::Train, &files, &Notes::new(true))
}

fn message<T: fmt::Debug>(result: Result<T>) -> String {
    format!("{:#}", result.unwrap_err())
}

/// Every state that a kill between two writes can leave: the directory, its lock, a temporary file, the marker, files in
/// the order they are written.
#[test]
fn a_kill_between_any_two_writes_leaves_a_directory_that_is_free_or_ours() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    let d = start(&whole, false).unwrap();
    for name in ["config.json", "checkpoints/a", "metrics.json"] {
        d.write(name, b"{}").unwrap();
    }
    drop(d);
    let resume = |path: &Path| {
        OutDirectory::resume(named(path, false), &[Kind::Train], &Notes::new(true)).map(drop)
    };
    // (what is there, whether it can be started anew without --force, whether it can be resumed)
    let states: [(&[&str], bool, bool); 7] = [
        (&[], true, false),
        (&[LOCK], true, false),
        (&[LOCK, ".muon-cuda-tmp-0123"], true, false),
        (&[LOCK, MARKER], true, false),
        (&[LOCK, MARKER, "config.json"], false, true),
        (&[LOCK, MARKER, "config.json", "checkpoints/a"], false, true),
        (&[LOCK, MARKER, "config.json", "checkpoints/a", "metrics.json"], false, true),
    ];
    for (i, (files, free, resumable)) in states.into_iter().enumerate() {
        let path = dir.path().join(i.to_string());
        fs::create_dir_all(path.join("checkpoints")).unwrap();
        for file in files {
            let bytes = fs::read(whole.join(file)).unwrap_or_default();
            fs::write(path.join(file), bytes).unwrap();
        }
        // An empty directory for checkpoints is made after the marker.
        if !files.contains(&MARKER) {
            fs::remove_dir(path.join("checkpoints")).unwrap();
        }
        assert_eq!(resume(&path).is_ok(), resumable, "{files:?}");
        let started = start(&path, false).map(drop);
        assert_eq!(started.is_ok(), free, "{files:?} {started:?}");
        start(&path, true).unwrap();
        assert!(!path.join("config.json").exists() && !path.join("metrics.json").exists());
    }
}

#[test]
fn what_is_not_listed_is_never_replaced_and_never_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("thesis.tex"), "years").unwrap();
    let said = message(start(&path, false));
    assert!(said.contains("thesis.tex") && said.contains("--force"), "{said}");
    assert_eq!(fs::read_dir(&path).unwrap().count(), 1, "nothing may be written");
    // With --force beside it; but not over a name that we need.
    let d = start(&path, true).unwrap();
    d.write("config.json", b"{}").unwrap();
    fs::write(path.join("checkpoints/mine"), "mine").unwrap();
    fs::write(path.join("metrics.json"), "mine").unwrap();
    drop(d);
    start(&path, true).unwrap();
    assert_eq!(fs::read_to_string(path.join("thesis.tex")).unwrap(), "years");
    assert_eq!(fs::read_to_string(path.join("checkpoints/mine")).unwrap(), "mine");

    let other = dir.path().join("other");
    fs::create_dir_all(other.join("checkpoints")).unwrap();
    for name in ["config.json", "checkpoints/a", MARKER] {
        fs::write(other.join(name), "mine").unwrap();
        let said = message(start(&other, true));
        assert!(said.contains(name) && said.contains("does not replace it"), "{said}");
        assert_eq!(fs::read_to_string(other.join(name)).unwrap(), "mine");
        fs::remove_file(other.join(name)).unwrap();
    }
    // A file that comes to be needed later.
    let d = start(&other, true).unwrap();
    fs::write(other.join("models"), "mine").unwrap();
    assert!(message(d.write("models", b"ours")).contains("models"));
    assert_eq!(fs::read_to_string(other.join("models")).unwrap(), "mine");
}

/// A marker that somebody else wrote does not make us remove files elsewhere.
#[test]
fn a_marker_that_lists_files_elsewhere_is_not_ours() {
    let dir = tempfile::tempdir().unwrap();
    let (path, victim) = (dir.path().join("d"), dir.path().join("victim"));
    fs::create_dir(&path).unwrap();
    fs::write(&victim, "kept").unwrap();
    let absolute = victim.display().to_string();
    for file in ["../victim", "a/../../victim", absolute.as_str(), "", "."] {
        let mut marker = Marker::new(Kind::Train);
        marker.files.insert(file.to_owned());
        marker.files.insert("config.json".to_owned());
        marker.write(&path).unwrap();
        for force in [false, true] {
            assert!(message(start(&path, force)).contains(MARKER), "{file}");
        }
        assert_eq!(fs::read_to_string(&victim).unwrap(), "kept");
    }
}

#[test]
fn only_one_works_in_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d");
    let d = start(&path, false).unwrap();
    d.write("config.json", b"{}").unwrap();
    let said = message(start(&path, true));
    assert!(said.contains("another process is working in") && said.contains("d;"), "{said}");
    let resumed =
        OutDirectory::resume(named(&path, false), &[Kind::Train], &Notes::new(true)).map(drop);
    assert!(message(resumed).contains("another process is working in"));
    drop(d);
    start(&path, true).unwrap();
}

#[test]
fn what_is_discarded_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d");
    let d = start(&path, false).unwrap();
    d.write("config.json", b"{}").unwrap();
    d.write("checkpoints/a", b"{}").unwrap();
    d.discard().unwrap();
    assert!(!path.exists());
}
