//! An engine that plays tokens from a script, and remembers what it was asked.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use allotrope_engine::{
    Command, EngineInbox, EngineState, EngineStatus, Finish, FinishReason, LogprobCount, PromptReport, RequestFailure,
    Submission, TokenLogprobs, TokenOutput, TokenRequest,
};
use tokio::sync::Semaphore;

use super::text_model;

/// What happens next to a request.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// A token.
    Token(u32),
    /// The last token.
    Last(u32, FinishReason),
    /// Nothing, until the test lets one step pass.
    Gate,
    /// Nothing, until the client has gone.
    Hang,
    /// The request fails.
    Fail(RequestFailure),
    /// The engine ends, with a reason.
    Die(String),
}

/// What an engine does with a request.
pub(crate) type Script = Arc<dyn Fn(&TokenRequest) -> Vec<Step> + Send + Sync>;

/// What a test sees and does of a playing engine.
#[derive(Debug, Clone, Default)]
pub(crate) struct Engine {
    requests: Arc<Mutex<Vec<TokenRequest>>>,
    cancelled: Arc<AtomicUsize>,
    gate: Arc<Gate>,
}

#[derive(Debug)]
struct Gate(Semaphore);

impl Default for Gate {
    fn default() -> Self {
        Gate(Semaphore::new(0))
    }
}

impl Engine {
    /// The requests that came, in order.
    pub(crate) fn requests(&self) -> Vec<TokenRequest> {
        self.requests.lock().unwrap().clone()
    }

    /// How many of them were dropped by the other side.
    pub(crate) fn cancelled(&self) -> usize {
        self.cancelled.load(SeqCst)
    }

    /// Lets so many steps pass the gate.
    pub(crate) fn pass(&self, steps: usize) {
        self.gate.0.add_permits(steps);
    }

    pub(crate) async fn play(self, mut inbox: EngineInbox, script: Script) {
        let status = Arc::clone(inbox.status());
        let running = Arc::new(AtomicUsize::new(0));
        loop {
            // An engine that was stopped fails what it has, and one whose clients are gone ends.
            let command = tokio::select! {
                command = inbox.next() => command,
                () = stopped(&status) => return,
            };
            let Some(command) = command else { return };
            if let Command::Submit(submission) = command {
                status.left(submission.request.prompt.len());
                self.requests.lock().unwrap().push(submission.request.clone());
                let steps = script(&submission.request);
                let (engine, status, running) = (self.clone(), Arc::clone(&status), Arc::clone(&running));
                tokio::spawn(async move {
                    let now = running.fetch_add(1, SeqCst) + 1;
                    status.stepped(now, now, 100, submission.request.prompt.len());
                    engine.run(*submission, steps.into(), &status).await;
                    let now = running.fetch_sub(1, SeqCst) - 1;
                    status.stepped(now, now, 100, 0);
                });
            }
        }
    }

    async fn run(&self, submission: Submission, mut steps: VecDeque<Step>, status: &EngineStatus) {
        let Submission { request, outputs, .. } = submission;
        let mut is_first = true;
        while let Some(step) = steps.pop_front() {
            let event = match step {
                Step::Token(token) => Ok(output(&request, token, None, &mut is_first)),
                Step::Last(token, reason) => Ok(output(&request, token, Some(reason), &mut is_first)),
                Step::Gate => {
                    tokio::select! {
                        permit = self.gate.0.acquire() => permit.unwrap().forget(),
                        () = outputs.closed() => {}
                        () = stopped(status) => {
                            let _ = outputs.send(Err(RequestFailure::ShuttingDown)).await;
                            return;
                        }
                    }
                    if outputs.is_closed() {
                        self.cancelled.fetch_add(1, SeqCst);
                        return;
                    }
                    continue;
                }
                Step::Hang => {
                    tokio::select! {
                        () = outputs.closed() => { self.cancelled.fetch_add(1, SeqCst); }
                        () = stopped(status) => { let _ = outputs.send(Err(RequestFailure::ShuttingDown)).await; }
                    }
                    return;
                }
                Step::Fail(failure) => Err(failure),
                Step::Die(reason) => {
                    status.set_state(EngineState::Dead(reason.clone()));
                    Err(RequestFailure::EngineDead(reason))
                }
            };
            if outputs.send(event).await.is_err() {
                self.cancelled.fetch_add(1, SeqCst);
                return;
            }
        }
    }
}

async fn stopped(status: &EngineStatus) {
    while status.state() != EngineState::Stopped {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

fn output(request: &TokenRequest, token: u32, finish: Option<FinishReason>, is_first: &mut bool) -> TokenOutput {
    let params = &request.params;
    let report = std::mem::replace(is_first, false).then(|| {
        let score = |(place, token): (usize, &u32)| {
            (place > 0).then(|| scored(*token, params.prompt_logprobs.unwrap_or(LogprobCount::Top(0))))
        };
        let logprobs = match params.prompt_logprobs {
            Some(_) => request.prompt.iter().enumerate().map(score).collect(),
            None => Vec::new(),
        };
        Box::new(PromptReport { cached_tokens: request.prompt.len() / 2, logprobs, ..PromptReport::default() })
    });
    let stop_token = finish.filter(|_| params.stop_token_ids.contains(&token)).map(|_| token);
    TokenOutput {
        token,
        logprobs: params.logprobs.map(|count| scored(token, count)),
        finish: finish.map(|reason| Finish {
            reason,
            // An engine knows by which token it ends.
            by_token: stop_token.is_some() || request.end_tokens.contains(&token),
            stop_token,
        }),
        prompt: report,
    }
}

/// A token with probability e^-0.5, and others after it.
fn scored(token: u32, count: LogprobCount) -> TokenLogprobs {
    let LogprobCount::Top(count) = count else { panic!("no test asks for all") };
    let top = (0..count).map(|place| (token + place, -0.5 - place as f32)).collect();
    TokenLogprobs { token, logprob: -0.5, rank: 1, top }
}

/// The tokens of a text, the last of which ends the answer for its length.
pub(crate) fn says(text: &str) -> Vec<Step> {
    let tokens = tokens(text);
    let (last, rest) = tokens.split_last().unwrap();
    let mut steps: Vec<Step> = rest.iter().copied().map(Step::Token).collect();
    steps.push(Step::Last(*last, FinishReason::Length));
    steps
}

/// The same, ended by the model.
pub(crate) fn says_all(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = tokens(text).into_iter().map(Step::Token).collect();
    steps.push(Step::Last(END, FinishReason::Stop));
    steps
}

/// The token with which the small model ends an answer.
pub(crate) const END: u32 = 4;

pub(crate) fn tokens(text: &str) -> Vec<u32> {
    text_model().tokenizer().encode(text, false).unwrap()
}

/// A script that says the same to all.
pub(crate) fn script(steps: Vec<Step>) -> Script {
    Arc::new(move |_| steps.clone())
}

/// As many words as a request wants, at most 1000.
pub(crate) fn words() -> Script {
    let token = tokens(" city")[0];
    Arc::new(move |request| {
        let count = request.max_tokens.min(1000);
        let mut steps = vec![Step::Token(token); count - 1];
        steps.push(Step::Last(token, FinishReason::Length));
        steps
    })
}

/// A token, and then nothing for as long as the client stays.
pub(crate) fn hangs_after_one() -> Script {
    let token = tokens(" city")[0];
    script(vec![Step::Token(token), Step::Hang])
}
