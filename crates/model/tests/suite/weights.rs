//! Weights: exact reading, and every way in which a file can be wrong.

use std::path::Path;

use allotrope_graph::DType;
use allotrope_model::{ModelError, Weights};
use proptest::prelude::*;
use safetensors::Dtype;
use serde_json::json;

use crate::checkpoints::{Folder, Stored, assert_says, raw_file, safetensors_file, stored};

fn small() -> Vec<Stored> {
    vec![
        stored("a.weight", Dtype::BF16, &[2, 3], (0..12).collect()),
        stored("b.weight", Dtype::F32, &[3], (100..112).collect()),
        stored("c.scale", Dtype::F8_E4M3, &[5], (50..55).collect()),
        stored("empty", Dtype::F16, &[0, 4], Vec::new()),
    ]
}

fn open_bytes(bytes: &[u8]) -> Result<Weights, ModelError> {
    Weights::open(Folder::new().write("model.safetensors", bytes).path())
}

fn open_header(header: &str, data: usize) -> Result<Weights, ModelError> {
    open_bytes(&raw_file(header, &vec![0; data]))
}

fn index(entries: &[(&str, &str)]) -> serde_json::Value {
    let map: serde_json::Map<_, _> = entries.iter().map(|(name, file)| ((*name).to_owned(), json!(file))).collect();
    json!({"metadata": {"total_size": 1}, "weight_map": map})
}

#[track_caller]
fn assert_holds(weights: &Weights, tensors: &[Stored]) {
    let mut names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(weights.names().collect::<Vec<_>>(), names);
    for expected in tensors {
        let tensor = weights.tensor(&expected.name).unwrap();
        assert_eq!(tensor.name(), expected.name);
        assert_eq!((tensor.shape(), tensor.bytes()), (expected.shape.as_slice(), expected.bytes.as_slice()));
    }
    assert_eq!(weights.total_bytes(), tensors.iter().map(|tensor| tensor.bytes.len() as u64).sum::<u64>());
}

#[test]
fn a_single_file_is_read_exactly() {
    let weights = open_bytes(&safetensors_file(&small())).unwrap();
    assert_holds(&weights, &small());
    let types: Vec<DType> =
        ["a.weight", "b.weight", "c.scale", "empty"].map(|name| weights.tensor(name).unwrap().dtype()).into();
    assert_eq!(types, [DType::Bf16, DType::F32, DType::F8E4M3, DType::F16]);
    assert_eq!(weights.files().count(), 1);
}

#[test]
fn unaligned_data_is_read_exactly() {
    for spaces in 0..8 {
        let header =
            format!("{{\"x\":{{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}}}{}", " ".repeat(spaces));
        let weights = open_bytes(&raw_file(&header, &[1, 2, 3, 4, 5, 6, 7, 8])).unwrap();
        assert_eq!(weights.tensor("x").unwrap().bytes(), [1, 2, 3, 4, 5, 6, 7, 8]);
    }
}

#[test]
fn shards_are_read_through_the_index() {
    let folder = Folder::new();
    let (first, second) = (small(), vec![stored("d", Dtype::I32, &[1], vec![9, 0, 0, 0])]);
    folder.write("one.safetensors", safetensors_file(&first)).write("two.safetensors", safetensors_file(&second));
    let mut entries: Vec<(&str, &str)> = first.iter().map(|tensor| (tensor.name.as_str(), "one.safetensors")).collect();
    entries.push(("d", "two.safetensors"));
    folder.write_json("model.safetensors.index.json", &index(&entries));
    let weights = Weights::open(folder.path()).unwrap();
    assert_holds(&weights, &first.into_iter().chain(second).collect::<Vec<_>>());
    assert_eq!(weights.files().count(), 2);
}

