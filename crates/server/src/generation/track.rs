//! The times of one answer.

use std::time::Duration;

use allotrope_engine::PromptReport;
use tokio::time::Instant;

use crate::metrics::ModelMetrics;

/// One answer, from its arrival to its last token.
#[derive(Debug)]
pub(super) struct Track {
    arrived: Instant,
    first: Option<Instant>,
    last: Instant,
    tokens: usize,
    queued: Duration,
    prefill: Duration,
    is_done: bool,
}

impl Track {
    pub(super) fn new(arrived: Instant) -> Self {
        let zero = Duration::ZERO;
        Track { arrived, first: None, last: arrived, tokens: 0, queued: zero, prefill: zero, is_done: false }
    }

    pub(super) fn is_done(&self) -> bool {
        self.is_done
    }

    /// It ends without a last token, and counts as nothing but that.
    pub(super) fn give_up(&mut self) {
        self.is_done = true;
    }

    /// The next token.
    pub(super) fn token(&mut self, prompt: Option<&PromptReport>, metrics: &ModelMetrics) {
        let now = Instant::now();
        if let Some(report) = prompt {
            (self.queued, self.prefill) = (report.queued, report.prefill);
        }
        match self.first {
            None => {
                self.first = Some(now);
                metrics.time_to_first_token.observe((now - self.arrived).as_secs_f64());
            }
            Some(_) => metrics.inter_token_latency.observe((now - self.last).as_secs_f64()),
        }
        self.last = now;
        self.tokens += 1;
    }

    /// The last token was that of [`Track::token`] before.
    pub(super) fn finish(&mut self, prompt_tokens: usize, metrics: &ModelMetrics) {
        self.is_done = true;
        let decode = self.first.map_or(Duration::ZERO, |first| self.last - first);
        let between = u32::try_from(self.tokens.saturating_sub(1)).unwrap_or(u32::MAX);
        let per_token = decode.checked_div(between).unwrap_or_default();
        metrics.time_per_output_token.observe(per_token.as_secs_f64());
        metrics.latency.observe((self.last - self.arrived).as_secs_f64());
        metrics.queue_time.observe(self.queued.as_secs_f64());
        metrics.prefill_time.observe(self.prefill.as_secs_f64());
        metrics.decode_time.observe(decode.as_secs_f64());
        metrics.inference_time.observe((self.prefill + decode).as_secs_f64());
        metrics.prompt_lengths.observe(prompt_tokens as f64);
        metrics.answer_lengths.observe(self.tokens as f64);
    }
}
