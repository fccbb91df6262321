//! Writing the text form of Prometheus, for values that are counted elsewhere.

use std::fmt::{Display, Write};

/// A text of metrics that all have the label `model_name`.
#[derive(Debug)]
pub(super) struct Exposition<'a> {
    text: String,
    prefix: &'a str,
    model: String,
}

impl<'a> Exposition<'a> {
    pub(super) fn new(prefix: &'a str, model: &str) -> Self {
        Exposition { text: String::new(), prefix, model: escaped(model) }
    }

    /// A metric with one value.
    pub(super) fn single(&mut self, kind: &str, name: &str, help: &str, value: impl Display) {
        self.head(kind, name, help);
        self.sample(name, &[], value);
    }

    /// The lines that stand before the samples of a metric.
    pub(super) fn head(&mut self, kind: &str, name: &str, help: &str) {
        let prefix = self.prefix;
        self.line(format_args!("# HELP {prefix}{name} {help}"));
        self.line(format_args!("# TYPE {prefix}{name} {kind}"));
    }

    /// One sample.
    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let mut list = format!("model_name=\"{}\"", self.model);
        for (label, text) in labels {
            list.push_str(&format!(",{label}=\"{}\"", escaped(text)));
        }
        let prefix = self.prefix;
        self.line(format_args!("{prefix}{name}{{{list}}} {value}"));
    }

    /// A histogram from how many values lie in each class, the last one above all bounds, and their sum.
    pub(super) fn histogram(&mut self, name: &str, help: &str, bounds: &[u64], counts: &[u64], sum: u64) {
        self.head("histogram", name, help);
        let bucket = format!("{name}_bucket");
        let mut total = 0;
        for (place, count) in counts.iter().enumerate() {
            total += count;
            let bound = bounds.get(place).map_or_else(|| "+Inf".to_owned(), u64::to_string);
            self.sample(&bucket, &[("le", &bound)], total);
        }
        self.sample(&format!("{name}_sum"), &[], sum);
        self.sample(&format!("{name}_count"), &[], total);
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "{line}");
    }
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_have_labels_and_classes_add_up() {
        let mut exposition = Exposition::new("x:", "a\"b\\c\nd");
        exposition.single("gauge", "running", "Help.", 3);
        exposition.histogram("steps", "Help.", &[1, 2], &[1, 0, 4], 99);
        let label = r#"model_name="a\"b\\c\nd""#;
        let expected = [
            "# HELP x:running Help.".to_owned(),
            "# TYPE x:running gauge".to_owned(),
            format!("x:running{{{label}}} 3"),
            "# HELP x:steps Help.".to_owned(),
            "# TYPE x:steps histogram".to_owned(),
            format!("x:steps_bucket{{{label},le=\"1\"}} 1"),
            format!("x:steps_bucket{{{label},le=\"2\"}} 1"),
            format!("x:steps_bucket{{{label},le=\"+Inf\"}} 5"),
            format!("x:steps_sum{{{label}}} 99"),
            format!("x:steps_count{{{label}}} 5"),
        ];
        assert_eq!(exposition.into_text().lines().collect::<Vec<_>>(), expected);
    }
}
