//! Token ids to text, one at a time.

use tokenizers::{Decoder, DecoderWrapper};

use super::Tokenizer;
use super::byte_level::token_bytes;
use crate::error::ModelError;

/// The character that stands for bytes that are no UTF-8.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;
/// Tokens that a [`Window`] holds back at most while its text ends in the middle of a character. A character has at most
/// four bytes, so with one byte to a token four would do; the rest is for tokens that decode to nothing.
const MOST_PENDING: usize = 16;

/// Turns the ids of one generated text into pieces of text as they come.
///
/// A piece has whole characters only: the bytes of a character that several tokens share are held back until it is
/// complete. The pieces and the rest from [`TokenStream::flush`] make up what [`Tokenizer::decode`] gives for all ids
/// at once. Each id costs the same, however long the text is.
#[derive(Debug)]
pub struct TokenStream {
    tokenizer: Tokenizer,
    skip_special_tokens: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    /// For byte-level vocabularies: bytes of a character that is not complete, at most three.
    Bytes(Vec<u8>),
    /// For decoders whose text for a token depends on its neighbours.
    Window(Window),
}

/// The last tokens, decoded together: a decoder may treat the first token of a text specially (it drops the space in
/// front), so the tokens of the last piece stay as context.
#[derive(Debug, Default)]
struct Window {
    tokens: Vec<String>,
    /// How many of `tokens` have been given out.
    context: usize,
}

impl TokenStream {
    pub(super) fn new(tokenizer: Tokenizer, skip_special_tokens: bool) -> Self {
        let state = match tokenizer.decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => State::Bytes(Vec::new()),
            _ => State::Window(Window::default()),
        };
        TokenStream { tokenizer, skip_special_tokens, state }
    }

    /// Takes the next id. Gives the text that became complete, if any; ids that no token has give none.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails, which depends on `tokenizer.json`.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, ModelError> {
        let Some(token) = self.tokenizer.token(id) else { return Ok(None) };
        if self.skip_special_tokens && self.tokenizer.is_special(id) {
            return Ok(None);
        }
        let text = match &mut self.state {
            State::Bytes(pending) => {
                pending.extend(token_bytes(&token));
                take_complete(pending)
            }
            State::Window(window) => {
                window.tokens.push(token);
                window.take(&self.tokenizer, false)?
            }
        };
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    /// Gives what is still held back, when no more ids will come: an incomplete character as U+FFFD.
    ///
    /// # Errors
    /// As for [`TokenStream::push`].
    pub fn flush(&mut self) -> Result<Option<String>, ModelError> {
        let text = match &mut self.state {
            State::Bytes(pending) => String::from_utf8_lossy(&std::mem::take(pending)).into_owned(),
            State::Window(window) => window.take(&self.tokenizer, true)?,
        };
        Ok(Some(text).filter(|text| !text.is_empty()))
    }
}

/// Takes the complete characters from the front of `pending`, bytes that cannot begin or continue one as U+FFFD, as
/// `String::from_utf8_lossy` does; leaves an incomplete last character.
fn take_complete(pending: &mut Vec<u8>) -> String {
    let mut text = String::with_capacity(pending.len());
    let mut rest = pending.as_slice();
    loop {
        match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                rest = &[];
                break;
            }
            Err(error) => {
                let (valid, after) = rest.split_at(error.valid_up_to());
                text.push_str(std::str::from_utf8(valid).unwrap_or_default());
                rest = after;
                let Some(invalid) = error.error_len() else { break };
                text.push(REPLACEMENT);
                rest = rest.get(invalid..).unwrap_or_default();
            }
        }
    }
    *pending = rest.to_vec();
    text
}

impl Window {
    /// The text of the tokens that were not given out yet, if it is complete or `all` is wanted.
    fn take(&mut self, tokenizer: &Tokenizer, all: bool) -> Result<String, ModelError> {
        let known = tokenizer.decode_tokens(self.tokens.get(..self.context).unwrap_or_default())?;
        let whole = tokenizer.decode_tokens(&self.tokens)?;
        let pending = self.tokens.len() - self.context;
        let text = common_tail(&known, &whole);
        let complete = !text.is_empty() && !text.ends_with(REPLACEMENT);
        if !(all || complete || pending >= MOST_PENDING) {
            return Ok(String::new());
        }
        let text = text.to_owned();
        // An empty piece leaves no context behind, so the old one stays, unless it grows without end.
        if !text.is_empty() || self.tokens.len() > 4 * MOST_PENDING {
            self.tokens.drain(..self.context);
        }
        self.context = self.tokens.len();
        Ok(text)
    }
}

/// What `whole` has beyond `known`, with which it should begin.
fn common_tail<'a>(known: &str, whole: &'a str) -> &'a str {
    whole.strip_prefix(known).unwrap_or_else(|| {
        let shared = known.chars().zip(whole.chars()).take_while(|(left, right)| left == right);
        let length = shared.map(|(character, _)| character.len_utf8()).sum();
        whole.get(length..).unwrap_or_default()
    })
}

impl Tokenizer {
    /// The text of tokens, through the decoder; without one, tokens are joined by spaces.
    pub(super) fn decode_tokens(&self, tokens: &[String]) -> Result<String, ModelError> {
        match self.decoder() {
            Some(decoder) => self.guard("decoding", || decoder.decode(tokens.to_vec())),
            None => Ok(tokens.join(" ")),
        }
    }
}
