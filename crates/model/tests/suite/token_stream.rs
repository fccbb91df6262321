//! Streaming: pieces of whole characters that make up the whole text.

use std::sync::LazyLock;

use allotrope_model::Tokenizer;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::tokenizer::{any_text, open, shipped_file};

static BYTE_LEVEL: LazyLock<Tokenizer> = LazyLock::new(|| open(&shipped_file()));

/// A tokenizer as SentencePiece models have it: spaces are `▁`, the one in front of a text is dropped, characters that
/// are no token are written byte by byte.
static SENTENCE_PIECE: LazyLock<Tokenizer> = LazyLock::new(|| {
    let mut vocabulary = serde_json::Map::new();
    let words = ["<unk>", "<s>", "</s>", "▁", "▁Hello", "▁world", "Hello", "!", "ab", "▁a", "\n"];
    let bytes: Vec<String> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
    let letters: Vec<String> = ('a'..='z').map(String::from).collect();
    for token in words.into_iter().chain(bytes.iter().map(String::as_str)).chain(letters.iter().map(String::as_str)) {
        let id = vocabulary.len();
        vocabulary.entry(token).or_insert(json!(id));
    }
    let special = |id: u32, content: &str| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    open(&json!({"version": "1.0", "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": Value::Object(vocabulary), "merges": []}}))
});

/// The pieces of a stream, the rest last.
fn pieces(tokenizer: &Tokenizer, ids: &[u32], skip: bool) -> Vec<String> {
    let mut stream = tokenizer.stream(skip);
    let mut pieces: Vec<String> = ids.iter().filter_map(|id| stream.push(*id).unwrap()).collect();
    pieces.extend(stream.flush().unwrap());
    assert_eq!(stream.flush().unwrap(), None, "a second flush has nothing to give");
    pieces
}

/// Ids that spell `text` byte by byte.
fn byte_ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    text.bytes().map(|byte| tokenizer.token_id(&format!("<0x{byte:02X}>")).unwrap()).collect()
}

#[test]
fn a_character_of_several_tokens_comes_whole() {
    for text in ["é", "漢", "👩‍👧"] {
        let ids = BYTE_LEVEL.encode(text, false).unwrap();
        assert!(ids.len() > 1, "{text} is one token, so this tests nothing");
        let pieces = pieces(&BYTE_LEVEL, &ids, false);
        assert_eq!(pieces.concat(), text);
        assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
    }
    let ids = BYTE_LEVEL.encode("é", false).unwrap();
    let mut stream = BYTE_LEVEL.stream(false);
    assert_eq!(stream.push(ids[0]).unwrap(), None);
    assert_eq!(stream.push(ids[1]).unwrap().as_deref(), Some("é"));
}

#[test]
fn an_incomplete_character_is_given_at_the_end_as_a_replacement() {
    let ids = BYTE_LEVEL.encode("漢", false).unwrap();
    let mut stream = BYTE_LEVEL.stream(false);
    assert_eq!(stream.push(ids[0]).unwrap(), None);
    assert_eq!(stream.flush().unwrap().as_deref(), Some("\u{fffd}"));
    assert_eq!(
        stream.push(BYTE_LEVEL.token_id("a").unwrap()).unwrap().as_deref(),
        Some("a"),
        "a flushed stream starts afresh"
    );
}

#[test]
fn special_tokens_are_shown_or_skipped() {
    let ids = BYTE_LEVEL.encode("Hi<|eot|>there", false).unwrap();
    assert_eq!(pieces(&BYTE_LEVEL, &ids, false).concat(), "Hi<|eot|>there");
    assert_eq!(pieces(&BYTE_LEVEL, &ids, true).concat(), "Hithere");
}

#[test]
fn the_space_in_front_of_a_text_is_dropped_once() {
    let id = |token: &str| SENTENCE_PIECE.token_id(token).unwrap();
    let ids = [id("<s>"), id("▁Hello"), id("</s>"), id("▁world"), id("!"), id("▁"), id("▁a")];
    for skip in [false, true] {
        let whole = SENTENCE_PIECE.decode(&ids, skip).unwrap();
        assert_eq!(pieces(&SENTENCE_PIECE, &ids, skip).concat(), whole);
    }
    assert_eq!(pieces(&SENTENCE_PIECE, &ids, true), ["Hello", " world", "!", " ", " a"]);
    let mut spelled = vec![id("▁Hello")];
    spelled.extend(byte_ids(&SENTENCE_PIECE, "漢é"));
    assert_eq!(pieces(&SENTENCE_PIECE, &spelled, true), ["Hello", "漢", "é"]);
}

#[test]
fn bytes_that_never_become_characters_do_not_pile_up() {
    let invalid = SENTENCE_PIECE.token_id("<0xFF>").unwrap();
    let mut stream = SENTENCE_PIECE.stream(false);
    let given: usize = (0..1000).filter_map(|_| stream.push(invalid).unwrap()).map(|piece| piece.chars().count()).sum();
    assert!(given > 900, "only {given} of 1000 were given");
    let bytes = pieces(&BYTE_LEVEL, &vec![BYTE_LEVEL.token_id("ÿ").unwrap(); 1000], false);
    assert_eq!(bytes.len(), 1000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn pieces_make_up_the_text_for_any_ids(ids in prop::collection::vec(0_u32..1100, 0..60), skip in any::<bool>()) {
        prop_assert_eq!(pieces(&BYTE_LEVEL, &ids, skip).concat(), BYTE_LEVEL.decode(&ids, skip).unwrap());
    }

    #[test]
    fn pieces_make_up_the_text_and_are_whole(text in any_text()) {
        let ids = BYTE_LEVEL.encode(&text, false).unwrap();
        let pieces = pieces(&BYTE_LEVEL, &ids, false);
        prop_assert_eq!(pieces.concat(), text.as_str());
        prop_assert!(text.contains('\u{fffd}') || pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{:?}", pieces);
    }

    #[test]
    fn neighbours_that_change_each_other_are_streamed_right(
        parts in prop::collection::vec(prop_oneof![
            prop::sample::select(vec!["<s>", "</s>", "▁", "▁Hello", "▁world", "Hello", "!", "ab", "▁a", "\n", "x"])
                .prop_map(|token| vec![SENTENCE_PIECE.token_id(token).unwrap()]),
            any::<char>().prop_filter("given as itself", |c| *c != '\u{fffd}').prop_map(|c| byte_ids(&SENTENCE_PIECE, c.encode_utf8(&mut [0; 4]))),
        ], 0..30),
        skip in any::<bool>(),
    ) {
        let ids = parts.concat();
        prop_assert_eq!(pieces(&SENTENCE_PIECE, &ids, skip).concat(), SENTENCE_PIECE.decode(&ids, skip).unwrap());
    }
}
