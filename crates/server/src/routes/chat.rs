//! `POST /v1/chat/completions`.

use std::collections::BTreeMap;
use std::sync::Arc;

use allotrope_engine::Delta;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, Response};

use super::answering::{Head, read};
use super::{Failure, json_of_model, to_json};
use crate::generation::{Arrival, Chunks, Generation, respond};
use crate::model::ServedModel;
use crate::prompt;
use crate::protocol::chat::ChatRequest;
use crate::protocol::logprobs::{ChatLogprobs, PromptLogprob};
use crate::protocol::response::{
    AssistantMessage, ChatChoice, ChatChunkChoice, ChatCompletionChunk, ChatCompletionResponse, ChatDelta,
    FinishReason, Usage,
};
use crate::protocol::{ApiError, identifiers, sse};
use crate::scores;
use crate::state::App;
use crate::tools::{ParsedAnswer, ToolParser};

pub(super) async fn answer(State(app): State<Arc<App>>, request: Request<Body>) -> Result<Response<Body>, Failure> {
    let model = app.lifecycle.model()?;
    let arrival = Arrival::now(&app);
    let (request, job) = read(&app, &model, request, ChatRequest::parse, prompt::of_chat).await?;
    let generation =
        Generation::start(Arc::clone(&app), Arc::clone(&model), job, &request.options, true, arrival).await?;
    let head = Head::new(identifiers::chat_completion_id(), &request.options, &model);
    match request.options.stream {
        Some(options) => {
            let tells_usage = options.include_usage || app.config.force_include_usage;
            let chunks = ChatChunks::new(head, &model, request, &app, generation.len());
            Ok(respond(generation, chunks, tells_usage))
        }
        None => whole(head, request, generation).await,
    }
}

/// One answer that is put together.
struct Whole {
    text: String,
    logprobs: Option<ChatLogprobs>,
    token_ids: Vec<u32>,
    choice: Option<ChatChoice>,
}

async fn whole(head: Head, request: ChatRequest, mut generation: Generation) -> Result<Response<Body>, Failure> {
    let empty = || Whole { text: String::new(), logprobs: None, token_ids: Vec::new(), choice: None };
    let mut answers: Vec<Whole> = (0..generation.len()).map(|_| empty()).collect();
    let mut prompt_logprobs: Option<Vec<Option<BTreeMap<u32, PromptLogprob>>>> = None;
    let model = Arc::clone(&generation.model);
    while let Some(delta) = generation.next().await {
        let delta = delta?;
        if let Some(report) = delta.prompt.as_ref().filter(|report| !report.logprobs.is_empty()) {
            prompt_logprobs.get_or_insert_with(|| scores::of_prompt(model.tokenizer(), &report.logprobs));
        }
        let Some(answer) = answers.get_mut(delta.index) else { continue };
        answer.text.push_str(&delta.text);
        answer.token_ids.push(delta.token);
        if let Some(found) = &delta.logprobs {
            answer.logprobs.get_or_insert_default().push(&scores::position(model.tokenizer(), found));
        }
        if let Some(reason) = delta.finish_reason {
            let text = std::mem::take(&mut answer.text);
            let (message, finish_reason) = message(&request, &model, text, reason.into());
            let token_ids = std::mem::take(&mut answer.token_ids);
            answer.choice = Some(ChatChoice {
                index: delta.index,
                message,
                logprobs: answer.logprobs.take(),
                finish_reason: Some(finish_reason),
                stop_reason: delta.stop_reason,
                token_ids: request.options.return_token_ids.then_some(token_ids),
            });
        }
    }
    let choices = answers.into_iter().filter_map(|answer| answer.choice).collect();
    let mut response = ChatCompletionResponse::new(&head.id, head.created, &head.model, choices, generation.usage());
    response.prompt_logprobs = prompt_logprobs;
    response.prompt_token_ids = prompt_token_ids(&request, &generation);
    let text = scores::over(generation.told(), || to_json(&response))?;
    Ok(json_of_model(text, generation.active.clone()))
}

fn prompt_token_ids(request: &ChatRequest, generation: &Generation) -> Option<Vec<u32>> {
    let prompt = generation.prompts.first().filter(|_| request.options.return_token_ids)?;
    Some(prompt.tokens.to_vec())
}

/// The message of a whole answer, and why it ended.
fn message(
    request: &ChatRequest,
    model: &ServedModel,
    text: String,
    reason: FinishReason,
) -> (AssistantMessage, FinishReason) {
    let parsed = match ToolParser::for_request(request, Some(model.tool_format)) {
        Some(parser) => parser.parse(&text),
        None => ParsedAnswer { content: Some(text), calls: Vec::new() },
    };
    let calls = !parsed.calls.is_empty() && reason == FinishReason::Stop;
    let reason = if calls { FinishReason::ToolCalls } else { reason };
    (parsed.into_message(request.input.response_role()), reason)
}

/// Turns the parts of answers into chunks.
struct ChatChunks {
    head: Head,
    role: String,
    request: ChatRequest,
    interval: usize,
    choices: Vec<Pending>,
    tells_usage_always: bool,
}

