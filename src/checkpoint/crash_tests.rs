//! Saving under failure: a crash or an error at every operation, in a model of a disk and on real
//! files.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::atomic::{FileSystem, replace_on};
use super::disk::{Disk, Target};
use super::{Reader, Writer, replace_file};
use crate::error::Error;

/// A disk that keeps what was synced, and of the rest whatever a crash happens to leave.
///
/// Names: any subset of the changes since the directory's last sync may have arrived. Bytes: of a
/// file changed since its last sync, the synced bytes, or the new ones up to any point, followed by
/// nothing or by zeros up to the length.
#[derive(Default)]
struct Model {
    state: RefCell<State>,
    faults: Faults,
}

#[derive(Default, Clone)]
struct Faults {
    /// The process dies in this operation, counted from 1; it and all later ones have no effect,
    /// but a write has written half of its bytes.
    crash_at: Option<usize>,
    /// The disk is full in this operation.
    fail_at: Option<usize>,
    /// Every removal fails.
    fail_removals: bool,
    /// This operation reports success and does nothing: what a careless implementation forgets.
    skipped: Option<&'static str>,
}

#[derive(Default)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    synced_names: BTreeMap<PathBuf, usize>,
    unsynced: Vec<Change>,
    log: Vec<&'static str>,
}

#[derive(Default)]
struct Inode {
    bytes: Vec<u8>,
    synced: Vec<u8>,
}

#[derive(Clone)]
enum Change {
    Link(PathBuf, usize),
    Rename(PathBuf, PathBuf, usize),
    Unlink(PathBuf),
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Link(path, inode) => {
                names.insert(path.clone(), *inode);
            }
            Self::Rename(from, to, inode) => {
                names.remove(from);
                names.insert(to.clone(), *inode);
            }
            Self::Unlink(path) => {
                names.remove(path);
            }
        }
    }
}

/// Bytes per write call, small so that one save has many of them.
const WRITE: usize = 40;

impl Model {
    fn with_file(path: &Path, bytes: Option<&[u8]>, faults: Faults) -> Self {
        let model = Self { faults, ..Self::default() };
        if let Some(bytes) = bytes {
            let mut state = model.state.borrow_mut();
            state.inodes.push(Inode { bytes: bytes.to_vec(), synced: bytes.to_vec() });
            state.names.insert(path.to_path_buf(), 0);
            state.synced_names.insert(path.to_path_buf(), 0);
        }
        model
    }

    /// Counts an operation; `Ok(false)` means that it is skipped.
    fn enter(&self, name: &'static str) -> io::Result<bool> {
        let mut state = self.state.borrow_mut();
        state.log.push(name);
        let now = state.log.len();
        if self.faults.crash_at.is_some_and(|at| now >= at) {
            return Err(io::Error::other("the process is dead"));
        }
        if self.faults.fail_at == Some(now) {
            return Err(io::Error::from_raw_os_error(ENOSPC));
        }
        Ok(self.faults.skipped != Some(name))
    }

    fn change(&self, change: Change) {
        let mut state = self.state.borrow_mut();
        change.apply(&mut state.names);
        state.unsynced.push(change);
    }

    fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state.borrow();
        state.names.get(path).map(|&inode| state.inodes[inode].bytes.clone())
    }

    /// Everything that may be found under `path` after a loss of power at this moment.
    fn after_power_loss(&self, path: &Path) -> BTreeSet<Option<Vec<u8>>> {
        let state = self.state.borrow();
        let mut found = BTreeSet::new();
        for subset in 0..1_usize << state.unsynced.len() {
            let mut names = state.synced_names.clone();
            let arrived = state.unsynced.iter().enumerate().filter(|(i, _)| subset >> i & 1 == 1);
            arrived.for_each(|(_, change)| change.apply(&mut names));
            match names.get(path) {
                None => {
                    found.insert(None);
                }
                Some(&inode) => found.extend(state.inodes[inode].after_power_loss().map(Some)),
            }
        }
        found
    }
}

