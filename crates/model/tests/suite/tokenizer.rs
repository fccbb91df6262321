//! The tokenizer gives what the `tokenizers` library gives, and refuses what that would stumble over.

use std::sync::LazyLock;

use allotrope_model::{ModelConfig, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::checkpoints::{Folder, assert_says, shipped};

/// `tokenizer.json` of the shipped model: byte-level byte-pair encoding.
pub(crate) fn shipped_file() -> Value {
    serde_json::from_slice(&std::fs::read(shipped("tiny-chat").join("tokenizer.json")).unwrap()).unwrap()
}

pub(crate) fn open(file: &Value) -> Tokenizer {
    Tokenizer::open(Folder::new().write_json("tokenizer.json", file).path()).unwrap()
}

/// The shipped tokenizer in the forms that real ones have.
fn variants() -> Vec<(&'static str, Value)> {
    let base = shipped_file();
    let with = |changes: &[(&str, Value)]| crate::checkpoints::patched(base.clone(), changes);
    let merges: Vec<Value> = base["model"]["merges"].as_array().unwrap().clone();
    let pairs = merges.iter().map(|merge| match merge {
        Value::String(merge) => merge.split_once(' ').map(|(first, second)| json!([first, second])).unwrap(),
        pair => pair.clone(),
    });
    let pairs: Vec<Value> = pairs.collect();
    let mut lines = vec![json!("#version: 0.2")];
    lines
        .extend(pairs.iter().map(|pair| json!(format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()))));
    let split = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s+(?!\\S)|\\s+"}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]});
    let begin = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [0], "tokens": ["<|begin|>"]}}});
    vec![
        ("as shipped", base.clone()),
        ("merges as pairs", with(&[("model.merges", Value::Array(pairs))])),
        ("merges as lines", with(&[("model.merges", Value::Array(lines))])),
        (
            "whole words first",
            with(&[("model.ignore_merges", json!(true)), ("pre_tokenizer", split), ("post_processor", begin)]),
        ),
        ("no merges", with(&[("model.merges", json!([]))])),
        ("normalized", with(&[("normalizer", json!({"type": "NFC"}))])),
        ("unknown token", with(&[("model.unk_token", json!("<|pad|>"))])),
        ("no pre-tokenizer", with(&[("pre_tokenizer", Value::Null)])),
    ]
}

/// Each variant, opened by us and by the library.
static OPENED: LazyLock<Vec<(&str, Tokenizer, tokenizers::Tokenizer)>> = LazyLock::new(|| {
    let both = |(name, file): (&'static str, Value)| {
        (name, open(&file), tokenizers::Tokenizer::from_bytes(file.to_string()).unwrap())
    };
    variants().into_iter().map(both).collect()
});

/// Text as people and attackers write it: words of the training data, other scripts, marks, spaces, special tokens.
pub(crate) fn any_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[a-zA-Z]{1,12}",
        2 => prop::sample::select(vec!["What is", " the capital of ", "Repeat after me: ", "7 + 8 = 15", "don't", " story", "<|eot|>", "<|begin|>", "<|start_header|>user"]).prop_map(str::to_owned),
        2 => "[ \\t\\r\\n]{1,5}",
        1 => "[0-9]{1,7}",
        1 => "[!-/:-@\\[-`{-~]{1,4}",
        2 => "\\PC{1,6}",
        1 => any::<char>().prop_map(String::from),
        1 => prop::sample::select(vec!["é", "e\u{301}", "漢字", "👩‍👩‍👧", "مرحبا", "\u{0}", "ﬁ", "Ġ", "İ"]).prop_map(str::to_owned),
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn ids_are_those_of_the_library(text in any_text(), special in any::<bool>()) {
        for (name, ours, library) in OPENED.iter() {
            let expected = library.encode_fast(text.as_str(), special).unwrap();
            prop_assert_eq!(ours.encode(&text, special).unwrap(), expected.get_ids(), "{}", name);
        }
    }

    #[test]
    fn text_is_that_of_the_library(ids in prop::collection::vec(0_u32..1100, 0..40), skip in any::<bool>()) {
        for (name, ours, library) in OPENED.iter() {
            prop_assert_eq!(ours.decode(&ids, skip).unwrap(), library.decode(&ids, skip).unwrap(), "{}", name);
        }
    }

    #[test]
    fn text_comes_back_through_the_ids(text in any_text()) {
        let ours = &OPENED[0].1;
        prop_assert_eq!(ours.decode(&ours.encode(&text, false).unwrap(), false).unwrap(), text);
    }
}

