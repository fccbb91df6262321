//! The plots of a measurement.

use super::super::break_even::Course;
use super::super::measurement::{Ceiling, Level, Measurement};
use super::super::sample::Sample;
use super::super::statistics::Summary;
use super::svg::{Anchor, Canvas, Scale, show};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 400.0;
/// Room for what is written around a plot.
const LEFT: f64 = 72.0;
const RIGHT: f64 = WIDTH - 24.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = HEIGHT - 56.0;
/// A ceiling that is further above the bars than this is told in words, as the bars would vanish below its line.
const CEILING_IN_SIGHT: f64 = 4.0;

/// A plot.
pub(super) struct Plot {
    /// What its file is named after.
    pub(super) name: &'static str,
    pub(super) title: String,
    /// What it shows and how to read it.
    pub(super) description: String,
    canvas: Canvas,
}

impl Plot {
    fn new(name: &'static str, title: impl Into<String>, description: impl Into<String>, canvas: Canvas) -> Self {
        let mut plot = Plot { name, title: title.into(), description: description.into(), canvas };
        plot.canvas.text((16.0, 24.0), Anchor::Start, "title", &plot.title);
        plot
    }

    /// As SVG, with `style` inside it.
    pub(super) fn svg(&self, style: &str) -> String {
        self.canvas.finish(&self.title, &self.description, style)
    }
}

/// All plots of which something was measured.
pub(super) fn all(measured: &Measurement) -> Vec<Plot> {
    let candidates =
        [level_curve(measured), tokens(measured, false), tokens(measured, true), prompts(measured), batches(measured)];
    candidates.into_iter().flatten().collect()
}

/// The class of a level's colour.
fn colour(index: usize) -> usize {
    index % 4
}

/// The names of the levels in their colours.
fn legend(canvas: &mut Canvas, levels: &[Level]) {
    for (index, level) in levels.iter().enumerate() {
        let x = 16.0 + 56.0 * index as f64;
        canvas.bar((x, 37.0), (12.0, 12.0), &format!("fill-{}", colour(index)), &level.level);
        canvas.text((x + 17.0, 47.5), Anchor::Start, "label", &level.level);
    }
}

fn horizontal_axis(canvas: &mut Canvas, scale: &Scale, title: &str) {
    for tick in scale.ticks() {
        let x = scale.at(tick);
        canvas.line((x, TOP), (x, BOTTOM), "grid");
        canvas.text((x, BOTTOM + 18.0), Anchor::Middle, "muted", &show(tick));
    }
    canvas.line((LEFT, BOTTOM), (RIGHT, BOTTOM), "axis");
    canvas.text((f64::midpoint(LEFT, RIGHT), BOTTOM + 42.0), Anchor::Middle, "label", title);
}

/// The title stands above the axis, where it needs no turning.
fn vertical_axis(canvas: &mut Canvas, scale: &Scale, title: &str) {
    for tick in scale.ticks() {
        let y = scale.at(tick);
        canvas.line((LEFT, y), (RIGHT, y), "grid");
        canvas.text((LEFT - 8.0, y + 4.0), Anchor::End, "muted", &show(tick));
    }
    canvas.line((LEFT, TOP), (LEFT, BOTTOM), "axis");
    canvas.text((RIGHT, 47.5), Anchor::End, "label", title);
}

fn summary(samples: &[Sample], value: impl Fn(&Sample) -> Option<f64>) -> Option<Summary> {
    Summary::of(&samples.iter().filter_map(value).collect::<Vec<_>>())
}

/// The least and the greatest value of some.
fn range(summaries: impl IntoIterator<Item = Summary>) -> Option<(f64, f64)> {
    summaries
        .into_iter()
        .map(|summary| (summary.minimum, summary.maximum))
        .reduce(|(least, most), (minimum, maximum)| (least.min(minimum), most.max(maximum)))
}

