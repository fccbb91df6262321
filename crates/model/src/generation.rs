//! `generation_config.json`: how the makers of a model suggest to sample from it.

use std::path::Path;

use crate::error::ModelError;
use crate::json::{self, Fields};

/// Name of the file with the generation defaults in a checkpoint folder.
pub const GENERATION_CONFIG_FILE: &str = "generation_config.json";

/// Sampling defaults of a checkpoint. A field that the file does not have is `None` (or empty).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    /// Tokens that end generation. Where this is empty, those of `config.json` count.
    pub eos_token_ids: Vec<u32>,
    /// Whether to sample (true) or to take the likeliest token.
    pub do_sample: Option<bool>,
    /// Divisor of the logits, finite and at least 0; 0 means the likeliest token.
    pub temperature: Option<f32>,
    /// Nucleus sampling: the smallest set of tokens whose probability is at least this, above 0 up to 1.
    pub top_p: Option<f32>,
    /// Only the likeliest so many tokens; 0 means all.
    pub top_k: Option<usize>,
    /// Only tokens at least this times as likely as the likeliest, 0 to 1.
    pub min_p: Option<f32>,
    /// Divides the logits of tokens that occurred already (multiplies negative ones); above 0, 1 is none.
    pub repetition_penalty: Option<f32>,
    /// Most tokens to generate, at least 1.
    pub max_new_tokens: Option<usize>,
}

impl GenerationConfig {
    /// Reads `generation_config.json` in `folder`; a missing file gives the empty defaults.
    ///
    /// # Errors
    /// If the file exists and can't be read, is not a JSON object, or holds a value out of range.
    pub fn open(folder: &Path, vocab_size: usize) -> Result<Self, ModelError> {
        let path = folder.join(GENERATION_CONFIG_FILE);
        if !json::exists(&path) {
            return Ok(Self::default());
        }
        let object = json::read_object(&path, json::SMALL_FILE)?;
        let fields = Fields::new(&path, &object);
        let number = |field, expected, right: fn(f64) -> bool| {
            let number = fields.number(field, expected, right)?;
            Ok::<_, ModelError>(number.map(|number| number as f32))
        };
        Ok(GenerationConfig {
            eos_token_ids: fields.token_ids("eos_token_id", vocab_size)?,
            do_sample: fields.flag("do_sample")?,
            temperature: number("temperature", "a number from 0 to 1000", |value| (0.0..=1e3).contains(&value))?,
            top_p: number("top_p", "a number above 0, up to 1", |value| value as f32 > 0.0 && value <= 1.0)?,
            top_k: fields.size("top_k", 0..=u32::MAX as usize)?,
            min_p: number("min_p", "a number from 0 to 1", |value| (0.0..=1.0).contains(&value))?,
            repetition_penalty: number("repetition_penalty", "a number above 0, up to 1000", |value| {
                value as f32 > 0.0 && value <= 1e3
            })?,
            max_new_tokens: fields.size("max_new_tokens", 1..=u32::MAX as usize)?,
        })
    }
}