#[test]
fn long_words_are_merged_as_in_the_library() {
    let text = "abcab".repeat(4000);
    for (name, ours, library) in OPENED.iter() {
        assert_eq!(
            ours.encode(&text, false).unwrap(),
            library.encode_fast(text.as_str(), false).unwrap().get_ids(),
            "{name}"
        );
    }
}

#[test]
fn tokens_ids_and_special_tokens_are_known() {
    let tokenizer = Tokenizer::open(&shipped("tiny-chat")).unwrap();
    assert_eq!((tokenizer.token_id("<|eot|>"), tokenizer.token(4).as_deref()), (Some(4), Some("<|eot|>")));
    assert!(tokenizer.is_special(4) && !tokenizer.is_special(100) && !tokenizer.is_special(u32::MAX));
    assert_eq!((tokenizer.token_id("no such token"), tokenizer.token(1024)), (None, None));
    assert_eq!(tokenizer.id_bound(), 1024);
    let ids = tokenizer.encode("<|begin|>Hi", false).unwrap();
    assert_eq!(ids[0], 0);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "Hi");
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "<|begin|>Hi");
    assert_eq!(tokenizer.decode(&[5000, u32::MAX], false).unwrap(), "");
}

#[test]
fn ids_beyond_the_embedding_are_refused() {
    let folder = shipped("tiny-chat");
    let mut config = ModelConfig::open(&folder).unwrap();
    let tokenizer = Tokenizer::open(&folder).unwrap();
    tokenizer.check_vocabulary(&config).unwrap();
    config.vocab_size = 1023;
    assert_says(
        tokenizer.check_vocabulary(&config),
        &["tokenizer.json", "largest token id is 1023", "vocab_size = 1023"],
    );
}

