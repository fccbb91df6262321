//! What was measured, as tables in Markdown and as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use super::contender::{Contender, Engine};
use crate::bench::statistics::Summary;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Measure {
    Prefill,
    DecodeShort,
    DecodeLong,
    Batch,
    Start,
    OneThread,
    AllThreads,
    Contended,
}

impl Measure {
    /// Of the race, in the table's order.
    const RACE: [Measure; 5] =
        [Measure::Prefill, Measure::DecodeShort, Measure::DecodeLong, Measure::Batch, Measure::Start];

    fn title(self) -> &'static str {
        match self {
            Measure::Prefill => "prefill of 512 tokens, tokens/s",
            Measure::DecodeShort => "decode after 32 tokens, tokens/s",
            Measure::DecodeLong => "decode after 512 tokens, tokens/s",
            Measure::Batch => "decode of 8 sequences at once, tokens/s",
            Measure::Start => "process start to first token (prompt of 32), s",
            Measure::OneThread => "one thread, alone",
            Measure::AllThreads => "all threads, alone",
            Measure::Contended => "all threads, a processor busy elsewhere",
        }
    }

    fn less_is_better(self) -> bool {
        self == Measure::Start
    }

    fn digits(self, value: f64) -> usize {
        if self == Measure::Start { 2 } else { usize::from(value < 100.0) }
    }

    /// How many times as good as `theirs` is `ours`.
    fn advantage(self, ours: f64, theirs: f64) -> f64 {
        if self.less_is_better() { theirs / ours } else { ours / theirs }
    }
}

/// A measure of a contender, once for each round.
#[derive(Debug)]
struct Series {
    engine: Engine,
    name: String,
    measure: Measure,
    values: Vec<f64>,
    /// From each token to the next, in seconds, of all rounds, where that is looked at.
    intervals: Vec<f64>,
}

impl Series {
    fn summary(&self) -> Option<Summary> {
        Summary::of(&self.values)
    }

    /// Median, with the least and the most.
    fn cell(&self) -> String {
        let Some(Summary { median, minimum, maximum }) = self.summary() else { return "–".into() };
        let digits = self.measure.digits(median);
        format!("{median:.digits$} ({minimum:.digits$}..{maximum:.digits$})")
    }

    /// The interval that 99 of 100 don't exceed, over the one that half don't.
    fn tail(&self) -> Option<f64> {
        Some(percentile(&self.intervals, 99)? / percentile(&self.intervals, 50)?)
    }
}

