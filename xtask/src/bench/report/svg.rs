//! Drawing in SVG: scales with their ticks, and the few shapes that plots are made of. Colours are classes, so that a page
//! and an image can each have their own.

use std::fmt::Write;

/// A drawing of a certain size.
pub(super) struct Canvas {
    width: f64,
    height: f64,
    body: String,
}

/// Where a text is anchored.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

impl Canvas {
    pub(super) fn new(width: f64, height: f64) -> Self {
        Canvas { width, height, body: String::new() }
    }

    pub(super) fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), class: &str) {
        let _ = writeln!(self.body, r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" class="{class}"/>"#);
    }

    pub(super) fn polyline(&mut self, points: &[(f64, f64)], class: &str) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(self.body, r#"<polyline points="{}" class="{class}"/>"#, points.join(" "));
    }

    /// A rectangle that says what it shows where the pointer rests on it.
    pub(super) fn bar(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), class: &str, says: &str) {
        let _ = writeln!(
            self.body,
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" class="{class}"><title>{}</title></rect>"#,
            escape(says)
        );
    }

    /// A point that says what it shows where the pointer rests on it.
    pub(super) fn point(&mut self, (x, y): (f64, f64), radius: f64, class: &str, says: &str) {
        let says = escape(says);
        let _ = writeln!(
            self.body,
            r#"<circle cx="{x:.1}" cy="{y:.1}" r="{radius}" class="{class}"><title>{says}</title></circle>"#
        );
    }

    pub(super) fn text(&mut self, (x, y): (f64, f64), anchor: Anchor, class: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = escape(text);
        let _ =
            writeln!(self.body, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" class="{class}">{text}</text>"#);
    }

    /// The whole drawing with its title and description, and `style` inside it.
    pub(super) fn finish(&self, title: &str, description: &str, style: &str) -> String {
        let (width, height) = (self.width, self.height);
        let style = if style.is_empty() { String::new() } else { format!("<style>\n{style}</style>\n") };
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\">\n\
             <title>{}</title>\n<desc>{}</desc>\n{style}\
             <rect x=\"0\" y=\"0\" width=\"{width}\" height=\"{height}\" class=\"background\"/>\n{}</svg>\n",
            escape(title),
            escape(description),
            self.body
        )
    }
}

/// Text as XML and HTML have it.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // XML can't hold other control characters at all.
            control if control.is_control() && !"\t\n\r".contains(control) => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

/// Values along an axis, and where they lie on the canvas.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    minimum: f64,
    maximum: f64,
    begin: f64,
    end: f64,
    logarithmic: bool,
}

impl Scale {
    /// From `begin` to `end` on the canvas.
    pub(super) fn linear((minimum, maximum): (f64, f64), (begin, end): (f64, f64)) -> Self {
        let maximum = if maximum > minimum { maximum } else { minimum + 1.0 };
        Scale { minimum, maximum, begin, end, logarithmic: false }
    }

    /// From `begin` to `end` on the canvas, with room around the values; logarithmic where they span over a decade.
    pub(super) fn around((minimum, maximum): (f64, f64), (begin, end): (f64, f64)) -> Self {
        if minimum > 0.0 && maximum > 10.0 * minimum {
            return Scale { minimum: minimum / 1.5, maximum: maximum * 1.5, begin, end, logarithmic: true };
        }
        let room = (0.15 * (maximum - minimum)).max(0.02 * maximum);
        Scale::linear(((minimum - room).max(0.0), maximum + room), (begin, end))
    }

    /// Where a value lies.
    pub(super) fn at(&self, value: f64) -> f64 {
        let share = if self.logarithmic {
            (value / self.minimum).ln() / (self.maximum / self.minimum).ln()
        } else {
            (value - self.minimum) / (self.maximum - self.minimum)
        };
        self.begin + share * (self.end - self.begin)
    }

    /// Round values within the scale, about five of them, ascending.
    pub(super) fn ticks(&self) -> Vec<f64> {
        if self.logarithmic {
            let decades = (self.minimum.log10().floor() as i32)..=(self.maximum.log10().ceil() as i32);
            let steps: &[f64] = if self.maximum > 1000.0 * self.minimum { &[1.0] } else { &[1.0, 2.0, 5.0] };
            let ticks = decades.flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)));
            return ticks.filter(|tick| (self.minimum..=self.maximum).contains(tick)).collect();
        }
        let rough = (self.maximum - self.minimum) / 5.0;
        let decade = 10f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].map(|step| step * decade).into_iter().find(|step| *step >= rough).unwrap_or(rough);
        let first = (self.minimum / step).ceil() as i64;
        let last = (self.maximum / step).floor() as i64;
        (first..=last).map(|index| index as f64 * step).collect()
    }
}

/// A number for an axis or a bar: three digits that matter, thousands apart.
pub(super) fn show(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude >= 1000.0 {
        let digits = format!("{magnitude:.0}");
        let mut text = String::new();
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && (digits.len() - index).is_multiple_of(3) {
                text.push('\u{a0}');
            }
            text.push(digit);
        }
        return if value < 0.0 { format!("−{text}") } else { text };
    }
    let decimals = match magnitude {
        _ if magnitude >= 100.0 || magnitude == 0.0 => 0,
        _ if magnitude >= 10.0 => 1,
        _ if magnitude >= 0.1 => 2,
        _ => 4,
    };
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        for (scale, expected) in [
            (Scale::linear((0.0, 10.0), (0.0, 1.0)), vec![0.0, 2.0, 4.0, 6.0, 8.0, 10.0]),
            (Scale::linear((3.0, 4.1), (0.0, 1.0)), vec![3.0, 3.5, 4.0]),
            (Scale::linear((5.0, 5.0), (0.0, 1.0)), vec![5.0, 5.2, 5.4, 5.6, 5.8, 6.0]),
            (Scale::around((20.0, 4000.0), (0.0, 1.0)), vec![20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0]),
        ] {
            let ticks = scale.ticks();
            assert_eq!(ticks.len(), expected.len(), "{ticks:?}");
            for (tick, expected) in ticks.iter().zip(expected) {
                assert!((tick - expected).abs() < 1e-9 * expected.max(1.0), "{ticks:?}");
            }
        }
    }

    #[test]
    fn scales_place_their_ends_and_middles() {
        let linear = Scale::linear((2.0, 4.0), (100.0, 0.0));
        assert_eq!([2.0, 3.0, 4.0].map(|value| linear.at(value)), [100.0, 50.0, 0.0]);
        let logarithmic = Scale::around((1.0, 100.0), (0.0, 10.0));
        assert!((logarithmic.at(10.0) - 5.0).abs() < 1e-9);
    }

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 0.5, 2.5, 12.34, 123.4, 1234.4, 1_234_567.0, 0.0021].map(show);
        assert_eq!(shown, ["0", "0.5", "2.5", "12.3", "123", "1\u{a0}234", "1\u{a0}234\u{a0}567", "0.0021"]);
    }

    #[test]
    fn text_can_not_break_out() {
        assert_eq!(escape("a<b>&\"'\u{1}"), "a&lt;b&gt;&amp;&quot;&#39;\u{fffd}");
    }
}