impl Inode {
    fn after_power_loss(&self) -> impl Iterator<Item = Vec<u8>> {
        let torn = (0..=self.bytes.len()).flat_map(|arrived| {
            let short = self.bytes[..arrived].to_vec();
            let mut zeros = short.clone();
            zeros.resize(self.bytes.len(), 0);
            [short, zeros]
        });
        let torn = torn.filter(|_| self.bytes != self.synced);
        std::iter::once(self.synced.clone()).chain(torn)
    }
}

impl FileSystem for Model {
    type File = usize;
    type Directory = ();

    fn open_dir(&self, _: &Path) -> io::Result<()> {
        self.enter("open_dir").map(|_| ())
    }

    fn remove_stale(&self, _: &Target) {}

    fn create(&self, target: &Target) -> io::Result<(usize, PathBuf)> {
        self.enter("create")?;
        let path = target.fresh_temporary();
        let inode = self.state.borrow().inodes.len();
        self.state.borrow_mut().inodes.push(Inode::default());
        self.change(Change::Link(path.clone(), inode));
        Ok((inode, path))
    }

    fn write(&self, &mut inode: &mut usize, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(WRITE);
        let entered = self.enter("write");
        let mut state = self.state.borrow_mut();
        let dying = self.faults.crash_at == Some(state.log.len());
        let arriving = if entered.is_ok() {
            count
        } else if dying {
            count / 2
        } else {
            0
        };
        state.inodes[inode].bytes.extend_from_slice(&bytes[..arriving]);
        entered.map(|_| count)
    }

