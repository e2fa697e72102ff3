//! Registers, spills and the width of memory accesses in what ptxas makes of the kernels.

use crate::contract::Entry;
use crate::signature::operands;
use crate::toolchain::{MachineCode, assemble, ptx};
use crate::{kernel_files, report};

/// A100, H100, B200, GeForce 50.
const ARCHITECTURES: [u32; 4] = [80, 90, 100, 120];

/// What ptxas says of one entry.
#[derive(Debug, PartialEq, Eq)]
struct Usage {
    registers: u32,
    spilled_bytes: u32,
}

/// An entry's part of ptxas's report.
fn usage(report: &str, entry: &str) -> Option<Usage> {
    let part = report
        .split("Compiling entry function '")
        .find_map(|part| part.strip_prefix(entry)?.strip_prefix('\''))?;
    let number_before = |words: &str| -> Option<u32> {
        part.split_once(words)?.0.split_whitespace().next_back()?.parse().ok()
    };
    let spills = [number_before(" bytes spill stores")?, number_before(" bytes spill loads")?];
    Some(Usage { registers: number_before(" registers")?, spilled_bytes: spills.iter().sum() })
}

/// An entry's instructions.
fn instructions<'a>(sass: &'a str, entry: &str) -> Option<&'a str> {
    let mut parts = sass.split("Function : ").skip(1);
    parts.find(|part| part.lines().next().is_some_and(|name| name.trim() == entry))
}

/// Whether a 128-bit access to global memory is there: `LDG.E.128`, `STG.E.128`, with other modifiers
/// in between.
fn has_wide(instructions: &str, operation: &str) -> bool {
    instructions.split_whitespace().any(|word| {
        let mut modifiers = word.split('.');
        modifiers.next() == Some(operation) && modifiers.any(|modifier| modifier == "128")
    })
}

/// Whether the contract promises 16-byte accesses, to read and to write.
fn promised(entry: &Entry) -> (bool, bool) {
    let alignment = entry.field("alignment");
    if !(alignment.contains("16-byte") || alignment.contains("16 B")) {
        return (false, false);
    }
    let words: Vec<&str> = alignment.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect();
    let named: Vec<_> = operands(entry)
        .unwrap_or_default()
        .into_iter()
        .filter(|operand| words.contains(&operand.name.as_str()))
        .collect();
    (named.iter().any(|operand| operand.read), named.iter().any(|operand| operand.written))
}

fn entry_problems(entry: &Entry, code: &MachineCode) -> Vec<String> {
    let Some(usage) = usage(&code.report, &entry.name) else {
        return vec![format!("is not in ptxas's report:\n{}", code.report)];
    };
    let mut problems = Vec::new();
    let budget = entry.register_budget().unwrap_or_default();
    if usage.registers > budget {
        problems.push(format!("uses {} registers, the contract allows {budget}", usage.registers));
    }
    if usage.spilled_bytes > 0 {
        problems.push(format!("spills {} bytes, the contract allows none", usage.spilled_bytes));
    }
    let Some(instructions) = instructions(&code.sass, &entry.name) else {
        problems.push("is not in the disassembly".to_owned());
        return problems;
    };
    let (read, written) = promised(entry);
    for (wanted, operation) in [(read, "LDG"), (written, "STG")] {
        if wanted && !has_wide(instructions, operation) {
            problems.push(format!(
                "has no {operation}.E.128, though `alignment` promises 16-byte accesses"
            ));
        }
    }
    let (loads, stores) = (has_wide(instructions, "LDG"), has_wide(instructions, "STG"));
    println!(
        "{:<20} {:>3} of {budget:>3} registers, {} spilled, 128-bit loads {loads}, stores {stores}",
        entry.name, usage.registers, usage.spilled_bytes
    );
    problems
}

#[test]
fn every_kernel_compiles_within_its_contract_on_every_architecture() {
    let mut found = Vec::new();
    for file in kernel_files() {
        for architecture in ARCHITECTURES {
            let name = format!("kernels/{}", file.name);
            println!("{name} sm_{architecture}");
            let code = ptx(&file.source, &name, &format!("compute_{architecture}"))
                .and_then(|ptx| assemble(&ptx, &format!("sm_{architecture}")));
            match code {
                Ok(code) => found.extend(file.entries.iter().flat_map(|entry| {
                    let at =
                        format!("{name}:{}: `{}` on sm_{architecture}", entry.line, entry.name);
                    entry_problems(entry, &code).into_iter().map(move |p| format!("{at} {p}"))
                })),
                Err(log) => {
                    found.push(format!("{name} does not compile for sm_{architecture}:\n{log}"))
                }
            }
        }
    }
    report(&found);
}

