//! How often each token has been seen, for the penalties that look back.

use std::collections::HashMap;

/// How often each token id occurs in the prompt and the output of one request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TokenCounts {
    counts: HashMap<u32, usize>,
}

impl TokenCounts {
    /// Counts one more occurrence of `token`.
    pub(crate) fn add(&mut self, token: u32) {
        *self.counts.entry(token).or_default() += 1;
    }

    /// Each token that was added and how often, in no particular order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, usize)> + '_ {
        self.counts.iter().map(|(&token, &count)| (token, count))
    }
}

impl Extend<u32> for TokenCounts {
    fn extend<I: IntoIterator<Item = u32>>(&mut self, tokens: I) {
        for token in tokens {
            self.add(token);
        }
    }
}

impl FromIterator<u32> for TokenCounts {
    fn from_iter<I: IntoIterator<Item = u32>>(tokens: I) -> Self {
        let mut counts = Self::default();
        counts.extend(tokens);
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn occurrences_are_counted_per_token() {
        let mut counts: TokenCounts = [5, 3, 5].into_iter().collect();
        counts.extend([5, u32::MAX]);
        let mut counted: Vec<(u32, usize)> = counts.iter().collect();
        counted.sort_unstable();
        assert_eq!(counted, [(3, 1), (5, 3), (u32::MAX, 1)]);
    }
}
