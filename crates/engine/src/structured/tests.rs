//! Tests of structured output with the tokenizer of the test model: what may be written is what was asked for, and nothing else.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::Path;
use std::sync::LazyLock;

use allotrope_model::Tokenizer;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::*;
use crate::sampling::{Sampler, SamplingContext, SamplingParams, SamplingScratch, StructuredOutput, TokenCounts};

const END_TOKENS: [u32; 2] = [1, 4];
/// More logits than the tokenizer has tokens, as padded models have.
const VOCABULARY: usize = 1024 + 40;

struct Model {
    tokenizer: Tokenizer,
    compiler: GrammarCompiler,
}

static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/models/tiny-chat");
    let tokenizer = Tokenizer::open(&folder).unwrap();
    let compiler = GrammarCompiler::new(&tokenizer, VOCABULARY, &END_TOKENS).unwrap();
    Model { tokenizer, compiler }
});

fn compile(output: &StructuredOutput) -> Grammar {
    MODEL.compiler.compile(output).unwrap_or_else(|error| panic!("{output:?}: {error}"))
}

fn allowed(matcher: &mut GrammarMatcher) -> Vec<u32> {
    let mut logits = vec![0.0; VOCABULARY];
    matcher.mask(&mut logits).unwrap();
    let open = |(token, logit): (usize, &f32)| (*logit == 0.0).then(|| u32::try_from(token).unwrap());
    logits.iter().enumerate().filter_map(open).collect()
}

/// Text that a walk over random allowed tokens writes. After `free` of them it takes what closes a text: an end token if one is
/// allowed, else the first of `closing` that is.
fn walk(grammar: &Grammar, seed: u64, free: usize, closing: &[&str]) -> String {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut matcher = grammar.matcher();
    let mut tokens = Vec::new();
    loop {
        assert!(tokens.len() < free + 400, "no end in sight: {:?}", MODEL.tokenizer.decode(&tokens, false));
        let open = allowed(&mut matcher);
        assert!(open.iter().all(|token| MODEL.tokenizer.token_bytes(*token).is_some()), "an id without a token");
        let end = open.iter().copied().find(|token| END_TOKENS.contains(token));
        assert!(!matcher.is_finished() || open == END_TOKENS, "a finished text only ends: {open:?}");
        let drawn = open[random.next_u64() as usize % open.len()];
        let close =
            || closing.iter().find_map(|text| open.iter().copied().find(|token| bytes(*token) == text.as_bytes()));
        let token = match end {
            _ if tokens.len() < free => drawn,
            Some(end) => end,
            None => close().unwrap_or(drawn),
        };
        matcher.accept(token).unwrap();
        if END_TOKENS.contains(&token) {
            return MODEL.tokenizer.decode(&tokens, false).unwrap();
        }
        assert!(!MODEL.tokenizer.is_special(token), "a special token in a text");
        tokens.push(token);
    }
}

fn bytes(token: u32) -> Vec<u8> {
    MODEL.tokenizer.token_bytes(token).unwrap_or_default()
}

/// Whether the grammar lets `text` be written and end, one token of its own tokenizing after the other.
fn accepts(grammar: &Grammar, text: &str) -> bool {
    let mut matcher = grammar.matcher();
    let tokens = MODEL.tokenizer.encode(text, false).unwrap();
    tokens.iter().all(|token| {
        let open = allowed(&mut matcher).contains(token);
        assert_eq!(matcher.accept(*token).is_ok(), open, "the mask and the matcher agree");
        open
    }) && allowed(&mut matcher).contains(&END_TOKENS[0])
}

