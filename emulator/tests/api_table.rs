//! `API.md` lists the exported entries; it is made from the sources here, and must not drift.
//!
//! `UPDATE_API_TABLE=1 cargo test -p cuda-emulator --test api_table` rewrites it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

/// Entry names that a macro invocation `name! { … }` of a source file lists.
fn names(source: &str, prefix: &str) -> BTreeSet<String> {
    source
        .lines()
        .filter_map(|line| line.strip_prefix("    "))
        .filter(|line| line.starts_with(prefix))
        .filter_map(|line| {
            let name: String =
                line.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            let rest = &line[name.len()..];
            (rest.starts_with('(') || rest.starts_with(" = cu")).then_some(name)
        })
        .collect()
}

/// The words of an `unsupported! { … }` block.
fn refused(source: &str) -> BTreeSet<String> {
    let start = source.find("unsupported! {\n").unwrap();
    source[start..]
        .split_whitespace()
        .filter(|word| word.starts_with("cu"))
        .map(str::to_owned)
        .collect()
}

fn section(
    text: &mut String,
    title: &str,
    implemented: &BTreeSet<String>,
    refused: &BTreeSet<String>,
) {
    let list = |names: &BTreeSet<String>| {
        names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" ")
    };
    writeln!(text, "## {title}\n").unwrap();
    writeln!(text, "{} implemented:\n\n{}\n", implemented.len(), list(implemented)).unwrap();
    writeln!(text, "{} refused by name:\n\n{}\n", refused.len(), list(refused)).unwrap();
}

#[test]
fn the_document_lists_what_the_code_exports() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    let mut text = String::from(
        "# Entries of the emulated libraries\n\nMade from the sources by `tests/api_table.rs`. An implemented entry behaves as README.md says;\na refused one fails with \"not supported\" and records a finding that names it.\n\n",
    );
    let mut driver = BTreeSet::new();
    for file in ["context", "device", "graph", "memory", "module", "procedure", "stream"] {
        driver.extend(names(&read(&format!("libcuda/src/{file}.rs")), "cu"));
    }
    let unsupported = refused(&read("libcuda/src/unsupported.rs"));
    assert!(driver.is_disjoint(&unsupported));
    assert!(driver.len() > 150 && unsupported.len() > 300);
    section(&mut text, "libcuda", &driver, &unsupported);
    for (title, file) in [("libcublas", "libcublas"), ("libcublasLt", "libcublaslt")] {
        let source = read(&format!("{file}/src/lib.rs"));
        section(&mut text, title, &names(&source, "cublas"), &refused(&source));
    }
    let path = root.join("API.md");
    if std::env::var_os("UPDATE_API_TABLE").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == text, "API.md has drifted; run with UPDATE_API_TABLE=1");
}
