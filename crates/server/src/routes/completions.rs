//! `POST /v1/completions`.

use std::sync::Arc;

use allotrope_engine::{Delta, PromptReport};
use allotrope_model::Tokenizer;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, Response};

use super::answering::{Head, read};
use super::{Failure, json_of_model, to_json};
use crate::generation::{Arrival, Chunks, Generation, respond};
use crate::prompt::{self, ReadyPrompt};
use crate::protocol::completion::CompletionRequest;
use crate::protocol::logprobs::CompletionLogprobs;
use crate::protocol::response::{CompletionChoice, CompletionResponse, FinishReason, Usage};
use crate::protocol::{ApiError, identifiers, sse};
use crate::scores;
use crate::state::App;

pub(super) async fn answer(State(app): State<Arc<App>>, request: Request<Body>) -> Result<Response<Body>, Failure> {
    let model = app.lifecycle.model()?;
    let arrival = Arrival::now(&app);
    let (request, job) = read(&app, &model, request, CompletionRequest::parse, prompt::of_completion).await?;
    let counts_answers = !request.prompt_only;
    let mut generation =
        Generation::start(Arc::clone(&app), Arc::clone(&model), job, &request.options, counts_answers, arrival).await?;
    let head = Head::new(identifiers::completion_id(), &request.options, &model);
    let stream = request.options.stream;
    let mut choices = Choices::new(request, stream.map(|_| app.config.stream_interval), generation.len());
    if let Some(options) = stream {
        let tells_usage = options.include_usage || app.config.force_include_usage;
        let chunks = CompletionChunks { head, choices, tells_usage_always: options.continuous_usage };
        return Ok(respond(generation, chunks, tells_usage));
    }
    let mut finished = Vec::with_capacity(generation.len());
    while let Some(delta) = generation.next().await {
        finished.extend(choices.push(delta?, &generation));
    }
    finished.sort_by_key(|choice| choice.index);
    let response = head.response(finished, Some(generation.usage()));
    let text = scores::over(generation.told(), || to_json(&response))?;
    Ok(json_of_model(text, generation.active.clone()))
}

impl Head {
    fn response(&self, choices: Vec<CompletionChoice>, usage: Option<Usage>) -> CompletionResponse {
        CompletionResponse::new(&self.id, self.created, &self.model, choices, usage)
    }
}

struct CompletionChunks {
    head: Head,
    choices: Choices,
    tells_usage_always: bool,
}

impl Chunks for CompletionChunks {
    fn push(&mut self, delta: Delta, generation: &Generation, events: &mut String) -> Result<(), ApiError> {
        if let Some(choice) = self.choices.push(delta, generation) {
            let usage = self.tells_usage_always.then(|| generation.usage());
            events.push_str(&sse::event(&self.head.response(vec![choice], usage))?);
        }
        Ok(())
    }

    fn usage(&self, usage: Usage) -> Result<String, ApiError> {
        sse::event(&self.head.response(Vec::new(), Some(usage)))
    }
}

/// Puts the parts of each answer together, into chunks or into whole answers.
struct Choices {
    request: CompletionRequest,
    /// Tokens to a chunk; `None` for whole answers.
    interval: Option<usize>,
    choices: Vec<Pending>,
}

/// What was not sent yet of one answer.
#[derive(Default)]
struct Pending {
    has_begun: bool,
    tokens: usize,
    /// Where the next token begins in the text, in characters.
    offset: usize,
    choice: CompletionChoice,
    token_ids: Vec<u32>,
}

impl Choices {
    fn new(request: CompletionRequest, interval: Option<usize>, count: usize) -> Self {
        Choices { request, interval, choices: (0..count).map(|_| Pending::default()).collect() }
    }

    /// Takes the next part; gives what is to be sent.
    fn push(&mut self, delta: Delta, generation: &Generation) -> Option<CompletionChoice> {
        let tokenizer = generation.model.tokenizer();
        let pending = self.choices.get_mut(delta.index)?;
        let is_first = !std::mem::replace(&mut pending.has_begun, true);
        if is_first && let Some(prompt) = generation.prompt_of(delta.index) {
            pending.begin(&self.request, prompt, delta.prompt.as_deref(), tokenizer);
        }
        if !self.request.prompt_only {
            pending.choice.text.push_str(&delta.text);
            pending.token_ids.push(delta.token);
            if let Some(found) = &delta.logprobs {
                let logprobs = pending.choice.logprobs.get_or_insert_default();
                logprobs.push(pending.offset, &scores::position(tokenizer, found));
            }
        }
        pending.tokens += 1;
        let is_last = delta.finish_reason.is_some();
        let is_due = self.interval.is_some_and(|interval| is_first || pending.tokens >= interval);
        let says_something = !pending.choice.text.is_empty()
            || pending.choice.logprobs.is_some()
            || self.request.options.return_token_ids;
        if !(is_last || (is_due && says_something)) {
            return None;
        }
        let mut choice = std::mem::take(&mut pending.choice);
        pending.tokens = 0;
        if let Some(end) = choice.logprobs.as_ref().and_then(end_of) {
            pending.offset = end;
        }
        let token_ids = std::mem::take(&mut pending.token_ids);
        choice.token_ids = self.request.options.return_token_ids.then_some(token_ids);
        choice.index = delta.index;
        choice.finish_reason = match self.request.prompt_only {
            true => Some(FinishReason::Length),
            false => delta.finish_reason.map(FinishReason::from),
        };
        choice.stop_reason = delta.stop_reason.filter(|_| !self.request.prompt_only);
        Some(choice)
    }
}

impl Pending {
    /// What comes before the first token.
    fn begin(
        &mut self,
        request: &CompletionRequest,
        prompt: &ReadyPrompt,
        report: Option<&PromptReport>,
        tokenizer: &Tokenizer,
    ) {
        let choice = &mut self.choice;
        choice.prompt_token_ids = request.options.return_token_ids.then(|| prompt.tokens.to_vec());
        if let Some(text) = &prompt.text {
            choice.text.push_str(text);
        }
        let found = report.map(|report| report.logprobs.as_slice()).unwrap_or_default();
        if let Some(count) = request.prompt_logprobs.filter(|_| !found.is_empty()) {
            choice.prompt_logprobs = Some(scores::of_prompt(tokenizer, &scores::cut(found, count)));
        }
        let Some(count) = request.options.sampling.logprobs.filter(|_| request.echo) else { return };
        let found = &*scores::cut(found, count);
        let logprobs = choice.logprobs.get_or_insert_default();
        let add = |logprobs: &mut CompletionLogprobs| {
            for (token, found) in prompt.tokens.iter().zip(found) {
                match found {
                    Some(found) => logprobs.push(0, &scores::position(tokenizer, found)),
                    None => logprobs.push_first_of_prompt(scores::text(tokenizer, *token)),
                }
            }
        };
        scores::over(scores::count(found), || add(logprobs));
    }
}

/// Where the text goes on after the last token of a chunk.
fn end_of(logprobs: &CompletionLogprobs) -> Option<usize> {
    Some(logprobs.text_offset.last()? + logprobs.tokens.last()?.chars().count())
}