/// What was not sent yet of one answer.
struct Pending {
    has_begun: bool,
    tokens: usize,
    parser: Option<ToolParser>,
    text: String,
    logprobs: Option<ChatLogprobs>,
    token_ids: Vec<u32>,
}

impl ChatChunks {
    fn new(head: Head, model: &ServedModel, request: ChatRequest, app: &App, count: usize) -> Self {
        let pending = || Pending {
            has_begun: false,
            tokens: 0,
            parser: ToolParser::for_request(&request, Some(model.tool_format)),
            text: String::new(),
            logprobs: None,
            token_ids: Vec::new(),
        };
        ChatChunks {
            head,
            role: request.input.response_role().to_owned(),
            interval: app.config.stream_interval,
            choices: (0..count).map(|_| pending()).collect(),
            tells_usage_always: request.options.stream.is_some_and(|options| options.continuous_usage),
            request,
        }
    }

    fn chunk(&self, choices: Vec<ChatChunkChoice>, usage: Option<Usage>) -> ChatCompletionChunk {
        ChatCompletionChunk::new(&self.head.id, self.head.created, &self.head.model, choices, usage)
    }

    fn send(&self, choice: ChatChunkChoice, generation: &Generation, events: &mut String) -> Result<(), ApiError> {
        let usage = self.tells_usage_always.then(|| generation.usage());
        events.push_str(&sse::event(&self.chunk(vec![choice], usage))?);
        Ok(())
    }

    /// The first chunk of an answer.
    fn open(&self, index: usize, generation: &Generation, events: &mut String) -> Result<(), ApiError> {
        let delta = ChatDelta::opening(&self.role);
        let choice = ChatChunkChoice { index, delta, ..ChatChunkChoice::default() };
        let usage = self.tells_usage_always.then(|| generation.usage());
        let mut chunk = self.chunk(vec![choice], usage);
        chunk.prompt_token_ids = prompt_token_ids(&self.request, generation);
        events.push_str(&sse::event(&chunk)?);
        Ok(())
    }
}

impl Chunks for ChatChunks {
    fn push(&mut self, delta: Delta, generation: &Generation, events: &mut String) -> Result<(), ApiError> {
        let index = delta.index;
        let returns_ids = self.request.options.return_token_ids;
        let interval = self.interval;
        let Some(pending) = self.choices.get_mut(index) else { return Ok(()) };
        let is_first = !std::mem::replace(&mut pending.has_begun, true);
        let choices = pending.push(delta, is_first, interval, returns_ids, generation);
        if is_first {
            self.open(index, generation, events)?;
        }
        for choice in choices {
            self.send(ChatChunkChoice { index, ..choice }, generation, events)?;
        }
        Ok(())
    }

    fn usage(&self, usage: Usage) -> Result<String, ApiError> {
        sse::event(&self.chunk(Vec::new(), Some(usage)))
    }
}

impl Pending {
    /// Takes the next part; gives what is to be sent.
    fn push(
        &mut self,
        delta: Delta,
        is_first: bool,
        interval: usize,
        returns_ids: bool,
        generation: &Generation,
    ) -> Vec<ChatChunkChoice> {
        self.text.push_str(&delta.text);
        self.token_ids.push(delta.token);
        self.tokens += 1;
        if let Some(found) = &delta.logprobs {
            let position = scores::position(generation.model.tokenizer(), found);
            self.logprobs.get_or_insert_default().push(&position);
        }
        let reason = delta.finish_reason.map(FinishReason::from);
        if reason.is_none() && !is_first && self.tokens < interval {
            return Vec::new();
        }
        let mut deltas = self.deltas(reason.is_some());
        // What belongs to tokens waits for a chunk to go along with.
        let must_speak = reason.is_some() || (deltas.is_empty() && (returns_ids || self.logprobs.is_some()));
        if deltas.is_empty() && must_speak {
            deltas.push(ChatDelta::default());
        }
        let mut choices: Vec<ChatChunkChoice> =
            deltas.into_iter().map(|delta| ChatChunkChoice { delta, ..ChatChunkChoice::default() }).collect();
        if let Some(first) = choices.first_mut() {
            self.tokens = 0;
            first.logprobs = self.logprobs.take();
            let token_ids = std::mem::take(&mut self.token_ids);
            first.token_ids = returns_ids.then_some(token_ids);
        }
        if let (Some(last), Some(reason)) = (choices.last_mut(), reason) {
            last.finish_reason = Some(self.parser.as_ref().map_or(reason, |parser| parser.finish_reason(reason)));
            last.stop_reason = delta.stop_reason;
        }
        choices
    }

    /// What the text since the last chunk adds to the message.
    fn deltas(&mut self, is_last: bool) -> Vec<ChatDelta> {
        let text = std::mem::take(&mut self.text);
        match &mut self.parser {
            Some(parser) => {
                let mut events = parser.push(&text);
                if is_last {
                    events.extend(parser.finish());
                }
                events.into_iter().map(ChatDelta::from).collect()
            }
            None if text.is_empty() => Vec::new(),
            None => vec![ChatDelta::text(text)],
        }
    }
}