/// Time to ready against the speed of decoding one sequence.
fn level_curve(measured: &Measurement) -> Option<Plot> {
    let levels = measured.levels();
    let at = |samples: &[Sample]| {
        let ready = summary(samples, |sample| Some(sample.ready_seconds? * 1e3))?;
        Some((ready, summary(samples, |sample| sample.decode_tokens_per_second)?))
    };
    let warm: Vec<_> = levels.iter().map(|level| at(&level.warm)).collect();
    let cold: Vec<_> = levels.iter().map(|level| at(&level.cold)).collect();
    let known = || warm.iter().chain(&cold).flatten();
    let x = Scale::around(range(known().map(|(ready, _)| *ready))?, (LEFT, RIGHT));
    let y = Scale::around(range(known().map(|(_, speed)| *speed))?, (BOTTOM, TOP));
    let mut canvas = Canvas::new(WIDTH, HEIGHT);
    horizontal_axis(&mut canvas, &x, "ready after, ms");
    vertical_axis(&mut canvas, &y, "decoded tokens per second, one sequence");
    legend(&mut canvas, levels);
    let keys = [("warm start", "fill-key", &warm), ("cold start", "stroke-key hollow", &cold)];
    for (place, (start, class, _)) in
        keys.into_iter().filter(|(_, _, points)| points.iter().any(Option::is_some)).enumerate()
    {
        let left = 256.0 + 96.0 * place as f64;
        canvas.point((left, 43.0), 5.0, class, start);
        canvas.text((left + 10.0, 47.5), Anchor::Start, "label", start);
    }
    for (points, start, class) in [(&cold, "cold", "curve dashed"), (&warm, "warm", "curve")] {
        let medians: Vec<(f64, f64)> =
            points.iter().flatten().map(|(ready, speed)| (x.at(ready.median), y.at(speed.median))).collect();
        canvas.polyline(&medians, class);
        for (index, point) in points.iter().enumerate() {
            let (Some((ready, speed)), Some(level)) = (point, levels.get(index)) else { continue };
            let (center_x, center_y) = (x.at(ready.median), y.at(speed.median));
            let colour = colour(index);
            let stroke = format!("stroke-{colour} thin");
            canvas.line((x.at(ready.minimum), center_y), (x.at(ready.maximum), center_y), &stroke);
            canvas.line((center_x, y.at(speed.minimum)), (center_x, y.at(speed.maximum)), &stroke);
            let says = format!(
                "{}, {start}: ready after {} ms, {} tokens/s",
                level.level,
                show(ready.median),
                show(speed.median)
            );
            let class = if start == "warm" { format!("fill-{colour}") } else { format!("stroke-{colour} hollow") };
            canvas.point((center_x, center_y), 6.0, &class, &says);
            // Neighbours often lie on each other; their names then stand on different sides.
            let below = index % 2 == 1;
            canvas.text(
                (center_x + 9.0, center_y + if below { 18.0 } else { -9.0 }),
                Anchor::Start,
                "label",
                &level.level,
            );
        }
    }
    let description = format!(
        "What each level's start costs and what its speed is, {}: filled points for starts with the checkpoint in the page cache, hollow \
         ones without. Crosses go from the least to the most of {} rounds. The axes need not begin at zero.",
        measured.model_name(),
        measured.runs
    );
    Some(Plot::new("levels", format!("Ready time against speed, {}", measured.model_name()), description, canvas))
}

/// Tokens over time from the start of the process.
fn tokens(measured: &Measurement, cold: bool) -> Option<Plot> {
    let levels = measured.levels();
    let courses: Vec<(usize, Course, f64)> = levels
        .iter()
        .enumerate()
        .filter_map(|(index, level)| {
            let samples = if cold { &level.cold } else { &level.warm };
            Some((index, level.course(cold)?, summary(samples, |sample| sample.ready_seconds)?.median))
        })
        .collect();
    if courses.is_empty() {
        return None;
    }
    let break_evens = break_evens(&courses);
    let latest_first = courses.iter().map(|(_, course, _)| course.first_token_seconds).fold(0.0, f64::max);
    let latest_even = break_evens.iter().map(|even| even.seconds).fold(0.0, f64::max);
    let end = (1.25 * latest_even).max(2.0 * latest_first);
    let tokens_at = |course: &Course| 1.0 + (end - course.first_token_seconds) * course.decode_tokens_per_second;
    let most = courses.iter().map(|(_, course, _)| tokens_at(course)).fold(1.0, f64::max);
    // Short times read better in milliseconds.
    let (unit, factor) = if end < 2.0 { ("ms", 1e3) } else { ("s", 1.0) };
    let (x, y) = (Scale::linear((0.0, end * factor), (LEFT, RIGHT)), Scale::linear((0.0, most), (BOTTOM, TOP)));
    let mut canvas = Canvas::new(WIDTH, HEIGHT);
    horizontal_axis(&mut canvas, &x, &format!("time from the start of the process, {unit}"));
    vertical_axis(&mut canvas, &y, "tokens");
    legend(&mut canvas, levels);
    for (index, course, ready) in &courses {
        let points = [(0.0, 0.0), (*ready, 0.0), (course.first_token_seconds, 1.0), (end, tokens_at(course))];
        let points = points.map(|(seconds, tokens)| (x.at(seconds * factor), y.at(tokens)));
        canvas.polyline(&points, &format!("stroke-{}", colour(*index)));
    }
    for (place, even) in break_evens.iter().enumerate() {
        let name = |index: usize| levels.get(index).map_or("", |level| &level.level);
        let text = format!("{} is ahead of {} from token {} on", name(even.level), name(even.base), show(even.tokens));
        let point = (x.at(even.seconds * factor), y.at(even.tokens));
        canvas.point(point, 5.0, &format!("stroke-{} hollow", colour(even.level)), &text);
        canvas.text((LEFT + 12.0, TOP + 16.0 + 18.0 * place as f64), Anchor::Start, "label", &text);
    }
    let start = if cold { "cold" } else { "warm" };
    let description = format!(
        "Tokens of one sequence over time at each level, from the medians of {start} starts: nothing until ready, the prompt of {} tokens, \
         then a line as steep as decoding is fast. Circles mark where a level has overtaken the first one, or the one before it, for \
         good; where there is no circle it is ahead from the start, or never.",
        measured.prompt_tokens.first().copied().unwrap_or(0)
    );
    let name = if cold { "tokens-cold" } else { "tokens" };
    Some(Plot::new(name, format!("Tokens over time, {start} start, {}", measured.model_name()), description, canvas))
}

