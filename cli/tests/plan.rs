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
    let file = safetensors(header, 1052);
    let path = dir.path().join("m.safetensors");
    std::fs::write(&path, &file).unwrap();
    let mut from_file = plan(&["--file", path.to_str().unwrap()]);
    let mut from_flags = plan(&["--matrix", "2x8x16", "--adamw", "7"]);
    for value in [&mut from_file, &mut from_flags] {
        value.as_object_mut().unwrap().remove("source");
    }
    assert_eq!(from_file, from_flags);
}

/// A file with this header and so many bytes after it.
fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.resize(file.len() + data, 0);
    file
}

/// A file of zeros with tensors of these names, types and shapes.
fn tensors(path: &Path, tensors: &[(&str, &str, &[usize])]) {
    let (mut entries, mut end) = (Vec::new(), 0);
    for (name, dtype, shape) in tensors {
        let size = match *dtype {
            "I64" => 8,
            "F32" | "I32" => 4,
            "F16" | "BF16" => 2,
            _ => 1,
        };
        let begin = end;
        end += size * shape.iter().product::<usize>();
        entries.push(format!(
            r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#
        ));
    }
    std::fs::write(path, safetensors(&format!("{{{}}}", entries.join(",")), end)).unwrap();
}

fn buckets(plan: &Value) -> Vec<(u64, u64, u64)> {
    let number = |b: &Value, key: &str| b[key].as_u64().unwrap();
    let all = plan["buckets"].as_array().unwrap().iter();
    let mut all: Vec<_> =
        all.map(|b| (number(b, "rows"), number(b, "cols"), number(b, "matrices"))).collect();
    all.sort_unstable();
    all
}

#[test]
fn damaged_files_are_refused_with_what_was_expected() {
    let dir = tempfile::tempdir().unwrap();
    let one = r#"{"a":{"dtype":"F32","shape":[2,4],"data_offsets":[0,32]}}"#;
    let tied = r#"{"a":{"dtype":"F32","shape":[2,4],"data_offsets":[0,32]},"b":{"dtype":"F32","shape":[2,4],"data_offsets":[0,32]}}"#;
    let twice = r#"{"a":{"dtype":"F32","shape":[2,4],"data_offsets":[0,32]},"a":{"dtype":"F32","shape":[2,4],"data_offsets":[32,64]}}"#;
    let wrong = r#"{"a":{"dtype":"F32","shape":[2,5],"data_offsets":[0,32]}}"#;
    for (bytes, words) in [
        (safetensors(one, 31), &["truncated", "32", "31"][..]),
        (safetensors(one, 33), &["1 bytes follow", "32", "33"]),
        (safetensors(tied, 32), &["inside another"]),
        (safetensors(twice, 64), &["`a` twice"]),
        (safetensors(wrong, 32), &["40 bytes", "32"]),
        (safetensors(one, 32)[..40].to_vec(), &["truncated"]),
        (vec![255; 9], &["not a safetensors file"]),
        (Vec::new(), &["not a safetensors file"]),
        (safetensors("[]", 0), &["not a safetensors file"]),
    ] {
        std::fs::write(dir.path().join("m.safetensors"), bytes).unwrap();
        let said = muon(dir.path(), &["plan", "--file", "m.safetensors"]);
        assert_eq!(said.code, Some(1), "{words:?}: {}{}", said.out, said.err);
        for word in [&["m.safetensors"][..], words].concat() {
            assert!(said.err.contains(word), "{word}: {}", said.err);
        }
    }
}

#[test]
fn integers_masks_and_quantisation_are_no_parameters() {
    let dir = tempfile::tempdir().unwrap();
    let layer = |name: &str| format!("model.layers.0.{name}");
    let names = [
        layer("mlp.down_proj.qweight"),
        layer("mlp.down_proj.qzeros"),
        layer("mlp.down_proj.scales"),
        layer("mlp.down_proj.g_idx"),
        layer("mlp.up_proj.weight"),
        layer("attn.bias"),
        layer("attn.packed"),
        layer("attn.flags"),
    ];
    let [qweight, qzeros, scales, g_idx, up, mask, packed, flags] = &names;
    tensors(
        &dir.path().join("q.safetensors"),
        &[
            ("model.embed_tokens.weight", "F16", &[320, 64]),
            (qweight, "I32", &[8, 64]),
            (qzeros, "I32", &[2, 8]),
            (scales, "F16", &[2, 64]),
            (g_idx, "I32", &[64]),
            (up, "F16", &[128, 64]),
            (mask, "F32", &[1, 1, 16, 16]),
            (packed, "U8", &[32, 32]),
            (flags, "BOOL", &[32, 32]),
        ],
    );
    let path = dir.path().join("q.safetensors");
    let value = plan(&["--file", path.to_str().unwrap()]);
    assert_eq!(buckets(&value), [(128, 64, 1)]);
    assert_eq!((&value["muon_elements"], &value["adamw_elements"]), (&8192.into(), &20480.into()));
    let left_out = 512 + 16 + 128 + 64 + 256 + 1024 + 1024;
    assert_eq!(value["left_out"], serde_json::json!({"tensors": 7, "elements": left_out}));
    let text = ok(dir.path(), &["plan", "--file", "q.safetensors"]).out;
    assert!(text.contains("7 tensors with 3024 elements are no parameters"), "{text}");
}