    fn sync(&self, &mut inode: &mut usize) -> io::Result<()> {
        if self.enter("sync")? {
            let inode = &mut self.state.borrow_mut().inodes[inode];
            inode.synced = inode.bytes.clone();
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.enter("rename")?;
        let inode = self.state.borrow().names[from];
        self.change(Change::Rename(from.to_path_buf(), to.to_path_buf(), inode));
        Ok(())
    }

    fn sync_dir(&self, (): &()) -> io::Result<()> {
        if self.enter("sync_dir")? {
            let mut state = self.state.borrow_mut();
            state.synced_names = state.names.clone();
            state.unsynced.clear();
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.enter("remove")?;
        if self.faults.fail_removals {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        self.change(Change::Unlink(path.to_path_buf()));
        Ok(())
    }
}

const ENOSPC: i32 = 28;
const EIO: i32 = 5;

fn checkpoint(step: u64) -> Vec<u8> {
    let values = [step as f32; 8];
    let mut writer = Writer::new(&step).unwrap();
    writer.values::<f32>("w.momentum", &[2, 4], &values).unwrap();
    writer.to_bytes().unwrap()
}

fn target() -> Target {
    Target::new(PathBuf::from("/run/state.safetensors"), None).unwrap()
}

/// Saves step 2 over `old` and returns what the model saw, and whether every possible state of the
/// disk after a power loss is allowed: the old or the new file, and the new one after an `Ok`.
fn save(old: Option<&[u8]>, faults: Faults) -> (Model, Result<(), Error>, bool) {
    let target = target();
    let new = checkpoint(2);
    let model = Model::with_file(&target.path, old, faults);
    let (first, rest) = new.split_at(new.len() / 3);
    let result = replace_on(&model, &target, &[first, rest]);
    let mut allowed = BTreeSet::from([Some(new)]);
    if result.is_err() {
        allowed.insert(old.map(<[u8]>::to_vec));
    }
    let safe = model.after_power_loss(&target.path).is_subset(&allowed);
    (model, result, safe)
}

#[test]
fn a_crash_in_any_operation_leaves_the_old_or_the_new_file() {
    let first = checkpoint(1);
    for old in [None, Some(first.as_slice())] {
        let (model, result, safe) = save(old, Faults::default());
        result.unwrap();
        assert!(safe, "a power loss after a save can lose the new file");
        let log = model.state.borrow().log.clone();
        assert!(log.iter().filter(|&&op| op == "write").count() >= 4, "{log:?}");
        for at in 1..=log.len() {
            let (model, result, safe) =
                save(old, Faults { crash_at: Some(at), ..Faults::default() });
            assert!(result.is_err());
            assert!(safe, "crash in operation {at}: {}", log[at - 1]);
            // The process alone died: what it had written so far is what others see.
            let seen = model.bytes(&target().path);
            assert!(seen.as_deref() == old || seen == Some(checkpoint(2)), "operation {at}");
            if let Some(bytes) = seen {
                Reader::from_bytes(bytes).unwrap();
            }
        }
    }
}

/// The test of the test: the disk model catches the classic mistakes.
#[test]
fn the_model_notices_a_forgotten_sync() {
    let old = checkpoint(1);
    for skipped in ["sync", "sync_dir"] {
        let (_, result, safe) =
            save(Some(&old), Faults { skipped: Some(skipped), ..Faults::default() });
        result.unwrap();
        assert!(!safe, "nobody would notice that `{skipped}` is missing");
    }
}

#[test]
fn a_full_disk_in_any_operation_keeps_the_old_file_and_removes_the_temporary() {
    let old = checkpoint(1);
    let log = save(Some(&old), Faults::default()).0.state.into_inner().log;
    for fail_at in 1..=log.len() {
        let operation = log[fail_at - 1];
        let (model, result, safe) =
            save(Some(&old), Faults { fail_at: Some(fail_at), ..Faults::default() });
        let error = result.unwrap_err();
        let message = error.to_string();
        assert!(error.is_io() && safe, "{operation}: {message}");
        assert!(message.contains("No space left"), "{operation}: {message}");
        let renamed = operation == "sync_dir";
        let expected = if renamed { checkpoint(2) } else { old.clone() };
        assert_eq!(model.bytes(&target().path), Some(expected), "{operation}");
        assert_eq!(message.contains("the new file is in place"), renamed, "{message}");
        let names: Vec<_> = model.state.borrow().names.keys().cloned().collect();
        assert_eq!(names, [target().path], "{operation} left something behind");
    }
}

#[test]
fn a_failing_removal_does_not_hide_the_first_cause() {
    let old = checkpoint(1);
    let log = save(Some(&old), Faults::default()).0.state.into_inner().log;
    for fail_at in 1..=log.len() {
        if !["write", "sync", "rename"].contains(&log[fail_at - 1]) {
            continue; // before and after these there is no temporary to remove
        }
        let faults = Faults { fail_at: Some(fail_at), fail_removals: true, ..Faults::default() };
        let (model, result, _) = save(Some(&old), faults);
        let error = result.unwrap_err();
        let message = error.to_string();
        assert!(message.contains(".muon-cuda-tmp-"), "{message}");
        assert!(message.contains("left behind"), "{message}");
        assert!(message.contains("No space left"), "{message}");
        let source = std::error::Error::source(&error).unwrap();
        let source = source.downcast_ref::<io::Error>().unwrap();
        assert_eq!(source.raw_os_error(), Some(ENOSPC));
        assert_eq!(model.bytes(&target().path), Some(old.clone()));
    }
}

/// Names in a directory, sorted.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn replaces_and_creates_and_leaves_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    replace_file(&path, b"one").unwrap();
    let mut before = File::open(&path).unwrap();
    replace_file(&path, b"second").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"second");
    assert_eq!(names(dir.path()), ["a"]);
    // Whoever has the old file open or mapped keeps it.
    let mut kept = String::new();
    before.read_to_string(&mut kept).unwrap();
    assert_eq!(kept, "one");
}

#[test]
fn the_longest_file_name_has_room_for_its_temporary() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("n".repeat(255));
    replace_file(&path, b"x").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"x");
}

#[cfg(unix)]
#[test]
fn keeps_the_mode_of_an_existing_file() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    for mode in [0o600, 0o640, 0o444, 0o666] {
        fs::write(&path, b"old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        replace_file(&path, b"new").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, mode);
        assert_eq!(fs::read(&path).unwrap(), b"new");
        fs::remove_file(&path).unwrap();
    }
}