#[test]
fn broken_files_are_refused_with_file_and_part() {
    let with = |changes: &[(&str, Value)]| crate::checkpoints::patched(shipped_file(), changes).to_string();
    let template =
        |piece: Value| json!({"type": "TemplateProcessing", "single": [piece], "pair": [], "special_tokens": {}});
    let cases: Vec<(String, [&str; 2])> = vec![
        ("".to_owned(), ["line 1", "tokenizer"]),
        ("{}".to_owned(), ["line 1", "missing field `model`"]),
        ("[]".to_owned(), ["line 1", "tokenizer"]),
        (with(&[("version", json!("2.0"))]), ["`version` is \"2.0\"", "1.0"]),
        (with(&[("model", Value::Null)]), ["line 1", "tokenizer"]),
        (with(&[("model.type", json!("BPE2"))]), ["`model`", "BPE2"]),
        (with(&[("model.vocab", json!({"a": -1}))]), ["line 1", "u32"]),
        (with(&[("model.vocab", json!({"a": 1.5}))]), ["line 1", "u32"]),
        (
            with(&[("model.vocab", json!({"a": 1})), ("model.merges", json!([["a", "b"]]))]),
            ["merge 0: `b` is not in the vocabulary", "line 1"],
        ),
        (with(&[("model.merges", json!(["a b c"]))]), ["not two tokens", "line 1"]),
        (with(&[("model.merges", json!([["a"]]))]), ["not two tokens", "line 1"]),
        (with(&[("model.merges", json!([["a", "b", "c"]]))]), ["not two tokens", "line 1"]),
        (with(&[("pre_tokenizer", json!({"type": "Magic"}))]), ["`pre_tokenizer` is \"Magic\"", "knows"]),
        (
            with(&[(
                "pre_tokenizer",
                json!({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false}),
            )]),
            ["`pre_tokenizer` is \"Split\"", "knows"],
        ),
        (with(&[("normalizer", json!(7))]), ["`normalizer`", "knows"]),
        (with(&[("decoder", json!({"type": "ByteLevels"}))]), ["`decoder` is \"ByteLevels\"", "knows"]),
        (
            with(&[("post_processor", template(json!({"SpecialToken": {"id": "<s>", "type_id": 0}})))]),
            ["`post_processor", "<s>"],
        ),
        (
            with(&[("post_processor", template(json!({"Sequence": {"id": "B", "type_id": 0}})))]),
            ["`post_processor.single`", "sequence A"],
        ),
        (
            with(&[(
                "added_tokens",
                json!([{"id": 7, "content": "<|begin|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}]),
            )]),
            ["`added_tokens`", "`<|begin|>` has id 7"],
        ),
        (with(&[("added_tokens", json!([{"id": 7}]))]), ["line 1", "content"]),
        (
            "{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]},\"decoder\":{\"type\":".to_owned(),
            ["line 1", "EOF"],
        ),
        (format!("{{\"decoder\":{}", "[".repeat(10_000)), ["line 1", "recursion"]),
        (format!("{{\"model\":{{\"vocab\":{}", "[".repeat(10_000)), ["line 1", "tokenizer"]),
    ];
    for (content, words) in cases {
        let result = Tokenizer::open(Folder::new().write("tokenizer.json", &content).path());
        assert_says(result, &["tokenizer.json", words[0], words[1]]);
    }
    assert_says(Tokenizer::open(Folder::new().path()), &["tokenizer.json", "cannot open"]);
    assert_says(
        Tokenizer::open(Folder::new().write("tokenizer.json", [b'{', 0xff]).path()),
        &["tokenizer.json", "byte 1 is not UTF-8"],
    );
}

#[test]
fn ids_far_apart_and_merges_before_the_vocabulary_work() {
    let sparse =
        json!({"model": {"type": "BPE", "vocab": {"a": 5, "b": 4_000_000_000_u32, "ab": 7}, "merges": [["a", "b"]]}});
    let tokenizer = open(&sparse);
    assert_eq!(tokenizer.encode("abba", false).unwrap(), [7, 4_000_000_000, 5]);
    assert_eq!(tokenizer.id_bound(), 4_000_000_001);
    let reordered = "{\"model\":{\"type\":\"BPE\",\"merges\":[[\"a\",\"b\"]],\"vocab\":{\"a\":0,\"b\":1,\"ab\":2}}}";
    let tokenizer = Tokenizer::open(Folder::new().write("tokenizer.json", reordered).path()).unwrap();
    assert_eq!(tokenizer.encode("abba", false).unwrap(), [2, 1, 0]);
}

#[test]
fn other_kinds_of_models_are_read_by_the_library() {
    let words = json!({"pre_tokenizer": {"type": "Whitespace"}, "model": {"type": "WordLevel", "vocab": {"hello": 0, "world": 1, "<unk>": 2}, "unk_token": "<unk>"}});
    assert_eq!(open(&words).encode("hello big world", false).unwrap(), [0, 2, 1]);
    let unigram = json!({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0], ["b", -1.0], ["ab", -1.5]], "byte_fallback": false}});
    assert_eq!(open(&unigram).encode("abb", false).unwrap(), [3, 2]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn changed_bytes_give_an_error_or_a_tokenizer_that_works(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), text in any_text()) {
        let small = json!({"version": "1.0",
            "added_tokens": [{"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
            "normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": {"<s>": 0, "a": 1, "b": 2, "c": 3, "ab": 4, "abc": 5, "Ġ": 6}, "merges": [["a", "b"], ["ab", "c"]]}});
        let mut bytes = small.to_string().into_bytes();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        // What opens must work or say why it does not; a panic would fail the test.
        let result = Tokenizer::open(Folder::new().write("tokenizer.json", bytes).path())
            .and_then(|tokenizer| tokenizer.decode(&tokenizer.encode(&text, true)?, false));
        if let Err(error) = result {
            prop_assert!(error.to_string().contains("tokenizer.json"), "{}", error);
        }
    }
}
