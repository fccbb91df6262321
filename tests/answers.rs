//! The trained models answer the questions of `prompts/tiny-chat.jsonl` rightly at every level, all of them in one call.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use allotrope_engine::{FinishReason, Message, OptimizationLevel, Prompt, SamplingParams};
use allotrope_tests::{checkpoint, here, on_the_cpu};
use serde_json::Value;

struct Question {
    kind: String,
    prompt: String,
    answer: String,
}

fn questions() -> Vec<Question> {
    let text = std::fs::read_to_string(here().join("prompts/tiny-chat.jsonl")).unwrap();
    let parse = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        let field = |name: &str| row[name].as_str().unwrap().to_owned();
        Question { kind: field("kind"), prompt: field("prompt"), answer: field("answer") }
    };
    text.lines().map(parse).collect()
}

fn chat(question: &Question) -> Prompt {
    Prompt::Chat(vec![Message { role: "user".into(), content: question.prompt.clone() }])
}

fn check(model: &str, level: OptimizationLevel) {
    let questions = questions();
    let mut llm = on_the_cpu(checkpoint(model)).optimization_level(level).build().unwrap();
    let prompts: Vec<Prompt> = questions.iter().map(chat).collect();
    let params = SamplingParams { max_tokens: Some(64), ..SamplingParams::greedy() };
    let answers = llm.generate(&prompts, &params).unwrap();
    assert_eq!(answers.len(), questions.len());
    for (question, answer) in questions.iter().zip(&answers) {
        assert_eq!(answer.text, question.answer, "{model} at {level}: {}", question.prompt);
        assert_eq!(answer.finish_reason, FinishReason::Stop, "{model} at {level}: {}", question.prompt);
    }
    // Streamed, one question of each kind gives the same text in parts.
    let mut seen = BTreeSet::new();
    for question in questions.iter().filter(|question| seen.insert(question.kind.clone())) {
        let parts = llm.stream(&chat(question), &params).unwrap();
        let text: String = parts.map(|part| part.unwrap().text).collect();
        assert_eq!(text, question.answer, "{model} at {level}, streamed: {}", question.prompt);
    }
}

#[test]
fn the_questions_cover_what_the_models_know() {
    let kinds: BTreeSet<String> = questions().into_iter().map(|question| question.kind).collect();
    let expected = ["capital", "copying", "difference", "number word", "spelling", "sum"];
    assert!(kinds.iter().eq(expected.iter()), "{kinds:?}");
}

macro_rules! levels {
    ($($test:ident: $model:literal at $level:ident,)*) => {$(
        #[test]
        fn $test() {
            check($model, OptimizationLevel::$level);
        }
    )*};
}

levels! {
    bf16_at_o0: "tiny-chat" at O0,
    bf16_at_o1: "tiny-chat" at O1,
    bf16_at_o2: "tiny-chat" at O2,
    bf16_at_o3: "tiny-chat" at O3,
    fp8_at_o0: "tiny-chat-fp8" at O0,
    fp8_at_o1: "tiny-chat-fp8" at O1,
    fp8_at_o2: "tiny-chat-fp8" at O2,
    fp8_at_o3: "tiny-chat-fp8" at O3,
}
