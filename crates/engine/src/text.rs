//! The text side of a model: what lies between people's words and the engine's tokens. It holds no weights.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use allotrope_model::{ChatTemplate, Checkpoint, ModelError, Tokenizer};

use crate::error::EngineError;
use crate::request::{Prompt, TokenRequest};
use crate::sampling::SamplingParams;
use crate::structured::{Grammar, GrammarCompiler, StructuredOutputError};

/// Tokenizer, chat template and limits of a checkpoint. A clone shares the same tables.
#[derive(Debug, Clone)]
pub struct TextModel {
    tokenizer: Tokenizer,
    /// Kept as it was found: a broken template hurts only those who use it.
    template: Arc<Result<ChatTemplate, ModelError>>,
    checkpoint: Arc<Checkpoint>,
    max_model_len: usize,
    /// Made when an output first asks for it, as it takes a while.
    grammars: Arc<OnceLock<Result<GrammarCompiler, StructuredOutputError>>>,
}

/// The parts that are read from files by themselves.
pub(crate) struct TextFiles {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: Result<ChatTemplate, ModelError>,
}

impl TextFiles {
    pub(crate) fn open(folder: &Path) -> Result<Self, ModelError> {
        Ok(TextFiles { tokenizer: Tokenizer::open(folder)?, template: ChatTemplate::open(folder) })
    }
}

impl TextModel {
    /// Opens the text side of a checkpoint by itself, with the checkpoint's own context length.
    ///
    /// # Errors
    /// If a file of the checkpoint is missing or broken.
    pub fn open(folder: &Path) -> Result<Self, EngineError> {
        let checkpoint = Arc::new(Checkpoint::open(folder)?);
        let context = checkpoint.config().max_position_embeddings;
        Self::new(TextFiles::open(folder)?, checkpoint, context)
    }

