//! A line for the log every few seconds, while something happens.

use std::fmt;
use std::time::Duration;

use super::Metrics;
use crate::model::ServedModel;

/// The counters as of the last line.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    prompt_tokens: u64,
    generation_tokens: u64,
    preemptions: u64,
    queries: u64,
    hits: u64,
}

/// What happened since the line before.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Line {
    prompt_rate: f64,
    generation_rate: f64,
    running: usize,
    waiting: usize,
    usage: f64,
    hit_rate: f64,
    preemptions: u64,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "prompt {:.1} tokens/s, generation {:.1} tokens/s, running {}, waiting {}, KV cache usage {:.1} %, prefix cache hit \
             rate {:.1} %, preemptions {}",
            self.prompt_rate,
            self.generation_rate,
            self.running,
            self.waiting,
            self.usage * 100.0,
            self.hit_rate * 100.0,
            self.preemptions
        )
    }
}

impl Summary {
    /// What happened in `elapsed`, the time since the last call; `None` if nothing did.
    pub(crate) fn next_line(&mut self, metrics: &Metrics, model: &ServedModel, elapsed: Duration) -> Option<Line> {
        let status = model.llm.engine().status();
        let counters = metrics.of_model(model.name());
        let throughput = status.statistics().map(|statistics| statistics.throughput);
        let of = |read: fn(&allotrope_engine::Throughput) -> u64| throughput.as_ref().map_or(0, read);
        let now = Summary {
            prompt_tokens: counters.prompt_tokens.get(),
            generation_tokens: counters.generation_tokens.get(),
            preemptions: of(|throughput| throughput.preemptions),
            queries: of(|throughput| throughput.prefix_cache_queries),
            hits: of(|throughput| throughput.prefix_cache_hits),
        };
        let before = std::mem::replace(self, now);
        let prompt_tokens = self.prompt_tokens.saturating_sub(before.prompt_tokens);
        let generation_tokens = self.generation_tokens.saturating_sub(before.generation_tokens);
        let (running, waiting) = (status.running(), status.waiting().0 + status.preempted());
        if prompt_tokens + generation_tokens == 0 && running + waiting == 0 {
            return None;
        }
        let seconds = elapsed.as_secs_f64().max(1e-9);
        let (used, total) = status.blocks();
        let ratio = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        let queries = self.queries.saturating_sub(before.queries);
        Some(Line {
            prompt_rate: prompt_tokens as f64 / seconds,
            generation_rate: generation_tokens as f64 / seconds,
            running,
            waiting,
            usage: ratio(used as f64, total as f64),
            hit_rate: ratio(self.hits.saturating_sub(before.hits) as f64, queries as f64),
            preemptions: self.preemptions.saturating_sub(before.preemptions),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::config::ServerConfig;
    use allotrope_engine::{AsyncLlm, QueueLimits, TextModel, channel};

    #[test]
    fn a_line_tells_rates_and_silence_has_none() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/models/tiny-chat");
        let (client, _inbox) = channel(QueueLimits::UNLIMITED);
        let status = std::sync::Arc::clone(client.status());
        let config = ServerConfig::default();
        let llm = AsyncLlm::from_parts(TextModel::open(&folder).unwrap(), client);
        let model = ServedModel::new(llm, &config).unwrap();
        let metrics = Metrics::new(&config).unwrap();
        let counters = metrics.of_model(model.name());
        let mut summary = Summary::default();
        let ten = Duration::from_secs(10);
        assert_eq!(summary.next_line(&metrics, &model, ten), None);
        counters.prompt_tokens.inc_by(1000);
        counters.generation_tokens.inc_by(55);
        status.stepped(3, 25, 100, 8);
        status.came(7);
        let line = summary.next_line(&metrics, &model, ten).unwrap().to_string();
        let expected = "prompt 100.0 tokens/s, generation 5.5 tokens/s, running 3, waiting 1, KV cache usage 25.0 %, prefix cache hit \
                        rate 0.0 %, preemptions 0";
        assert_eq!(line, expected);
        status.left(7);
        status.stepped(0, 0, 100, 0);
        assert_eq!(summary.next_line(&metrics, &model, ten), None);
    }
}
