//! The tables of a measurement in Markdown, which reads well on a terminal too.

use std::fmt::Write;

use super::measurement::Measurement;
use super::rows::{Better, break_evens, sections, spread};
use super::statistics::Summary;

/// A table: its lines, of which the first is the head.
pub(super) struct Table {
    pub(super) lines: Vec<Vec<String>>,
}

impl Table {
    /// With aligned columns.
    pub(super) fn markdown(&self) -> String {
        let columns = self.lines.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max()
        };
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        let mut text = String::new();
        for (index, line) in self.lines.iter().enumerate() {
            let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            text.push_str(&format!("| {} |\n", cells.join(" | ")));
            if index == 0 {
                let rules: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
                text.push_str(&format!("|-{}-|\n", rules.join("-|-")));
            }
        }
        text
    }
}

/// The levels of this build: one table for each section, and one of the break-even points.
pub(super) fn levels(measured: &Measurement) -> Vec<Table> {
    let head = |title: &str| {
        let names = measured.levels().iter().map(|level| level.level.clone());
        [title.to_owned()].into_iter().chain(names).collect::<Vec<String>>()
    };
    let mut tables = Vec::new();
    for section in sections(measured) {
        let mut lines = vec![head(section.title)];
        for row in &section.rows {
            lines.push(
                [row.name.clone()].into_iter().chain(measured.levels().iter().map(|level| row.cell(level))).collect(),
            );
        }
        tables.push(Table { lines });
    }
    let rows = measured.builds.first().map(break_evens).unwrap_or_default();
    if !rows.is_empty() {
        let mut lines = vec![head("Break-even")];
        lines.extend(rows.into_iter().map(|row| [row.name].into_iter().chain(row.cells).collect()));
        tables.push(Table { lines });
    }
    tables
}

/// Every figure of this build divided by that of the other one; `None` where there is no other.
pub(super) fn ratios(measured: &Measurement) -> Option<Table> {
    let [this, other] = &measured.builds[..] else { return None };
    let names = this.levels.iter().map(|level| level.level.clone());
    let title = format!("This build against {}", other.commit);
    let mut lines: Vec<Vec<String>> = vec![[title].into_iter().chain(names).collect()];
    for row in sections(measured).iter().flat_map(|section| &section.rows) {
        let cell = |(this, other): (&_, &_)| {
            let pairs = row.values(this).into_iter().zip(row.values(other));
            // What is zero in both did not change.
            let ratios: Vec<f64> = pairs.map(|(this, other)| if this == other { 1.0 } else { this / other }).collect();
            let summary = Summary::of(&ratios);
            let verdict = summary.map_or("", |summary| verdict(summary, row.better));
            format!("{}{verdict}", spread(summary, |ratio| format!("{ratio:.3}")))
        };
        let cells = this.levels.iter().zip(&other.levels).map(cell);
        lines.push([row.name.clone()].into_iter().chain(cells).collect());
    }
    Some(Table { lines })
}

/// What ratios say if all of them say the same.
fn verdict(ratios: Summary, better: Better) -> &'static str {
    let (less, more) = match better {
        Better::Less => (" better", " worse"),
        Better::More => (" worse", " better"),
    };
    if ratios.maximum < 1.0 {
        less
    } else if ratios.minimum > 1.0 {
        more
    } else {
        ""
    }
}

/// What was measured, in one sentence each.
pub(super) fn heading(measured: &Measurement) -> String {
    format!(
        "{} ({:.1} MB of weights) on {}; {}",
        measured.model_name(),
        measured.checkpoint_bytes as f64 / 1e6,
        if measured.on_cpu() { "the CPU" } else { &measured.device },
        match measured.runs {
            1 => "one round".to_owned(),
            runs => format!("median (least..most) of {runs} rounds"),
        }
    )
}