/// Where a level overtakes another.
struct BreakEven {
    level: usize,
    base: usize,
    tokens: f64,
    seconds: f64,
}

/// Where each level overtakes the first one and the one before it, of those that do so after the first token.
fn break_evens(courses: &[(usize, Course, f64)]) -> Vec<BreakEven> {
    let mut found = Vec::new();
    for (place, (level, course, _)) in courses.iter().enumerate() {
        let mut bases = vec![0, place.saturating_sub(1)];
        bases.dedup();
        for (base, other, _) in bases.into_iter().filter(|base| *base < place).filter_map(|base| courses.get(base)) {
            let tokens = course.break_even(*other);
            if tokens.is_finite() && tokens > 0.0 {
                found.push(BreakEven { level: *level, base: *base, tokens, seconds: course.seconds_at(tokens) });
            }
        }
    }
    found
}

/// One group of bars with its own scale.
struct Panel {
    title: String,
    /// By level.
    speeds: Vec<Option<Summary>>,
    ceiling: Option<Ceiling>,
}

fn prompts(measured: &Measurement) -> Option<Plot> {
    let panels = measured.prompt_tokens.iter().map(|tokens| {
        let speed = |level: &Level| {
            summary(&level.prompts, |sample| Some(f64::from(*tokens) / sample.prompt_seconds(*tokens)?))
        };
        Panel {
            title: format!("{tokens} tokens"),
            speeds: measured.levels().iter().map(speed).collect(),
            ceiling: measured.prompt_ceiling(*tokens),
        }
    });
    bars(measured, "prefill", "Prompt tokens per second", panels.collect())
}

fn batches(measured: &Measurement) -> Option<Plot> {
    let panels = measured.batches.iter().map(|sequences| {
        let speed = |level: &Level| summary(level.batch(*sequences), |sample| sample.decode_tokens_per_second);
        Panel {
            title: if *sequences == 1 { "one sequence".into() } else { format!("{sequences} sequences") },
            speeds: measured.levels().iter().map(speed).collect(),
            ceiling: measured.decode_ceiling(*sequences),
        }
    });
    bars(measured, "decode", "Decoded tokens per second", panels.collect())
}

fn bars(measured: &Measurement, name: &'static str, title: &str, panels: Vec<Panel>) -> Option<Plot> {
    let panels: Vec<Panel> = panels.into_iter().filter(|panel| panel.speeds.iter().any(Option::is_some)).collect();
    if panels.is_empty() {
        return None;
    }
    let mut canvas = Canvas::new(WIDTH, HEIGHT);
    legend(&mut canvas, measured.levels());
    let width = (RIGHT - 16.0) / panels.len() as f64;
    for (index, panel) in panels.iter().enumerate() {
        panel.draw(&mut canvas, (16.0 + width * index as f64, width - 16.0), measured.levels());
    }
    let description = format!(
        "{title} at each level, {}: the bar, with its number below it, is the median, and the line on it goes from the least to the most of {} rounds. The dashed line is the \
         most that the machine allows: by its measured read bandwidth (every step reads all weights), or by its measured peak of bf16 dot \
         products.",
        measured.model_name(),
        measured.runs
    );
    Some(Plot::new(name, format!("{title}, {}", measured.model_name()), description, canvas))
}

