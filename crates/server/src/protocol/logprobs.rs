//! Log-probabilities in the forms of the two OpenAI interfaces, and of vLLM for prompts.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

/// What stands for minus infinity, which JSON cannot say.
const LOWEST: f32 = -9999.0;

/// A token and how likely it was, as the answers need it.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredToken {
    /// Its text.
    pub token: String,
    /// Its bytes, where they are no text by themselves; otherwise those of `token`.
    pub bytes: Option<Vec<u8>>,
    /// The natural logarithm of its probability; may be minus infinity.
    pub logprob: f32,
}

/// The token at one position, and the most likely ones there.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredPosition {
    /// The token that stands there.
    pub chosen: ScoredToken,
    /// The most likely tokens, best first: as many as were asked for.
    pub top: Vec<ScoredToken>,
}

/// `logprobs` of a completion's choice: four lists of the same length.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct CompletionLogprobs {
    /// Where each token begins in the text, in characters.
    pub text_offset: Vec<usize>,
    /// Of the tokens; null for the first token of an echoed prompt.
    pub token_logprobs: Vec<Option<f32>>,
    /// The tokens.
    pub tokens: Vec<String>,
    /// The most likely tokens and the one itself, at each position.
    pub top_logprobs: Vec<Option<TopLogprobs>>,
}

impl CompletionLogprobs {
    /// Adds a position. Offsets go on from where the last token ended; the first begins at `start`, which in a stream is the
    /// number of characters sent before this chunk.
    pub fn push(&mut self, start: usize, position: &ScoredPosition) {
        let chosen = &position.chosen;
        self.push_token(start, chosen.token.clone());
        self.token_logprobs.push(Some(finite(chosen.logprob)));
        self.top_logprobs.push(Some(TopLogprobs::new(position)));
    }

    /// Adds the first token of an echoed prompt, which nothing came before.
    pub fn push_first_of_prompt(&mut self, token: String) {
        self.push_token(0, token);
        self.token_logprobs.push(None);
        self.top_logprobs.push(None);
    }

    fn push_token(&mut self, start: usize, token: String) {
        let offset = match (self.text_offset.last(), self.tokens.last()) {
            (Some(offset), Some(token)) => offset + token.chars().count(),
            _ => start,
        };
        self.text_offset.push(offset);
        self.tokens.push(token);
    }
}

/// Tokens with their log-probabilities, best first; serializes as an object. Of two tokens with the same text (both
/// halves of characters, say) the likelier stands.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TopLogprobs(Vec<(String, f32)>);

impl TopLogprobs {
    fn new(position: &ScoredPosition) -> Self {
        let mut seen = std::collections::HashSet::new();
        let chosen_is_among = position.top.iter().any(|token| token.token == position.chosen.token);
        let own = (!chosen_is_among).then_some(&position.chosen);
        let tokens = position.top.iter().chain(own);
        let entry = |token: &ScoredToken| (token.token.clone(), finite(token.logprob));
        TopLogprobs(tokens.filter(|token| seen.insert(token.token.as_str())).map(entry).collect())
    }
}

impl Serialize for TopLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (token, logprob) in &self.0 {
            map.serialize_entry(token, logprob)?;
        }
        map.end()
    }
}

/// `logprobs` of a chat's choice.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ChatLogprobs {
    /// One for each token.
    pub content: Vec<ChatTokenLogprob>,
}

impl ChatLogprobs {
    /// Adds a position.
    pub fn push(&mut self, position: &ScoredPosition) {
        let top_logprobs = position.top.iter().map(ChatTopLogprob::new).collect();
        let ChatTopLogprob { token, logprob, bytes } = ChatTopLogprob::new(&position.chosen);
        self.content.push(ChatTokenLogprob { token, logprob, bytes, top_logprobs });
    }
}

