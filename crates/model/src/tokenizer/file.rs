//! `tokenizer.json`: read once, part by part, so that a broken part is named and the large part is read fast.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::{
    AddedToken, DecoderWrapper, Model, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    Token, TokenizerImpl,
};

use super::bpe::{BytePairModel, ModelPart};
use crate::error::{ModelError, shorten};
use crate::json;

/// Largest `tokenizer.json` in bytes; the largest we know has 40 million.
const MAX_TOKENIZER: u64 = 512 << 20;
const FORM: &str = "a tokenizer of the Hugging Face tokenizers library, version 1.0";

/// A tokenizer of the `tokenizers` crate whose model may be our own.
pub(super) type Pipeline =
    TokenizerImpl<AnyModel, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// The model part of a tokenizer: our byte-pair encoding where it applies, otherwise the crate's model.
pub(super) enum AnyModel {
    /// A byte-level byte-pair encoding.
    BytePair(Box<BytePairModel>),
    /// Any other model.
    Library(Box<ModelWrapper>),
}

impl Model for AnyModel {
    type Trainer = BpeTrainer;

    fn tokenize(&self, sequence: &str) -> tokenizers::Result<Vec<Token>> {
        match self {
            AnyModel::BytePair(model) => Ok(model.tokenize(sequence)),
            AnyModel::Library(model) => model.tokenize(sequence),
        }
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        match self {
            AnyModel::BytePair(model) => model.vocabulary().id(token),
            AnyModel::Library(model) => model.token_to_id(token),
        }
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        match self {
            AnyModel::BytePair(model) => model.vocabulary().token(id).map(str::to_owned),
            AnyModel::Library(model) => model.id_to_token(id),
        }
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        match self {
            AnyModel::BytePair(model) => model.vocabulary().iter().map(|(token, id)| (token.to_owned(), id)).collect(),
            AnyModel::Library(model) => model.get_vocab(),
        }
    }

    fn get_vocab_size(&self) -> usize {
        match self {
            AnyModel::BytePair(model) => model.vocabulary().len(),
            AnyModel::Library(model) => model.get_vocab_size(),
        }
    }

    fn save(&self, folder: &Path, prefix: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        match self {
            AnyModel::BytePair(_) => Err("a tokenizer that was opened for inference is not saved".into()),
            AnyModel::Library(model) => model.save(folder, prefix),
        }
    }

    fn get_trainer(&self) -> BpeTrainer {
        BpeTrainer::default()
    }
}

impl AnyModel {
    /// The largest id of the model plus one, 0 for an empty one.
    pub(super) fn id_bound(&self) -> usize {
        match self {
            AnyModel::BytePair(model) => model.vocabulary().iter().map(|(_, id)| id as usize + 1).max().unwrap_or(0),
            AnyModel::Library(model) => model.get_vocab().values().map(|id| *id as usize + 1).max().unwrap_or(0),
        }
    }
}

/// The parts of the file. Truncation and padding are for training and are left out.
#[derive(Deserialize)]
struct TokenizerFile<M> {
    version: Option<String>,
    #[serde(default)]
    added_tokens: Vec<AddedTokenWithId>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: M,
}

