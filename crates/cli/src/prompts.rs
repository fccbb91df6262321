//! The prompts of `generate` and `logits`, from arguments and files.

use std::fmt;
use std::path::Path;

use allotrope_engine::{Llm, Message, Prompt};
use clap::ArgMatches;
use serde::Deserialize;
use serde_json::{Number, Value};

use crate::arguments;
use crate::error::CliError;
use crate::input;

/// The name that stands for standard input.
const STANDARD_INPUT: &str = "-";

/// A prompt as it was given.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Given {
    /// The caller's name for it, repeated in the answer.
    pub(crate) id: Option<Value>,
    /// Where it was given; `None` on the command line.
    pub(crate) place: Option<Place>,
    body: Body,
}

/// A line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    file: String,
    line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.file, self.line)
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Body {
    Text(String),
    Messages(Vec<GivenMessage>),
    Tokens(Vec<u32>),
}

/// One line of a file of prompts.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: Option<Id>,
    prompt: Option<String>,
    messages: Option<Vec<GivenMessage>>,
    tokens: Option<Vec<u32>>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "`id` must be a string or a number")]
enum Id {
    Text(String),
    Number(Number),
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenMessage {
    role: String,
    content: String,
}

/// The prompts that the arguments of `generate` name. Files are read and checked whole.
pub(crate) fn from_matches(matches: &ArgMatches) -> Result<Vec<Given>, CliError> {
    if let Some(path) = matches.get_one::<std::path::PathBuf>(arguments::PROMPTS) {
        return from_lines(path);
    }
    let text = match matches.get_one::<String>(arguments::PROMPT).map(String::as_str) {
        Some(STANDARD_INPUT) => input::standard_input()?,
        Some(text) => text.to_owned(),
        None => return Err(CliError::Usage("no prompt was given".to_owned())),
    };
    Ok(vec![Given { id: None, place: None, body: Body::Text(text) }])
}

fn from_lines(path: &Path) -> Result<Vec<Given>, CliError> {
    let (name, text) = if path == Path::new(STANDARD_INPUT) {
        ("standard input".to_owned(), input::standard_input()?)
    } else {
        (path.display().to_string(), input::file(path)?)
    };
    let prompts = parse_lines(&name, &text)?;
    if prompts.is_empty() {
        return Err(CliError::Failure(format!(
            "{name}: there is no prompt in it; write {{\"prompt\": \"...\"}} on a line"
        )));
    }
    Ok(prompts)
}

/// Parses JSON lines. Lines of white space alone are passed over.
fn parse_lines(name: &str, text: &str) -> Result<Vec<Given>, CliError> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let parsed = lines.map(|(index, line)| {
        let place = Place { file: name.to_owned(), line: index + 1 };
        let (id, body) = parse_line(line).map_err(|message| CliError::Failure(format!("{place}: {message}")))?;
        Ok(Given { id, place: Some(place), body })
    });
    parsed.collect()
}

fn parse_line(line: &str) -> Result<(Option<Value>, Body), String> {
    let line: Line = serde_json::from_str(line).map_err(|error| {
        // The line of a single line says nothing; the column does.
        let message = error.to_string();
        let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
        format!("{message} (column {})", error.column())
    })?;
    let body = match (line.prompt, line.messages, line.tokens) {
        (Some(text), None, None) => Body::Text(text),
        (None, Some(messages), None) => Body::Messages(messages),
        (None, None, Some(tokens)) => Body::Tokens(tokens),
        _ => return Err("exactly one of `prompt`, `messages` and `tokens` must be given".to_owned()),
    };
    let id = line.id.map(|id| match id {
        Id::Text(text) => Value::String(text),
        Id::Number(number) => Value::Number(number),
    });
    Ok((id, body))
}

/// Reads lists of token ids.
pub(crate) fn token_lists(path: &Path) -> Result<Vec<Vec<u32>>, CliError> {
    let text = input::file(path)?;
    let lists: Vec<Vec<u32>> = serde_json::from_str(&text).map_err(|error| {
        CliError::Failure(format!("{}: {error}; write a JSON list of lists of token ids", path.display()))
    })?;
    match lists.iter().position(Vec::is_empty) {
        Some(index) => {
            Err(CliError::Failure(format!("{}: list {index} is empty; give at least one token id", path.display())))
        }
        None if lists.is_empty() => Err(CliError::Failure(format!("{}: there is no list in it", path.display()))),
        None => Ok(lists),
    }
}

/// How texts become prompts.
pub(crate) struct Wrapping {
    system: Option<String>,
    template: bool,
}

