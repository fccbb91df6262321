//! After how many tokens a slower start has paid for itself.

/// A start and the speed after it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Course {
    /// From the start of the process to the first token.
    pub(super) first_token_seconds: f64,
    pub(super) decode_tokens_per_second: f64,
}

impl Course {
    /// Tokens after which this course is ahead of another for good: the least `n` from which on the `n`-th token comes
    /// earlier here. The `n`-th token comes at `first token + (n − 1) / speed`. 0 if it is ahead from the first token on,
    /// infinite if it does not decode faster.
    pub(super) fn break_even(self, other: Course) -> f64 {
        let later = self.first_token_seconds - other.first_token_seconds;
        let gain = other.decode_tokens_per_second.recip() - self.decode_tokens_per_second.recip();
        match (later < 0.0, gain > 0.0) {
            (_, false) => f64::INFINITY,
            (true, true) => 0.0,
            (false, true) => (later / gain).floor() + 2.0,
        }
    }

    /// When the `n`-th token comes, in seconds from the start of the process.
    pub(super) fn seconds_at(self, tokens: f64) -> f64 {
        self.first_token_seconds + (tokens - 1.0) / self.decode_tokens_per_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn course(first_token_seconds: f64, decode_tokens_per_second: f64) -> Course {
        Course { first_token_seconds, decode_tokens_per_second }
    }

    #[test]
    fn the_break_even_is_the_first_token_that_comes_earlier() {
        let (quick, fast) = (course(1.0, 10.0), course(2.03, 20.0));
        let tokens = fast.break_even(quick);
        assert_eq!(tokens, 22.0);
        assert!(fast.seconds_at(tokens) < quick.seconds_at(tokens));
        assert!(fast.seconds_at(tokens - 1.0) >= quick.seconds_at(tokens - 1.0));
    }

    #[test]
    fn a_tie_is_no_lead() {
        // The eleventh tokens come at the same time: 1 + 10 / 4 = 2.25 + 10 / 8.
        let (quick, fast) = (course(1.0, 4.0), course(2.25, 8.0));
        assert_eq!(fast.break_even(quick), 12.0);
    }

    #[test]
    fn what_is_ahead_from_the_start_and_what_never_gets_ahead() {
        assert_eq!(course(1.0, 20.0).break_even(course(2.0, 10.0)), 0.0);
        assert_eq!(course(2.0, 10.0).break_even(course(1.0, 10.0)), f64::INFINITY);
        // Sooner but slower: the other one overtakes it.
        assert_eq!(course(1.0, 5.0).break_even(course(2.0, 10.0)), f64::INFINITY);
    }
}