#[cfg(unix)]
#[test]
fn symbolic_links_as_in_the_download_cache_are_followed() {
    let (blobs, folder) = (Folder::new(), Folder::new());
    blobs.write("0123abcd", safetensors_file(&small()));
    std::os::unix::fs::symlink(blobs.path().join("0123abcd"), folder.path().join("model.safetensors")).unwrap();
    assert_holds(&Weights::open(folder.path()).unwrap(), &small());
    let dangling = Folder::new();
    std::os::unix::fs::symlink(blobs.path().join("gone"), dangling.path().join("model.safetensors")).unwrap();
    assert_says(Weights::open(dangling.path()), &["model.safetensors", "cannot open"]);
}

#[test]
fn released_weights_are_read_again() {
    let bytes: Vec<u8> = (0..1_000_000_u32).map(|index| (index % 251) as u8).collect();
    let tensors = [
        stored("before", Dtype::F8_E4M3, &[1000], vec![7; 1000]),
        stored("large", Dtype::F8_E4M3, &[1000, 1000], bytes.clone()),
    ];
    let weights = open_bytes(&safetensors_file(&tensors)).unwrap();
    let large = weights.tensor("large").unwrap();
    large.fetch();
    assert_eq!(large.bytes(), bytes);
    large.release();
    weights.tensor("before").unwrap().release();
    assert_eq!(large.bytes(), bytes);
    assert_eq!(weights.tensor("before").unwrap().bytes(), [7; 1000]);
}

#[test]
fn a_file_cut_off_anywhere_is_refused() {
    let whole = safetensors_file(&small());
    for length in 0..whole.len() {
        assert_says(open_bytes(&whole[..length]), &["model.safetensors", "expected"]);
    }
    let mut longer = whole;
    longer.push(0);
    assert_says(open_bytes(&longer), &["model.safetensors", "ends with its last tensor"]);
}

#[test]
fn header_lengths_beyond_the_file_or_all_reason_are_refused() {
    for (length, words) in
        [(u64::MAX, "at most"), (1 << 40, "at most"), (1000, "the file has 108"), (99_999_999, "the file has 108")]
    {
        let mut file = length.to_le_bytes().to_vec();
        file.extend([b' '; 100]);
        assert_says(open_bytes(&file), &["model.safetensors", &length.to_string(), words]);
    }
}

