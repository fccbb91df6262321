//! Where the prompts of a benchmark come from: a seed, or a file.

use std::ops::Range;
use std::path::Path;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use crate::error::CliError;
use crate::input;

/// Random token ids begin here, as the first of many vocabularies are special.
const FIRST_TOKEN: u32 = 32;

/// Words that are one token each in most vocabularies, for random prompts of servers that take text only.
const WORDS: [&str; 24] = [
    "time", "year", "people", "way", "day", "man", "thing", "world", "life", "hand", "part", "child", "eye", "place",
    "work", "week", "case", "point", "company", "number", "group", "problem", "fact", "water",
];

/// The tokens that random prompts are made of.
#[derive(Debug, Clone)]
pub(super) enum Vocabulary {
    Range(Range<u32>),
    List(Vec<u32>),
}

impl Vocabulary {
    /// The tokens below `size` that are likely not special.
    pub(super) fn below(size: u32) -> Self {
        Vocabulary::Range(FIRST_TOKEN.min(size.saturating_sub(1))..size.max(1))
    }

    fn draw(&self, random: &mut ChaCha8Rng) -> u32 {
        match self {
            Vocabulary::Range(range) => random.random_range(range.clone()),
            Vocabulary::List(list) if list.is_empty() => 0,
            Vocabulary::List(list) => list[random.random_range(0..list.len())],
        }
    }

    fn prompt(&self, length: usize, random: &mut ChaCha8Rng) -> Vec<u32> {
        (0..length).map(|_| self.draw(random)).collect()
    }
}

/// What a benchmark asks.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Request {
    pub(super) prompt: Prompt,
    /// Tokens of the answer.
    pub(super) output_tokens: u64,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Prompt {
    Tokens(Vec<u32>),
    Text(String),
}

/// The lengths of random prompts and of their answers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lengths {
    pub(super) prefix: usize,
    pub(super) input: usize,
    pub(super) output: usize,
    /// How far the lengths of input and output may be from those given, as a part of them.
    pub(super) range_ratio: f64,
}

impl Lengths {
    /// The longest prompt and its answer together.
    pub(super) fn longest(&self) -> usize {
        let most = |length: usize| (length as f64 * (1.0 + self.range_ratio)).floor() as usize;
        self.prefix.saturating_add(most(self.input)).saturating_add(most(self.output))
    }

    fn draw(&self, length: usize, random: &mut ChaCha8Rng) -> usize {
        let least = (length as f64 * (1.0 - self.range_ratio)).ceil() as usize;
        let most = (length as f64 * (1.0 + self.range_ratio)).floor() as usize;
        random.random_range(least..=most.max(least))
    }
}

/// Random prompts, all with the same prefix. A prompt and an answer have at least one token.
pub(super) fn random(lengths: Lengths, vocabulary: &Vocabulary, count: usize, random: &mut ChaCha8Rng) -> Vec<Request> {
    let prefix = vocabulary.prompt(lengths.prefix, random);
    let request = |_| {
        let input = lengths.draw(lengths.input, random).max(usize::from(prefix.is_empty()));
        let output = lengths.draw(lengths.output, random).max(1);
        let mut prompt = prefix.clone();
        prompt.extend(vocabulary.prompt(input, random));
        Request { prompt: Prompt::Tokens(prompt), output_tokens: output as u64 }
    };
    (0..count).map(request).collect()
}

/// Text in the place of random tokens: as many words.
pub(super) fn words(tokens: &[u32]) -> String {
    let words: Vec<&str> = tokens.iter().map(|&token| WORDS[token as usize % WORDS.len()]).collect();
    words.join(" ")
}

