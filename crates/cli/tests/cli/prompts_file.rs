//! `allotrope generate --prompts`: many prompts from a file.

use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Run, generate, run_with_input, with_model};

struct PromptsFile {
    _folder: TempDir,
    path: PathBuf,
}

impl PromptsFile {
    fn new(text: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("questions.jsonl");
        std::fs::write(&path, text).unwrap();
        Self { _folder: folder, path }
    }

    fn run(&self, more: &[&str]) -> Run {
        generate(&[&["--prompts", self.path.to_str().unwrap()], more].concat())
    }
}

#[test]
fn answers_come_in_the_order_of_the_lines_whatever_their_form_and_length() {
    let tokens = token_ids_of("What is 2 + 2?");
    let lines = [
        json!({ "prompt": "Count from 1 to 9.", "id": "long" }),
        json!({ "messages": [{ "role": "user", "content": "What is 3 + 4?" }], "id": 2 }),
        json!({ "tokens": tokens }),
        json!({ "prompt": "What is 7 + 8?" }),
    ];
    let file = PromptsFile::new(&lines.map(|line| line.to_string()).join("\n"));
    let answers = file.run(&["--format", "json", "--quiet"]).ok().json_lines();
    let texts: Vec<&str> = answers.iter().map(|answer| answer["text"].as_str().unwrap()).collect();
    assert_eq!(texts[1..], ["3 + 4 = 7.", "2 + 2 = 4.", "7 + 8 = 15."]);
    assert!(texts[0].contains('9'), "{}", texts[0]);
    let ids: Vec<Option<&Value>> = answers.iter().map(|answer| answer.get("id")).collect();
    assert_eq!(ids, [Some(&json!("long")), Some(&json!(2)), None, None]);

    let plain = file.run(&["--quiet"]).ok();
    assert_eq!(plain.stdout.lines().collect::<Vec<_>>(), texts, "text has the same answers");
    let one_by_one = file.run(&["--quiet", "--max-num-seqs", "1"]).ok();
    assert_eq!(one_by_one.stdout, plain.stdout, "a batch changes no answer");
}

/// The token ids of a question in the chat template. The first tokens of their own logits file would do too, but this
/// needs only the model's own files: its template is plain.
fn token_ids_of(question: &str) -> Vec<u32> {
    let llm = allotrope_engine::Llm::builder(crate::support::model()).build().unwrap();
    llm.tokenize(&allotrope_engine::Prompt::Chat(vec![allotrope_engine::Message::new("user", question)])).unwrap()
}

#[test]
fn more_prompts_than_one_portion_are_all_answered_in_order() {
    let sums: Vec<(u32, u32)> = (0..20).map(|number| (number % 10, number / 2)).collect();
    let text: String =
        sums.iter().map(|(a, b)| format!("{}\n", json!({ "prompt": format!("What is {a} + {b}?") }))).collect();
    // Two at once, and portions of a small multiple of that.
    let run =
        run_with_input(&with_model("generate", &["--prompts", "-", "--quiet", "--max-num-seqs", "2"]), &text).ok();
    let expected: String = sums.iter().map(|(a, b)| format!("{a} + {b} = {}.\n", a + b)).collect();
    assert_eq!(run.stdout, expected);
}

#[test]
fn a_system_message_is_given_to_prompts_and_to_conversations_without_one() {
    let own = json!({ "messages": [{ "role": "system", "content": "Own." }, { "role": "user", "content": "Hello" }] });
    let none = json!({ "messages": [{ "role": "user", "content": "Hello" }] });
    let prompt = json!({ "prompt": "Hello" });
    let file = PromptsFile::new(&format!("{own}\n{none}\n{prompt}\n"));
    let lengths = |more: &[&str]| -> Vec<u64> {
        let run = file.run(&[&["--format", "json", "--quiet", "--max-tokens", "1"], more].concat()).ok();
        run.json_lines().iter().map(|answer| answer["prompt_tokens"].as_u64().unwrap()).collect()
    };
    let (without, with) = (lengths(&[]), lengths(&["--system", "Repeat after me: a b c."]));
    assert_eq!(with[0], without[0], "a conversation keeps its own");
    assert!(with[1] > without[1] && with[1] == with[2], "{with:?} {without:?}");
}

#[test]
fn a_wrong_line_is_named_and_nothing_is_answered() {
    let good = json!({ "prompt": "What is 1 + 1?" });
    let long = json!({ "prompt": "Count from 1 to 9. ".repeat(400) });
    let cases = [
        ("{\"prompt\": ".to_owned(), "EOF while parsing"),
        ("{\"promt\": \"x\"}".to_owned(), "unknown field `promt`"),
        ("{}".to_owned(), "exactly one of `prompt`, `messages` and `tokens`"),
        (json!({ "tokens": [1, 99_999_999] }).to_string(), "token id 99999999 is not in the vocabulary"),
        (json!({ "tokens": [] }).to_string(), "no tokens"),
        (long.to_string(), "context"),
    ];
    for (line, expected) in cases {
        let file = PromptsFile::new(&format!("{good}\n\n{line}\n{good}\n"));
        let message = file.run(&[]).failed(1);
        let place = format!("{}:3: ", file.path.display());
        assert!(message.contains(&place) && message.contains(expected), "{expected}: {message}");
    }
}

#[test]
fn a_file_without_prompts_or_without_existence_is_refused() {
    let message = PromptsFile::new("\n \n").run(&[]).failed(1);
    assert!(message.contains("there is no prompt in it"), "{message}");
    let message = generate(&["--prompts", "/nowhere/questions.jsonl"]).failed(1);
    assert!(message.contains("cannot read /nowhere/questions.jsonl"), "{message}");
}