/// A token of a chat's answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChatTokenLogprob {
    /// Its text.
    pub token: String,
    /// The logarithm of its probability.
    pub logprob: f32,
    /// Its bytes in UTF-8.
    pub bytes: Vec<u8>,
    /// The most likely tokens at its position.
    pub top_logprobs: Vec<ChatTopLogprob>,
}

/// A token that a chat's answer might have had.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChatTopLogprob {
    /// Its text.
    pub token: String,
    /// The logarithm of its probability.
    pub logprob: f32,
    /// Its bytes in UTF-8.
    pub bytes: Vec<u8>,
}

impl ChatTopLogprob {
    fn new(token: &ScoredToken) -> Self {
        let bytes = token.bytes.clone().unwrap_or_else(|| token.token.as_bytes().to_vec());
        ChatTopLogprob { token: token.token.clone(), logprob: finite(token.logprob), bytes }
    }
}

/// A token at a position of the prompt, as vLLM's `prompt_logprobs` has it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PromptLogprob {
    /// The logarithm of its probability.
    pub logprob: f32,
    /// Its place among all tokens, from 1.
    pub rank: usize,
    /// Its text.
    pub decoded_token: String,
}

impl PromptLogprob {
    /// An entry, with a log-probability that JSON can say.
    pub fn new(logprob: f32, rank: usize, decoded_token: String) -> Self {
        PromptLogprob { logprob: finite(logprob), rank, decoded_token }
    }
}

/// A log-probability that JSON can say.
fn finite(logprob: f32) -> f32 {
    // `max` of NaN and a number is the number.
    logprob.max(LOWEST)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use serde_json::{json, to_value};

    fn token(token: &str, logprob: f32) -> ScoredToken {
        ScoredToken { token: token.to_owned(), bytes: None, logprob }
    }

    #[test]
    fn completions_have_four_lists_with_offsets_in_characters() {
        let mut logprobs = CompletionLogprobs::default();
        logprobs.push_first_of_prompt("né".to_owned());
        logprobs.push(0, &ScoredPosition { chosen: token("b", f32::NEG_INFINITY), top: vec![token("c", -0.5)] });
        logprobs.push(
            0,
            &ScoredPosition {
                chosen: token("\u{fffd}", -1.0),
                top: vec![token("\u{fffd}", -1.0), token("\u{fffd}", -2.0)],
            },
        );
        assert_eq!(
            to_value(&logprobs).unwrap(),
            json!({
                "text_offset": [0, 2, 3],
                "token_logprobs": [null, -9999.0, -1.0],
                "tokens": ["né", "b", "\u{fffd}"],
                "top_logprobs": [null, {"c": -0.5, "b": -9999.0}, {"\u{fffd}": -1.0}],
            })
        );
        let mut chunk = CompletionLogprobs::default();
        chunk.push(17, &ScoredPosition { chosen: token("x", -0.25), top: vec![] });
        assert_eq!((chunk.text_offset[0], to_value(&chunk.top_logprobs[0]).unwrap()), (17, json!({"x": -0.25})));
    }

    #[test]
    fn chats_have_a_list_of_tokens_with_their_bytes() {
        let mut logprobs = ChatLogprobs::default();
        let half = ScoredToken { bytes: Some(vec![0xf0, 0x9f]), ..token("\u{fffd}", f32::NAN) };
        logprobs.push(&ScoredPosition { chosen: token("é", -0.5), top: vec![half] });
        assert_eq!(
            to_value(&logprobs).unwrap(),
            json!({"content": [{
                "token": "é", "logprob": -0.5, "bytes": [195, 169],
                "top_logprobs": [{"token": "\u{fffd}", "logprob": -9999.0, "bytes": [240, 159]}],
            }]})
        );
        let prompt = to_value(PromptLogprob::new(f32::NEG_INFINITY, 3, "a".to_owned())).unwrap();
        assert_eq!(prompt, json!({"logprob": -9999.0, "rank": 3, "decoded_token": "a"}));
    }
}
