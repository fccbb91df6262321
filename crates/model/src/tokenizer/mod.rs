//! Text to token ids and back, from `tokenizer.json`.

mod bpe;
mod byte_level;
mod file;
mod stream;
mod vocabulary;

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokenizers::DecoderWrapper;

use self::file::Pipeline;
pub use self::stream::TokenStream;
use crate::config::ModelConfig;
use crate::error::{ModelError, shorten};

/// Name of the tokenizer's file in a checkpoint folder.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// The tokenizer of a checkpoint. A clone shares the same tables.
#[derive(Clone)]
pub struct Tokenizer {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    pipeline: Pipeline,
    id_bound: usize,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("path", &self.shared.path).field("id_bound", &self.shared.id_bound).finish()
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json` in `folder`.
    ///
    /// # Errors
    /// If the file can't be read, is not JSON, has a part that the tokenizers library doesn't know, or contradicts itself.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join(TOKENIZER_FILE);
        let pipeline = fence(&path, "reading the tokenizer", || Ok(file::read(&path)))??;
        let added = pipeline.get_added_vocabulary().get_added_tokens_decoder().keys();
        let id_bound = added.map(|id| *id as usize + 1).max().unwrap_or(0).max(pipeline.get_model().id_bound());
        Ok(Tokenizer { shared: Arc::new(Shared { path, pipeline, id_bound }) })
    }

    /// The ids of `text`. Special tokens that `text` spells out are recognized. With `add_special_tokens` the ids that
    /// `tokenizer.json` puts around every text (`<|begin_of_text|>`) are added; leave them out for text that a chat
    /// template has made, which has them already.
    ///
    /// # Errors
    /// If a part of the tokenizer fails on this text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, ModelError> {
        let encoding = self.guard("encoding", || self.shared.pipeline.encode_fast(text, add_special_tokens))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids`; with `skip_special_tokens` without special tokens. Bytes that are no UTF-8 become U+FFFD. Ids
    /// that no token has (a vocabulary may be padded) have no text.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, ModelError> {
        self.guard("decoding", || self.shared.pipeline.decode(ids, skip_special_tokens))
    }

    /// A decoder of ids that come one at a time.
    pub fn stream(&self, skip_special_tokens: bool) -> TokenStream {
        TokenStream::new(self.clone(), skip_special_tokens)
    }

    /// The id of a token, in the spelling of `tokenizer.json`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.shared.pipeline.token_to_id(token)
    }

    /// The token of an id, in the spelling of `tokenizer.json` (where a byte-level vocabulary writes a space as `Ġ`).
    pub fn token(&self, id: u32) -> Option<String> {
        self.shared.pipeline.id_to_token(id)
    }

    /// The bytes of text that the token of an id stands for in the middle of a text: those that a byte-level vocabulary spells, a
    /// space for `▁` and the byte for `<0x0A>` in a vocabulary of SentencePiece. A token that was added to the vocabulary, such as
    /// a special one, stands for its own spelling. `None` for ids that no token has.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let token = self.token(id)?;
        if self.shared.pipeline.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id) {
            return Some(token.into_bytes());
        }
        let part = |wanted: fn(&DecoderWrapper) -> bool| match self.decoder() {
            Some(DecoderWrapper::Sequence(sequence)) => sequence.get_decoders().iter().any(wanted),
            Some(decoder) => wanted(decoder),
            None => false,
        };
        if part(|decoder| matches!(decoder, DecoderWrapper::ByteLevel(_))) {
            return Some(byte_level::token_bytes(&token));
        }
        let byte = part(|decoder| matches!(decoder, DecoderWrapper::ByteFallback(_)))
            .then(|| token.strip_prefix("<0x")?.strip_suffix('>'))
            .flatten()
            .filter(|digits| digits.len() == 2)
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        Some(byte.map_or_else(|| token.replace('▁', " ").into_bytes(), |byte| vec![byte]))
    }

    /// Whether the token of this id is special: a mark such as the end of a text, not text.
    pub fn is_special(&self, id: u32) -> bool {
        let vocabulary = self.shared.pipeline.get_added_vocabulary();
        self.token(id).is_some_and(|token| vocabulary.is_special_token(&token))
    }

    /// The largest id of a token, plus one.
    pub fn id_bound(&self) -> usize {
        self.shared.id_bound
    }

    /// Checks that every id fits the embedding of `config`.
    ///
    /// # Errors
    /// If the tokenizer has ids at or above `vocab_size`.
    pub fn check_vocabulary(&self, config: &ModelConfig) -> Result<(), ModelError> {
        if self.shared.id_bound <= config.vocab_size {
            return Ok(());
        }
        let problem = format!("the largest token id is {}", self.shared.id_bound - 1);
        let expected = format!(
            "ids below vocab_size = {} of {}; is this another model's tokenizer?",
            config.vocab_size,
            crate::CONFIG_FILE
        );
        Err(ModelError::file(&self.shared.path, problem, expected))
    }

    fn decoder(&self) -> Option<&DecoderWrapper> {
        self.shared.pipeline.get_decoder()
    }

    fn guard<T>(&self, doing: &str, work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, ModelError> {
        fence(&self.shared.path, doing, work)
    }
}

/// Runs code of the tokenizers library, which has assertions that a hostile `tokenizer.json` can reach: a panic there
/// becomes an error here. What it works on is not changed by it (caches aside, which are filled whole or not at all).
fn fence<T>(path: &Path, doing: &str, work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, ModelError> {
    let failure = |reason: &str| ModelError::Text {
        path: path.to_owned(),
        problem: format!("{doing} failed: {}", shorten(reason)),
    };
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(failure(&error.to_string())),
        Err(panic) => Err(failure(panic_message(panic.as_ref()))),
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("the tokenizers library panicked")
}
