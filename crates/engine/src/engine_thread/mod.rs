//! The thread that owns the device: it takes requests from its inbox, runs steps, and hands tokens out.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::client::{Command, EngineInbox, RequestFailure, Submission, TokenEvent};
use crate::error::EngineError;
use crate::loaded::Loaded;
use crate::scheduler::SequenceId;
use crate::status::EngineState;

/// How often the counters are published while steps run.
const PUBLISHED_EVERY: Duration = Duration::from_millis(100);

/// Where the tokens of a request go.
struct Reply {
    outputs: mpsc::Sender<TokenEvent>,
    /// Tokens of its prompt, while it waits for its first step.
    waiting: Option<usize>,
}

/// The engine, on its thread.
pub(crate) struct EngineThread {
    loaded: Loaded,
    inbox: EngineInbox,
    replies: HashMap<SequenceId, Reply>,
    published: Instant,
    /// Readers that were gone when it was last looked.
    departures: u64,
    /// What goes wrong in a step, and in which.
    #[cfg(test)]
    planted: Option<(u64, tests::Fault)>,
}

impl EngineThread {
    pub(crate) fn new(loaded: Loaded, inbox: EngineInbox) -> Self {
        EngineThread {
            loaded,
            inbox,
            replies: HashMap::new(),
            published: Instant::now(),
            departures: 0,
            #[cfg(test)]
            planted: None,
        }
    }

    /// Serves until it is stopped, all clients are gone, or the device fails. Whatever happens, every request gets an end.
    pub(crate) fn run(mut self) {
        self.publish(false);
        // A panic ends this thread's work, not its duties: who waits for tokens must hear of it.
        let ended = catch_unwind(AssertUnwindSafe(|| self.serve()));
        let failure = match ended {
            Ok(Ok(())) => {
                self.inbox.status().set_state(EngineState::Stopped);
                RequestFailure::ShuttingDown
            }
            Ok(Err(error)) => self.die(error.to_string()),
            Err(panic) => self.die(format!("a panic, which is a bug: {}", panic_message(panic.as_ref()))),
        };
        for (_, reply) in self.replies.drain() {
            fail(reply, &failure, &self.inbox);
        }
        self.inbox.close();
        while let Ok(Some(command)) = self.inbox.try_next() {
            if let Command::Submit(submission) = command {
                let waiting = Some(submission.request.prompt.len());
                fail(Reply { outputs: submission.outputs, waiting }, &failure, &self.inbox);
            }
        }
        self.inbox.status().stepped(0, 0, self.loaded.core.blocks().1, 0);
    }

    fn die(&self, reason: String) -> RequestFailure {
        tracing::error!("the engine has stopped: {reason}");
        self.inbox.status().set_state(EngineState::Dead(reason.clone()));
        RequestFailure::EngineDead(reason)
    }

    fn serve(&mut self) -> Result<(), EngineError> {
        let mut is_closed = false;
        loop {
            while !is_closed {
                match self.inbox.try_next() {
                    Ok(Some(command)) => self.obey(command),
                    Ok(None) => break,
                    Err(_) => is_closed = true,
                }
            }
            if self.inbox.status().state() == EngineState::Stopped {
                return Ok(());
            }
            self.drop_cancelled()?;
            if self.replies.is_empty() {
                self.publish(false);
                match self.inbox.wait_next() {
                    Some(command) => self.obey(command),
                    None => return Ok(()),
                }
                continue;
            }
            self.step()?;
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit(submission) => self.accept(*submission),
            Command::ResetPrefixCache(answer) => {
                // Who asked may have gone.
                let is_idle = self.loaded.core.running() == 0;
                if is_idle {
                    self.loaded.core.forget_cache();
                }
                let _ = answer.send(is_idle);
            }
            Command::Wake => {}
        }
    }

    fn accept(&mut self, submission: Submission) {
        let Submission { request, arrived, outputs } = submission;
        let waiting = Some(request.prompt.len());
        let id = self.loaded.core.add(request, arrived);
        self.replies.insert(id, Reply { outputs, waiting });
    }

    /// Drops the requests whose readers are gone.
    fn drop_cancelled(&mut self) -> Result<(), EngineError> {
        // Thousands may wait, and mostly nobody leaves.
        let departures = self.inbox.status().departures();
        if departures == self.departures {
            return Ok(());
        }
        self.departures = departures;
        let gone = self.replies.iter().filter(|(_, reply)| reply.outputs.is_closed()).map(|(id, _)| *id);
        for id in gone.collect::<Vec<_>>() {
            self.loaded.core.abort(id)?;
            if let Some(tokens) = self.replies.remove(&id).and_then(|reply| reply.waiting) {
                self.inbox.status().left(tokens);
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), EngineError> {
        #[cfg(test)]
        self.go_wrong()?;
        let Some(outcome) = self.loaded.core.step()? else {
            // Every request that was accepted fits into an empty cache, so one of them can always run.
            return Err(EngineError::Request(format!(
                "{} requests are there and none can run (this is a bug in Allotrope)",
                self.replies.len()
            )));
        };
        for id in &outcome.started {
            if let Some(tokens) = self.replies.get_mut(id).and_then(|reply| reply.waiting.take()) {
                self.inbox.status().left(tokens);
            }
        }
        for one in outcome.produced {
            let is_last = !matches!(&one.event, Ok(output) if output.finish.is_none());
            if let Some(reply) = self.replies.get(&one.id) {
                // There is room for all; where the reader has gone, the next step will see it.
                let _ = reply.outputs.try_send(one.event);
            }
            if is_last {
                self.replies.remove(&one.id);
            }
        }
        let (used, total) = self.loaded.core.blocks();
        self.inbox.status().set_preempted(self.loaded.core.preempted());
        self.inbox.status().stepped(self.loaded.core.running(), used, total, outcome.tokens);
        if self.published.elapsed() >= PUBLISHED_EVERY {
            self.publish(true);
        }
        Ok(())
    }

    /// Publishes the counters.
    fn publish(&mut self, is_busy: bool) {
        let status = self.inbox.status();
        if !is_busy {
            let (used, total) = self.loaded.core.blocks();
            status.set_preempted(self.loaded.core.preempted());
            status.stepped(self.loaded.core.running(), used, total, 0);
        }
        status.set_statistics(self.loaded.statistics());
        self.published = Instant::now();
    }
}

/// Ends a request.
fn fail(reply: Reply, failure: &RequestFailure, inbox: &EngineInbox) {
    if let Some(tokens) = reply.waiting {
        inbox.status().left(tokens);
    }
    // Who does not read any more needs not know.
    let _ = reply.outputs.try_send(Err(failure.clone()));
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}
