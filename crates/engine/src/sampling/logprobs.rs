//! How likely a token was: logarithms of probabilities of the model's own distribution.

use super::filters::{Candidate, top_candidates};
use super::row::{count_at_least, most_likely, sum_of_exponentials};
use super::{LogprobCount, SamplingError};

/// A token with its probability and those of its rivals, as natural logarithms of the model's own distribution (before
/// penalties and temperature).
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The token that was chosen or given.
    pub token: u32,
    /// Its logarithm of the probability; negative infinity where the token was masked.
    pub logprob: f32,
    /// How many tokens are as likely or likelier, itself among them.
    pub rank: u32,
    /// The most likely tokens, the likeliest first.
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprobs {
    /// The probability of `token` in a row of logits as the model gave them (one for each token of the vocabulary), and the
    /// `count` most likely tokens: the lowest id comes first among equals, and tokens of negative infinity are left out.
    ///
    /// The token is one that was drawn from the row, or the next one of a prompt.
    ///
    /// # Errors
    /// [`SamplingError::Logit`] and [`SamplingError::NoCandidate`] as for a draw, [`SamplingError::Token`] if the row has no such
    /// token.
    pub fn of(logits: &[f32], token: u32, count: LogprobCount) -> Result<Self, SamplingError> {
        let (_, largest) = most_likely(logits)?;
        Self::of_checked(logits, largest, token, count)
    }

    /// [`TokenLogprobs::of`] a row that was checked and whose largest logit is known.
    pub(super) fn of_checked(
        logits: &[f32],
        largest: f32,
        token: u32,
        count: LogprobCount,
    ) -> Result<Self, SamplingError> {
        let outside = SamplingError::Token { token, vocabulary: logits.len() };
        let place = usize::try_from(token).map_err(|_| outside.clone())?;
        let logit = *logits.get(place).ok_or(outside)?;
        let normalizer = sum_of_exponentials(logits, largest).ln();
        // In f64, so that a logit far from the largest keeps its digits.
        let logprob = |logit: f32| (f64::from(logit) - f64::from(largest) - normalizer) as f32;
        let count = match count {
            LogprobCount::Top(count) => usize::try_from(count).unwrap_or(usize::MAX),
            LogprobCount::All => logits.len(),
        };
        let mut top = top_candidates(logits, count);
        top.sort_unstable_by(Candidate::rank);
        Ok(TokenLogprobs {
            token,
            logprob: logprob(logit),
            rank: u32::try_from(count_at_least(logits, logit)).unwrap_or(u32::MAX),
            top: top.iter().map(|candidate| (candidate.token, logprob(candidate.value))).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use proptest::prelude::*;

    use super::super::filters::tests::{ranking, rows};
    use super::*;

    #[test]
    fn equal_tokens_share_a_rank_and_the_lowest_id_is_listed_first() {
        let row = [1.0, 3.0, 3.0, f32::NEG_INFINITY];
        let found = TokenLogprobs::of(&row, 2, LogprobCount::Top(3)).unwrap();
        assert_eq!((found.token, found.rank), (2, 2));
        assert_eq!(found.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [1, 2, 0]);
        assert_eq!(found.top[1].1, found.logprob);
        let masked = TokenLogprobs::of(&row, 3, LogprobCount::All).unwrap();
        assert_eq!((masked.logprob, masked.rank, masked.top.len()), (f32::NEG_INFINITY, 4, 3));
        let alone = TokenLogprobs::of(&[-7.5], 0, LogprobCount::Top(0)).unwrap();
        assert_eq!(alone, TokenLogprobs { token: 0, logprob: 0.0, rank: 1, top: Vec::new() });
    }

    #[test]
    fn rows_that_are_not_finite_and_tokens_outside_are_errors() {
        let outside = TokenLogprobs::of(&[0.0, 1.0], 2, LogprobCount::All).unwrap_err();
        assert_eq!(outside, SamplingError::Token { token: 2, vocabulary: 2 });
        for value in [f32::NAN, f32::INFINITY] {
            let error = TokenLogprobs::of(&[0.0, value], 0, LogprobCount::Top(1)).unwrap_err();
            assert!(matches!(error, SamplingError::Logit { token: 1, .. }), "{error}");
        }
        let empty = TokenLogprobs::of(&[f32::NEG_INFINITY], 0, LogprobCount::Top(u32::MAX));
        assert_eq!(empty, Err(SamplingError::NoCandidate { vocabulary: 1 }));
    }

    proptest! {
        #[test]
        fn logprobs_and_ranks_are_those_of_the_definition(row in rows(), token: prop::sample::Index, k in 0u32..450) {
            let token = token.index(row.len());
            let Ok(found) = TokenLogprobs::of(&row, token as u32, LogprobCount::Top(k)) else { return Ok(()) };
            let sum: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
            let exact = |token: usize| f64::from(row[token]) - sum.ln();
            let close = |logprob: f32, token: usize| {
                f64::from(logprob) == exact(token) || (f64::from(logprob) - exact(token)).abs() <= 1e-5
            };
            prop_assert!(close(found.logprob, token), "{} is not {}", found.logprob, exact(token));
            prop_assert_eq!(found.rank as usize, row.iter().filter(|&&logit| logit >= row[token]).count());
            let mut order = ranking(&row);
            order.retain(|&token| row[token] > f32::NEG_INFINITY);
            order.truncate(k as usize);
            prop_assert_eq!(found.top.iter().map(|(token, _)| *token as usize).collect::<Vec<_>>(), order);
            prop_assert!(found.top.iter().all(|&(token, logprob)| close(logprob, token as usize)));
            let all = TokenLogprobs::of(&row, token as u32, LogprobCount::All).unwrap();
            let mass: f64 = all.top.iter().map(|&(_, logprob)| f64::from(logprob).exp()).sum();
            prop_assert!((mass - 1.0).abs() <= 1e-5, "probabilities sum to {}", mass);
        }
    }
}
