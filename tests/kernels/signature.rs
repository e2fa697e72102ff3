//! Whether a contract's operands are the entry's parameters, read and written as declared.
//!
//! The form of `operands`: groups separated by `·`, each a list of names, optionally with an extent in
//! brackets, then `of the PARAMETER` if they are pointers in the table that this parameter points to,
//! then `in`, `out` or `in/out`. What a parameter's pointers point to is `the PARAMETER`. Every pointer
//! parameter is named; scalars passed by value may be.

use crate::contract::{Entry, Param, without_comments};
use crate::{kernel_files, report};

/// One operand of a contract.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Operand {
    pub(crate) name: String,
    /// The table that holds its pointer.
    pub(crate) via: Option<String>,
    pub(crate) read: bool,
    pub(crate) written: bool,
}

/// The operands that a contract names.
pub(crate) fn operands(entry: &Entry) -> Result<Vec<Operand>, String> {
    let text = entry.field("operands");
    let mut operands = Vec::new();
    for group in text.split(';').next().unwrap_or_default().split('·').map(str::trim) {
        let (names, direction) = group.rsplit_once(' ').unwrap_or(("", group));
        let (read, written) = match direction {
            "in" => (true, false),
            "out" => (false, true),
            "in/out" => (true, true),
            _ => return Err(format!("operands `{group}` must end with in, out or in/out")),
        };
        let (names, via) = match names.split_once(" of the ") {
            Some((names, via)) => (names, Some(via.trim().to_owned())),
            None => (names, None),
        };
        if let Some(table) = names.strip_prefix("the ") {
            let (name, via) = ("*".to_owned(), Some(table.trim().to_owned()));
            operands.push(Operand { name, via, read, written });
            continue;
        }
        for name in without_extents(names).split(',') {
            let name = name.split_whitespace().next().unwrap_or_default().to_owned();
            if name.is_empty() {
                return Err(format!("operands `{group}` name nothing"));
            }
            operands.push(Operand { name, via: via.clone(), read, written });
        }
    }
    Ok(operands)
}

fn without_extents(text: &str) -> String {
    let mut depth = 0;
    text.chars()
        .filter(|c| {
            depth += i32::from(*c == '[');
            let keep = depth == 0;
            depth -= i32::from(*c == ']');
            keep
        })
        .collect()
}

/// What is wrong with an entry's operands, given the flattened source for the tables' fields.
pub(crate) fn problems(entry: &Entry, source: &str) -> Vec<String> {
    let operands = match operands(entry) {
        Ok(operands) => operands,
        Err(problem) => return vec![problem],
    };
    let mut problems = Vec::new();
    for (i, operand) in operands.iter().enumerate() {
        if operands.iter().take(i).any(|o| (&o.name, &o.via) == (&operand.name, &operand.via)) {
            problems.push(format!("operand `{}` is named twice", operand.name));
        }
    }
    for param in entry.params.iter().filter(|param| param.is_pointer()) {
        let direct = operands.iter().any(|o| o.via.is_none() && o.name == param.name);
        let table = operands.iter().any(|o| o.via.as_deref() == Some(&param.name));
        if !direct && !table {
            problems.push(format!("parameter `{}` is in no operand", param.name));
        }
    }
    for operand in &operands {
        let host = operand.via.as_deref().unwrap_or(&operand.name);
        let Some(param) = entry.params.iter().find(|param| param.name == host) else {
            problems.push(format!("operand `{host}` is no parameter"));
            continue;
        };
        let (is_const, place) = if operand.name == "*" {
            let pointee = param.type_name.rsplit_once('*').map_or("", |(pointee, _)| pointee);
            let pointee = Param { name: host.to_owned(), type_name: pointee.to_owned() };
            if !pointee.is_pointer() {
                problems.push(format!("`{host}` does not point to pointers"));
                continue;
            }
            (pointee.is_const_pointer(), format!("what the pointers of `{host}` point to"))
        } else if operand.via.is_some() {
            let type_name = param.type_name.replace("const", " ").replace('*', " ");
            match pointer_field(source, type_name.trim(), &operand.name) {
                Some(is_const) => (is_const, format!("`{}::{}`", type_name.trim(), operand.name)),
                None => {
                    problems.push(format!(
                        "`{}` is no pointer in `{}`, the type behind `{host}`",
                        operand.name,
                        type_name.trim()
                    ));
                    continue;
                }
            }
        } else if param.is_pointer() {
            (param.is_const_pointer(), format!("parameter `{}`", param.name))
        } else {
            (true, format!("parameter `{}`", param.name))
        };
        if operand.written && is_const {
            problems.push(format!("{place} is const, but the contract says that it is written"));
        }
        // A table serves several kernels, so a writable pointer in it may be read here.
        if !operand.written && !is_const && operand.via.is_none() {
            problems.push(format!("{place} is writable, but the contract says `in`"));
        }
    }
    problems
}