#[cfg(unix)]
#[test]
fn follows_links_and_keeps_them() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("run7")).unwrap();
    fs::write(at("run7/state"), b"old").unwrap();
    symlink("run7/state", at("latest")).unwrap();
    symlink("latest", at("alias")).unwrap();
    symlink("run7/later", at("dangling")).unwrap();
    symlink("loop", at("loop")).unwrap();

    replace_file(at("alias"), b"new").unwrap();
    assert_eq!(fs::read(at("run7/state")).unwrap(), b"new");
    assert!(fs::symlink_metadata(at("alias")).unwrap().is_symlink());
    assert!(fs::symlink_metadata(at("latest")).unwrap().is_symlink());
    replace_file(at("dangling"), b"first").unwrap();
    assert_eq!(fs::read(at("run7/later")).unwrap(), b"first");
    let error = replace_file(at("loop"), b"x").unwrap_err();
    assert!(error.is_io() && error.to_string().contains("too many symbolic links"), "{error}");
    assert_eq!(names(dir.path()), ["alias", "dangling", "latest", "loop", "run7"]);
    assert_eq!(names(&at("run7")), ["later", "state"]);
}

#[test]
fn refuses_targets_that_cannot_be_files() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |path: &Path, expected: &str| {
        let error = replace_file(path, b"x").unwrap_err();
        assert!(error.is_io(), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    };
    refused(dir.path(), "is a directory");
    refused(&dir.path().join("missing/a"), "No such file or directory");
    refused(&dir.path().join(".."), "is a directory");
    refused(Path::new(""), "names no file");
    if cfg!(unix) {
        refused(Path::new("/dev/null"), "not a regular file");
    }
    assert_eq!(names(dir.path()), [] as [&str; 0]);
}

#[cfg(unix)]
#[test]
fn an_unwritable_directory_is_an_error_and_changes_nothing() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    replace_file(&path, b"old").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(dir.path().join("probe"), b"").is_ok() {
        // The superuser may write anyway; the model's failing `create` stands for this case.
        println!("not checked: this user writes into unwritable directories");
        return;
    }
    let error = replace_file(&path, b"new").unwrap_err();
    assert!(error.is_io() && error.to_string().contains("Permission denied"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"old");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
}

/// Real files, but every byte goes to a device that is full.
#[cfg(target_os = "linux")]
struct FullDisk;

#[cfg(target_os = "linux")]
impl FileSystem for FullDisk {
    type File = File;
    type Directory = Option<File>;

    fn open_dir(&self, dir: &Path) -> io::Result<Option<File>> {
        Disk.open_dir(dir)
    }

    fn remove_stale(&self, target: &Target) {
        Disk.remove_stale(target);
    }

    fn create(&self, target: &Target) -> io::Result<(File, PathBuf)> {
        let (_, path) = Disk.create(target)?;
        Ok((File::options().write(true).open("/dev/full")?, path))
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<usize> {
        Disk.write(file, bytes)
    }

    fn sync(&self, file: &mut File) -> io::Result<()> {
        Disk.sync(file)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Disk.rename(from, to)
    }

    fn sync_dir(&self, dir: &Option<File>) -> io::Result<()> {
        Disk.sync_dir(dir)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        Disk.remove(path)
    }
}

#[cfg(target_os = "linux")]
#[test]
fn the_kernels_own_full_disk_error_keeps_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    replace_file(&path, b"old").unwrap();
    let target = Target::find(&path).unwrap();
    let error = replace_on(&FullDisk, &target, &[b"new"]).unwrap_err();
    assert!(error.to_string().contains("No space left on device"), "{error}");
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(names(dir.path()), ["a"]);
}

