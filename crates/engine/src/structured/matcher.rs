//! Following one output through its grammar.

use std::fmt;
use std::sync::Arc;

use llguidance::Matcher;

use super::{StructuredOutputError, reason};

/// Tokens that one word of the library's mask stands for.
const WORD: usize = u32::BITS as usize;

/// Follows the tokens of one output and masks those that may not come next.
pub struct GrammarMatcher {
    matcher: Matcher,
    end_tokens: Arc<[u32]>,
    /// Tokens that were accepted.
    accepted: usize,
}

impl fmt::Debug for GrammarMatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let finished = self.is_finished();
        f.debug_struct("GrammarMatcher").field("accepted", &self.accepted).field("finished", &finished).finish()
    }
}

impl GrammarMatcher {
    pub(super) fn new(matcher: Matcher, end_tokens: Arc<[u32]>) -> Self {
        GrammarMatcher { matcher, end_tokens, accepted: 0 }
    }

    /// Sets the logits of all tokens that may not come next to negative infinity. An end token may come where the text so far is
    /// complete; ids that no token has never.
    ///
    /// # Errors
    /// [`StructuredOutputError::Stuck`] if no token may come next, or finding them is more work than the limits allow. It stays.
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<(), StructuredOutputError> {
        let tokens = self.accepted;
        let stuck = |problem: String| StructuredOutputError::Stuck { tokens, problem: reason(&problem) };
        let allowed = self.matcher.compute_mask_or_eos().map_err(|error| stuck(error.to_string()))?;
        if allowed.is_zero() {
            return Err(stuck("the grammar allows none of the model's tokens".to_owned()));
        }
        let words = allowed.as_slice();
        for (number, logits) in logits.chunks_mut(WORD).enumerate() {
            match words.get(number).copied().unwrap_or(0) {
                u32::MAX => {}
                0 => logits.fill(f32::NEG_INFINITY),
                word => {
                    for (bit, logit) in logits.iter_mut().enumerate().filter(|(bit, _)| word >> bit & 1 == 0) {
                        debug_assert!(bit < WORD);
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
        Ok(())
    }

    /// Goes on by the token that was chosen. After the end, only end tokens are accepted.
    ///
    /// # Errors
    /// [`StructuredOutputError::Forbidden`] if the token may not come next; nothing has changed then.
    /// [`StructuredOutputError::Stuck`] if the library gives up. It stays.
    pub fn accept(&mut self, token: u32) -> Result<(), StructuredOutputError> {
        let tokens = self.accepted;
        let forbidden = StructuredOutputError::Forbidden { token, tokens };
        let stuck = |error: String| StructuredOutputError::Stuck { tokens, problem: reason(&error) };
        if let Some(error) = self.matcher.get_error() {
            return Err(stuck(error));
        }
        if self.is_finished() {
            return if self.end_tokens.contains(&token) { Ok(()) } else { Err(forbidden) };
        }
        // The library takes an id outside of its vocabulary for a failure of its own.
        let vocabulary = self.matcher.tok_env().map_err(|error| stuck(error.to_string()))?.tok_trie().vocab_size();
        if usize::try_from(token).map_or(true, |token| token >= vocabulary) {
            return Err(forbidden);
        }
        match self.matcher.try_consume_tokens(&[token]) {
            Ok(0) => Err(forbidden),
            Ok(_) => {
                self.accepted += 1;
                Ok(())
            }
            Err(error) => Err(stuck(error.to_string())),
        }
    }

    /// Whether nothing but an end token may follow.
    pub fn is_finished(&self) -> bool {
        self.matcher.is_stopped() && self.matcher.stop_reason().is_ok()
    }
}