impl Wrapping {
    /// Decides between the chat template and the bare text, by the flags and by what the checkpoint has.
    ///
    /// # Errors
    ///
    /// If a system message was given, but there is no template that could hold it.
    pub(crate) fn from_matches(matches: &ArgMatches, llm: &Llm) -> Result<Self, CliError> {
        let system = matches.get_one::<String>(arguments::SYSTEM).cloned();
        if matches.get_flag(arguments::RAW) {
            return Ok(Self { system: None, template: false });
        }
        match (missing_template(llm), &system) {
            (None, _) => Ok(Self { system, template: true }),
            (Some(reason), Some(_)) => Err(CliError::Failure(format!("--system needs a chat template: {reason}"))),
            (Some(reason), None) => {
                tracing::warn!("the prompt is passed as it is, as with --raw: {reason}");
                Ok(Self { system: None, template: false })
            }
        }
    }

    /// The prompt that the engine is given.
    pub(crate) fn prompt(&self, given: &Given) -> Prompt {
        match &given.body {
            Body::Text(text) if self.template => {
                let system = self.system.iter().map(|text| Message::new("system", text));
                Prompt::Chat(system.chain([Message::new("user", text)]).collect())
            }
            Body::Text(text) => Prompt::Text(text.clone()),
            Body::Messages(messages) => {
                // A conversation that has a system message keeps it.
                let own = messages.first().is_some_and(|first| first.role == "system");
                let system = self.system.iter().filter(|_| !own).map(|text| Message::new("system", text));
                let given = messages.iter().map(|given| Message::new(&given.role, &given.content));
                Prompt::Chat(system.chain(given).collect())
            }
            Body::Tokens(tokens) => Prompt::Tokens(tokens.clone()),
        }
    }
}

/// Why the checkpoint's chat template can't be used; `None` if it can.
pub(crate) fn missing_template(llm: &Llm) -> Option<String> {
    if llm.has_chat_template() {
        return None;
    }
    let reason = llm.tokenize(&Prompt::Chat(vec![Message::new("user", "")])).err();
    Some(reason.map_or_else(|| "the checkpoint has no chat template".to_owned(), |error| error.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    fn refusal(text: &str) -> String {
        parse_lines("a.jsonl", text).unwrap_err().to_string()
    }

    #[test]
    fn each_form_of_a_line_is_understood() {
        let text = "{\"prompt\": \"a\\nb\"}\n\n  \n{\"id\": 7, \"messages\": [{\"role\": \"user\", \"content\": \"c\"}]}\r\n\
                    {\"tokens\": [1, 2], \"id\": \"x\"}";
        let prompts = parse_lines("a.jsonl", text).unwrap();
        let bodies: Vec<&Body> = prompts.iter().map(|given| &given.body).collect();
        let user = GivenMessage { role: "user".to_owned(), content: "c".to_owned() };
        let expected = [Body::Text("a\nb".to_owned()), Body::Messages(vec![user]), Body::Tokens(vec![1, 2])];
        assert_eq!(bodies, expected.iter().collect::<Vec<_>>());
        let ids: Vec<Option<Value>> = prompts.iter().map(|given| given.id.clone()).collect();
        assert_eq!(ids, [None, Some(7.into()), Some("x".into())]);
        let places: Vec<String> = prompts.iter().map(|given| given.place.as_ref().unwrap().to_string()).collect();
        assert_eq!(places, ["a.jsonl:1", "a.jsonl:4", "a.jsonl:5"]);
    }

    #[test]
    fn a_wrong_line_is_named_with_what_is_wrong() {
        let good = "{\"prompt\": \"a\"}\n";
        let cases = [
            ("{\"prompt\": ", "EOF while parsing a value (column "),
            ("{\"prompt\": 1}", "invalid type: integer `1`, expected a string (column "),
            (
                "{\"promt\": \"a\"}",
                "unknown field `promt`, expected one of `id`, `prompt`, `messages`, `tokens` (column ",
            ),
            ("{}", "exactly one of `prompt`, `messages` and `tokens` must be given"),
            ("{\"prompt\": \"a\", \"tokens\": []}", "exactly one of"),
            ("{\"tokens\": [-1]}", "invalid value: integer `-1`, expected u32"),
            ("{\"tokens\": [4294967296]}", "invalid value: integer `4294967296`, expected u32"),
            ("{\"prompt\": \"a\", \"id\": []}", "`id` must be a string or a number"),
            ("{\"messages\": [{\"role\": \"user\"}]}", "missing field `content`"),
            ("{\"prompt\": \"a\", \"prompt\": \"b\"}", "duplicate field `prompt`"),
            ("[1]", "invalid length 1, expected struct Line"),
        ];
        for (line, expected) in cases {
            let message = refusal(&format!("{good}{line}\n"));
            assert!(message.starts_with(&format!("a.jsonl:2: {expected}")), "{line}: {message}");
        }
    }

    #[test]
    fn deep_nesting_is_refused_and_does_not_overflow_the_stack() {
        let message = refusal(&format!("{{\"prompt\": {}", "[".repeat(100_000)));
        assert!(message.starts_with("a.jsonl:1: "), "{message}");
    }
}
