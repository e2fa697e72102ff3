//! Plans: published numbers of known models, and what cannot be planned.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod support;

use std::path::Path;

use serde_json::Value;
use support::{muon, ok};

fn plan(args: &[&str]) -> Value {
    let said = ok(Path::new("."), &[&["plan", "--json"], args].concat());
    serde_json::from_str(&said.out).unwrap()
}

#[test]
fn gpt2_small_in_standard_form() {
    let args = ["--model", "gpt2-small", "--schedule", "jordan", "--standard"];
    let value = plan(&[&args[..], &["--symmetric", "full"]].concat());
    assert_eq!(value["muon_elements"], 84_934_656);
    assert_eq!(value["adamw_elements"], 39_505_152);
    let buckets = value["buckets"].as_array().unwrap();
    let counts: Vec<_> = buckets.iter().map(|b| b["matrices"].as_u64().unwrap()).collect();
    assert_eq!(counts, [48, 12, 12]);
    // 5 iterations of full products: 20α + 10 times n³.
    let n3 = 768u64.pow(3);
    assert_eq!(value["flops"].as_u64().unwrap(), n3 * (48 * 30 + 24 * 90));
    let calls = value["kernel_launches"].as_u64().unwrap() + value["products"].as_u64().unwrap();
    assert!(calls <= 60, "{calls}");
    // f32 momentum; two moments for the rest.
    assert_eq!(value["state_bytes"].as_u64().unwrap(), 4 * 84_934_656 + 8 * 39_505_152);
    // 2.04 ms at 798 TFLOP/s.
    let products = value["bound"]["products_ms"].as_f64().unwrap();
    assert!((products - 2.04).abs() < 0.01, "{products}");
    assert!(value["bound"]["what"].as_str().unwrap().contains("not a measurement"));
    // Each symmetric product in two strips of rows: 3/4 of its FLOPs, twice the calls, and a mirror.
    let halves = plan(&[&args[..], &["--symmetric", "2"]].concat());
    assert_eq!(halves["flops"].as_u64().unwrap(), n3 * 5 * (48 * 5 + 12 * 31));
    assert_eq!(halves["full_flops"], value["flops"]);
    assert_eq!(halves["products"].as_u64().unwrap(), 3 * 5 * 5);
    assert_eq!(
        halves["kernel_launches"].as_u64().unwrap(),
        value["kernel_launches"].as_u64().unwrap() + 3 * 5 * 2
    );
}

#[test]
fn symmetric_products_are_cut_where_that_is_modelled_to_pay() {
    let value = plan(&["--model", "gpt2-small", "--schedule", "jordan", "--standard"]);
    let buckets = value["buckets"].as_array().unwrap();
    // 768 x 768: the mirror costs what the strips save.
    assert_eq!(buckets[0]["symmetric_strips"]["square"], 1);
    assert!(buckets[0]["symmetric_reason"].as_str().unwrap().contains("squares in full"));
    // The standard form cannot overflow; a Gram form, which pays from a short side of about 950 on, is looked at first.
    assert!(
        buckets[0]["commit"].as_str().unwrap().contains("pass A, after the check of the direction")
    );
    let auto = plan(&["--matrix", "1024x4096", "--schedule", "jordan"]);
    assert!(
        auto["buckets"][0]["commit"]
            .as_str()
            .unwrap()
            .contains("pass B, after the check of the update")
    );
    let large = plan(&["--model", "llama-7b", "--schedule", "jordan"]);
    let (executed, full) =
        (large["flops"].as_f64().unwrap(), large["full_flops"].as_f64().unwrap());
    let least = large["symmetric_flops"].as_f64().unwrap();
    assert!(least < executed && executed < 0.9 * full, "{least} {executed} {full}");
    let text = ok(Path::new("."), &["plan", "--model", "llama-7b"]).out;
    assert!(text.contains(" strips: modelled at "), "{text}");
    let said = muon(Path::new("."), &["plan", "--matrix", "8x8", "--symmetric", "half"]);
    assert_eq!(said.code, Some(2));
    assert!(said.err.contains("number of strips"), "{}", said.err);
}

#[test]
fn flags_and_files_say_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let header = concat!(
        r#"{"__metadata__":{"a":"b"},"#,
        r#""h.0.w":{"dtype":"F32","shape":[8,16],"data_offsets":[0,512]},"#,
        r#""h.1.w":{"dtype":"F32","shape":[8,16],"data_offsets":[512,1024]},"#,
        r#""h.0.b":{"dtype":"F32","shape":[7],"data_offsets":[1024,1052]}}"#
    );
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    let path = dir.path().join("m.safetensors");
    std::fs::write(&path, &file).unwrap();
    let mut from_file = plan(&["--file", path.to_str().unwrap()]);
    let mut from_flags = plan(&["--matrix", "2x8x16", "--adamw", "7"]);
    for value in [&mut from_file, &mut from_flags] {
        value.as_object_mut().unwrap().remove("source");
    }
    assert_eq!(from_file, from_flags);

    std::fs::write(&path, &file[..40]).unwrap();
    let said = muon(dir.path(), &["plan", "--file", "m.safetensors"]);
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("cut short"), "{}", said.err);
    std::fs::write(&path, [255; 9]).unwrap();
    let said = muon(dir.path(), &["plan", "--file", "m.safetensors"]);
    assert!(said.err.contains("not a safetensors file"), "{}", said.err);
}

#[test]
fn forced_methods_and_small_workspaces_show() {
    let matrices = ["--matrix", "6x64x256", "--schedule", "jordan"];
    let gram = plan(&[&matrices[..], &["--gram", "3,2"]].concat());
    assert_eq!(gram["buckets"][0]["method"], "gram(3,2)");
    let standard = plan(&[&matrices[..], &["--standard"]].concat());
    assert!(gram["flops"].as_u64() < standard["flops"].as_u64());
    assert!(gram["kernel_launches"].as_u64() > standard["kernel_launches"].as_u64());
    // One matrix of 64 × 256 in bf16 needs two iterates and three small buffers at most.
    let chunked = plan(&["--matrix", "600x64x256", "--workspace-mib", "20"]);
    assert!(chunked["chunks"].as_u64().unwrap() > 1, "{chunked}");
    assert!(chunked["workspace_bytes"].as_u64().unwrap() <= 20 << 20);
}

#[test]
fn what_cannot_be_planned_is_said() {
    for (args, word) in [
        (&["plan"][..], "nothing to orthogonalize"),
        (&["plan", "--model", "gpt9"], "gpt2-small"),
        (&["plan", "--model", "llama-7b", "--profile", "tpu"], "h100"),
        (&["plan", "--matrix", "12"], "COUNTxROWSxCOLS"),
        (&["plan", "--matrix", "8x8", "--schedule", "nope"], "nope"),
        (&["plan", "--matrix", "8x8", "--gram", "9"], "add up"),
        (&["plan", "--matrix", "8x8", "--gram", "5", "--standard"], "cannot be used with"),
    ] {
        let said = muon(Path::new("."), args);
        assert_eq!(said.code, Some(2), "{args:?}: {}", said.err);
        assert!(said.err.contains(word), "{args:?}: {}", said.err);
    }
}
