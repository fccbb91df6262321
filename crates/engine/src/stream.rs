//! An answer that is read while it is made.

use crate::answer::{Answer, Collected};
use crate::device::AnyDevice;
use crate::engine_core::EngineCore;
use crate::error::EngineError;
use crate::request::{Completion, Delta};
use crate::scheduler::SequenceId;

/// An iterator over the parts of one answer. Dropping it stops the answer and frees its memory.
pub struct CompletionStream<'a> {
    core: &'a mut EngineCore<AnyDevice>,
    id: SequenceId,
    answer: Answer,
    collected: Option<Collected>,
    failed: bool,
}

impl<'a> CompletionStream<'a> {
    pub(crate) fn new(
        core: &'a mut EngineCore<AnyDevice>,
        id: SequenceId,
        answer: Answer,
        prompt_tokens: usize,
    ) -> Self {
        CompletionStream { core, id, answer, collected: Some(Collected::new(prompt_tokens)), failed: false }
    }

    /// The answer as far as it was read; `None` if that was asked before.
    pub fn completion(&mut self) -> Option<Completion> {
        self.collected.take().map(Collected::into_completion)
    }

    fn advance(&mut self) -> Result<Option<Delta>, EngineError> {
        while !self.answer.is_finished() {
            let Some(outcome) = self.core.step()? else { return Ok(None) };
            if let Some(one) = outcome.produced.into_iter().find(|one| one.id == self.id) {
                let delta = self.answer.push(one.event?)?;
                self.collected.iter_mut().for_each(|collected| collected.push(&delta));
                return Ok(Some(delta));
            }
        }
        Ok(None)
    }
}

impl Iterator for CompletionStream<'_> {
    type Item = Result<Delta, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.advance().transpose();
        self.failed = matches!(next, Some(Err(_)));
        next
    }
}

impl Drop for CompletionStream<'_> {
    fn drop(&mut self) {
        // The books of the block pool were checked at every step; nothing more can be done about them here.
        let _ = self.core.abort(self.id);
    }
}
