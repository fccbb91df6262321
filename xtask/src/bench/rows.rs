//! What the tables say: one row for each figure, computed from the processes of a level.

use super::break_even::Course;
use super::measurement::{Build, Level, Measurement};
use super::sample::Sample;
use super::statistics::Summary;

/// Whether more of a figure is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Better {
    Less,
    More,
}

/// From the processes of a level to the figure of each.
type Values = Box<dyn Fn(&Level) -> Vec<f64>>;

/// A figure of every level.
pub(super) struct Row {
    pub(super) name: String,
    /// Digits after the point.
    digits: usize,
    pub(super) better: Better,
    values: Values,
}

/// Rows that belong together.
pub(super) struct Section {
    pub(super) title: &'static str,
    pub(super) rows: Vec<Row>,
}

impl Row {
    /// A row with the figure of each process that `samples` picks.
    fn new(
        name: impl Into<String>,
        (digits, better): (usize, Better),
        samples: impl Fn(&Level) -> &[Sample] + 'static,
        value: impl Fn(&Sample) -> Option<f64> + 'static,
    ) -> Self {
        let values = move |level: &Level| samples(level).iter().filter_map(&value).collect();
        Row { name: name.into(), digits, better, values: Box::new(values) }
    }

    /// The figure of every process of a level.
    pub(super) fn values(&self, level: &Level) -> Vec<f64> {
        (self.values)(level)
    }

    pub(super) fn summary(&self, level: &Level) -> Option<Summary> {
        Summary::of(&self.values(level))
    }

    /// `median (least..most)`, or the median alone where all are the same.
    pub(super) fn cell(&self, level: &Level) -> String {
        spread(self.summary(level), |value| format!("{value:.*}", self.digits))
    }
}

/// `median (least..most)`, or the median alone where both ends read the same; a dash where nothing was measured.
pub(super) fn spread(summary: Option<Summary>, show: impl Fn(f64) -> String) -> String {
    let Some(Summary { median, minimum, maximum }) = summary else { return "–".into() };
    let (median, minimum, maximum) = (show(median), show(minimum), show(maximum));
    if minimum == maximum { median } else { format!("{median} ({minimum}..{maximum})") }
}

fn cold(level: &Level) -> &[Sample] {
    &level.cold
}

fn warm(level: &Level) -> &[Sample] {
    &level.warm
}

fn prompts(level: &Level) -> &[Sample] {
    &level.prompts
}

fn batch(sequences: u32) -> impl Fn(&Level) -> &[Sample] + Copy + 'static {
    move |level| level.batch(sequences)
}

/// All sections of a measurement. Rows of what was not measured are left out.
pub(super) fn sections(measured: &Measurement) -> Vec<Section> {
    let mut sections = vec![
        Section { title: "Start", rows: start_rows() },
        Section { title: "Prompts", rows: prompt_rows(measured) },
        Section { title: "Decoding", rows: decode_rows(measured) },
    ];
    let measured_anywhere =
        |row: &Row| measured.builds.iter().flat_map(|build| &build.levels).any(|level| !row.values(level).is_empty());
    sections.iter_mut().for_each(|section| section.rows.retain(measured_anywhere));
    sections.retain(|section| !section.rows.is_empty());
    sections
}

fn start_rows() -> Vec<Row> {
    let ready = |sample: &Sample| Some(sample.ready_seconds? * 1e3);
    let first_token = |sample: &Sample| Some(sample.first_token_seconds()? * 1e3);
    vec![
        Row::new("ready, cold, ms", (1, Better::Less), cold, ready),
        Row::new("ready, warm, ms", (1, Better::Less), warm, ready),
        Row::new("of it in no phase, %", (1, Better::Less), warm, |sample| {
            Some(100.0 * sample.unclaimed_seconds? / sample.ready_seconds?)
        }),
        Row::new("start to first token, cold, ms", (1, Better::Less), cold, first_token),
        Row::new("start to first token, warm, ms", (1, Better::Less), warm, first_token),
        Row::new("recordings", (0, Better::Less), warm, |sample| sample.recordings),
        Row::new("peak memory, MB", (1, Better::Less), warm, |sample| Some(sample.peak_memory_bytes? as f64 / 1e6)),
    ]
}

fn prompt_rows(measured: &Measurement) -> Vec<Row> {
    let of_length = |&tokens: &u32| {
        let seconds = move |sample: &Sample| sample.prompt_seconds(tokens);
        let mut rows = vec![
            Row::new(format!("first token of {tokens}, ms"), (1, Better::Less), prompts, move |sample| {
                Some(seconds(sample)? * 1e3)
            }),
            Row::new(format!("prefill of {tokens}, tokens/s"), (1, Better::More), prompts, move |sample| {
                Some(f64::from(tokens) / seconds(sample)?)
            }),
        ];
        if let Some(work) = measured.prompt_work(tokens) {
            rows.push(Row::new(format!("prefill of {tokens}, GFLOP/s"), (1, Better::More), prompts, move |sample| {
                Some(work / seconds(sample)? / 1e9)
            }));
            let peak = measured.machine.dot_product_peak.maximum;
            if measured.has_ceilings() {
                rows.push(Row::new("of the dot products' peak, %", (0, Better::More), prompts, move |sample| {
                    Some(100.0 * work / seconds(sample)? / peak)
                }));
            }
        }
        rows
    };
    measured.prompt_tokens.iter().flat_map(of_length).collect()
}