    pub(crate) fn new(
        files: TextFiles,
        checkpoint: Arc<Checkpoint>,
        max_model_len: usize,
    ) -> Result<Self, EngineError> {
        files.tokenizer.check_vocabulary(checkpoint.config())?;
        let TextFiles { tokenizer, template } = files;
        let grammars = Arc::default();
        Ok(TextModel { tokenizer, template: Arc::new(template), checkpoint, max_model_len, grammars })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template.
    ///
    /// # Errors
    /// If the checkpoint has none, or a broken one.
    pub fn chat_template(&self) -> Result<&ChatTemplate, EngineError> {
        self.template.as_ref().as_ref().map_err(|error| EngineError::Request(error.to_string()))
    }

    /// Whether the checkpoint has a chat template that can be used.
    pub fn has_chat_template(&self) -> bool {
        self.template.is_ok()
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Tokens of prompt and answer together at most.
    pub fn max_model_len(&self) -> usize {
        self.max_model_len
    }

    /// Token ids are below this: the width of a row of logits.
    pub fn vocabulary(&self) -> usize {
        self.checkpoint.config().vocab_size
    }

    /// The token ids of a prompt.
    ///
    /// # Errors
    /// If the text can't be tokenized, or the checkpoint has no usable chat template for a conversation.
    pub fn tokenize(&self, prompt: &Prompt) -> Result<Vec<u32>, EngineError> {
        Ok(match prompt {
            Prompt::Text(text) => self.tokenizer.encode(text, true)?,
            Prompt::Tokens(tokens) => tokens.clone(),
            Prompt::Chat(messages) => self.tokenizer.encode(&self.chat_template()?.render(messages, true)?, false)?,
        })
    }

    /// The sampling parameters that the checkpoint's `generation_config.json` asks for. Without `do_sample`, answers
    /// are greedy.
    pub fn default_sampling_params(&self) -> SamplingParams {
        let said = self.checkpoint.generation();
        if said.do_sample != Some(true) {
            return SamplingParams {
                repetition_penalty: said.repetition_penalty.unwrap_or(1.0),
                max_tokens: said.max_new_tokens,
                ..SamplingParams::greedy()
            };
        }
        let defaults = SamplingParams::default();
        SamplingParams {
            temperature: said.temperature.unwrap_or(defaults.temperature),
            top_p: said.top_p.unwrap_or(defaults.top_p),
            top_k: said.top_k.and_then(|k| u32::try_from(k).ok()).unwrap_or(defaults.top_k),
            min_p: said.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: said.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            max_tokens: said.max_new_tokens,
            ..defaults
        }
    }

    /// The requests for `params.n` answers to a prompt of token ids.
    ///
    /// # Errors
    /// As [`TextModel::request_maker`] and [`RequestMaker::requests`].
    pub fn requests(&self, prompt: &[u32], params: &SamplingParams) -> Result<Vec<TokenRequest>, EngineError> {
        self.request_maker(params)?.requests(prompt)
    }

    /// What makes requests with the same parameters for any number of prompts. Bad words are tokenized and what the output must be is
    /// compiled here, once, on the calling thread.
    ///
    /// # Errors
    /// If a parameter is out of range, or the structured output can't be used.
    pub fn request_maker(&self, params: &SamplingParams) -> Result<RequestMaker<'_>, EngineError> {
        // How many probabilities may be asked for is for those to bound who serve strangers.
        params.validate_for(self.vocabulary(), u32::MAX)?;
        let grammar = self.grammar(params)?;
        // Where a grammar says that the output may end, it ends, or it would have to go on with what the grammar forbids.
        let goes_on = params.ignore_eos && grammar.is_none();
        Ok(RequestMaker {
            text: self,
            params: Arc::new(params.clone()),
            end_tokens: if goes_on { Arc::default() } else { self.checkpoint.eos_token_ids().into() },
            bad_words: self.bad_words(&params.bad_words)?,
            grammar,
        })
    }

    /// Compiles what the output must be, if anything is asked for.
    fn grammar(&self, params: &SamplingParams) -> Result<Option<Grammar>, EngineError> {
        let Some(output) = &params.structured_output else { return Ok(None) };
        let make = || GrammarCompiler::new(&self.tokenizer, self.vocabulary(), self.checkpoint.eos_token_ids());
        let compiler = self.grammars.get_or_init(make).as_ref().map_err(Clone::clone)?;
        Ok(Some(compiler.compile(output)?))
    }

    /// Checks that a prompt has tokens of the vocabulary, and that so many more fit into the context.
    ///
    /// # Errors
    /// With the first thing that is wrong.
    pub fn check_prompt(&self, tokens: &[u32], more: usize) -> Result<(), EngineError> {
        if tokens.is_empty() {
            return Err(EngineError::Request("the prompt has no tokens; give at least one".into()));
        }
        if tokens.len().saturating_add(more) > self.max_model_len {
            return Err(EngineError::PromptTooLong { tokens: tokens.len(), more, context: self.max_model_len });
        }
        let vocabulary = self.vocabulary();
        match tokens.iter().find(|token| **token as usize >= vocabulary) {
            Some(token) => Err(EngineError::Request(format!(
                "token id {token} is not in the vocabulary of {vocabulary} entries (vocab_size in config.json)"
            ))),
            None => Ok(()),
        }
    }

    /// The tokens of words that are not wanted: of each as the beginning of a text, and behind a space.
    fn bad_words(&self, words: &[String]) -> Result<Arc<[Vec<u32>]>, EngineError> {
        let mut all = Vec::new();
        for word in words {
            for text in [word.clone(), format!(" {}", word.trim_start())] {
                let tokens = self.tokenizer.encode(&text, false)?;
                if !tokens.is_empty() && !all.contains(&tokens) {
                    all.push(tokens);
                }
            }
        }
        Ok(all.into())
    }
}

/// Makes requests with the same parameters, which share them.
#[derive(Debug)]
pub struct RequestMaker<'a> {
    text: &'a TextModel,
    params: Arc<SamplingParams>,
    end_tokens: Arc<[u32]>,
    bad_words: Arc<[Vec<u32>]>,
    grammar: Option<Grammar>,
}

impl RequestMaker<'_> {
    /// The requests for all answers to a prompt of token ids, checked against the vocabulary and the context.
    ///
    /// # Errors
    /// If the prompt is empty, does not fit into the context, or has a token that the model has not.
    pub fn requests(&self, prompt: &[u32]) -> Result<Vec<TokenRequest>, EngineError> {
        let kept = self.params.truncate_prompt_tokens.map_or(prompt.len(), |last| last.min(prompt.len()));
        let prompt: Arc<[u32]> = prompt[prompt.len() - kept..].into();
        self.text.check_prompt(&prompt, 1)?;
        let room = self.text.max_model_len - prompt.len();
        let request = |index: usize| TokenRequest {
            prompt: Arc::clone(&prompt),
            params: Arc::clone(&self.params),
            seed: seed(&self.params, index),
            max_tokens: self.params.max_tokens.unwrap_or(room).min(room),
            end_tokens: Arc::clone(&self.end_tokens),
            bad_words: Arc::clone(&self.bad_words),
            grammar: self.grammar.clone(),
            priority: 0,
            cache_salt: None,
        };
        Ok((0..self.params.n).map(request).collect())
    }
}

/// The seed of the answer of `index`: the request's own, counted on, or one that differs from run to run.
fn seed(params: &SamplingParams, index: usize) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    let counted = params.seed.map(|seed| seed.wrapping_add(index as u64));
    counted.unwrap_or_else(|| RandomState::new().hash_one(index))
}