#[test]
fn wrong_headers_are_refused_with_the_tensor() {
    let entry = |dtype: &str, shape: &str, offsets: &str| {
        format!("{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":{offsets}}}")
    };
    let one = |dtype: &str, shape: &str, offsets: &str| format!("{{\"x\":{}}}", entry(dtype, shape, offsets));
    let two = |first: &str, second: &str| {
        format!("{{\"x\":{},\"y\":{}}}", entry("F8_E4M3", "[4]", first), entry("F8_E4M3", "[4]", second))
    };
    let huge = "[4294967296,4294967296,4294967296]";
    // Eight tensors whose sizes are right one by one, but whose sum leaves 64 bits and comes back to a small number.
    let step = (1_u64 << 61) - 1;
    let sum: Vec<String> = (0..8)
        .map(|n| {
            format!("\"t{n}\":{}", entry("U8", &format!("[{step}]"), &format!("[{},{}]", n * step, (n + 1) * step)))
        })
        .collect();
    for (header, words) in [
        (two("[0,4]", "[2,6]"), ["`y` overlaps x", "byte"]),
        (two("[0,4]", "[0,4]"), ["overlaps", "byte"]),
        (two("[0,4]", "[6,10]"), ["`y` leaves a gap after x", "byte"]),
        (two("[2,6]", "[6,10]"), ["`x` leaves a gap after the header", "byte"]),
        (one("F8_E4M3", "[4]", "[8,4]"), ["`x` has data_offsets [8, 4]", "an ordered pair"]),
        (one("F8_E4M3", "[40]", "[0,40]"), ["`x` has data_offsets [0, 40]", "cut off"]),
        (one("BF16", "[4]", "[0,4]"), ["`x`", "8 bytes for shape [4] of BF16"]),
        (one("F32", "[]", "[0,8]"), ["`x`", "4 bytes for shape [] of F32"]),
        (one("F4", "[3]", "[0,1]"), ["`x`", "2 bytes for shape [3] of F4"]),
        (one("F32", huge, "[0,10]"), ["`x` has shape", "64 bits"]),
        (one("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), ["`x` has 9 dimensions", "at most 8"]),
        (format!("{{{}}}", sum.join(",")), ["data_offsets", "within the 10 bytes"]),
        (one("F31", "[1]", "[0,4]"), ["line 1", "unknown variant"]),
        (one("F32", "[-1]", "[0,4]"), ["line 1", "safetensors header"]),
        (one("F32", "[1]", "[0,4,8]"), ["line 1", "safetensors header"]),
        (one("F32", "[1]", "[0,18446744073709551616]"), ["line 1", "safetensors header"]),
        ("{\"x\":{\"dtype\":\"F32\",\"shape\":[1]}}".to_owned(), ["line 1", "data_offsets"]),
        ("[]".to_owned(), ["line 1", "safetensors header"]),
        ("{}trailing".to_owned(), ["line 1", "safetensors header"]),
        (format!("{{\"x\":{}}}", "[".repeat(5000)), ["line 1", "safetensors header"]),
    ] {
        assert_says(open_header(&header, 10), &["model.safetensors", words[0], words[1]]);
    }
}

#[test]
fn a_name_that_occurs_twice_is_refused() {
    let entry = "{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":";
    let header = format!("{{\"x\":{entry}[0,4]}},\"x\":{entry}[4,8]}}}}");
    assert_says(open_header(&header, 8), &["`x` occurs twice", "once"]);

    let folder = Folder::new();
    let same = || safetensors_file(&[stored("x", Dtype::F32, &[1], vec![0; 4])]);
    folder.write("one.safetensors", same()).write("two.safetensors", same());
    folder.write_json("model.safetensors.index.json", &index(&[("x", "one.safetensors"), ("y", "two.safetensors")]));
    assert_says(Weights::open(folder.path()), &["two.safetensors", "`x` occurs twice", "one.safetensors"]);
}

#[test]
fn an_index_cannot_lead_out_of_the_folder() {
    let outer = Folder::new();
    outer.write("secret.safetensors", safetensors_file(&small()));
    let inner = outer.path().join("inner");
    std::fs::create_dir_all(inner.join("sub")).unwrap();
    std::fs::write(inner.join("sub/x.safetensors"), safetensors_file(&small())).unwrap();
    let absolute = outer.path().join("secret.safetensors").display().to_string();
    for name in [
        "../secret.safetensors",
        &absolute,
        "sub/x.safetensors",
        "sub/../../secret.safetensors",
        "..",
        ".",
        "",
        "./x",
        "x/",
        "a\\b",
        "nul\0byte",
    ] {
        std::fs::write(inner.join("model.safetensors.index.json"), index(&[("a.weight", name)]).to_string()).unwrap();
        assert_says(Weights::open(&inner), &["model.safetensors.index.json", "`weight_map`", "plain names of files"]);
    }
}

#[test]
fn missing_shards_and_disagreeing_indexes_are_named() {
    let folder = Folder::new();
    folder.write("one.safetensors", safetensors_file(&small()));
    folder.write_json(
        "model.safetensors.index.json",
        &index(&[("a.weight", "one.safetensors"), ("z", "two.safetensors")]),
    );
    assert_says(Weights::open(folder.path()), &["two.safetensors", "cannot open"]);
    folder.write_json(
        "model.safetensors.index.json",
        &index(&[("a.weight", "one.safetensors"), ("z", "one.safetensors")]),
    );
    assert_says(Weights::open(folder.path()), &["index.json", "`z` is in none of the shards", "one.safetensors"]);
    folder.write("two.safetensors", safetensors_file(&[stored("z", Dtype::F32, &[1], vec![0; 4])]));
    folder.write_json(
        "model.safetensors.index.json",
        &index(&[("a.weight", "two.safetensors"), ("z", "one.safetensors")]),
    );
    assert_says(Weights::open(folder.path()), &["index.json", "`a.weight` is in one.safetensors", "two.safetensors"]);
    for (content, word) in [
        ("{}", "weight_map"),
        ("{\"weight_map\":{}}", "weight_map"),
        ("{\"weight_map\":{\"a\":1}}", "line 1"),
        ("{\"weight", "line 1"),
    ] {
        folder.write("model.safetensors.index.json", content);
        assert_says(Weights::open(folder.path()), &["index.json", word]);
    }
}

#[test]
fn folders_without_weights_say_what_is_missing() {
    let folder = Folder::new();
    assert_says(Weights::open(folder.path()), &["has no weights", "model.safetensors"]);
    folder.write("pytorch_model.bin", "x");
    assert_says(Weights::open(folder.path()), &["pickle", "model.safetensors"]);
    std::fs::create_dir(folder.path().join("model.safetensors")).unwrap();
    assert_says(Weights::open(folder.path()), &["model.safetensors", "not a regular file"]);
    assert_says(Weights::open(Path::new("/no such folder")), &["has no weights"]);
}

#[test]
fn expectations_are_checked_and_named() {
    let weights = open_bytes(&safetensors_file(&small())).unwrap();
    let shape = [("vocab_size", 2), ("hidden_size", 3)];
    assert_eq!(weights.expect("a.weight", &[DType::F32, DType::Bf16], &shape).unwrap().bytes().len(), 12);
    assert_says(weights.expect("no.weight", &[DType::F32], &shape), &["model.safetensors", "`no.weight` is missing"]);
    assert_says(
        weights.expect("a.weight", &[DType::F32, DType::F16], &shape),
        &["`a.weight` has dtype bf16", "f32 or f16"],
    );
    let result = weights.expect("a.weight", &[DType::Bf16], &[("vocab_size", 4), ("hidden_size", 3)]);
    assert_says(result, &["`a.weight` has shape [2, 3]", "[4 (vocab_size), 3 (hidden_size)]", "config.json"]);
    assert!(weights.expect("a.weight", &[DType::Bf16], &[("x", 2)]).is_err());
    assert!(weights.expect("a.weight", &[DType::Bf16], &[("x", 2), ("y", 3), ("z", 1)]).is_err());
    let integers = open_bytes(&safetensors_file(&[stored("n", Dtype::I64, &[1], vec![0; 8])])).unwrap();
    assert_says(integers.tensor("n"), &["`n` has dtype I64", "BF16"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn changed_bytes_give_an_error_or_tensors_that_fit(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut file = safetensors_file(&small());
        for (place, byte) in changes {
            // Mostly the header: in the data any byte is right.
            let place = place.index(file.len());
            file[place] = byte;
        }
        if let Ok(weights) = open_bytes(&file) {
            for name in weights.names() {
                if let Ok(tensor) = weights.tensor(name) {
                    let elements: usize = tensor.shape().iter().product();
                    prop_assert_eq!(tensor.bytes().len(), elements * tensor.dtype().size_in_bytes());
                }
            }
        }
    }

    #[test]
    fn any_tensors_written_by_the_format_are_read_back(
        shapes in prop::collection::vec((prop::collection::vec(0_usize..5, 0..4), 0_usize..4), 0..8),
        fill in any::<u8>(),
    ) {
        let types = [(Dtype::F32, 4), (Dtype::BF16, 2), (Dtype::F16, 2), (Dtype::F8_E4M3, 1)];
        let tensors: Vec<Stored> = shapes.iter().enumerate().map(|(number, (shape, dtype))| {
            let (dtype, size) = types[*dtype];
            let length = shape.iter().product::<usize>() * size;
            let bytes = (0..length).map(|index| (index as u8).wrapping_mul(31).wrapping_add(fill)).collect();
            stored(&format!("layer.{number}"), dtype, shape, bytes)
        }).collect();
        assert_holds(&open_bytes(&safetensors_file(&tensors)).unwrap(), &tensors);
    }
}
