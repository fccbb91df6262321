//! How fast one answer came: `--stats` of `complete` and `chat`.

use std::fmt;
use std::time::{Duration, Instant};

use crate::report;

/// The times of one answer while it is read.
#[derive(Debug, Clone)]
pub(crate) struct Speed {
    asked: Instant,
    first: Option<Instant>,
    last: Instant,
    outputs: u64,
    tokens: Option<u64>,
}

impl Speed {
    /// Begins at the moment at which the question is sent.
    pub(crate) fn begin() -> Self {
        let asked = Instant::now();
        Self { asked, first: None, last: asked, outputs: 0, tokens: None }
    }

    /// Notes that a part of the answer came now.
    pub(crate) fn output(&mut self) {
        self.last = Instant::now();
        self.first.get_or_insert(self.last);
        self.outputs = self.outputs.saturating_add(1);
    }

    /// Notes how many tokens the answer has; without that, every part counts as one.
    pub(crate) fn set_tokens(&mut self, tokens: u64) {
        self.tokens = Some(tokens);
    }

    /// What there is to tell.
    pub(crate) fn summary(&self) -> Summary {
        Summary {
            time_to_first_token: self.first.map(|first| first.duration_since(self.asked)),
            after_first: self.first.map_or(Duration::ZERO, |first| self.last.duration_since(first)),
            tokens: self.tokens.unwrap_or(self.outputs),
        }
    }
}

/// The speed of one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Summary {
    time_to_first_token: Option<Duration>,
    after_first: Duration,
    tokens: u64,
}

impl fmt::Display for Summary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = self.time_to_first_token else { return formatter.write_str("no output") };
        let plural = if self.tokens == 1 { "" } else { "s" };
        write!(formatter, "TTFT {:.1} ms, {} token{plural}", first.as_secs_f64() * 1e3, self.tokens)?;
        match report::rate(self.tokens.saturating_sub(1), self.after_first) {
            Some(rate) => write!(formatter, ", {rate:.1} tokens/s after the first"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_token_is_told_apart_from_the_rate_of_the_others() {
        let first = Some(Duration::from_millis(250));
        let summary = Summary { time_to_first_token: first, after_first: Duration::from_secs(2), tokens: 21 };
        assert_eq!(summary.to_string(), "TTFT 250.0 ms, 21 tokens, 10.0 tokens/s after the first");
        let single = Summary { time_to_first_token: first, after_first: Duration::ZERO, tokens: 1 };
        assert_eq!(single.to_string(), "TTFT 250.0 ms, 1 token");
        assert_eq!(Speed::begin().summary().to_string(), "no output");
    }

    #[test]
    fn the_server_counts_tokens_better_than_parts_do() {
        let mut speed = Speed::begin();
        speed.output();
        speed.output();
        assert_eq!(speed.summary().tokens, 2);
        speed.set_tokens(9);
        assert_eq!(speed.summary().tokens, 9);
    }
}
