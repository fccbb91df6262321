//! The boundary of the engine: token ids in, token ids out, over bounded channels.
//!
//! [`channel`] makes the two ends. The engine's thread holds the [`EngineInbox`], everyone else clones of the [`EngineClient`].
//! Dropping a [`TokenReceiver`] is how a request is cancelled: the engine looks at the other end before each step, so the
//! request is gone within one.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::request::{FinishReason, TokenRequest};
use crate::sampling::{SamplingError, TokenLogprobs};
use crate::status::{EngineState, EngineStatus};

/// Submissions that may lie between two steps beyond those that may wait: room for all answers that one request may ask for.
const MAILBOX: usize = 1 << 14;
/// The most that a mailbox is made for, whatever may wait.
const LARGEST_MAILBOX: usize = 1 << 21;

/// What bounds the requests that wait. One that finds nothing waiting is taken whatever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// Requests that may wait to be run; more are refused.
    pub requests: usize,
    /// Tokens that their prompts may have together.
    pub tokens: usize,
}

impl QueueLimits {
    /// No bound but that of the mailbox.
    pub const UNLIMITED: QueueLimits = QueueLimits { requests: usize::MAX, tokens: usize::MAX };
}

/// What is known of a prompt when its first token is there.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PromptReport {
    /// Tokens whose keys and values were in the prefix cache.
    pub cached_tokens: usize,
    /// From arrival to the request's first step.
    pub queued: Duration,
    /// From the first step to the first token.
    pub prefill: Duration,
    /// For each token of the prompt its probability, `None` for the first; empty if not asked for.
    pub logprobs: Vec<Option<TokenLogprobs>>,
}

/// Why a request ended, as the engine sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finish {
    /// The reason.
    pub reason: FinishReason,
    /// Whether the last token ended it, and is no text.
    pub by_token: bool,
    /// The token of `stop_token_ids` that ended it; none for the model's own end tokens.
    pub stop_token: Option<u32>,
}

/// The next token of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenOutput {
    /// The token.
    pub token: u32,
    /// Its probability, if asked for.
    pub logprobs: Option<TokenLogprobs>,
    /// Set with the last token.
    pub finish: Option<Finish>,
    /// With the first token.
    pub prompt: Option<Box<PromptReport>>,
}

/// Why the engine gives up a request that was right when it came.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestFailure {
    /// No token can be chosen: the model's logits are not finite, or everything is masked. Other requests go on.
    #[error("{0}")]
    Sampling(String),
    /// The parameters of the request allow no token. Other requests go on.
    #[error("{0}")]
    Masked(String),
    /// The grammar of a structured output can't go on. Other requests go on.
    #[error("the structured output can't go on: {0}")]
    Grammar(String),
    /// The engine has stopped: its device failed, or a bug ended its thread.
    #[error("the engine has stopped: {0}")]
    EngineDead(String),
    /// The engine shuts down.
    #[error("the engine shuts down")]
    ShuttingDown,
}

impl From<SamplingError> for RequestFailure {
    fn from(error: SamplingError) -> Self {
        match error {
            SamplingError::Grammar(error) => RequestFailure::Grammar(error.to_string()),
            SamplingError::Masked => RequestFailure::Masked(error.to_string()),
            error => RequestFailure::Sampling(error.to_string()),
        }
    }
}

/// Why the engine takes no further request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Too many requests wait already.
    #[error("{waiting} requests with {tokens} tokens wait already; try again later")]
    Overloaded {
        /// Requests that wait.
        waiting: usize,
        /// Tokens of their prompts.
        tokens: usize,
    },
    /// The engine shuts down.
    #[error("the engine shuts down")]
    ShuttingDown,
    /// The engine has stopped.
    #[error("the engine has stopped: {0}")]
    EngineDead(String),
}

/// One event of a request.
pub type TokenEvent = Result<TokenOutput, RequestFailure>;

/// A request on its way to the engine.
#[derive(Debug)]
pub struct Submission {
    /// The request.
    pub request: TokenRequest,
    /// When it came.
    pub arrived: Instant,
    /// Where its tokens go. It has room for all that the request may produce, so sending never waits.
    pub outputs: mpsc::Sender<TokenEvent>,
}

/// What an engine is told.
#[derive(Debug)]
pub enum Command {
    /// Run a request.
    Submit(Box<Submission>),
    /// Forget what the prefix cache holds, if nothing runs; says whether.
    ResetPrefixCache(oneshot::Sender<bool>),
    /// Look at the state, which has changed.
    Wake,
}

/// Makes the two ends of an engine's boundary.
#[must_use]
pub fn channel(limits: QueueLimits) -> (EngineClient, EngineInbox) {
    let (sender, receiver) = mpsc::channel(limits.requests.saturating_add(MAILBOX).min(LARGEST_MAILBOX));
    let status = Arc::new(EngineStatus::new());
    (EngineClient { sender, status: Arc::clone(&status), limits }, EngineInbox { receiver, status })
}

/// The end that gives requests to an engine. Clones are of the same engine; it stops when the last is dropped.
#[derive(Debug, Clone)]
pub struct EngineClient {
    sender: mpsc::Sender<Command>,
    status: Arc<EngineStatus>,
    limits: QueueLimits,
}

impl EngineClient {
    /// Gives the engine a request. Never waits.
    ///
    /// # Errors
    /// As [`EngineClient::submit_all`].
    pub fn submit(&self, request: TokenRequest) -> Result<TokenReceiver, SubmitError> {
        let mut receivers = self.submit_all(vec![request])?;
        // One request has one receiver.
        receivers.pop().ok_or(SubmitError::ShuttingDown)
    }

