//! One source text per kernel file: own headers inlined, with `#line` so that the compiler's messages
//! name the file and line that a person can open.

use std::fmt::Write as _;

use super::contract::{Problem, without_comments};

/// A kernel file with its headers inlined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flattened {
    pub(crate) text: String,
    /// Every file that went into it, itself first.
    pub(crate) files: Vec<String>,
}

/// Inlines the headers of `file`, each once. `read` gets names relative to the folder of kernels.
pub(crate) fn flatten(
    file: &str,
    folder: &str,
    read: &dyn Fn(&str) -> Result<String, String>,
) -> Result<Flattened, Problem> {
    let text = read(file).map_err(|e| Problem::new(&format!("{folder}/{file}"), 1, e))?;
    let mut flattened = Flattened { text: String::new(), files: Vec::new() };
    inline(file, &text, folder, read, &mut flattened)?;
    Ok(flattened)
}

fn inline(
    file: &str,
    text: &str,
    folder: &str,
    read: &dyn Fn(&str) -> Result<String, String>,
    out: &mut Flattened,
) -> Result<(), Problem> {
    let path = format!("{folder}/{file}");
    out.files.push(file.to_owned());
    line_directive(out, 1, &path);
    let code = without_comments(text);
    for (i, (line, code)) in text.lines().zip(code.lines()).enumerate() {
        let number = i + 1;
        let directive = code.trim().strip_prefix('#').map(str::trim_start).unwrap_or_default();
        if directive.starts_with("pragma once") {
            // Every file is inlined once; the compiler warns about this line in a main file.
            out.text.push('\n');
            continue;
        }
        let Some(target) = directive.strip_prefix("include") else {
            out.text.push_str(line);
            out.text.push('\n');
            continue;
        };
        let target = target.trim();
        let name = target.strip_prefix('"').and_then(|rest| rest.split('"').next());
        let Some(name) = name.filter(|name| !name.contains(['/', '\\'])) else {
            return Err(Problem::new(
                &path,
                number,
                format!(
                    "`#include {target}`: kernels include files of {folder}/ alone, in quotes; \
                     CUDA's headers are not there when NVRTC compiles on the user's machine"
                ),
            ));
        };
        if out.files.iter().any(|seen| seen == name) {
            out.text.push('\n');
            continue;
        }
        let header = read(name)
            .map_err(|e| Problem::new(&path, number, format!("`#include \"{name}\"`: {e}")))?;
        if let Some(at) = without_comments(&header).find("__global__") {
            let line = 1 + header.get(..at).unwrap_or_default().matches('\n').count();
            return Err(Problem::new(
                &format!("{folder}/{name}"),
                line,
                "entries live in .cu files, so that each is compiled once",
            ));
        }
        inline(name, &header, folder, read, out)?;
        line_directive(out, number + 1, &path);
    }
    Ok(())
}

fn line_directive(out: &mut Flattened, line: usize, path: &str) {
    let _infallible = writeln!(out.text, "#line {line} \"{path}\"");
}