#[test]
fn a_side_of_1_is_a_vector_in_any_rank_and_a_vocabulary_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    tensors(
        &dir.path().join("s.safetensors"),
        &[
            ("features.1.0.attn.logit_scale", "F32", &[3, 1, 1]),
            ("features.1.0.attn.coords", "F32", &[1, 15, 15, 2]),
            ("features.1.0.dwconv.weight", "F32", &[96, 1, 7, 7]),
            ("features.1.0.attn.qkv.weight", "F32", &[288, 96]),
            ("conv1.weight", "F32", &[16, 8, 3]),
            ("mlp.experts.up", "F32", &[4, 32, 8]),
            ("secret.weight", "BF16", &[40000, 8]),
        ],
    );
    let path = dir.path().join("s.safetensors");
    let value = plan(&["--file", path.to_str().unwrap()]);
    // A convolution is one matrix, not 16.
    assert_eq!(buckets(&value), [(16, 24, 1), (32, 8, 4), (288, 96, 1), (40000, 8, 1)]);
    let doubt = value["doubts"][0].as_str().unwrap();
    assert!(doubt.contains("`secret.weight`") && doubt.contains("vocabulary"), "{doubt}");
    let text = ok(dir.path(), &["plan", "--file", "s.safetensors"]).out;
    assert!(text.contains(doubt), "{text}");
}

#[test]
fn what_can_be_two_things_is_refused_until_it_is_said() {
    let dir = tempfile::tempdir().unwrap();
    tensors(&dir.path().join("b.safetensors"), &[("h.1.bank", "F32", &[4, 32, 8])]);
    let route = |routes: &[&str]| {
        let flags: Vec<&str> = routes.iter().flat_map(|r| ["--route", *r]).collect();
        muon(dir.path(), &[&["plan", "--json", "--file", "b.safetensors"][..], &flags].concat())
    };
    let said = route(&[]);
    assert_eq!(said.code, Some(2), "{}", said.out);
    for word in ["`h.1.bank` [4, 32, 8]", "experts", "convolution", "--route"] {
        assert!(said.err.contains(word), "{word}: {}", said.err);
    }
    for (routes, right) in [
        (&["bank=experts"][..], vec![(32, 8, 4)]),
        (&["h.1=convolution"], vec![(4, 256, 1)]),
        (&["h.1=adamw", "h.1.bank=experts"], vec![(32, 8, 4)]),
    ] {
        let said = route(routes);
        assert_eq!(said.code, Some(0), "{routes:?}: {}", said.err);
        assert_eq!(buckets(&serde_json::from_str(&said.out).unwrap()), right, "{routes:?}");
    }
    for (routes, word) in [
        (&["bnk=experts"][..], "bnk"),
        (&["bank=muon"], "experts"),
        (&["bank=head"], "NAME=experts"),
        (&["bank=adamw"], "nothing to orthogonalize"),
    ] {
        let said = route(routes);
        assert_eq!(said.code, Some(2), "{routes:?}: {}", said.err);
        assert!(said.err.contains(word), "{routes:?}: {}", said.err);
    }
}