/// Whether a struct's pointer field points to const; none if it has no such field.
fn pointer_field(source: &str, structure: &str, field: &str) -> Option<bool> {
    let code = without_comments(source);
    let body = code.split_once(&format!("struct {structure} {{"))?.1.split_once("};")?.0;
    body.split(';').find_map(|declaration| {
        let (target, name) = declaration.rsplit_once('*')?;
        (name.trim() == field).then(|| target.split_whitespace().any(|word| word == "const"))
    })
}

#[test]
fn every_contract_names_the_parameters_of_its_entry() {
    let mut found = Vec::new();
    for file in kernel_files() {
        for entry in &file.entries {
            let at = format!("kernels/{}:{}: `{}`", file.name, entry.line, entry.name);
            found.extend(problems(entry, &file.source).into_iter().map(|p| format!("{at}: {p}")));
        }
    }
    report(&found);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contracts::kernel;

    const SOURCE: &str = "struct Row {\n  const float* g; // read\n  float *m;\n  int n;\n};\n";

    fn check(operands: &str, params: &str) -> Vec<String> {
        let text = kernel(&[("operands", operands)], params);
        let entries = crate::contract::entries("kernels/x.cu", &text).unwrap();
        problems(&entries[0], SOURCE)
    }

    #[test]
    fn matching_operands_pass() {
        let params = "const u32* t, const Row *rows, float* __restrict__ out, u32 n";
        assert_eq!(
            check(
                "t[grid, 2] u32 in · g of the rows in · m of the rows in/out · out[n] f32 out; dense",
                params
            ),
            [""; 0]
        );
        let pointers = "u64* const* lists, const float* const* rows";
        assert_eq!(check("lists, rows in · the lists in/out · the rows in", pointers), [""; 0]);
        // A writable pointer of a table may be read alone; scalars may be named.
        assert_eq!(check("t, n in · g, m of the rows in · out out", params), [""; 0]);
    }

    #[test]
    fn each_difference_is_named() {
        let params = "const float* g, float* m";
        for (operands, params, expected) in [
            ("g in", params, "parameter `m` is in no operand"),
            ("g in · m, x out", params, "operand `x` is no parameter"),
            ("g in/out · m out", params, "parameter `g` is const"),
            ("g, m in", params, "parameter `m` is writable"),
            ("g of the rows out", "const Row* rows", "`Row::g` is const"),
            ("n of the rows out", "const Row* rows", "`n` is no pointer in `Row`"),
            ("g of the nothing in", params, "operand `nothing` is no parameter"),
            ("g, g in · m out", params, "operand `g` is named twice"),
            ("g in · m in/out · the m out", params, "`m` does not point to pointers"),
            ("g in · the g out", "const float* const* g", "point to is const"),
            ("g in · m", params, "must end with in, out or in/out"),
        ] {
            let found = check(operands, params).join("\n");
            assert!(found.contains(expected), "{operands}: {found}");
        }
    }
}