/// What JSON Schema says of `value`, for the keywords that these tests use.
fn fulfils(schema: &Value, value: &Value) -> bool {
    let Some(schema) = schema.as_object() else { return schema == &Value::Bool(true) };
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let count = |value: &Value| match value {
        Value::String(text) => text.chars().count() as f64,
        Value::Array(items) => items.len() as f64,
        _ => f64::NAN,
    };
    schema.iter().all(|(keyword, wanted)| match keyword.as_str() {
        "type" => match wanted.as_str().unwrap() {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
            "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            "null" => value.is_null(),
            other => panic!("type {other}"),
        },
        "enum" => wanted.as_array().unwrap().contains(value),
        "const" => wanted == value,
        "anyOf" => wanted.as_array().unwrap().iter().any(|schema| fulfils(schema, value)),
        "minimum" => number(value) >= number(wanted),
        "maximum" => number(value) <= number(wanted),
        "minLength" | "minItems" => count(value) >= number(wanted),
        "maxLength" | "maxItems" => count(value) <= number(wanted),
        "pattern" => regex::Regex::new(wanted.as_str().unwrap()).unwrap().is_match(value.as_str().unwrap()),
        "items" => value.as_array().unwrap().iter().all(|item| fulfils(wanted, item)),
        "required" => wanted.as_array().unwrap().iter().all(|name| value.get(name.as_str().unwrap()).is_some()),
        "properties" => value.as_object().unwrap().iter().all(|(name, member)| {
            wanted.get(name).map_or(schema.get("additionalProperties") != Some(&json!(false)), |s| fulfils(s, member))
        }),
        "additionalProperties" | "$defs" => true,
        other => panic!("keyword {other}"),
    })
}

fn schemas() -> Vec<Value> {
    let object = |properties: Value, required: Value| {
        json!({
            "type": "object", "properties": properties, "required": required, "additionalProperties": false,
        })
    };
    vec![
        object(
            json!({
                "name": { "type": "string", "minLength": 1, "maxLength": 12 },
                "age": { "type": "integer", "minimum": 0, "maximum": 150 },
                "tags": { "type": "array", "items": { "enum": ["a", "b", 3, null] }, "minItems": 1, "maxItems": 3 },
            }),
            json!(["name", "age"]),
        ),
        json!({ "anyOf": [{ "type": "null" }, { "type": "number", "minimum": -1.5, "maximum": 2.5 }, { "const": "no" }] }),
        json!({ "type": "string", "pattern": "^[a-z]{2,5}-[0-9]{2}$" }),
        json!({ "type": "array", "items": { "type": "boolean" }, "maxItems": 4 }),
        object(
            json!({ "inner": object(json!({ "deep": { "type": "integer", "minimum": -9, "maximum": 9 } }), json!(["deep"])) }),
            json!(["inner"]),
        ),
        json!({ "enum": ["<|eot|>", "<|end_of_text|>", "{\"\u{e9}\u{4e2d}\\"] }),
    ]
}

const CLOSING_JSON: [&str; 6] = ["\"", "}", "]", ":", "1", "n"];
const GRAMMAR: &str = r#"
start: sum
sum: product ("+" product)*
product: value ("*" value)*
value: NUMBER | "(" sum ")"
NUMBER: /[0-9]{1,3}/
"#;
const PATTERNS: [&str; 6] = [
    "[a-f0-9]{4}(-[a-f0-9]{4}){0,2}",
    "(yes|no|maybe)!?",
    "a/b\\\\/c\nd",
    "\\d{3}\\.\\w{1,6}é?",
    "(a*)*b",
    "x?<\\|eot\\|>",
];

