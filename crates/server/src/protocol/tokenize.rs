//! `POST /tokenize` and `POST /detokenize`: the requests.

use super::chat::ChatInput;
use super::context::RequestContext;
use super::error::ApiError;
use super::fields::Fields;
use super::{json, options};

/// The most ids of a request to turn back into text.
const MAX_TOKENS: usize = 4 << 20;

/// What to tokenize.
#[derive(Debug, Clone, PartialEq)]
pub enum TokenizeInput {
    /// Text, which may be empty.
    Prompt(String),
    /// A conversation, which goes through the chat template first.
    Chat(Box<ChatInput>),
}

/// A request for the tokens of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenizeRequest {
    /// The text.
    pub input: TokenizeInput,
    /// Whether the tokenizer adds its special tokens: by default to a prompt, and not to a conversation.
    pub add_special_tokens: bool,
    /// Whether the answer holds the tokens' texts too.
    pub return_token_strs: bool,
}

impl TokenizeRequest {
    /// Reads the body of a request.
    ///
    /// # Errors
    /// 400 with the field that is wrong; 404 for a model that this server does not have.
    pub fn parse(body: &[u8], context: &RequestContext) -> Result<Self, ApiError> {
        let object = json::parse_body(body)?;
        let fields = Fields::of_body(&object);
        options::check_model(&fields, context)?;
        let input = match (fields.string("prompt")?, fields.get("messages")) {
            (Some(prompt), None) => {
                context.check_prompt_bytes(prompt.len())?;
                TokenizeInput::Prompt(prompt.to_owned())
            }
            (None, Some(_)) => TokenizeInput::Chat(Box::new(ChatInput::read(&fields, context)?)),
            _ => {
                return Err(ApiError::invalid(
                    "prompt",
                    "Expected one of `prompt` (a string) and `messages` (a list).",
                ));
            }
        };
        let is_prompt = matches!(input, TokenizeInput::Prompt(_));
        Ok(TokenizeRequest {
            input,
            add_special_tokens: fields.flag("add_special_tokens", is_prompt)?,
            return_token_strs: fields.flag("return_token_strs", false)?,
        })
    }
}

/// A request for the text of tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetokenizeRequest {
    /// Ids inside the vocabulary; may be none.
    pub tokens: Vec<u32>,
}

impl DetokenizeRequest {
    /// Reads the body of a request.
    ///
    /// # Errors
    /// 400 with the field that is wrong; 404 for a model that this server does not have.
    pub fn parse(body: &[u8], context: &RequestContext) -> Result<Self, ApiError> {
        let object = json::parse_body(body)?;
        let fields = Fields::of_body(&object);
        options::check_model(&fields, context)?;
        match fields.token_ids("tokens", MAX_TOKENS, context.vocabulary)? {
            Some(tokens) => Ok(DetokenizeRequest { tokens }),
            None => Err(fields.error("tokens", "a list of token ids")),
        }
    }
}
