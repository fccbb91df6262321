//! An answer that is read while it is made.

use crate::answer::Answer;
use crate::device::AnyDevice;
use crate::engine_core::EngineCore;
use crate::error::EngineError;
use crate::request::{Completion, Delta};
use crate::scheduler::SequenceId;

/// An iterator over the parts of one answer. Dropping it stops the answer and frees its memory.
pub struct CompletionStream<'a> {
    core: &'a mut EngineCore<AnyDevice>,
    id: SequenceId,
    answer: Option<Answer>,
    failed: bool,
}

impl<'a> CompletionStream<'a> {
    pub(crate) fn new(core: &'a mut EngineCore<AnyDevice>, id: SequenceId, answer: Answer) -> Self {
        CompletionStream { core, id, answer: Some(answer), failed: false }
    }

    /// The answer as far as it was read; `None` if that was asked before.
    pub fn completion(&mut self) -> Option<Completion> {
        self.answer.take().map(Answer::into_completion)
    }

    fn advance(&mut self) -> Result<Option<Delta>, EngineError> {
        while let Some(answer) = self.answer.as_mut().filter(|answer| !answer.is_finished()) {
            let Some(produced) = self.core.step()? else { return Ok(None) };
            if let Some(token) = produced.iter().find(|token| token.id == self.id) {
                return answer.push(token).map(Some);
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