/// What the rows mean, as far as it depends on what was asked for.
pub(super) fn explanation(measured: &Measurement) -> String {
    let shortest = measured.prompt_tokens.first().copied().unwrap_or(0);
    format!(
        "Starts and batches have prompts of {shortest} tokens and decode {} more for each sequence; \"first token of N\" is a prompt of N \
         tokens in a process that is ready and has answered before.",
        measured.new_tokens.saturating_sub(1)
    )
}

/// What levels agree in, and what else must be known.
pub(super) fn remarks(measured: &Measurement) -> Vec<String> {
    let bits = &measured.bits;
    let verdict = |agrees: &bool| if *agrees { "the same bits" } else { "OTHER BITS" };
    let others: Vec<String> =
        bits.others.iter().map(|(level, agrees)| format!("{level} {}", verdict(agrees))).collect();
    let mut remarks = Vec::new();
    if !others.is_empty() {
        let reference = &bits.reference;
        remarks.push(format!("Logits ({} bytes) compared with {reference}: {}.", bits.bytes, others.join(", ")));
    }
    remarks.extend(measured.cold_problem());
    remarks.extend(measured.notes.iter().cloned());
    remarks
}

/// When, with which commits and by which command it was measured; `code` sets the command.
pub(super) fn provenance(measured: &Measurement, code: impl Fn(&str) -> String) -> String {
    let commits: Vec<&str> = measured.builds.iter().map(|build| build.commit.as_str()).collect();
    format!("Measured {} UTC, commit {}: {}", measured.date, commits.join(" against "), code(&measured.command))
}

/// All of it as Markdown.
pub(super) fn markdown(measured: &Measurement) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{}\n\n{}\n\n{}\n", heading(measured), measured.machine, explanation(measured));
    for table in levels(measured).iter().chain(&ratios(measured)) {
        let _ = writeln!(text, "{}", table.markdown());
    }
    for remark in remarks(measured) {
        let _ = writeln!(text, "{remark}\n");
    }
    let _ = writeln!(text, "{}", provenance(measured, |command| format!("`{command}`")));
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::measurement::tests::measurement;
    use super::*;

    #[test]
    fn the_markdown_has_every_section_and_what_differs() {
        let mut measured = measurement();
        measured.bits.others = vec![("O1".into(), false)];
        measured.notes.push("A note.".into());
        let text = markdown(&measured);
        let expected = [
            "| Start ",
            "| Prompts ",
            "| Decoding ",
            "| Break-even ",
            "| ready, cold, ms ",
            "O1 OTHER BITS",
            "A note.",
        ];
        for part in expected {
            assert!(text.contains(part), "{part}: {text}");
        }
        let lines: Vec<usize> = levels(&measured)[0].markdown().lines().map(|line| line.chars().count()).collect();
        assert!(lines.iter().all(|length| *length == lines[0]), "{lines:?}");
    }

    #[test]
    fn ratios_are_of_each_round_and_say_what_is_better_only_if_all_agree() {
        let mut measured = measurement();
        assert!(ratios(&measured).is_none());
        let mut other = measured.builds[0].clone();
        other.commit = "d3e4f5".into();
        for sample in &mut other.levels[0].warm {
            sample.ready_seconds = sample.ready_seconds.map(|ready| 2.0 * ready);
            sample.decode_tokens_per_second = Some(8.0);
        }
        other.levels[1].warm[0].ready_seconds = Some(0.25);
        other.levels[1].cold.clear();
        measured.builds.push(other);
        let table = ratios(&measured).unwrap();
        let line = |name: &str| table.lines.iter().find(|line| line[0] == name).unwrap().clone();
        assert_eq!(line("ready, warm, ms")[1..], ["0.500 better", "1.000 (1.000..2.500)"]);
        assert_eq!(line("batch 1, tokens/s")[1..], ["0.500 worse", "1.000"]);
        assert_eq!(line("ready, cold, ms")[1..], ["1.000", "–"]);
        assert!(table.lines[0][0].contains("d3e4f5"));
    }
}
