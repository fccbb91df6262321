//! Edits of single logits before a token is chosen: masks, biases and penalties. Ids beyond the row have no logit and are passed
//! over.

use std::collections::BTreeMap;

use super::TokenCounts;

/// The most that a bias may add to a logit, or take from it.
const MAX_BIAS: f32 = 100.0;

fn logit_of(logits: &mut [f32], token: u32) -> Option<&mut f32> {
    logits.get_mut(usize::try_from(token).ok()?)
}

/// Masks tokens.
pub(super) fn mask(logits: &mut [f32], tokens: &[u32]) {
    for &token in tokens {
        if let Some(logit) = logit_of(logits, token) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// Masks all tokens but those.
pub(super) fn mask_all_but(logits: &mut [f32], tokens: &[u32]) {
    let kept: Vec<(u32, f32)> =
        tokens.iter().filter_map(|&token| logit_of(logits, token).map(|logit| (token, *logit))).collect();
    logits.fill(f32::NEG_INFINITY);
    for (token, value) in kept {
        if let Some(logit) = logit_of(logits, token) {
            *logit = value;
        }
    }
}

/// Adds to the logits of tokens, at most 100 to each and at least -100. What is masked stays so.
pub(super) fn add_bias(logits: &mut [f32], bias: &BTreeMap<u32, f32>) {
    for (&token, bias) in bias {
        if let Some(logit) = logit_of(logits, token).filter(|logit| logit.is_finite()) {
            *logit = finite(*logit + bias.clamp(-MAX_BIAS, MAX_BIAS));
        }
    }
}

/// Masks the last token of each word of which `output` ends in all tokens before that.
pub(super) fn mask_bad_words(logits: &mut [f32], words: &[Vec<u32>], output: &[u32]) {
    for word in words {
        if let Some((last, before)) = word.split_last()
            && output.ends_with(before)
        {
            mask(logits, &[*last]);
        }
    }
}

/// What a request wants of tokens that were seen before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Penalties {
    pub(super) repetition: f32,
    pub(super) frequency: f32,
    pub(super) presence: f32,
}

impl Penalties {
    /// Whether there is none.
    pub(super) fn is_off(&self) -> bool {
        self.repetition == 1.0 && self.frequency == 0.0 && self.presence == 0.0
    }

    /// Makes seen tokens less likely. All tokens of the prompt and the output: a positive logit is divided by the repetition
    /// penalty, a negative one multiplied (Keskar et al. 2019, "CTRL", section 4.1, in the sign-aware form that is common
    /// today). Then the tokens of the output: the frequency penalty is taken off for each time, the presence penalty once.
    pub(super) fn apply(&self, logits: &mut [f32], seen: &TokenCounts) {
        for (token, occurrences) in seen.iter() {
            let Some(logit) = logit_of(logits, token).filter(|logit| logit.is_finite()) else { continue };
            let repeated = if *logit > 0.0 { *logit / self.repetition } else { *logit * self.repetition };
            let present = if occurrences.in_output > 0 { self.presence } else { 0.0 };
            *logit = finite(finite(repeated) - self.frequency * occurrences.in_output as f32 - present);
        }
    }
}

/// An edit must not turn a finite logit into an infinite one.
fn finite(logit: f32) -> f32 {
    logit.clamp(f32::MIN, f32::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use proptest::prelude::*;

    use super::super::filters::tests::rows;
    use super::*;

    const INFINITY: f32 = f32::INFINITY;

    fn repetition(penalty: f32) -> Penalties {
        Penalties { repetition: penalty, frequency: 0.0, presence: 0.0 }
    }

    #[test]
    fn masks_meet_their_tokens_only_and_pass_over_ids_beyond_the_row() {
        let mut logits = [1.0, 2.0, 3.0];
        mask(&mut logits, &[1, 3, u32::MAX]);
        assert_eq!(logits, [1.0, -INFINITY, 3.0]);
        let mut logits = [1.0, 2.0, 3.0];
        mask_all_but(&mut logits, &[2, 2, 7]);
        assert_eq!(logits, [-INFINITY, -INFINITY, 3.0]);
    }

    #[test]
    fn a_bias_is_clamped_and_unmasks_nothing() {
        let mut logits = [1.0, -INFINITY, 3.0, f32::MAX];
        add_bias(&mut logits, &BTreeMap::from([(0, 1e9), (1, 50.0), (2, -1e9), (3, 100.0), (9, 1.0)]));
        assert_eq!(logits, [101.0, -INFINITY, -97.0, f32::MAX]);
    }

    #[test]
    fn a_bad_word_is_masked_at_its_last_token_where_the_others_came_before() {
        let words = [vec![1, 2], vec![0], vec![]];
        let masked = |output: &[u32]| {
            let mut logits = [0.0; 3];
            mask_bad_words(&mut logits, &words, output);
            logits.map(|logit| logit == -INFINITY)
        };
        assert_eq!(masked(&[]), [true, false, false], "a word of one token is never begun");
        assert_eq!(masked(&[0, 1]), [true, false, true]);
        assert_eq!(masked(&[1, 0]), [true, false, false]);
    }

    #[test]
    fn repetition_divides_positive_logits_multiplies_negative_ones_and_counts_a_token_once() {
        let mut logits = [3.0, -3.0, 0.0, 3.0, -INFINITY, f32::MAX];
        let mut seen = TokenCounts::of_prompt(&[0, 0, 1, 4, 99]);
        [0, 2, 5, 5].into_iter().for_each(|token| seen.add_output(token));
        repetition(1.5).apply(&mut logits, &seen);
        assert_eq!(logits, [2.0, -4.5, 0.0, 3.0, -INFINITY, f32::MAX / 1.5]);
        repetition(1e-30).apply(&mut logits, &seen);
        assert_eq!(logits[5], f32::MAX, "a finite logit stays finite");
    }

    #[test]
    fn frequency_and_presence_look_at_the_output_alone_and_come_after_repetition() {
        let mut seen = TokenCounts::of_prompt(&[0, 1]);
        [1, 1, 2].into_iter().for_each(|token| seen.add_output(token));
        let penalties = Penalties { repetition: 2.0, frequency: 0.5, presence: 0.25 };
        let mut logits = [4.0, 4.0, -4.0, 4.0];
        penalties.apply(&mut logits, &seen);
        assert_eq!(logits, [2.0, 2.0 - 1.0 - 0.25, -8.0 - 0.5 - 0.25, 4.0]);
    }

    proptest! {
        #[test]
        fn a_penalty_above_one_never_makes_a_seen_token_likelier_and_leaves_the_others(
            row in rows(), seen in proptest::collection::vec(0u32..500, 0..50), penalty in 1.0f32..1e30,
        ) {
            let history = TokenCounts::of_prompt(&seen);
            let mut penalized = row.clone();
            repetition(penalty).apply(&mut penalized, &history);
            for token in 0..row.len() {
                if !seen.contains(&u32::try_from(token).unwrap()) || row[token].is_infinite() {
                    prop_assert_eq!(penalized[token], row[token]);
                } else {
                    prop_assert!(penalized[token].is_finite());
                    prop_assert!(penalized[token] <= row[token]);
                    prop_assert_eq!(penalized[token] > 0.0, row[token] / penalty > 0.0);
                }
            }
        }
    }
}
