//! The files that hostile commands are given.

use std::fs;
use std::path::Path;

/// Writes them into a directory: empty, garbage, too large, with names that command a terminal, and what is no file.
pub(super) fn write(dir: &Path) {
    let put = |name: &str, bytes: &[u8]| fs::write(dir.join(name), bytes).unwrap();
    put("empty", b"");
    let noise = (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]);
    put("garbage", &noise.collect::<Vec<u8>>());
    put("text.txt", "all work and no play ".repeat(60).as_bytes());
    // Names that turn the terminal red, ring, start a line of their own, and reverse what follows.
    put(
        "red.toml",
        b"name = \"a\\u001b[31mred\\u0007\\nerror: forged \\u202e\\u009b\"\nnormalization = \"frobenius\"\n\
          source = \"\\u001b]0;title\\u0007\"\ncoefficients = [[1.5, -0.5], [1.5, -0.5]]\n",
    );
    let many = "[1.5, -0.5],".repeat(20_000);
    let head = "name = \"many\"\nnormalization = \"frobenius\"\n";
    put("many.toml", format!("{head}coefficients = [{many}]\n").as_bytes());
    put("large.toml", format!("{head}coefficients = [[1e300, 1e300, 1e300]]\n").as_bytes());
    put("nan.toml", format!("{head}coefficients = [[nan, 1.0]]\n").as_bytes());
    put("broken.toml", b"name = \"\x1b[31m\"\nname = [[[\n");
    put("layers.toml", b"[[schedule]]\nparam = \"*\"\nuse = \"red.toml\"\n");
    put("layers-red.toml", b"[[schedule]]\nparam = \"\\u001b[31m\\n*\"\nuse = \"jordan\"\n[[schedule]]\nparam = \"*\"\nuse = \"jordan\"\n");
    put("red.safetensors", &tensors("w\\u001b[31m\\nforged\\u0007"));
    put("nan.safetensors", &{
        let mut bytes = tensors("w\\u001b[31m");
        let last = bytes.len() - 4;
        bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
        bytes
    });
    put("cut.safetensors", &tensors("w")[..100]);
    put("red.jsonl", "{\"step\":1,\"name\":\"w\\u001b[31m\\n\",\"rows\":4,\"cols\":8,\"norm\":1.0,\"zeros\":0,\"bins\":{\"-9\":4}}\n".as_bytes());
    put("huge.jsonl", "{\"step\":1,\"name\":\"w\",\"rows\":18446744073709551615,\"cols\":18446744073709551615,\"norm\":1.0,\"zeros\":18446744073709551615,\"bins\":{}}\n".as_bytes());
    put("families", b"power:\x1b[31m1\n");
    fs::create_dir(dir.join("directory")).unwrap();
    std::os::unix::fs::symlink("nowhere", dir.join("dangling")).unwrap();
    std::os::unix::fs::symlink("loop", dir.join("loop")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(dir.join("pipe")).status().unwrap();
    assert!(made.success());
}

/// A safetensors file with one 2 × 4 matrix of that (JSON-escaped) name.
fn tensors(name: &str) -> Vec<u8> {
    let mut header =
        format!("{{\"{name}\":{{\"dtype\":\"F32\",\"shape\":[2,4],\"data_offsets\":[0,32]}}}}");
    while header.len() % 8 != 0 {
        header.push(' ');
    }
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes
        .extend([1.0f32, 2.0, 3.0, 4.0, -1.0, 0.5, 0.25, 2.0].iter().flat_map(|x| x.to_le_bytes()));
    bytes
}

/// What is in a directory, sorted.
pub(super) fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

const NO_FILE: &str = "the path is no regular file";
const A_DIRECTORY: &str = "the path is a directory";

#[test]
fn what_is_no_file_is_neither_waited_for_nor_read_without_end() {
    super::check(&[
        ("muon schedules /dev/zero", 1, NO_FILE),
        ("muon schedules ./pipe", 1, NO_FILE),
        ("muon schedules ./directory", 1, A_DIRECTORY),
        ("muon schedules --table --with ./pipe", 1, NO_FILE),
        ("muon schedules --table --held-out /dev/zero", 1, NO_FILE),
        ("muon schedules --table --held-out pipe", 1, NO_FILE),
        ("muon schedules --table --held-out directory", 1, A_DIRECTORY),
        ("muon tune --spectra /dev/zero", 1, NO_FILE),
        ("muon tune --spectra pipe", 1, NO_FILE),
        ("muon tune --spectra directory", 1, A_DIRECTORY),
        ("muon tune --held-out /dev/zero", 1, NO_FILE),
        ("muon tune --check /dev/zero", 1, NO_FILE),
        ("muon tune --check pipe", 1, NO_FILE),
        ("muon tune --check directory", 1, A_DIRECTORY),
        ("muon train --text /dev/zero", 1, NO_FILE),
        ("muon train --text pipe", 1, NO_FILE),
        ("muon train --text directory", 1, A_DIRECTORY),
        ("muon train --schedules /dev/zero", 1, NO_FILE),
        ("muon train --schedules pipe", 1, NO_FILE),
        ("muon train --schedule ./pipe", 1, NO_FILE),
        ("muon orthogonalize /dev/zero out", 1, NO_FILE),
        ("muon orthogonalize pipe out", 1, NO_FILE),
        ("muon orthogonalize directory out", 1, "no *.safetensors file"),
        ("muon compare --schedule ./pipe", 1, NO_FILE),
        ("muon plan --matrix 4x4 --schedule ./pipe", 1, NO_FILE),
    ]);
}

