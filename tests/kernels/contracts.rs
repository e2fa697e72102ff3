//! What `build.rs` refuses, and how headers are inlined.

use crate::contract::{FIELDS, Param, entries, without_comments};
use crate::flatten::flatten;

/// A kernel file with one entry `blend`, a complete contract but for these values, and parameters.
pub(crate) fn kernel(values: &[(&str, &str)], params: &str) -> String {
    let mut text = String::from("// A file.\n\n// blend\n");
    for field in FIELDS.iter().filter(|field| **field != "source") {
        let default = match *field {
            "resources" => "<= 32 registers, 0 spills",
            "launcher" => "src/x.rs::blend        source  NUMERICS.md",
            _ => "none",
        };
        let value = values.iter().find(|(name, _)| name == field).map_or(default, |(_, v)| v);
        text.push_str(&format!("//   {field:<12} {value}\n"));
    }
    text + &format!("extern \"C\" __global__ void __launch_bounds__(256) blend({params}) {{\n}}\n")
}

fn refused(text: &str) -> String {
    let problems = entries("kernels/x.cu", text).unwrap_err();
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_complete_contract_is_read() {
    let text = kernel(
        &[
            ("computes", "m <- a,\n//                then b"),
            ("resources", "<= 48 registers, 0 spills (sm_80)"),
        ],
        "const float* g, // the gradient, of (all)\n    float *__restrict__ m, unsigned long long n",
    );
    let found = entries("kernels/x.cu", &text).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].name.as_str(), found[0].line), ("blend", 16));
    assert_eq!(found[0].field("computes"), "m <- a, then b");
    assert_eq!(found[0].field("launcher"), "src/x.rs::blend");
    assert_eq!(found[0].field("source"), "NUMERICS.md");
    assert_eq!(found[0].register_budget(), Some(48));
    let param =
        |name: &str, type_name: &str| Param { name: name.into(), type_name: type_name.into() };
    let expected =
        [param("g", "const float *"), param("m", "float *"), param("n", "unsigned long long")];
    assert_eq!(found[0].params, expected);
    assert!(found[0].params[0].is_const_pointer() && !found[0].params[1].is_const_pointer());
    assert!(found[0].params[1].is_pointer() && !found[0].params[2].is_pointer());
    assert!(param("t", "u64 * const *").is_const_pointer());
    assert!(!param("t", "const u64 * *").is_const_pointer());
}

#[test]
fn each_missing_field_is_refused_with_file_and_line() {
    let complete = kernel(&[], "float* m");
    for field in FIELDS {
        let without: String = if field == "source" {
            complete.replace("        source  NUMERICS.md", "")
        } else {
            let start = format!("//   {field} ");
            complete
                .lines()
                .filter(|line| !line.starts_with(&start))
                .map(|l| format!("{l}\n"))
                .collect()
        };
        let said = refused(&without);
        assert!(said.starts_with("kernels/x.cu:"), "{said}");
        assert!(said.contains(&format!("`{field}`")), "{field}: {said}");
        assert!(said.contains("`blend`"), "{said}");
    }
}

#[test]
fn other_faults_are_refused() {
    let complete = kernel(&[], "float* m");
    let entry = "extern \"C\" __global__";
    let cases = [
        (
            complete.replace("// blend\n", "// bland\n"),
            "kernels/x.cu:3: the contract block of `blend` must begin with `// blend`",
        ),
        (complete.replace(entry, &format!("\n{entry}")), "has no contract block directly above it"),
        (complete.replace(entry, "__global__"), "without `extern \"C\"`"),
        (complete.replace("//   traffic ", "//   trafic  "), "expected the field `traffic`"),
        (
            complete.replace("//   traffic      none\n", "//   traffic\n"),
            "lacks the field `traffic`",
        ),
        (complete.replace("//   computes", "//      computes"), "begins with a continuation line"),
        (complete.replace("//   traffic", "// traffic"), "indented by three spaces"),
        (kernel(&[("resources", "32 registers")], "float* m"), "`<= N registers, 0 spills`"),
        (
            kernel(&[("resources", "<= 32 registers, 0 spillsome")], "float* m"),
            "`<= N registers, 0 spills`",
        ),
        (complete.replace("{\n}", ";"), "expected `void"),
        (kernel(&[], "float*"), "every parameter needs a type and a name"),
        ("#define KERNEL(x) \\\n  extern \"C\" __global__ void x() {}\n".into(), "made by a macro"),
    ];
    for (text, expected) in cases {
        let said = refused(&text);
        assert!(said.contains(expected), "expected `{expected}`, found `{said}` for:\n{text}");
    }
    // In a comment nothing is an entry.
    assert_eq!(entries("x", "// a __global__ function\n/* __global__ */\n").unwrap().len(), 0);
}

#[test]
fn two_faulty_entries_are_two_problems() {
    let one = "extern \"C\" __global__ void a() {}\n";
    let problems = entries("k.cu", &format!("{one}\n{one}")).unwrap_err();
    assert_eq!(problems.iter().map(|p| p.line).collect::<Vec<_>>(), [1, 3]);
}

#[test]
fn comments_become_spaces_of_the_same_length() {
    let text = "a /* é\n*/ b // c\n\"// no\" 'x'";
    let code = without_comments(text);
    assert_eq!(code, "a      \n   b     \n\"// no\" 'x'");
    assert_eq!(code.len(), text.len());
}

#[test]
fn headers_are_inlined_once_and_lines_keep_their_origin() {
    let read = |name: &str| match name {
        "x.cu" => Ok("// file\n#include \"a.cuh\"\n#include \"b.cuh\"\nint x;\n".to_owned()),
        "a.cuh" => Ok("#pragma once\nint a;\n".to_owned()),
        "b.cuh" => Ok("# include \"a.cuh\"\nint b;\n".to_owned()),
        _ => Err("no such file".to_owned()),
    };
    let flattened = flatten("x.cu", "kernels", &read).unwrap();
    assert_eq!(flattened.files, ["x.cu", "a.cuh", "b.cuh"]);
    assert_eq!(
        flattened.text,
        "#line 1 \"kernels/x.cu\"\n// file\n\
         #line 1 \"kernels/a.cuh\"\n\nint a;\n#line 3 \"kernels/x.cu\"\n\
         #line 1 \"kernels/b.cuh\"\n\nint b;\n#line 4 \"kernels/x.cu\"\nint x;\n"
    );
}

#[test]
fn foreign_missing_and_entry_holding_headers_are_refused() {
    let flattened = |text: &'static str| {
        let read = move |name: &str| match name {
            "x.cu" => Ok(text.to_owned()),
            "entry.cuh" => Ok("\n\n__global__ void f() {}\n".to_owned()),
            _ => Err("no such file".to_owned()),
        };
        flatten("x.cu", "kernels", &read).unwrap_err().to_string()
    };
    let said = flattened("int x;\n#include <cuda_bf16.h>\n");
    assert!(
        said.starts_with("kernels/x.cu:2: `#include <cuda_bf16.h>`: kernels include"),
        "{said}"
    );
    assert!(
        flattened("#include \"../a.cuh\"\n").contains("kernels include files of kernels/ alone")
    );
    assert!(
        flattened("\n\n#include \"a.cuh\"\n")
            .starts_with("kernels/x.cu:3: `#include \"a.cuh\"`: no such file")
    );
    assert!(
        flattened("#include \"entry.cuh\"\n")
            .starts_with("kernels/entry.cuh:3: entries live in .cu files")
    );
}