/// The least number that so many percent of all don't exceed; `None` if there is none.
fn percentile(numbers: &[f64], percent: usize) -> Option<f64> {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

/// Everything that was measured.
#[derive(Debug, Default)]
pub(super) struct Results {
    series: Vec<Series>,
}

impl Results {
    /// Adds a measurement of a round.
    pub(super) fn add(&mut self, contender: &Contender, measure: Measure, value: f64) {
        self.of(contender, measure).values.push(value);
    }

    /// Adds the times between tokens of a round.
    pub(super) fn add_intervals(&mut self, contender: &Contender, measure: Measure, intervals: &[f64]) {
        self.of(contender, measure).intervals.extend(intervals);
    }

    fn of(&mut self, contender: &Contender, measure: Measure) -> &mut Series {
        let known = self.series.iter().position(|series| series.name == contender.name && series.measure == measure);
        let index = known.unwrap_or(self.series.len());
        if known.is_none() {
            let (engine, name) = (contender.engine, contender.name.clone());
            self.series.push(Series { engine, name, measure, values: Vec::new(), intervals: Vec::new() });
        }
        &mut self.series[index]
    }

    /// The series of an engine's settings.
    fn settings(&self, engine: Engine, measure: Measure) -> impl Iterator<Item = &Series> {
        self.series.iter().filter(move |series| series.engine == engine && series.measure == measure)
    }

    /// The settings of an engine with the best median.
    fn best(&self, engine: Engine, measure: Measure) -> Option<&Series> {
        let median = |series: &Series| series.summary().map_or(f64::NAN, |summary| summary.median);
        self.settings(engine, measure)
            .reduce(|best, one| if measure.advantage(median(one), median(best)) > 1.0 { one } else { best })
    }

    /// The tables, in Markdown.
    pub(super) fn tables(&self) -> String {
        [self.race(), self.contention()].into_iter().flatten().collect::<Vec<_>>().join("\n\n")
    }

    /// Allotrope against the best settings of each other engine; `None` if that was not measured.
    fn race(&self) -> Option<String> {
        let others = [(Engine::LlamaCpp, "llama.cpp"), (Engine::Transformers, "transformers")];
        let has = |engine| Measure::RACE.iter().any(|measure| self.best(engine, *measure).is_some());
        let others: Vec<_> = others.into_iter().filter(|(engine, _)| has(*engine)).collect();
        if others.is_empty() {
            return None;
        }
        let mut text = "| | Allotrope |".to_owned();
        others.iter().for_each(|(_, name)| text.push_str(&format!(" {name} | Allotrope against {name} |")));
        text.push_str(&format!("\n|---|---|{}", "---|---|".repeat(others.len())));
        for measure in Measure::RACE {
            for own in self.settings(Engine::Allotrope, measure) {
                let settings = own.name.strip_prefix("Allotrope").unwrap_or_default();
                let _ = write!(text, "\n| {}{settings} | {} |", measure.title(), own.cell());
                for (engine, _) in &others {
                    let best = self.best(*engine, measure);
                    let cell = best.map_or_else(|| "–".into(), |best| format!("{}{}", best.cell(), settings_of(best)));
                    let ratio = best.and_then(|best| ratios(own, best)).unwrap_or_else(|| "–".into());
                    let _ = write!(text, " {cell} | {ratio} |");
                }
            }
        }
        Some(text)
    }

    /// Decoding with and without contention; `None` if that was not measured.
    fn contention(&self) -> Option<String> {
        let contended: Vec<&Series> =
            self.series.iter().filter(|series| series.measure == Measure::Contended).collect();
        if contended.is_empty() {
            return None;
        }
        let measures = [Measure::OneThread, Measure::AllThreads, Measure::Contended];
        let mut text = "| decode after 32 tokens, tokens/s |".to_owned();
        measures.iter().for_each(|measure| text.push_str(&format!(" {} |", measure.title())));
        text.push_str(
            " against one thread alone | p99 / p50 of its tokens' times | alone |\n|---|---|---|---|---|---|---|",
        );
        let mut contended = contended;
        contended.sort_by(|a, b| (a.engine, &a.name).cmp(&(b.engine, &b.name)));
        for busy in contended {
            let find = |measure| self.settings(busy.engine, measure).find(|series| series.name == busy.name);
            let _ = write!(text, "\n| {} |", busy.name);
            for measure in measures {
                let _ = write!(text, " {} |", find(measure).map_or_else(|| "–".into(), Series::cell));
            }
            let ratio = find(Measure::OneThread).and_then(|one| ratios(busy, one)).unwrap_or_else(|| "–".into());
            let tail = |series: Option<&Series>| {
                series.and_then(Series::tail).map_or_else(|| "–".into(), |tail| format!("{tail:.2}"))
            };
            let _ = write!(text, " {ratio} | {} | {} |", tail(Some(busy)), tail(find(Measure::AllThreads)));
        }
        Some(text)
    }

    /// Every single measurement, in the order of the rounds.
    pub(super) fn to_json(&self) -> Value {
        let of = |series: &Series| {
            json!({
                "engine": series.name,
                "measure": series.measure.title(),
                "values": series.values,
                "summary": series.summary(),
                "seconds_between_tokens": series.intervals,
            })
        };
        self.series.iter().map(of).collect()
    }
}

/// What an engine's name says of its settings.
fn settings_of(series: &Series) -> String {
    series.name.split_once(", ").map_or_else(String::new, |(_, settings)| format!(", {settings}"))
}

/// How many times as good `own` is as `other`, round by round: median, with the least and the most.
fn ratios(own: &Series, other: &Series) -> Option<String> {
    let ratios: Vec<f64> =
        own.values.iter().zip(&other.values).map(|(&value, &theirs)| own.measure.advantage(value, theirs)).collect();
    let Summary { median, minimum, maximum } = Summary::of(&ratios)?;
    Some(format!("{median:.2} × ({minimum:.2}..{maximum:.2})"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn results(series: &[(Engine, &str, Measure, &[f64])]) -> Results {
        let series = series.iter().map(|&(engine, name, measure, values)| Series {
            engine,
            name: name.into(),
            measure,
            values: values.to_vec(),
            intervals: values.to_vec(),
        });
        Results { series: series.collect() }
    }

    #[test]
    fn the_best_settings_of_the_other_engine_count() {
        let results = results(&[
            (Engine::Allotrope, "Allotrope", Measure::Prefill, &[200.0, 300.0, 400.0]),
            (Engine::LlamaCpp, "llama.cpp, slow", Measure::Prefill, &[10.0, 10.0, 500.0]),
            (Engine::LlamaCpp, "llama.cpp, fast", Measure::Prefill, &[100.0, 100.0, 100.0]),
            (Engine::Allotrope, "Allotrope", Measure::Start, &[0.5, 0.5, 0.5]),
            (Engine::LlamaCpp, "llama.cpp, slow", Measure::Start, &[2.0, 2.0, 2.0]),
            (Engine::LlamaCpp, "llama.cpp, fast", Measure::Start, &[1.0, 1.0, 1.0]),
        ]);
        let tables = results.tables();
        let line = |start: &str| tables.lines().find(|line| line.starts_with(start)).unwrap().to_owned();
        assert_eq!(
            line("| prefill"),
            "| prefill of 512 tokens, tokens/s | 300 (200..400) | 100 (100..100), fast | 3.00 × (2.00..4.00) |"
        );
        assert!(line("| process").ends_with("| 0.50 (0.50..0.50) | 1.00 (1.00..1.00), fast | 2.00 × (2.00..2.00) |"));
        assert!(!tables.contains("transformers") && !tables.contains("alone"), "{tables}");
        assert_eq!(results.to_json()[1]["values"], json!([10.0, 10.0, 500.0]));
    }

    #[test]
    fn contention_is_set_against_one_thread_of_the_same_engine() {
        let results = results(&[
            (Engine::LlamaCpp, "llama.cpp", Measure::Contended, &[1.0, 1.0]),
            (Engine::LlamaCpp, "llama.cpp", Measure::OneThread, &[4.0, 4.0]),
            (Engine::Allotrope, "Allotrope", Measure::Contended, &[6.0, 12.0]),
            (Engine::Allotrope, "Allotrope", Measure::OneThread, &[6.0, 6.0]),
        ]);
        let tables = results.tables();
        let (ours, theirs) = (tables.find("| Allotrope |").unwrap(), tables.find("| llama.cpp |").unwrap());
        assert!(ours < theirs, "{tables}");
        assert!(tables.contains("1.50 × (1.00..2.00) | 2.00 | – |"), "{tables}");
        assert!(tables.contains("0.25 × (0.25..0.25) | 1.00 | – |"), "{tables}");
    }

    #[test]
    fn percentiles_are_measured_values() {
        let numbers: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!((percentile(&numbers, 50), percentile(&numbers, 99)), (Some(100.0), Some(198.0)));
        assert_eq!((percentile(&[7.0], 99), percentile(&[], 50)), (Some(7.0), None));
    }

    #[test]
    fn nothing_measured_makes_no_table() {
        assert_eq!(Results::default().tables(), "");
    }
}