#[derive(Deserialize)]
struct AddedTokenWithId {
    id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

/// Reads and assembles the tokenizer at `path`.
pub(super) fn read(path: &Path) -> Result<Pipeline, ModelError> {
    let text = json::read_text(path, MAX_TOKENIZER)?;
    let (model, parts) = parse::<ModelPart>(path, &text)?.split();
    match model {
        ModelPart::BytePair(model) => assemble(path, AnyModel::BytePair(model), parts),
        ModelPart::Other => {
            let (model, parts) = parse::<Value>(path, &text)?.split();
            let model = component::<ModelWrapper>(path, "model", model)?;
            let model = model.ok_or_else(|| field_error(path, "model", "null", "a tokenizer model"))?;
            assemble(path, AnyModel::Library(Box::new(model)), parts)
        }
    }
}

fn parse<M: DeserializeOwned>(path: &Path, text: &str) -> Result<TokenizerFile<M>, ModelError> {
    serde_json::from_str(text).map_err(|error| ModelError::json(path, &error, FORM))
}

impl<M> TokenizerFile<M> {
    /// The model, and the other parts.
    fn split(self) -> (M, TokenizerFile<()>) {
        let TokenizerFile { version, added_tokens, normalizer, pre_tokenizer, post_processor, decoder, model } = self;
        (model, TokenizerFile { version, added_tokens, normalizer, pre_tokenizer, post_processor, decoder, model: () })
    }
}

fn assemble(path: &Path, model: AnyModel, file: TokenizerFile<()>) -> Result<Pipeline, ModelError> {
    if let Some(version) = file.version.filter(|version| version != "1.0") {
        return Err(field_error(path, "version", &format!("\"{}\"", shorten(&version)), "\"1.0\""));
    }
    check_templates(path, &file.post_processor)?;
    let mut pipeline = Pipeline::new(model);
    pipeline
        .with_normalizer(component::<NormalizerWrapper>(path, "normalizer", file.normalizer)?)
        .with_pre_tokenizer(component::<PreTokenizerWrapper>(path, "pre_tokenizer", file.pre_tokenizer)?)
        .with_post_processor(component::<PostProcessorWrapper>(path, "post_processor", file.post_processor)?)
        .with_decoder(component::<DecoderWrapper>(path, "decoder", file.decoder)?);
    let tokens: Vec<AddedToken> = file.added_tokens.iter().map(|added| added.token.clone()).collect();
    pipeline.add_tokens(&tokens);
    for added in file.added_tokens.iter().filter(|added| !added.token.content.is_empty()) {
        let given = pipeline.token_to_id(&added.token.content);
        if given != Some(added.id) {
            let found = format!("a list where `{}` has id {}", shorten(&added.token.content), added.id);
            let expected = match given {
                Some(id) => format!("id {id}, which follows from the vocabulary and the order of the list"),
                None => "an id within the vocabulary".to_owned(),
            };
            return Err(field_error(path, "added_tokens", &found, &expected));
        }
    }
    Ok(pipeline)
}

/// One part of the pipeline; `null` is none.
fn component<T: DeserializeOwned>(path: &Path, field: &str, value: Value) -> Result<Option<T>, ModelError> {
    if value.is_null() {
        return Ok(None);
    }
    let kind =
        value.get("type").map_or_else(|| "an object without `type`".to_owned(), |kind| shorten(&kind.to_string()));
    serde_json::from_value(value).map(Some).map_err(|error| {
        field_error(
            path,
            field,
            &format!("{kind} ({})", shorten(&error.to_string())),
            "a part that the tokenizers library knows",
        )
    })
}

/// The crate indexes by the names that a template holds without looking whether they are there; so this looks.
fn check_templates(path: &Path, processor: &Value) -> Result<(), ModelError> {
    let Some(kind) = processor.get("type").and_then(Value::as_str) else { return Ok(()) };
    if kind == "Sequence" {
        let processors = processor.get("processors").and_then(Value::as_array);
        return processors.into_iter().flatten().try_for_each(|processor| check_templates(path, processor));
    }
    if kind != "TemplateProcessing" {
        return Ok(());
    }
    for template in ["single", "pair"] {
        let pieces = processor.get(template).and_then(Value::as_array);
        for piece in pieces.into_iter().flatten() {
            let field = format!("post_processor.{template}");
            let special = piece.pointer("/SpecialToken/id").and_then(Value::as_str);
            if let Some(name) =
                special.filter(|name| processor.get("special_tokens").is_none_or(|tokens| tokens.get(name).is_none()))
            {
                let found = format!("a template with `{}`", shorten(name));
                return Err(field_error(path, &field, &found, "only tokens that post_processor.special_tokens has"));
            }
            if template == "single" && piece.pointer("/Sequence/id").is_some_and(|id| id != "A") {
                return Err(field_error(path, &field, "a template with a second sequence", "only sequence A"));
            }
        }
    }
    Ok(())
}

fn field_error(path: &Path, field: &str, found: &str, expected: &str) -> ModelError {
    ModelError::Field {
        path: path.to_owned(),
        field: field.to_owned(),
        found: found.to_owned(),
        expected: expected.to_owned(),
    }
}
