//! The answers to one request as they come from the engine, counted and timed.

mod sse;
mod track;

use std::sync::Arc;

use allotrope_engine::{AnswerStream, Delta, EngineError, FinishReason};
use tokio::time::Instant;

use crate::lifecycle::ActiveRequest;
use crate::metrics::ModelMetrics;
use crate::model::{ServedModel, api_error};
use crate::prompt::{Job, ReadyPrompt};
use crate::protocol::response::Usage;
use crate::protocol::{ApiError, RequestOptions};
use crate::scores;
use crate::state::App;

pub(crate) use sse::{Chunks, respond};
use track::Track;

/// The answers to one request. Dropping it cancels what is not finished.
#[derive(Debug)]
pub(crate) struct Generation {
    pub(crate) app: Arc<App>,
    pub(crate) model: Arc<ServedModel>,
    pub(crate) prompts: Vec<ReadyPrompt>,
    /// Answers to each prompt.
    samples: usize,
    answers: AnswerStream,
    /// The first part, which was awaited before the answer began.
    first: Option<Delta>,
    deadline: Option<Instant>,
    tracks: Vec<Track>,
    metrics: ModelMetrics,
    /// Whether tokens of answers count, which they don't where only the prompt is wanted.
    counts_answers: bool,
    completion_tokens: usize,
    cached_tokens: usize,
    /// Tokens that the answers may name.
    told: usize,
    pub(crate) active: ActiveRequest,
}

impl Generation {
    /// Gives the requests to the engine, and waits for the first token: what fails before it fails with a status.
    pub(crate) async fn start(
        app: Arc<App>,
        model: Arc<ServedModel>,
        job: Job,
        options: &RequestOptions,
        counts_answers: bool,
        arrived: Arrival,
    ) -> Result<Self, ApiError> {
        let Arrival { active, at } = arrived;
        let Job { prompts, requests } = job;
        let metrics = app.metrics.of_model(model.name());
        metrics.answers.observe(options.sampling.n as f64);
        if let Some(max_tokens) = options.sampling.max_tokens {
            metrics.max_tokens.observe(max_tokens as f64);
        }
        let tracks = requests.iter().map(|_| Track::new(at)).collect();
        let answers = model.llm.submit(requests).map_err(api_error)?;
        let mut generation = Generation {
            deadline: app.config.limits.request_time.and_then(|limit| at.checked_add(limit)),
            samples: options.sampling.n.max(1),
            app,
            model,
            prompts,
            answers,
            first: None,
            tracks,
            metrics,
            counts_answers,
            completion_tokens: 0,
            cached_tokens: 0,
            told: 0,
            active,
        };
        generation.first = generation.next().await.transpose()?;
        Ok(generation)
    }

    /// The next part of any of the answers; `None` after the last part of the last.
    pub(crate) async fn next(&mut self) -> Option<Result<Delta, ApiError>> {
        if let Some(first) = self.first.take() {
            return Some(Ok(first));
        }
        let next = match self.deadline {
            None => self.answers.next().await,
            Some(deadline) => match tokio::time::timeout_at(deadline, self.answers.next()).await {
                Ok(next) => next,
                Err(_) => return Some(Err(self.out_of_time())),
            },
        };
        Some(match next? {
            Ok(delta) => {
                self.note(&delta);
                Ok(delta)
            }
            Err(error) => Err(self.failed(error)),
        })
    }

    /// Which prompt the answer of `index` belongs to.
    pub(crate) fn prompt_of(&self, index: usize) -> Option<&ReadyPrompt> {
        self.prompts.get(index / self.samples)
    }

    /// How many answers there are.
    pub(crate) fn len(&self) -> usize {
        self.tracks.len()
    }

    /// How many tokens the answers may name so far, in their texts and with probabilities: a measure of their size.
    pub(crate) fn told(&self) -> usize {
        self.told
    }

    /// The tokens so far.
    pub(crate) fn usage(&self) -> Usage {
        let prompt_tokens = self.prompts.iter().map(|prompt| prompt.tokens.len()).sum();
        let cached = self.app.config.prompt_tokens_details.then_some(self.cached_tokens);
        Usage::new(prompt_tokens, self.completion_tokens, cached)
    }

    fn note(&mut self, delta: &Delta) {
        if self.counts_answers {
            self.completion_tokens += 1;
        }
        self.metrics.generation_tokens.inc();
        self.told += 1 + delta.logprobs.as_ref().map_or(0, |found| found.top.len());
        let is_first_of_prompt = delta.index.is_multiple_of(self.samples);
        let prompt_tokens = self.prompt_of(delta.index).map_or(0, |prompt| prompt.tokens.len());
        if let Some(report) = &delta.prompt {
            self.told += prompt_tokens + scores::count(&report.logprobs);
            self.metrics.prompt_tokens.inc_by(prompt_tokens as u64);
            self.metrics.cached_tokens.inc_by(report.cached_tokens as u64);
            // The other answers to a prompt find what the first has computed.
            if is_first_of_prompt {
                self.cached_tokens += report.cached_tokens;
            }
        }
        if let Some(track) = self.tracks.get_mut(delta.index) {
            track.token(delta.prompt.as_deref(), &self.metrics);
            if let Some(reason) = delta.finish_reason {
                track.finish(prompt_tokens, &self.metrics);
                match reason {
                    FinishReason::Stop => self.metrics.stopped.inc(),
                    FinishReason::Length => self.metrics.exhausted.inc(),
                }
            }
        }
    }

    fn failed(&mut self, error: EngineError) -> ApiError {
        for track in self.tracks.iter_mut().filter(|track| !track.is_done()) {
            track.give_up();
            self.metrics.failed.inc();
        }
        api_error(error)
    }

    fn out_of_time(&mut self) -> ApiError {
        let limit = self.app.config.limits.request_time.unwrap_or_default();
        tracing::warn!("a request took longer than {limit:?}");
        for track in self.tracks.iter_mut().filter(|track| !track.is_done()) {
            track.give_up();
            self.metrics.failed.inc();
        }
        ApiError::answer_too_slow(limit)
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        let open = self.tracks.iter().filter(|track| !track.is_done()).count();
        self.metrics.aborted.inc_by(open as u64);
    }
}

/// A request of the model that has come.
#[derive(Debug)]
pub(crate) struct Arrival {
    active: ActiveRequest,
    at: Instant,
}

impl Arrival {
    /// One that comes now.
    pub(crate) fn now(app: &App) -> Self {
        Arrival { active: app.lifecycle.begin(), at: Instant::now() }
    }
}
