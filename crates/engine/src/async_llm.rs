//! The library's front for programs that serve many at once: requests from any task or thread, answers as streams.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use allotrope_config::Settings;
use allotrope_runtime::StartupReport;
use futures_util::Stream;

use crate::answer::Answer;
use crate::client::{EngineClient, QueueLimits, RequestFailure, TokenReceiver, channel};
use crate::engine_thread::EngineThread;
use crate::error::EngineError;
use crate::llm::LlmBuilder;
use crate::request::{Delta, Prompt, TokenRequest};
use crate::sampling::SamplingParams;
use crate::status::EngineState;
use crate::text::TextModel;

/// What is known of a model from its start.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// The resolved settings, each with its source and reason.
    pub settings: Settings,
    /// The name of the device that runs it.
    pub device_name: String,
    /// The phases of the start and their times.
    pub startup: StartupReport,
    /// Tokens that the KV cache holds.
    pub kv_cache_tokens: usize,
    /// Bytes of the KV cache.
    pub kv_cache_bytes: u64,
}

/// A loaded model with a thread of its own. Clones are of the same model; the last one that is dropped ends it.
///
/// ```no_run
/// use allotrope_engine::{AsyncLlm, Llm, Prompt, SamplingParams};
///
/// # async fn example() -> Result<(), allotrope_engine::EngineError> {
/// let llm = Llm::builder("tests/models/tiny-chat").build_async()?;
/// let mut answer = llm.generate(&Prompt::from("Once upon a time"), &SamplingParams::greedy())?;
/// while let Some(part) = answer.next().await {
///     print!("{}", part?.text);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct AsyncLlm {
    text: TextModel,
    engine: EngineClient,
    info: Option<Arc<ModelInfo>>,
}

impl AsyncLlm {
    /// Puts a model together from its text side and a client of whatever engine runs it.
    #[must_use]
    pub fn from_parts(text: TextModel, engine: EngineClient) -> Self {
        AsyncLlm { text, engine, info: None }
    }

    /// Loads the model on a thread of its own, which then serves.
    pub(crate) fn start(builder: LlmBuilder) -> Result<Self, EngineError> {
        let (ready, loaded) = std::sync::mpsc::sync_channel(1);
        let serve = move || {
            // The device belongs to the thread that opens it.
            let loaded = match builder.load() {
                Ok(loaded) => loaded,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let scheduler = &loaded.settings.scheduler;
            let (requests, tokens) = (*scheduler.max_num_queued_reqs, *scheduler.max_num_queued_tokens);
            let (engine, inbox) = channel(QueueLimits { requests, tokens });
            let parts = AsyncLlm { text: loaded.text.clone(), engine, info: Some(Arc::new(loaded.info())) };
            if ready.send(Ok(parts)).is_ok() {
                EngineThread::new(loaded, inbox).run();
            }
        };
        let thread = std::thread::Builder::new().name("engine".into()).spawn(serve);
        thread.map_err(|error| EngineError::EngineThread(error.to_string()))?;
        let died = |_| EngineError::EngineThread("it panicked while it loaded the model (a bug)".into());
        loaded.recv().map_err(died)?
    }

    /// The text side of the model.
    pub fn text(&self) -> &TextModel {
        &self.text
    }

    /// The engine.
    pub fn engine(&self) -> &EngineClient {
        &self.engine
    }

    /// What is known from the start; `None` for a model that was put together from parts.
    pub fn info(&self) -> Option<&ModelInfo> {
        self.info.as_deref()
    }

    /// The checkpoint's folder.
    pub fn folder(&self) -> &Path {
        self.text.checkpoint().folder()
    }

    /// Answers a prompt, `params.n` times. It tokenizes and compiles on the calling thread, so a server calls it on one that may
    /// block. Dropping the stream cancels the request.
    ///
    /// # Errors
    /// If the prompt does not fit into the context, a parameter is out of range, or the engine takes no request.
    pub fn generate(&self, prompt: &Prompt, params: &SamplingParams) -> Result<AnswerStream, EngineError> {
        let tokens = self.text.tokenize(prompt)?;
        self.submit(self.text.requests(&tokens, params)?)
    }

    /// Runs requests that [`TextModel::requests`] made as one stream of answers, numbered in their order.
    ///
    /// # Errors
    /// If the engine takes no request; then none of them runs.
    pub fn submit(&self, requests: Vec<TokenRequest>) -> Result<AnswerStream, EngineError> {
        let number = |(index, request)| Answer::new(self.text.tokenizer(), request, index);
        let answers: Vec<Answer> = requests.iter().enumerate().map(number).collect();
        let receivers = self.engine.submit_all(requests)?;
        let branches =
            receivers.into_iter().zip(answers).map(|(receiver, answer)| Branch { receiver, answer }).collect();
        Ok(AnswerStream { engine: self.engine.clone(), branches, next: 0 })
    }
}

/// One of the answers to a prompt.
#[derive(Debug)]
struct Branch {
    receiver: TokenReceiver,
    answer: Answer,
}

/// The parts of the answers to one prompt as they come. It ends after the last part of the last; an error ends all. Dropping it
/// cancels what is not finished.
#[derive(Debug)]
pub struct AnswerStream {
    engine: EngineClient,
    branches: Vec<Branch>,
    /// The branch to look at first, so that none is read more eagerly than others.
    next: usize,
}

impl AnswerStream {
    /// Waits for the next part.
    pub async fn next(&mut self) -> Option<Result<Delta, EngineError>> {
        std::future::poll_fn(|context| self.poll_delta(context)).await
    }

    fn poll_delta(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Delta, EngineError>>> {
        let count = self.branches.len();
        for offset in 0..count {
            let place = (self.next + offset) % count;
            let Poll::Ready(event) = self.branches[place].receiver.poll_next(context) else { continue };
            let event = event.unwrap_or_else(|| Err(self.ended_early()));
            let delta = event.map_err(EngineError::from).and_then(|output| self.branches[place].answer.push(output));
            match &delta {
                Ok(delta) if delta.finish_reason.is_none() => self.next = place + 1,
                Ok(_) => {
                    // Where a stop string ended it, this also cancels the request.
                    self.branches.remove(place);
                    self.next = place;
                }
                Err(_) => self.branches.clear(),
            }
            return Poll::Ready(Some(delta));
        }
        if count == 0 { Poll::Ready(None) } else { Poll::Pending }
    }

    /// Why a request ended without its last token: the thread of the engine is gone.
    fn ended_early(&self) -> RequestFailure {
        match self.engine.status().state() {
            EngineState::Dead(reason) => RequestFailure::EngineDead(reason),
            EngineState::Stopped | EngineState::Draining => RequestFailure::ShuttingDown,
            EngineState::Running => RequestFailure::EngineDead("its thread has ended (a bug)".into()),
        }
    }
}

impl Stream for AnswerStream {
    type Item = Result<Delta, EngineError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_delta(context)
    }
}
