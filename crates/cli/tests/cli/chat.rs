//! `allotrope chat` with lines from a pipe.

use crate::support::{Run, copy_of_model, edit_json, run_with_input, with_model};

fn chat(more: &[&str], input: &str) -> Run {
    run_with_input(&with_model("chat", more), input)
}

#[test]
fn each_line_is_answered() {
    let run = chat(&["--quiet"], "What is 7 + 8?\n\n  What is 3 + 4?").ok();
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("7 + 8 = 15.\n3 + 4 = 7.\n", ""));
}

#[test]
fn the_conversation_is_told_about_on_standard_error() {
    let run = chat(&["-O1"], "/help\nWhat is 7 + 8?\n/reset\n/quit\nWhat is 1 + 1?\n").ok();
    assert_eq!(run.stdout, "7 + 8 = 15.\n", "nothing is read after /quit");
    for part in ["at O1, ready after", "/system TEXT", "A new conversation."] {
        assert!(run.stderr.contains(part), "no {part} in {}", run.stderr);
    }
}

#[test]
fn the_whole_conversation_is_the_prompt_until_it_is_reset() {
    // A question takes about 20 tokens and its answer 10: in 64 tokens there is room for two turns, and not for three.
    let question = "What is 7 + 8?\n";
    let context = ["--quiet", "--max-model-len", "64"];
    let full = chat(&context, &question.repeat(6));
    assert_eq!(full.status, 1);
    assert!(full.stdout.lines().count() < 6, "{}", full.stdout);
    for part in ["error: ", "the context holds 64", "/reset begins a new conversation"] {
        assert!(full.stderr.contains(part), "no {part} in {}", full.stderr);
    }
    let reset = chat(&context, &format!("{question}/reset\n").repeat(6)).ok();
    assert_eq!(reset.stdout, "7 + 8 = 15.\n".repeat(6));
}

#[test]
fn an_answer_that_is_cut_off_says_why() {
    let short = chat(&["--max-tokens", "3"], "What is 7 + 8?\n").ok();
    assert!(short.stderr.contains("cut off after 3 tokens: --max-tokens"), "{}", short.stderr);
    let full = chat(&["--ignore-eos", "--max-model-len", "50"], "What is 7 + 8?\n").ok();
    assert!(full.stderr.contains("the context of 50 tokens is full"), "{}", full.stderr);
}

#[test]
fn a_system_message_begins_the_conversation_and_can_be_changed() {
    // With 48 tokens of context, a long system message leaves no room for the question.
    let long = "Repeat after me: ".repeat(20);
    let context = ["--quiet", "--max-model-len", "48"];
    let refused = chat(&[&context[..], &["--system", &long]].concat(), "What is 7 + 8?\n");
    assert_eq!((refused.status, refused.stdout.as_str()), (1, ""));
    let changed = chat(&[&context[..], &["--system", &long]].concat(), "/system\nWhat is 7 + 8?\n").ok();
    assert_eq!(changed.stdout, "7 + 8 = 15.\n");
    let set = chat(&context, &format!("/system {long}\nWhat is 7 + 8?\n"));
    assert_eq!(set.status, 1, "{}", set.stdout);
}

#[test]
fn an_unknown_command_is_an_error_in_a_script() {
    let run = chat(&["--quiet"], "/restart\nWhat is 7 + 8?\n");
    let message = run.failed(1);
    assert!(message.contains("there is no command /restart; /help lists the commands"), "{message}");
}

#[test]
fn a_checkpoint_without_a_template_cannot_chat() {
    let copy = copy_of_model();
    edit_json(&copy, "tokenizer_config.json", |config| {
        config.remove("chat_template");
    });
    let run = run_with_input(&["chat", "--model", copy.path().to_str().unwrap()], "What is 7 + 8?\n");
    let message = run.failed(1);
    assert!(message.contains("chat needs a chat template") && message.contains("generate --raw"), "{message}");
}