#[test]
fn folders_of_shards_and_indexes_are_one_model() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let a: (&str, &str, &[usize]) = ("h.0.w", "F32", &[8, 16]);
    let b: (&str, &str, &[usize]) = ("h.1.w", "F32", &[8, 16]);
    let write = |first: &[(&str, &str, &[usize])], second: &[(&str, &str, &[usize])]| {
        tensors(&at(names[0]), first);
        tensors(&at(names[1]), second);
    };
    let index = |map: &[(&str, &str)]| {
        let map: serde_json::Map<String, Value> =
            map.iter().map(|(n, f)| ((*n).to_owned(), (*f).into())).collect();
        let text = serde_json::json!({"metadata": {"total_size": 1024}, "weight_map": map});
        std::fs::write(at("model.safetensors.index.json"), text.to_string()).unwrap();
    };
    let folder = dir.path().to_str().unwrap();
    write(&[a], &[b]);
    let shards = plan(&["--file", folder]);
    assert_eq!(buckets(&shards), [(8, 16, 2)]);
    assert!(shards["source"].as_str().unwrap().ends_with("2 shards"));
    index(&[("h.0.w", names[0]), ("h.1.w", names[1])]);
    let named = at("model.safetensors.index.json");
    for source in [folder, named.to_str().unwrap()] {
        assert_eq!(buckets(&plan(&["--file", source])), [(8, 16, 2)]);
    }
    let refused = |words: &[&str]| {
        let said = muon(dir.path(), &["plan", "--file", folder]);
        assert_eq!(said.code, Some(1), "{words:?}: {}{}", said.out, said.err);
        for word in words {
            assert!(said.err.contains(word), "{word}: {}", said.err);
        }
    };
    // An index that does not agree with the shards.
    index(&[("h.0.w", names[1]), ("h.1.w", names[0])]);
    refused(&["`h.0.w`", "the index says"]);
    index(&[("h.0.w", names[0]), ("h.1.w", names[0])]);
    refused(&["`h.1.w` is not in", names[0]]);
    index(&[("h.0.w", names[0]), ("h.1.w", names[1]), ("h.2.w", names[1])]);
    refused(&["`h.2.w` is not in", names[1]]);
    index(&[("h.0.w", names[0])]);
    std::fs::remove_file(at(names[1])).unwrap();
    tensors(&at(names[0]), &[a, b]);
    refused(&["h.1.w", "not in the index"]);
    index(&[("h.0.w", names[0]), ("h.1.w", names[1])]);
    tensors(&at(names[0]), &[a]);
    refused(&["1 of 2 shards are missing", names[1]]);
    write(&[a], &[a, b]);
    refused(&["`h.0.w`", "and in"]);
    index(&[("h.0.w", "../model.safetensors")]);
    refused(&["../model.safetensors", "beside it"]);
    std::fs::write(&named, r#"{"weight_map":{"a":"x","a":"y"}}"#).unwrap();
    refused(&["twice"]);
    std::fs::write(&named, r#"{"weight_map":{}}"#).unwrap();
    refused(&["no tensor"]);
    // Folders without an index.
    std::fs::remove_file(&named).unwrap();
    std::fs::remove_file(at(names[0])).unwrap();
    refused(&["shard 1 of 2 is missing"]);
    tensors(&at("other.safetensors"), &[a]);
    refused(&["other.safetensors", "no index"]);
    std::fs::remove_file(at(names[1])).unwrap();
    assert_eq!(buckets(&plan(&["--file", folder])), [(8, 16, 1)]);
    std::fs::remove_file(at("other.safetensors")).unwrap();
    refused(&["no *.safetensors"]);
}

#[test]
fn counts_at_the_ends_of_their_types_are_refused_and_large_ones_are_planned() {
    let most = u64::MAX.to_string();
    let million = "1000000x1000000".to_owned();
    let counted = format!("{most}x8x8");
    let rows = format!("{most}x1");
    let square = format!("{most}x{most}");
    let columns = format!("1x{}", u64::MAX / 8);
    for matrix in [&million, &counted, &rows, &square, &columns] {
        let said = muon(Path::new("."), &["plan", "--matrix", matrix]);
        assert_eq!(said.code, Some(2), "{matrix}: {}{}", said.out, said.err);
        assert!(
            said.err.contains("at most") || said.err.contains("fits"),
            "{matrix}: {}",
            said.err
        );
    }
    for args in [&["--adamw", &most][..], &["--adamw", &most, "--workspace-mib", &most]] {
        let said = muon(Path::new("."), &[&["plan", "--matrix", "8x8"][..], args].concat());
        assert_eq!(said.code, Some(2), "{args:?}: {}{}", said.out, said.err);
    }
    let value = plan(&["--matrix", "100000x768x768", "--standard", "--symmetric", "full"]);
    assert_eq!(value["flops"].as_u64().unwrap(), 100_000 * 15 * 2 * 768u64.pow(3));
    // The smallest workspace makes a chunk of each matrix.
    let value = plan(&["--matrix", "100000x768x768", "--workspace-mib", "1"]);
    assert_eq!(value["chunks"].as_u64().unwrap(), 100_000);
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