    /// Gives the engine requests that belong together: all or none. Never waits. Where nothing waits they are taken however many they
    /// are.
    ///
    /// # Errors
    /// If too many wait already, or the engine has stopped or is about to.
    pub fn submit_all(&self, requests: Vec<TokenRequest>) -> Result<Vec<TokenReceiver>, SubmitError> {
        match self.status.state() {
            EngineState::Running => {}
            EngineState::Draining | EngineState::Stopped => return Err(SubmitError::ShuttingDown),
            EngineState::Dead(reason) => return Err(SubmitError::EngineDead(reason)),
        }
        let tokens: usize = requests.iter().map(|request| request.prompt.len()).sum();
        let (waiting, waiting_tokens) = self.status.waiting();
        let full = waiting.saturating_add(requests.len()) > self.limits.requests;
        let long = waiting_tokens.saturating_add(tokens) > self.limits.tokens;
        let overloaded = SubmitError::Overloaded { waiting, tokens: waiting_tokens };
        if waiting > 0 && (full || long) {
            self.status.count_rejection();
            return Err(overloaded);
        }
        let room = match self.sender.try_reserve_many(requests.len()) {
            Ok(room) => room,
            Err(refused) => {
                self.status.count_rejection();
                return Err(match (refused, self.status.state()) {
                    (mpsc::error::TrySendError::Full(()), _) => overloaded,
                    (mpsc::error::TrySendError::Closed(()), EngineState::Dead(reason)) => {
                        SubmitError::EngineDead(reason)
                    }
                    (mpsc::error::TrySendError::Closed(()), _) => SubmitError::ShuttingDown,
                });
            }
        };
        let arrived = Instant::now();
        let submit = |(permit, request): (mpsc::Permit<'_, Command>, TokenRequest)| {
            // Room for every token and for a failure after them: the engine never waits for a reader, and what is not read is bounded
            // by the request itself.
            let room = request.max_tokens.saturating_add(1).min(Semaphore::MAX_PERMITS);
            let (outputs, receiver) = mpsc::channel(room);
            self.status.came(request.prompt.len());
            permit.send(Command::Submit(Box::new(Submission { request, arrived, outputs })));
            TokenReceiver { receiver, status: Arc::clone(&self.status) }
        };
        Ok(room.zip(requests).map(submit).collect())
    }

    /// Takes no further requests; those that came are finished.
    pub fn drain(&self) {
        self.status.set_state(EngineState::Draining);
    }

    /// Stops the engine after the step that it is in; requests that it has fail.
    pub fn stop(&self) {
        self.status.set_state(EngineState::Stopped);
        // Where the mailbox is full the engine is not asleep, and sees the state by itself.
        let _ = self.sender.try_send(Command::Wake);
    }

    /// Forgets what the prefix cache holds; false, and nothing is done, while requests run or where the engine is gone.
    pub async fn reset_prefix_cache(&self) -> bool {
        let (sender, receiver) = oneshot::channel();
        self.sender.try_send(Command::ResetPrefixCache(sender)).is_ok() && receiver.await.unwrap_or(false)
    }

    /// What the engine is doing.
    pub fn status(&self) -> &Arc<EngineStatus> {
        &self.status
    }
}

/// The end that an engine's thread takes requests from.
#[derive(Debug)]
pub struct EngineInbox {
    receiver: mpsc::Receiver<Command>,
    status: Arc<EngineStatus>,
}

impl EngineInbox {
    /// The next command if there is one now.
    ///
    /// # Errors
    /// [`Closed`] when all clients are gone and nothing is left.
    pub fn try_next(&mut self) -> Result<Option<Command>, Closed> {
        match self.receiver.try_recv() {
            Ok(command) => Ok(Some(command)),
            Err(mpsc::error::TryRecvError::Empty) => Ok(None),
            Err(mpsc::error::TryRecvError::Disconnected) => Err(Closed),
        }
    }

    /// Waits for the next command; `None` when no more will come. Not to be called on a thread of an async runtime.
    pub fn wait_next(&mut self) -> Option<Command> {
        self.receiver.blocking_recv()
    }

    /// The same for an engine that is a task, as those of tests are.
    pub async fn next(&mut self) -> Option<Command> {
        self.receiver.recv().await
    }

    /// Takes no further requests; those that came before are still given.
    pub fn close(&mut self) {
        self.receiver.close();
    }

    /// Where the engine says what it is doing.
    pub fn status(&self) -> &Arc<EngineStatus> {
        &self.status
    }
}

/// No more requests will come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

/// The tokens of one request as they come. Dropping it cancels the request.
#[derive(Debug)]
pub struct TokenReceiver {
    receiver: mpsc::Receiver<TokenEvent>,
    status: Arc<EngineStatus>,
}

impl Drop for TokenReceiver {
    fn drop(&mut self) {
        self.receiver.close();
        self.status.count_departure();
    }
}

impl TokenReceiver {
    /// Waits for the next token; `None` after the last.
    pub async fn next(&mut self) -> Option<TokenEvent> {
        self.receiver.recv().await
    }

    /// The next token if it is there.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<TokenEvent>> {
        self.receiver.poll_recv(context)
    }

    /// Waits for the next token on a thread that belongs to no async runtime.
    pub fn wait_next(&mut self) -> Option<TokenEvent> {
        self.receiver.blocking_recv()
    }
}