/// Whether `text` is a sum as [`GRAMMAR`] has it.
fn is_sum(text: &str) -> bool {
    let value = regex::Regex::new(r"\((?:[0-9]{1,3})(?:[+*][0-9]{1,3})*\)").unwrap();
    let mut text = text.to_owned();
    while value.is_match(&text) {
        text = value.replace_all(&text, "1").into_owned();
    }
    regex::Regex::new(r"^[0-9]{1,3}(?:[+*][0-9]{1,3})*$").unwrap().is_match(&text)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_walk_over_allowed_tokens_writes_what_the_schema_accepts(seed: u64, free in 0usize..40) {
        for schema in schemas() {
            let text = walk(&compile(&StructuredOutput::Json(schema.clone())), seed, free, &CLOSING_JSON);
            let value: Result<Value, _> = serde_json::from_str(&text);
            prop_assert!(value.as_ref().is_ok_and(|value| fulfils(&schema, value)), "{} for {}", text, schema);
            prop_assert!(!text.contains(['\n', '\t']), "white space runs: {}", text);
        }
    }

    #[test]
    fn a_walk_over_allowed_tokens_writes_a_json_object(seed: u64, free in 0usize..40) {
        let text = walk(&compile(&StructuredOutput::JsonObject), seed, free, &CLOSING_JSON);
        // An exponent may be larger than a parser takes, so its digits are replaced by zeros.
        let exponents = regex::Regex::new("[eE][+-]?[0-9]+").unwrap();
        let small = exponents.replace_all(&text, |found: &regex::Captures<'_>| found[0].replace(char::is_numeric, "0"));
        prop_assert!(serde_json::from_str::<Value>(&small).is_ok_and(|value| value.is_object()), "{}", text);
    }

    #[test]
    fn a_walk_over_allowed_tokens_writes_what_the_expression_matches_as_a_whole(seed: u64, free in 0usize..30) {
        for pattern in PATTERNS {
            let text = walk(&compile(&StructuredOutput::Regex(pattern.to_owned())), seed, free, &["b"]);
            let whole = regex::Regex::new(&format!("^(?:{pattern})$")).unwrap();
            prop_assert!(whole.is_match(&text), "{:?} for {}", text, pattern);
        }
    }

    #[test]
    fn a_walk_over_allowed_tokens_writes_one_of_the_choices(
        seed: u64, choices in proptest::collection::vec("[ -~é中\n\"\\\\]{1,12}", 1..20),
    ) {
        let grammar = compile(&StructuredOutput::Choice(choices.clone()));
        let text = walk(&grammar, seed, 20, &[]);
        prop_assert!(choices.contains(&text), "{:?} is none of {:?}", text, choices);
        prop_assert!(choices.iter().all(|choice| accepts(&grammar, choice)), "{:?}", choices);
    }

    #[test]
    fn a_walk_over_allowed_tokens_writes_what_the_grammar_derives(seed: u64, free in 0usize..40) {
        let text = walk(&compile(&StructuredOutput::Grammar(GRAMMAR.to_owned())), seed, free, &[")", "1"]);
        prop_assert!(is_sum(&text), "{}", text);
    }

    #[test]
    fn whatever_is_asked_for_is_compiled_or_refused(text in "[ -~\n]{0,60}", depth in 0usize..80) {
        let schema = (0..depth).fold(json!({ "type": text }), |inner, _| json!({ "properties": { "p": inner } }));
        for output in [
            StructuredOutput::Regex(text.clone()),
            StructuredOutput::Grammar(text.clone()),
            StructuredOutput::Grammar(format!("start: {text}")),
            StructuredOutput::Json(schema),
            StructuredOutput::Json(json!({ "pattern": text, "type": "string" })),
            StructuredOutput::Json(json!({ "$ref": text })),
        ] {
            match MODEL.compiler.compile(&output) {
                Ok(grammar) => { allowed(&mut grammar.matcher()); }
                Err(error) => prop_assert!(!error.to_string().contains("backtrace"), "{}", error),
            }
        }
    }
}

#[test]
fn what_is_not_asked_for_is_not_accepted() {
    let regex = |pattern: &str| compile(&StructuredOutput::Regex(pattern.to_owned()));
    assert!(accepts(&regex("ab+"), "abb"));
    for text in ["a", "ba", "abc", " ab", "ab\n"] {
        assert!(!accepts(&regex("ab+"), text), "{text}");
    }
    let schema = compile(&StructuredOutput::Json(schemas()[0].clone()));
    for text in [r#"{"name":"x","age":3}"#, r#"{"name": "x", "age": 3, "tags": ["a",null]}"#] {
        assert!(accepts(&schema, text), "{text}");
    }
    for text in
        [r#"{"age":3}"#, r#"{"name":"x","age":151}"#, "{\n\"name\":\"x\",\"age\":3}", r#"{"name":  "x","age":3}"#, "[]"]
    {
        assert!(!accepts(&schema, text), "{text}");
    }
}

#[test]
fn a_text_that_spells_a_special_token_is_only_text() {
    for output in [
        StructuredOutput::Choice(vec!["<|eot|>".to_owned()]),
        StructuredOutput::Regex("<\\|eot\\|>".to_owned()),
        StructuredOutput::Grammar("start: \"<|eot|>\"".to_owned()),
        StructuredOutput::Json(json!({ "const": "<|eot|>" })),
    ] {
        let mut matcher = compile(&output).matcher();
        let open = allowed(&mut matcher);
        assert!(
            !open.is_empty() && open.iter().all(|token| !MODEL.tokenizer.is_special(*token)),
            "{output:?}: {open:?}"
        );
        assert!(walk(&compile(&output), 1, 0, &[]).contains("<|eot|>"));
    }
}

#[test]
fn a_forbidden_token_changes_nothing_and_the_end_stays_the_end() {
    let mut matcher = compile(&StructuredOutput::Choice(vec!["ab".to_owned()])).matcher();
    let token = |text: &str| MODEL.tokenizer.token_id(text).unwrap();
    for wrong in [token("b"), 0, END_TOKENS[0], 1030, VOCABULARY as u32, u32::MAX] {
        assert_eq!(matcher.accept(wrong), Err(StructuredOutputError::Forbidden { token: wrong, tokens: 0 }));
    }
    matcher.accept(token("a")).unwrap();
    assert!(!matcher.is_finished());
    matcher.accept(token("b")).unwrap();
    assert!(matcher.is_finished());
    assert_eq!(allowed(&mut matcher), END_TOKENS);
    assert!(matcher.accept(token("b")).is_err());
    matcher.accept(END_TOKENS[1]).unwrap();
    assert!(matcher.is_finished());
    assert_eq!(allowed(&mut matcher), END_TOKENS);
}

#[test]
fn an_end_token_is_accepted_where_more_could_follow() {
    let mut matcher = compile(&StructuredOutput::Regex("a+".to_owned())).matcher();
    matcher.accept(MODEL.tokenizer.token_id("a").unwrap()).unwrap();
    assert!(!matcher.is_finished());
    assert!(END_TOKENS.iter().all(|end| allowed(&mut matcher).contains(end)));
    matcher.accept(END_TOKENS[0]).unwrap();
    assert!(matcher.is_finished());
}

#[test]
fn matchers_of_one_grammar_do_not_know_of_each_other() {
    let grammar = compile(&StructuredOutput::Choice(vec!["ab".to_owned(), "ba".to_owned()]));
    let (mut first, mut second) = (grammar.matcher(), grammar.clone().matcher());
    first.accept(MODEL.tokenizer.token_id("a").unwrap()).unwrap();
    second.accept(MODEL.tokenizer.token_id("b").unwrap()).unwrap();
    assert_ne!(allowed(&mut first), allowed(&mut second));
    fn sent<T: Send>() {}
    fn shared<T: Send + Sync>() {}
    sent::<GrammarMatcher>();
    shared::<Grammar>();
    shared::<GrammarCompiler>();
}

/// Inputs that are made to take long, to take much memory, or to break a compiler.
fn hostile() -> Vec<(&'static str, StructuredOutput)> {
    let nested = |depth: usize| (0..depth).fold(json!({}), |inner, _| json!({ "properties": { "a": inner } }));
    let one_of = |depth: usize| {
        (0..depth).fold(json!({ "type": "integer" }), |inner, level| {
            json!({ "oneOf": [inner, { "type": "object", "properties": { (format!("p{level}")): inner } }] })
        })
    };
    let chain: String = (0..500).map(|rule| format!("r{rule}: r{}\n", rule + 1)).collect();
    let many: serde_json::Map<String, Value> = (0..2000).map(|name| (format!("p{name}"), json!({}))).collect();
    let regex = |pattern: &str| StructuredOutput::Regex(pattern.to_owned());
    let grammar = |text: String| StructuredOutput::Grammar(text);
    vec![
        ("nesting", StructuredOutput::Json(nested(64))),
        (
            "a cycle of references",
            StructuredOutput::Json(
                json!({ "$ref": "#/$defs/a", "$defs": { "a": { "$ref": "#/$defs/b" }, "b": { "$ref": "#/$defs/a" } } }),
            ),
        ),
        ("a reference to itself", StructuredOutput::Json(json!({ "$ref": "#" }))),
        ("a cycle in allOf", StructuredOutput::Json(json!({ "allOf": [{ "$ref": "#" }, { "$ref": "#" }] }))),
        ("a reference outside", StructuredOutput::Json(json!({ "$ref": "http://localhost/schema.json" }))),
        ("a reference to a file", StructuredOutput::Json(json!({ "$ref": "file:///etc/passwd" }))),
        ("a huge enum", StructuredOutput::Json(json!({ "enum": (0..1_000_000).collect::<Vec<u32>>() }))),
        ("oneOf in oneOf", StructuredOutput::Json(one_of(12))),
        ("less oneOf in oneOf", StructuredOutput::Json(one_of(6))),
        ("no schema", StructuredOutput::Json(json!(false))),
        ("a wrong type", StructuredOutput::Json(json!({ "type": "integr" }))),
        ("a contradiction", StructuredOutput::Json(json!({ "type": "integer", "minimum": 3, "maximum": 2 }))),
        ("multiples", StructuredOutput::Json(json!({ "type": "integer", "multipleOf": 99_999_989 }))),
        ("multiples of fractions", StructuredOutput::Json(json!({ "type": "number", "multipleOf": 0.001_234_567_89 }))),
        (
            "multiples of many",
            StructuredOutput::Json(
                json!({ "allOf": ([997, 991, 983].map(|step| json!({ "type": "integer", "multipleOf": step }))) }),
            ),
        ),
        (
            "string and pattern",
            StructuredOutput::Json(
                json!({ "type": "string", "pattern": "^(.*a.{40}|.*b.{41})$", "minLength": 100, "maxLength": 10_000 }),
            ),
        ),
        (
            "intersections",
            grammar("start: T\nT: /(.*a.{100})/ & /(.*b.{101})/ & ~/(.*c.{102})/ & /(.*d.{103})/\n".to_owned()),
        ),
        ("one of many properties", StructuredOutput::Json(json!({ "properties": many, "minProperties": 1 }))),
        (
            "many required properties",
            StructuredOutput::Json(json!({ "required": (0..5000).map(|name| name.to_string()).collect::<Vec<_>>() })),
        ),
        ("many schemas", StructuredOutput::Json(json!({ "anyOf": vec![json!({ "type": "null" }); 1000] }))),
        (
            "options in a schema",
            StructuredOutput::Json(
                json!({ "type": "object", "x-guidance": { "whitespace_pattern": "(" , "unknown": 1 }, "oneOf": 3 }),
            ),
        ),
        ("an open group", regex("(((")),
        ("nested groups", regex(&"(".repeat(8000))),
        ("NUL", regex("a\0b")),
        ("a look behind", regex("(?<=a)b")),
        ("a back reference", regex("(a)\\1")),
        ("a long expression", regex(&"a".repeat(1 << 20))),
        ("many choices", StructuredOutput::Choice(vec!["x".to_owned(); 5000])),
        ("long choices", StructuredOutput::Choice(vec!["x".repeat(1 << 20); 2])),
        ("no grammar", grammar("this is none".to_owned())),
        ("brackets", grammar(format!("start: {}\"a\"{}", "(".repeat(9000), ")".repeat(9000)))),
        ("an unknown rule", grammar("start: nothing".to_owned())),
        ("a chain of rules", grammar(format!("start: r0\n{chain}"))),
        ("a chain of terminals", grammar(format!("start: R0\n{}", chain.to_uppercase()))),
        ("a file", grammar("%import /etc/passwd\nstart: \"a\"".to_owned())),
        (
            "a schema in a grammar",
            grammar("start: %json { \"type\": \"integer\", \"multipleOf\": 99999989 }".to_owned()),
        ),
        ("a grammar in a grammar", grammar("start: %lark { start: \"a\" }".to_owned())),
        ("a long grammar", grammar("start: \"a\"\n".repeat(1 << 20))),
        ("a token outside", grammar("start: <[99999999]>".to_owned())),
    ]
}

#[test]
fn hostile_requests_are_refused_and_the_problem_is_named() {
    for (name, output) in hostile() {
        let error = MODEL.compiler.compile(&output).err().unwrap_or_else(|| panic!("{name} is accepted"));
        assert!(matches!(error, StructuredOutputError::Refused { .. }), "{name}: {error}");
        assert!(error.to_string().len() < 500, "{name}: {error}");
    }
}

/// Requests that look hostile but are small once compiled; what they need while they are matched is bounded.
fn demanding() -> Vec<(&'static str, StructuredOutput)> {
    let regex = |pattern: &str| StructuredOutput::Regex(pattern.to_owned());
    let grammar = |text: String| StructuredOutput::Grammar(text);
    let chain: String = (0..500).map(|rule| format!("r{rule}: r{}\n", rule + 1)).collect();
    let names: Vec<String> = (0..12_000).map(|name| format!("name-{name}")).collect();
    let properties: serde_json::Map<String, Value> =
        (0..500).map(|name| (format!("p{name}"), json!({ "type": "integer", "minimum": name }))).collect();
    vec![
        ("a loop in a loop", regex("(a*)*b")),
        ("a long repetition", regex(".{1,100000}")),
        ("a long repetition of long repetitions", regex("(.{1,100000}){1,100000}")),
        ("nested repetitions", regex("((((a{1,100}){1,100}){1,100}){1,100}){1,100}")),
        ("many states", regex("(.*a.{200})|(.*b.{201})|(.*c.{202})")),
        ("many states in classes", regex("(\\w*\\d\\w{30}){8}[^a-z]{500}")),
        (
            "substrings",
            grammar(format!("start: T\nT: %regex {{ \"substring_chars\": \"{}\" }}\n", "abcdefghij".repeat(1000))),
        ),
        ("multiples", StructuredOutput::Json(json!({ "type": "number", "multipleOf": 9973, "minimum": 7 }))),
        (
            "multiples of cents",
            StructuredOutput::Json(json!({ "type": "number", "multipleOf": 0.05, "minimum": -1e15, "maximum": 1e15 })),
        ),
        ("case", regex(&format!("(?i){}", "straße".repeat(500)))),
        (
            "many repetitions",
            StructuredOutput::Json(
                json!({ "type": "array", "items": { "type": "array", "minItems": 100_000_000 }, "minItems": 100_000_000 }),
            ),
        ),
        ("a long string", StructuredOutput::Json(json!({ "type": "string", "minLength": 4_000_000_000u64 }))),
        ("a large enum", StructuredOutput::Json(json!({ "enum": names }))),
        ("many properties", StructuredOutput::Json(json!({ "type": "object", "properties": properties }))),
        (
            "pattern properties",
            StructuredOutput::Json(
                json!({ "patternProperties": { "^a.*b.{50}$": {}, "^c.*d.{50}$": { "type": "null" } }, "additionalProperties": false }),
            ),
        ),
        ("a rule without an end", grammar("start: \"a\" start".to_owned())),
        ("an ambiguous grammar", grammar("start: s\ns: s s | s s s | \"a\" |".to_owned())),
        ("a repetition", grammar("start: (a{1000}){1000}\na: (\"x\"{1000}){1000}".to_owned())),
        ("a chain of rules", grammar(format!("start: r0\n{chain}r500: \"a\"\n"))),
        ("a chain of terminals", grammar(format!("start: R0\n{}R500: \"a\"\n", chain.to_uppercase()))),
    ]
}

#[test]
fn demanding_requests_go_on_or_say_why_not() {
    for (name, output) in demanding() {
        let grammar = compile(&output);
        let mut matcher = grammar.matcher();
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for step in 0..60 {
            let mut logits = vec![0.0; VOCABULARY];
            let masked = matcher.mask(&mut logits);
            let open: Vec<usize> = (0..VOCABULARY).filter(|token| logits[*token] == 0.0).collect();
            let went_on = masked.and_then(|()| {
                assert!(!open.is_empty() && open.len() < VOCABULARY, "{name}");
                matcher.accept(u32::try_from(open[random.next_u64() as usize % open.len()]).unwrap())
            });
            match went_on {
                Ok(()) if matcher.is_finished() => break,
                Ok(()) => {}
                Err(error) => {
                    assert!(
                        matches!(error, StructuredOutputError::Stuck { tokens, .. } if tokens == step),
                        "{name}: {error}"
                    );
                    assert_eq!(
                        matcher.mask(&mut logits).map_err(|error| error.to_string()),
                        Err(error.to_string()),
                        "{name}"
                    );
                    assert!(!matcher.is_finished(), "{name}");
                    break;
                }
            }
        }
    }
}

#[test]
fn a_vocabulary_needs_an_end_that_it_has() {
    for end_tokens in [&[][..], &[1, VOCABULARY as u32]] {
        let error = GrammarCompiler::new(&MODEL.tokenizer, VOCABULARY, end_tokens).unwrap_err();
        assert!(matches!(error, StructuredOutputError::Vocabulary { .. }), "{error}");
    }
    // Ids beyond the logits can't be chosen, and fewer logits than tokens are no reason to fail.
    let narrow = GrammarCompiler::new(&MODEL.tokenizer, 300, &END_TOKENS).unwrap();
    let mut matcher = narrow.compile(&StructuredOutput::Regex("[a-z]+".to_owned())).unwrap().matcher();
    matcher.mask(&mut [0.0; 300]).unwrap();
    assert!(matcher.accept(300).is_err());
}

#[test]
fn a_sampler_draws_only_what_the_grammar_allows_and_ends_when_it_must() {
    let params = SamplingParams {
        min_tokens: 50,
        presence_penalty: 1.0,
        logit_bias: [(MODEL.tokenizer.token_id("a").unwrap(), 100.0)].into(),
        structured_output: Some(StructuredOutput::Choice(vec!["yes".to_owned(), "no".to_owned()])),
        ..SamplingParams::default()
    };
    let grammar = compile(params.structured_output.as_ref().unwrap());
    for seed in 0..20 {
        let mut sampler = Sampler::new(&params, seed).unwrap().with_end_tokens(&END_TOKENS);
        let (mut matcher, mut scratch) = (grammar.matcher(), SamplingScratch::default());
        let (mut output, mut seen) = (Vec::new(), TokenCounts::default());
        let end = loop {
            let context = SamplingContext { seen: &seen, output: &output, grammar: Some(&mut matcher) };
            let token = sampler.sample(&[0.0; VOCABULARY], &mut scratch, context).unwrap().token;
            matcher.accept(token).unwrap();
            if END_TOKENS.contains(&token) {
                break token;
            }
            output.push(token);
            seen.add_output(token);
        };
        assert!(["yes", "no"].contains(&MODEL.tokenizer.decode(&output, false).unwrap().as_str()), "{end}");
    }
}

/// A vocabulary as SentencePiece makes them: `▁` for a space, `<0x0A>` for a byte, and added tokens that are text or special.
fn sentencepiece() -> Tokenizer {
    let tokens = ["<unk>", "</s>", "<0x0A>", "<0xFF>", "▁yes", "yes", "n", "o", "▁", "é"];
    let vocabulary: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect();
    let added = |id: usize, content: &str, special: bool| {
        json!({
            "id": id, "content": content, "special": special,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        })
    };
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "added_tokens": [added(0, "<unk>", true), added(1, "</s>", true), added(10, "<tool>", false)],
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " }, { "type": "ByteFallback" }, { "type": "Fuse" },
        ] },
        "model": { "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocabulary, "merges": [] },
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
    Tokenizer::open(folder.path()).unwrap()
}

#[test]
fn tokens_stand_for_their_bytes_in_vocabularies_of_sentencepiece_and_of_bytes() {
    let tokenizer = sentencepiece();
    let expected: [(u32, &[u8]); 8] = [
        (1, b"</s>"),
        (2, b"\n"),
        (3, b"\xff"),
        (4, b" yes"),
        (5, b"yes"),
        (8, b" "),
        (9, "é".as_bytes()),
        (10, b"<tool>"),
    ];
    for (token, bytes) in expected {
        assert_eq!(tokenizer.token_bytes(token).as_deref(), Some(bytes), "{token}");
    }
    assert_eq!(tokenizer.token_bytes(11), None);
    let compiler = GrammarCompiler::new(&tokenizer, 12, &[1]).unwrap();
    let after = |pattern: &str| {
        let mut logits = [0.0; 12];
        let mut matcher = compiler.compile(&StructuredOutput::Regex(pattern.to_owned())).unwrap().matcher();
        matcher.mask(&mut logits).unwrap();
        (0..12).filter(|token| logits[*token] == 0.0).collect::<Vec<_>>()
    };
    assert_eq!(after(" yes| no|\\n"), [2, 4, 8]);
    assert_eq!(
        after("<tool>|</s>|yes"),
        [5, 10],
        "added text is text, and a special token is not, however it is spelled"
    );
    assert_eq!(after("(?s:.+)"), [2, 4, 5, 6, 7, 8, 9, 10], "every text, but neither special tokens nor broken UTF-8");

    // Text of a byte-level vocabulary is the bytes of its tokens, one after the other.
    let text = "A naïve 中文 line\n\twith 12 \u{1f600}";
    let tokens = MODEL.tokenizer.encode(text, false).unwrap();
    let spelled: Vec<u8> = tokens.iter().flat_map(|token| MODEL.tokenizer.token_bytes(*token).unwrap()).collect();
    assert_eq!(String::from_utf8(spelled).unwrap(), text);
}

#[test]
fn an_ambiguous_grammar_ends_before_a_step_takes_long() {
    let mut matcher = compile(&StructuredOutput::Grammar("start: s\ns: s s | s s s | \"a\" |".to_owned())).matcher();
    let token = MODEL.tokenizer.token_id("a").unwrap();
    let mut logits = vec![0.0; VOCABULARY];
    let stuck = (0..600).find_map(|_| matcher.mask(&mut logits).and_then(|()| matcher.accept(token)).err());
    let Some(StructuredOutputError::Stuck { tokens, problem }) = stuck else { panic!("{stuck:?}") };
    assert!(tokens > 20, "{tokens}: {problem}");
    assert!(problem.contains("items"), "{problem}");
}