impl Panel {
    fn draw(&self, canvas: &mut Canvas, (left, width): (f64, f64), levels: &[Level]) {
        let most = self.speeds.iter().flatten().map(|speed| speed.maximum).fold(0.0, f64::max);
        let in_sight = |ceiling: &Ceiling| ceiling.tokens_per_second() <= CEILING_IN_SIGHT * most;
        let drawn = self.ceiling.filter(in_sight);
        let top = drawn.map_or(most, |ceiling| most.max(ceiling.tokens_per_second()));
        let scale = Scale::linear((0.0, 1.1 * top), (BOTTOM, TOP + 16.0));
        let slot = width / self.speeds.len().max(1) as f64;
        for (index, (speed, level)) in self.speeds.iter().zip(levels).enumerate() {
            let Some(speed) = speed else { continue };
            let (x, y) = (left + slot * index as f64, scale.at(speed.median));
            let says = format!("{}: {} tokens/s", level.level, show(speed.median));
            canvas.bar((x + 0.12 * slot, y), (0.76 * slot, BOTTOM - y), &format!("fill-{}", colour(index)), &says);
            let middle = x + 0.5 * slot;
            canvas.line((middle, scale.at(speed.minimum)), (middle, scale.at(speed.maximum)), "spread");
            canvas.text((middle, BOTTOM + 14.0), Anchor::Middle, "small", &show(speed.median));
        }
        canvas.line((left, BOTTOM), (left + width, BOTTOM), "axis");
        canvas.text((left + 0.5 * width, BOTTOM + 32.0), Anchor::Middle, "label", &self.title);
        if let Some(ceiling) = self.ceiling {
            let by = if matches!(ceiling, Ceiling::Memory(_)) { "memory" } else { "arithmetic" };
            let text = format!("{by} allows {}", show(ceiling.tokens_per_second()));
            canvas.text((left + 0.5 * width, BOTTOM + 48.0), Anchor::Middle, "muted", &text);
        }
        if let Some(ceiling) = drawn {
            let y = scale.at(ceiling.tokens_per_second());
            canvas.line((left, y), (left + width, y), "ceiling");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::super::measurement::tests::measurement;
    use super::*;

    fn plot<'a>(plots: &'a [Plot], name: &str) -> &'a Plot {
        plots.iter().find(|plot| plot.name == name).unwrap()
    }

    #[test]
    fn every_plot_is_a_drawing_that_shows_each_level() {
        let measured = Measurement { model: "models/<a & b>".into(), ..measurement() };
        let plots = all(&measured);
        let names: Vec<&str> = plots.iter().map(|plot| plot.name).collect();
        assert_eq!(names, ["levels", "tokens", "tokens-cold", "prefill", "decode"]);
        for plot in &plots {
            let svg = plot.svg(".a { fill: red }");
            let document = roxmltree::Document::parse(&svg).unwrap();
            let texts: Vec<&str> = document
                .descendants()
                .filter(|node| node.has_tag_name("text"))
                .filter_map(|node| node.text())
                .collect();
            for expected in ["O0", "O1"] {
                assert!(texts.contains(&expected), "{}: {texts:?}", plot.name);
            }
            assert!(texts.iter().any(|text| text.contains("<a & b>")), "{texts:?}");
            // Whatever is drawn lies within the drawing.
            for node in document.descendants() {
                for (attribute, limit) in
                    [("x", WIDTH), ("y", HEIGHT), ("cx", WIDTH), ("cy", HEIGHT), ("x2", WIDTH), ("y2", HEIGHT)]
                {
                    let Some(value) = node.attribute(attribute) else { continue };
                    let value: f64 = value.parse().unwrap();
                    assert!((0.0..=limit).contains(&value), "{}: {node:?}", plot.name);
                }
            }
        }
    }

    #[test]
    fn break_even_points_are_marked() {
        let mut measured = measurement();
        assert!(plot(&all(&measured), "tokens").svg("").contains("O1 is ahead of O0 from token 8 on"));
        measured.builds[0].levels[1].warm.iter_mut().for_each(|sample| sample.decode_tokens_per_second = Some(4.0));
        assert!(!plot(&all(&measured), "tokens").svg("").contains("from token"));
    }

    #[test]
    fn a_ceiling_in_sight_is_a_line_and_one_far_above_is_told() {
        let measured = measurement();
        let svg = plot(&all(&measured), "decode").svg("");
        assert_eq!(svg.matches("class=\"ceiling\"").count(), 2);
        assert!(svg.contains("memory allows 20") && svg.contains("memory allows 160"), "{svg}");
        let far = Measurement { machine: super::super::super::machine::Machine::for_tests(2e12, 1e15), ..measured };
        let svg = plot(&all(&far), "decode").svg("");
        assert_eq!(svg.matches("class=\"ceiling\"").count(), 0);
        assert!(svg.contains("memory allows 2\u{a0}000"), "{svg}");
    }

    #[test]
    fn what_was_not_measured_is_not_plotted() {
        let mut measured = measurement();
        measured.builds[0].levels.iter_mut().for_each(|level| {
            level.cold.clear();
            level.prompts.clear();
        });
        let names: Vec<&str> = all(&measured).iter().map(|plot| plot.name).collect();
        assert_eq!(names, ["levels", "tokens", "decode"]);
    }
}
