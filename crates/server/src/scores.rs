//! Probabilities of tokens, from the engine's form to that of answers.

use std::borrow::Cow;
use std::collections::BTreeMap;

use allotrope_engine::{LogprobCount, TokenLogprobs};
use allotrope_model::Tokenizer;

use tokio::runtime::{Handle, RuntimeFlavor};

use crate::protocol::logprobs::{PromptLogprob, ScoredPosition, ScoredToken};

/// Tokens whose texts take so long to find that others should not wait for it: some milliseconds.
const MANY: usize = 4096;

/// Does work over so many tokens, out of the way of other requests where there are many.
pub(crate) fn over<T>(tokens: usize, work: impl FnOnce() -> T) -> T {
    let can_step_aside =
        || Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread);
    if tokens > MANY && can_step_aside() { tokio::task::block_in_place(work) } else { work() }
}

/// How many tokens the positions of a prompt name.
pub(crate) fn count(found: &[Option<TokenLogprobs>]) -> usize {
    found.iter().map(|found| 1 + found.as_ref().map_or(0, |found| found.top.len())).sum()
}

/// At most so many of the likeliest tokens at each position.
pub(crate) fn cut(found: &[Option<TokenLogprobs>], count: LogprobCount) -> Cow<'_, [Option<TokenLogprobs>]> {
    let LogprobCount::Top(most) = count else { return Cow::Borrowed(found) };
    let most = most as usize;
    if found.iter().flatten().all(|found| found.top.len() <= most) {
        return Cow::Borrowed(found);
    }
    let position = |found: &TokenLogprobs| TokenLogprobs {
        token: found.token,
        logprob: found.logprob,
        rank: found.rank,
        top: found.top.iter().take(most).copied().collect(),
    };
    found.iter().map(|found| found.as_ref().map(position)).collect()
}

/// A position of an answer or a prompt.
pub(crate) fn position(tokenizer: &Tokenizer, found: &TokenLogprobs) -> ScoredPosition {
    over(found.top.len(), || ScoredPosition {
        chosen: token(tokenizer, found.token, found.logprob),
        top: found.top.iter().map(|(id, logprob)| token(tokenizer, *id, *logprob)).collect(),
    })
}

/// The text of a token by itself. Where it is not whole, its characters are marks in place of what is missing.
pub(crate) fn text(tokenizer: &Tokenizer, id: u32) -> String {
    // A decoder that fails on one token fails on the answer too, which tells it.
    tokenizer.decode(&[id], false).unwrap_or_default()
}

fn token(tokenizer: &Tokenizer, id: u32, logprob: f32) -> ScoredToken {
    let token = text(tokenizer, id);
    let is_whole = !token.contains(char::REPLACEMENT_CHARACTER);
    ScoredToken { bytes: if is_whole { None } else { tokenizer.token_bytes(id) }, token, logprob }
}

/// `prompt_logprobs` as vLLM has them: for each token those of the likeliest and its own, by id.
pub(crate) fn of_prompt(
    tokenizer: &Tokenizer,
    found: &[Option<TokenLogprobs>],
) -> Vec<Option<BTreeMap<u32, PromptLogprob>>> {
    let entry = |id: u32, logprob: f32, rank: usize| (id, PromptLogprob::new(logprob, rank, text(tokenizer, id)));
    let position = |found: &TokenLogprobs| {
        let top = found.top.iter().enumerate();
        let mut map: BTreeMap<_, _> = top.map(|(place, (id, logprob))| entry(*id, *logprob, place + 1)).collect();
        map.extend([entry(found.token, found.logprob, found.rank as usize)]);
        map
    };
    over(count(found), || found.iter().map(|found| found.as_ref().map(position)).collect())
}
