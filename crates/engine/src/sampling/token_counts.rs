//! How often each token has been seen, for the penalties that look back.

use std::collections::HashMap;

/// Where and how often a token was seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Occurrences {
    /// How often the output holds it; 0 for a token of the prompt alone.
    pub(super) in_output: u32,
}

/// The tokens of the prompt, and how often each token occurs in the output, of one request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenCounts {
    seen: HashMap<u32, Occurrences>,
}

impl TokenCounts {
    /// Nothing generated yet after `prompt`.
    pub fn of_prompt(prompt: &[u32]) -> Self {
        TokenCounts { seen: prompt.iter().map(|&token| (token, Occurrences::default())).collect() }
    }

    /// Counts one more token of the output.
    pub fn add_output(&mut self, token: u32) {
        let occurrences = self.seen.entry(token).or_default();
        occurrences.in_output = occurrences.in_output.saturating_add(1);
    }

    /// Each token of the prompt or the output, in no particular order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, Occurrences)> + '_ {
        self.seen.iter().map(|(&token, &occurrences)| (token, occurrences))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_the_prompt_are_known_and_those_of_the_output_counted() {
        let mut counts = TokenCounts::of_prompt(&[5, 3, 5]);
        [5, u32::MAX, u32::MAX].into_iter().for_each(|token| counts.add_output(token));
        let mut seen: Vec<(u32, u32)> = counts.iter().map(|(token, seen)| (token, seen.in_output)).collect();
        seen.sort_unstable();
        assert_eq!(seen, [(3, 0), (5, 1), (u32::MAX, 2)]);
    }
}