fn decode_rows(measured: &Measurement) -> Vec<Row> {
    let of_batch = |&sequences: &u32| {
        let samples = batch(sequences);
        let bytes_per_second = move |sample: &Sample| {
            Some(sample.weight_bytes_per_step? * sample.decode_tokens_per_second? / f64::from(sequences))
        };
        let mut rows = vec![
            Row::new(format!("batch {sequences}, tokens/s"), (1, Better::More), samples, |sample| {
                sample.decode_tokens_per_second
            }),
            Row::new(format!("batch {sequences}, weights read, GB/s"), (1, Better::More), samples, move |sample| {
                Some(bytes_per_second(sample)? / 1e9)
            }),
        ];
        if measured.has_ceilings() {
            let (bandwidth, peak) =
                (measured.machine.read_bandwidth.maximum, measured.machine.dot_product_peak.maximum);
            let work = measured.work.decoded_token;
            rows.push(Row::new("of the best read bandwidth, %", (0, Better::More), samples, move |sample| {
                Some(100.0 * bytes_per_second(sample)? / bandwidth)
            }));
            rows.push(Row::new("of the dot products' peak, %", (1, Better::More), samples, move |sample| {
                Some(100.0 * work * sample.decode_tokens_per_second? / peak)
            }));
        }
        rows
    };
    let mut rows: Vec<Row> = measured.batches.iter().flat_map(of_batch).collect();
    rows.push(Row::new("launches in a step", (0, Better::Less), warm, |sample| sample.launches_per_decode_step));
    rows.push(Row::new("submissions in a step", (0, Better::Less), warm, |sample| sample.submissions_per_decode_step));
    rows
}

/// After how many tokens each level has paid for its start, against the first level and the one before it.
pub(super) struct BreakEven {
    pub(super) name: String,
    /// One for each level.
    pub(super) cells: Vec<String>,
}

/// The break-even points of a build, with cold and warm starts.
pub(super) fn break_evens(build: &Build) -> Vec<BreakEven> {
    let levels = &build.levels;
    let Some(first) = levels.first() else { return Vec::new() };
    let mut rows = Vec::new();
    for (base_name, previous) in [(first.level.as_str(), false), ("the level before", true)] {
        for (start, cold) in [("cold", true), ("warm", false)] {
            let cell = |index: usize| {
                let base = index.checked_sub(1).and_then(|before| levels.get(if previous { before } else { 0 }));
                let level = levels.get(index);
                let tokens = level.zip(base).map(|(level, base)| rounds(level, base, cold)).unwrap_or_default();
                spread(Summary::of(&tokens), show_tokens)
            };
            let cells: Vec<String> = (0..levels.len()).map(cell).collect();
            if cells.iter().any(|cell| cell != "–") {
                rows.push(BreakEven { name: format!("tokens to be ahead of {base_name}, {start}"), cells });
            }
        }
    }
    rows
}

/// The break-even of each round.
fn rounds(level: &Level, base: &Level, cold: bool) -> Vec<f64> {
    let course = |sample: &Sample| {
        Some(Course {
            first_token_seconds: sample.first_token_seconds()?,
            decode_tokens_per_second: sample.decode_tokens_per_second?,
        })
    };
    let samples = if cold { level.cold.iter().zip(&base.cold) } else { level.warm.iter().zip(&base.warm) };
    samples.filter_map(|(level, base)| Some(course(level)?.break_even(course(base)?))).collect()
}

fn show_tokens(tokens: f64) -> String {
    if tokens == f64::INFINITY { "never".into() } else { format!("{tokens:.0}") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::measurement::tests::measurement;
    use super::*;

    fn cell(measured: &Measurement, level: usize, name: &str) -> String {
        let sections = sections(measured);
        let row = sections.iter().flat_map(|section| &section.rows).find(|row| row.name == name);
        row.unwrap_or_else(|| panic!("no row {name}")).cell(&measured.levels()[level])
    }

    #[test]
    fn cells_show_the_median_and_the_spread() {
        let measured = measurement();
        for (name, expected) in [
            ("ready, warm, ms", "187.5 (125.0..250.0)"),
            ("ready, cold, ms", "1875.0 (1250.0..2500.0)"),
            ("of it in no phase, %", "2.0"),
            ("start to first token, warm, ms", "343.8 (281.2..406.2)"),
            ("first token of 50, ms", "781.2"),
            ("prefill of 50, tokens/s", "64.0"),
            ("prefill of 50, GFLOP/s", "140.8"),
            ("batch 1, tokens/s", "4.0"),
            ("batch 1, weights read, GB/s", "4.0"),
            ("of the best read bandwidth, %", "20"),
            ("batch 8, tokens/s", "32.0"),
            ("batch 8, weights read, GB/s", "4.0"),
            ("launches in a step", "3"),
            ("peak memory, MB", "7.0"),
        ] {
            assert_eq!(cell(&measured, 0, name), expected, "{name}");
        }
    }

    #[test]
    fn what_was_not_measured_has_no_row() {
        let mut measured = measurement();
        measured.builds[0].levels.iter_mut().for_each(|level| level.cold.clear());
        assert!(sections(&measured).iter().flat_map(|section| &section.rows).all(|row| !row.name.contains("cold")));
        measured.builds[0].levels[1].warm.clear();
        assert_eq!(cell(&measured, 1, "ready, warm, ms"), "–");
    }

    #[test]
    fn break_even_points_are_of_each_round() {
        let mut measured = measurement();
        let rows = break_evens(&measured.builds[0]);
        let row = |name: &str| rows.iter().find(|row| row.name.contains(name)).unwrap().cells.clone();
        // O1 starts 0.5 s, 1 s and 0.75 s later, and saves 0.125 s with each token.
        assert_eq!(row("ahead of O0, warm"), ["–", "8 (6..10)"]);
        measured.builds[0].levels[1].warm[1].decode_tokens_per_second = Some(4.0);
        let rows = break_evens(&measured.builds[0]);
        assert!(rows.iter().any(|row| row.cells == ["–", "8 (6..never)"]));
    }
}