/// Saves until a leftover is gone. A process that another test forks holds copies of this one's
/// locks until it has started its own program, so the first save may find it in use.
fn save_until_gone(path: &Path, contents: &[u8], leftover: &Path) {
    for _ in 0..200 {
        replace_file(path, contents).unwrap();
        if !leftover.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{} is still there", leftover.display());
}

#[test]
fn leftovers_of_dead_writers_go_and_files_of_living_ones_stay() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let target = Target::find(&path).unwrap();
    let other = Target::find(&dir.path().join("b")).unwrap();
    let leave = |target: &Target| Disk.create(target).unwrap().1;
    let dead = leave(&target);
    fs::write(&dead, b"half a checkpoi").unwrap();
    let unrelated = leave(&other);
    let (mut living, living_path) = Disk.create(&target).unwrap();
    living.write_all(b"in progress").unwrap();

    save_until_gone(&path, b"new", &dead);
    assert!(unrelated.exists(), "a file of another target was removed");
    assert!(living_path.exists(), "a file in use was removed");
    drop(living);
    save_until_gone(&path, b"newer", &living_path);
    assert_eq!(fs::read(&path).unwrap(), b"newer");
}

/// A checkpoint of a megabyte, every element of which is its step.
fn save_large(path: &Path, step: u64) -> Result<(), Error> {
    let values = vec![step; 1 << 17];
    let mut writer = Writer::new(&step)?;
    writer.values::<u64>("w", &[1 << 17], &values)?;
    writer.save(path)
}

fn assert_whole(path: &Path) -> u64 {
    let reader = Reader::load(path).unwrap();
    let step: u64 = reader.content().unwrap();
    assert!(reader.values::<u64>("w", &[1 << 17]).unwrap().iter().all(|&x| x == step));
    step
}

#[test]
fn competing_threads_leave_whole_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.safetensors");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let path = &path;
            scope.spawn(move || {
                for round in 0..20 {
                    save_large(path, 100 * thread + round).unwrap();
                    assert_whole(path);
                }
            });
        }
    });
    assert_eq!(assert_whole(&path) % 100, 19, "the last save is not the one that stands");
    assert_eq!(names(dir.path()), ["state.safetensors"]);
}

/// A file-size limit stops the save half-way, in the real write call.
#[cfg(target_os = "linux")]
#[test]
fn a_write_that_the_kernel_cuts_off_keeps_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.safetensors");
    save_large(&path, 7).unwrap();
    // 200 blocks of 512 bytes; without the trap the signal would kill the process.
    let limited = "trap '' XFSZ; ulimit -f 200; exec \"$0\" \"$@\"";
    let output = Command::new("sh")
        .args(["-c", limited])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture"])
        .arg("checkpoint::crash_tests::saves_until_killed")
        .env(CHILD_PATH, &path)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].map(|s| String::from_utf8_lossy(&s).into_owned());
    let text = text.concat();
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("write the new contents (the old file is kept)"), "{text}");
    assert!(text.contains("File too large"), "{text}");
    assert_eq!(assert_whole(&path), 7);
    assert_eq!(names(dir.path()), ["state.safetensors"]);
}

const CHILD_PATH: &str = "MUON_CUDA_TEST_SAVE_PATH";

/// Not a test of its own: what the process started by the next test runs.
#[test]
#[ignore = "runs in a child process"]
fn saves_until_killed() {
    let Ok(path) = std::env::var(CHILD_PATH) else { return };
    for step in 1.. {
        save_large(Path::new(&path), step).unwrap();
    }
}

#[test]
fn killed_and_competing_processes_leave_whole_files() {
    const ROUNDS: u64 = 12;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.safetensors");
    save_large(&path, 0).unwrap();
    let child = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "checkpoint::crash_tests::saves_until_killed"])
            .env(CHILD_PATH, &path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut last = 0;
    for round in 0..ROUNDS {
        let mut children = [child(), child()];
        // Spread over the phases of a save, which takes some 5 ms.
        std::thread::sleep(Duration::from_millis(40 + 7 * round));
        last = assert_whole(&path).max(last);
        for child in &mut children {
            assert!(child.try_wait().unwrap().is_none(), "a saving process gave up");
            child.kill().unwrap();
            child.wait().unwrap();
        }
        last = assert_whole(&path).max(last);
    }
    assert!(last > 1, "no child got as far as a second save");
    save_large(&path, 99).unwrap();
    assert_eq!(assert_whole(&path), 99);
    assert_eq!(names(dir.path()), ["state.safetensors"]);
}