#[test]
fn empty_cut_and_senseless_files_are_called_what_they_are() {
    super::check(&[
        ("muon schedules ./empty", 1, "missing field `name`"),
        ("muon schedules ./garbage", 1, "expected UTF-8 text, found another byte at"),
        ("muon schedules ./dangling", 1, "No such file"),
        ("muon schedules ./loop", 1, "symbolic links"),
        ("muon schedules nan.toml", 2, "finite"),
        ("muon schedules many.toml", 2, "expected at most 128 iterations, found `20000`"),
        ("muon schedules --table --held-out empty", 1, "names no family of spectra"),
        ("muon schedules --table --held-out garbage", 1, "expected UTF-8 text"),
        ("muon tune --spectra empty", 2, "holds no spectrum"),
        ("muon tune --spectra garbage", 1, "expected UTF-8 text"),
        ("muon tune --spectra huge.jsonl", 1, "a short side of at most 1048576"),
        ("muon tune --check empty", 1, "is not the record of a study"),
        ("muon tune --check garbage", 1, "expected UTF-8 text"),
        ("muon train --text empty", 2, "is empty"),
        ("muon train --schedules empty", 2, "it has no row"),
        ("muon train --schedules garbage", 1, "expected UTF-8 text"),
        ("muon train --schedule many.toml", 2, "expected at most 128 iterations"),
        ("muon orthogonalize empty out", 1, "it has 0 bytes"),
        ("muon orthogonalize garbage out", 1, "not a safetensors file, or damaged"),
        ("muon orthogonalize cut.safetensors out", 1, "cut.safetensors"),
        ("muon orthogonalize loop out", 1, "symbolic links"),
        ("muon verify empty", 1, "not a recording of trajectories"),
        ("muon verify garbage", 1, "UTF-8"),
        ("muon verify directory", 1, "directory"),
        ("muon plan --file empty", 1, "empty"),
        ("muon plan --file garbage", 1, "not a safetensors file"),
        ("muon plan --file directory", 1, "directory"),
        ("muon plan --file /dev/zero", 1, "/dev/zero"),
    ]);
}

#[test]
fn names_from_files_command_no_terminal() {
    super::check(&[
        ("muon schedules red.toml", 0, "@a\\u001b[31mred\\u0007\\nerror: forged \\u202e\\u009b\n"),
        ("muon schedules red.toml --json", 0, "@\"name\": \"a\\u001b[31mred\\u0007\\nerror"),
        ("muon schedules broken.toml", 1, "broken.toml"),
        ("muon schedules --table --with red.toml", 0, "@a\\u001b[31mred"),
        ("muon compare --shape 4x4 --schedule red.toml", 0, "@a\\u001b[31mred"),
        ("muon compare --shape 4x4 --schedule red.toml --json", 0, "@\\u001b[31mred"),
        ("muon plan --matrix 4x4 --schedule red.toml", 0, "@a\\u001b[31mred"),
        (
            "muon train --schedule red.toml --steps 2 --hidden 4",
            0,
            "(group `hidden`, a\\u001b[31mred\\u0007\\nerror: forged \\u202e\\u009b)",
        ),
        ("muon train --schedules layers.toml --steps 2 --hidden 4 --json", 0, "a\\u001b[31mred"),
        ("muon train --schedules layers-red.toml --steps 2", 2, "the pattern `\\u001b[31m\\n*`"),
        ("muon train --schedule red.toml --schedule red.toml", 2, "(a\\u001b[31mred"),
        (
            "muon train --sweep --seeds 2 --lr 0.1 --steps 2 --hidden 4 --schedule red.toml",
            0,
            "@a\\u001b[31mred",
        ),
        ("muon orthogonalize red.safetensors out", 0, "@w\\u001b[31m\\nforged\\u0007"),
        ("muon orthogonalize red.safetensors out --json", 0, "@w\\u001b[31m\\nforged\\u0007"),
        (
            "muon orthogonalize red.safetensors out --only \"$(printf '\\033[31m')\"",
            2,
            "\\u001b[31m",
        ),
        ("muon orthogonalize nan.safetensors out", 1, "w\\u001b[31m"),
        (
            "muon tune --spectra red.jsonl --per-layer --out o --iterations 2 --degrees 3 --evaluations 9 --polish 1 \
          --no-rounding-safety --min-safe-sigma 1",
            0,
            "@w\\u001b[31m\\n",
        ),
        ("muon tune --held-out families", 1, "\\u001b[31m"),
        ("muon verify \"$(printf '\\033[31m\\n')\"", 1, "\\u001b[31m"),
        ("muon \"$(printf '\\033[31m\\a')\"", 2, "unrecognized subcommand ''"),
        ("muon train --lr \"$(printf '\\033[31m')\"", 2, "invalid float literal"),
        (
            "muon train --out \"$(printf '\\033[31m\\n')/empty\" --steps 1 --hidden 4 --optimizer adamw",
            0,
            "\\u001b[31m",
        ),
        ("muon tune --resume --out \"$(printf '\\033[31m')\"", 2, "\\u001b[31m"),
        ("muon schedules jordan --plot \"$(printf '\\033[31m').svg\"", 0, "@\\u001b[31m"),
    ]);
}

#[test]
fn a_chart_of_a_hostile_name_is_xml() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    let said = super::shell(
        dir.path(),
        "muon schedules red.toml --plot a.svg && muon schedules large.toml --plot b.svg",
    );
    assert_eq!(said.code, Some(0), "{}", said.err);
    for name in ["a.svg", "b.svg"] {
        let svg = fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(svg.chars().all(|c| c == '\n' || !c.is_control()), "{name}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{name}");
    }
}