#[derive(Deserialize)]
struct Line {
    prompt: Option<String>,
    conversations: Option<Vec<Turn>>,
    output_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct Turn {
    value: String,
}

/// `count` prompts of a file of JSON lines, which begins anew after its last line.
pub(super) fn from_file(path: &Path, output_tokens: u64, count: usize) -> Result<Vec<Request>, CliError> {
    let lines = parse(&path.display().to_string(), &input::file(path)?, output_tokens)?;
    Ok(lines.iter().cycle().take(count).cloned().collect())
}

fn parse(name: &str, text: &str, output_tokens: u64) -> Result<Vec<Request>, CliError> {
    let mut requests = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |message: String| CliError::Failure(format!("{name}:{}: {message}", index + 1));
        let line: Line = serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
        let turn = line.conversations.into_iter().flatten().next().map(|turn| turn.value);
        let prompt = line.prompt.or(turn).filter(|prompt| !prompt.is_empty());
        let Some(prompt) = prompt else {
            return Err(wrong("there is no prompt; write {\"prompt\": \"...\"}".to_owned()));
        };
        let output_tokens = line.output_tokens.unwrap_or(output_tokens).max(1);
        requests.push(Request { prompt: Prompt::Text(prompt), output_tokens });
    }
    if requests.is_empty() {
        return Err(CliError::Failure(format!(
            "{name}: there is no prompt in it; write {{\"prompt\": \"...\"}} on a line"
        )));
    }
    Ok(requests)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use rand::SeedableRng;

    use super::*;

    fn draw(lengths: Lengths, seed: u64) -> Vec<Request> {
        random(lengths, &Vocabulary::below(1000), 50, &mut ChaCha8Rng::seed_from_u64(seed))
    }

    fn tokens(request: &Request) -> &[u32] {
        match &request.prompt {
            Prompt::Tokens(tokens) => tokens,
            Prompt::Text(text) => unreachable!("{text}"),
        }
    }

    #[test]
    fn random_prompts_have_the_lengths_and_the_prefix_that_were_asked_for() {
        let lengths = Lengths { prefix: 3, input: 10, output: 20, range_ratio: 0.5 };
        let requests = draw(lengths, 0);
        let prefix = &tokens(&requests[0])[..3];
        for request in &requests {
            let tokens = tokens(request);
            assert!((8..=18).contains(&tokens.len()), "{}", tokens.len());
            assert!((10..=30).contains(&request.output_tokens), "{}", request.output_tokens);
            assert_eq!(&tokens[..3], prefix);
            assert!(tokens.iter().all(|token| (FIRST_TOKEN..1000).contains(token)));
        }
        assert_eq!(lengths.longest(), 3 + 15 + 30);
        assert_eq!(draw(lengths, 0), requests, "the same seed");
        assert_ne!(draw(lengths, 1), requests, "another seed");
    }

    #[test]
    fn no_length_is_empty() {
        let requests = draw(Lengths { prefix: 0, input: 0, output: 0, range_ratio: 0.0 }, 0);
        assert!(requests.iter().all(|request| tokens(request).len() == 1 && request.output_tokens == 1));
        let tiny = random(
            Lengths { prefix: 0, input: 4, output: 1, range_ratio: 0.0 },
            &Vocabulary::below(1),
            1,
            &mut ChaCha8Rng::seed_from_u64(0),
        );
        assert_eq!(tokens(&tiny[0]), [0; 4]);
    }

    #[test]
    fn words_stand_for_tokens() {
        assert_eq!(words(&[0, 1, 24]), "time year time");
    }

    #[test]
    fn both_forms_of_a_line_are_read() {
        let text = "{\"prompt\": \"a\", \"output_tokens\": 3}\n\n\
                    {\"id\": 1, \"conversations\": [{\"from\": \"human\", \"value\": \"b\"}, {\"value\": \"c\"}]}\n";
        let requests = parse("a.jsonl", text, 9).unwrap();
        let expected = [("a", 3), ("b", 9)]
            .map(|(text, output_tokens)| Request { prompt: Prompt::Text(text.to_owned()), output_tokens });
        assert_eq!(requests, expected);
        for wrong in ["{}", "{\"prompt\": \"\"}", "{\"prompt\": 1}", "", "{\"conversations\": []}"] {
            let error = parse("a.jsonl", &format!("\n{wrong}"), 9).unwrap_err().to_string();
            assert!(error.starts_with("a.jsonl:"), "{wrong}: {error}");
        }
    }
}
