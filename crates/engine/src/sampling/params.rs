//! What a request may say about the choice of its tokens, and the ranges that are accepted.

use std::collections::BTreeMap;

/// Below this temperature the most likely token is always taken.
pub(super) const GREEDY_BELOW: f32 = 1e-5;

/// The lowest temperature that tokens are drawn with; the logits of a lower one would differ by too much to be told apart.
pub(super) const LEAST_TEMPERATURE: f32 = 0.01;

/// How the tokens of one request are chosen, and when its output ends. Names, meanings and defaults are vLLM's.
///
/// ```
/// use allotrope_engine::SamplingParams;
///
/// let params = SamplingParams { top_p: 0.9, seed: Some(7), ..SamplingParams::default() };
/// assert!(params.validate().is_ok());
///
/// let wrong = SamplingParams { temperature: f32::NAN, ..params };
/// assert_eq!(
///     wrong.validate().unwrap_err().to_string(),
///     "sampling parameter `temperature` is NaN, but must be between 0 (greedy) and 2",
/// );
/// ```
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct SamplingParams {
    /// How many answers are wanted to one prompt. 1 (the default) to 128; above 1 a temperature is needed.
    pub n: usize,
    /// Divides the logits: below 1 favours likely tokens, above 1 evens them out; 0 always takes the most likely
    /// token (greedy), and so does anything below 0.00001; what lies between that and 0.01 is raised to 0.01. 0 to 2, by
    /// default 1.
    pub temperature: f32,
    /// Keeps the smallest set of most likely tokens whose probabilities sum to at least this much. Above 0, at most
    /// 1 (off, the default).
    pub top_p: f32,
    /// Keeps this many most likely tokens; 0 (the default) is off.
    pub top_k: u32,
    /// Keeps the tokens that are at least this fraction as likely as the most likely one. 0 (off, the default) to 1.
    pub min_p: f32,
    /// Taken from the logit of every token that the output holds already. -2 to 2, by default 0.
    pub presence_penalty: f32,
    /// Taken from the logit of every token for each time that the output holds it. -2 to 2, by default 0.
    pub frequency_penalty: f32,
    /// Makes every token of the prompt and of the output so far less likely: positive logits are divided by it and
    /// negative ones multiplied. Above 0 and finite; 1 (the default) is off, below 1 favours repetition.
    pub repetition_penalty: f32,
    /// Seeds this request's own random numbers: the same seed and prompt give the same output at every optimization level,
    /// whatever else runs in the batch. Another kind of device may give another output, as it draws with other random numbers
    /// and its logits have other bits. `None` (the default) lets the engine choose one.
    pub seed: Option<u64>,
    /// The most tokens to generate, at least 1. `None` (the default) goes on up to the context length.
    pub max_tokens: Option<usize>,
    /// No token that ends the output is chosen before so many. At most `max_tokens`; 0 by default.
    pub min_tokens: usize,
    /// The output ends before the first of these strings. At most 16, none empty, each of at most 1024 bytes.
    pub stop: Vec<String>,
    /// Keeps the stop string at the end of the output.
    pub include_stop_str_in_output: bool,
    /// Tokens that end the output, beside the model's own. At most 128.
    pub stop_token_ids: Vec<u32>,
    /// Does not stop at the model's end-of-sequence tokens.
    pub ignore_eos: bool,
    /// How many of the most likely tokens to report with each token of the output; `Some` reports at least the token's own.
    pub logprobs: Option<LogprobCount>,
    /// The same for the tokens of the prompt.
    pub prompt_logprobs: Option<LogprobCount>,
    /// Added to the logits of these tokens; finite, and clamped to -100 to 100. At most 1024 tokens.
    pub logit_bias: BTreeMap<u32, f32>,
    /// The only tokens that may be chosen, if given. Not empty, at most 1024.
    pub allowed_token_ids: Option<Vec<u32>>,
    /// Words that the output never holds: the last token of each is masked where the tokens before it are there. At most 128,
    /// none empty, each of at most 1024 bytes.
    pub bad_words: Vec<String>,
    /// Leaves special tokens out of the text. On by default.
    pub skip_special_tokens: bool,
    /// What the text of the output must be.
    pub structured_output: Option<StructuredOutput>,
    /// Keeps only the last so many tokens of a prompt. At least 1.
    pub truncate_prompt_tokens: Option<usize>,
}

/// How many of the most likely tokens are reported with a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogprobCount {
    /// So many, and the token itself.
    Top(u32),
    /// The whole vocabulary.
    All,
}

/// What the text of an output must be.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StructuredOutput {
    /// JSON that a schema accepts.
    Json(serde_json::Value),
    /// Any JSON object.
    JsonObject,
    /// Text that a regular expression matches as a whole.
    Regex(String),
    /// One of these.
    Choice(Vec<String>),
    /// Text of a grammar in Lark's form.
    Grammar(String),
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            n: 1,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            seed: None,
            max_tokens: None,
            min_tokens: 0,
            stop: Vec::new(),
            include_stop_str_in_output: false,
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            logprobs: None,
            prompt_logprobs: None,
            logit_bias: BTreeMap::new(),
            allowed_token_ids: None,
            bad_words: Vec::new(),
            skip_special_tokens: true,
            structured_output: None,
            truncate_prompt_tokens: None,
        }
    }
}

impl SamplingParams {
    /// The defaults, but always taking the most likely token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Whether the most likely token is always taken: the temperature is too low to draw with.
    pub fn is_greedy(&self) -> bool {
        self.temperature < GREEDY_BELOW
    }
}