mod tests {
    use super::*;
    use crate::contract::entries;
    use crate::contracts::kernel;

    /// A kernel with this body, measured on sm_90.
    fn check(values: &[(&str, &str)], params: &str, body: &str) -> String {
        let text = kernel(values, params).replace("{\n}", &format!("{{ {body} }}"));
        let entry = entries("kernels/x.cu", &text).unwrap().remove(0);
        let code = assemble(&ptx(&text, "kernels/x.cu", "compute_90").unwrap(), "sm_90").unwrap();
        entry_problems(&entry, &code).join("\n")
    }

    const PARAMS: &str = "const float4* g, float4* m";
    const WIDE: &[(&str, &str)] = &[("operands", "g in · m out"), ("alignment", "g, m 16 B")];

    #[test]
    fn wide_accesses_are_seen_and_missed() {
        assert_eq!(check(WIDE, PARAMS, "m[threadIdx.x] = g[threadIdx.x];"), "");
        let said = check(WIDE, PARAMS, "m[threadIdx.x].x = g[threadIdx.x].x;");
        assert!(said.contains("no LDG.E.128") && said.contains("no STG.E.128"), "{said}");
        // A wide load alone does not excuse the store, and where nothing is promised nothing is asked.
        let said = check(
            WIDE,
            PARAMS,
            "float4 v = g[threadIdx.x]; m[threadIdx.x].x = v.x + v.y + v.z + v.w;",
        );
        assert!(!said.contains("LDG") && said.contains("no STG.E.128"), "{said}");
        assert_eq!(check(&[], PARAMS, "m[threadIdx.x].x = g[threadIdx.x].x;"), "");
    }

    #[test]
    fn registers_beyond_the_budget_are_seen() {
        let body = "float4 v = g[threadIdx.x]; m[threadIdx.x] = make_float4(v.y, v.z, v.w, v.x);";
        let said = check(&[("resources", "<= 4 registers, 0 spills")], PARAMS, body);
        assert!(said.contains("registers, the contract allows 4"), "{said}");
    }

    #[test]
    fn spills_are_seen() {
        // 200 live values in 256 threads that must share the register file four times over.
        let body = "float v[200];\n#pragma unroll\nfor (int i = 0; i < 200; ++i) v[i] = ((const volatile float*)g)[i];\n\
                    __syncthreads();\n#pragma unroll\nfor (int i = 0; i < 200; ++i) ((volatile float*)m)[i] = v[199 - i];";
        let text = kernel(&[("resources", "<= 255 registers, 0 spills")], PARAMS)
            .replace("__launch_bounds__(256)", "__launch_bounds__(1024)")
            .replace("{\n}", &format!("{{ {body} }}"));
        let entry = entries("kernels/x.cu", &text).unwrap().remove(0);
        let code = assemble(&ptx(&text, "kernels/x.cu", "compute_90").unwrap(), "sm_90").unwrap();
        let said = entry_problems(&entry, &code).join("\n");
        assert!(said.contains("spills"), "{said}\n{}", code.report);
    }

    #[test]
    fn a_kernel_that_does_not_compile_says_where() {
        let text = format!(
            "#line 1 \"kernels/x.cu\"\n{}",
            kernel(&[], "float* m").replace("{\n}", "{ *m = y; }")
        );
        let log = ptx(&text, "kernels/x.cu", "compute_90").unwrap_err();
        assert!(log.contains("kernels/x.cu(15): error"), "{log}");
    }

    #[test]
    fn the_report_is_split_by_entry() {
        let report = "ptxas info    : Compiling entry function 'ab' for 'sm_90'\n\
                      ptxas info    : Function properties for ab\n\
                      \x20   0 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n\
                      ptxas info    : Used 31 registers, used 0 barriers\n\
                      ptxas info    : Compiling entry function 'a' for 'sm_90'\n\
                      \x20   0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
                      ptxas info    : Used 7 registers\n";
        assert_eq!(usage(report, "a"), Some(Usage { registers: 7, spilled_bytes: 0 }));
        assert_eq!(usage(report, "ab"), Some(Usage { registers: 31, spilled_bytes: 20 }));
        assert_eq!(usage(report, "b"), None);
    }
}
