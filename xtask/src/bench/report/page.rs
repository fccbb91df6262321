//! The page: one file that needs no other, no script and no network, readable on light and dark screens.

use std::fmt::Write;

use super::super::measurement::Measurement;
use super::super::table::{self, Table};
use super::plots;
use super::svg::escape;

/// Sizes and lines of plots, without colours.
const SHAPES: &str = "\
text { font-family: sans-serif; font-size: 12px }
.title { font-size: 15px; font-weight: bold }
.small { font-size: 11px }
.thin { stroke-width: 1 }
.curve { fill: none; stroke-width: 1.2 }
.dashed { stroke-dasharray: 5 4 }
.grid { stroke-width: 1 }
.axis { stroke-width: 1 }
.spread { stroke-width: 1.5 }
.ceiling { stroke-width: 1.5; stroke-dasharray: 6 4 }
";

/// The colours of a screen: of text, muted text, grid, background, and four levels, which people who see few colours can
/// tell apart.
pub(super) struct Colours {
    text: &'static str,
    muted: &'static str,
    grid: &'static str,
    background: &'static str,
    levels: [&'static str; 4],
}

pub(super) const LIGHT: Colours = Colours {
    text: "#1c1f24",
    muted: "#5b626d",
    grid: "#e3e6ea",
    background: "#ffffff",
    levels: ["#7a828e", "#0072b2", "#d55e00", "#009e73"],
};

pub(super) const DARK: Colours = Colours {
    text: "#e8eaed",
    muted: "#a3abb6",
    grid: "#343a43",
    background: "#15181c",
    levels: ["#a9b1bd", "#56b4e9", "#f0904c", "#2cc295"],
};

/// Names of the colours on the page.
const VARIABLES: Colours = Colours {
    text: "var(--text)",
    muted: "var(--muted)",
    grid: "var(--grid)",
    background: "var(--background)",
    levels: ["var(--level-0)", "var(--level-1)", "var(--level-2)", "var(--level-3)"],
};

impl Colours {
    /// The style of plots in these colours.
    pub(super) fn style(&self) -> String {
        let Colours { text, muted, grid, background, levels } = self;
        let mut style = SHAPES.to_owned();
        for (class, fill) in
            [("title", text), ("label", text), ("small", text), ("muted", muted), ("background", background)]
        {
            let _ = writeln!(style, ".{class} {{ fill: {fill} }}");
        }
        for (class, stroke) in [("grid", grid), ("axis", muted), ("curve", muted), ("spread", text), ("ceiling", text)]
        {
            let _ = writeln!(style, ".{class} {{ stroke: {stroke} }}");
        }
        for (index, colour) in levels.iter().enumerate() {
            let _ = writeln!(style, ".fill-{index} {{ fill: {colour} }}");
            let _ = writeln!(style, ".stroke-{index} {{ stroke: {colour}; fill: none; stroke-width: 2 }}");
        }
        let _ = writeln!(style, ".fill-key {{ fill: {muted} }}\n.stroke-key {{ stroke: {muted}; stroke-width: 2 }}");
        // The last word, since it overrules the fill of a stroke.
        let _ = writeln!(style, ".hollow {{ fill: {background} }}\n.thin {{ stroke-width: 1 }}");
        style
    }

    fn variables(&self) -> String {
        let Colours { text, muted, grid, background, levels } = self;
        let levels: String =
            levels.iter().enumerate().map(|(index, colour)| format!(" --level-{index}: {colour};")).collect();
        format!("--text: {text}; --muted: {muted}; --grid: {grid}; --background: {background};{levels}")
    }
}

/// The page of some measurements.
pub(super) fn html(measurements: &[Measurement]) -> String {
    let mut body = String::new();
    for measured in measurements {
        section(&mut body, measured);
    }
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>Allotrope: what the levels cost and give</title>\n\
         <style>\n:root {{ color-scheme: light dark; {} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {} }} }}\n{PAGE}{}</style>\n\
         </head>\n<body>\n<h1>What the levels cost and give</h1>\n{body}</body>\n</html>\n",
        LIGHT.variables(),
        DARK.variables(),
        VARIABLES.style()
    )
}

const PAGE: &str = "\
body { background: var(--background); color: var(--text); font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
figure { margin: 2rem 0 } figure svg { max-width: 100%; height: auto } figcaption, .machine { color: var(--muted) }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0; white-space: nowrap }
th, td { text-align: left; padding: 0.15rem 1rem 0.15rem 0; border-bottom: 1px solid var(--grid) } code { overflow-wrap: anywhere }
";

fn section(body: &mut String, measured: &Measurement) {
    let _ = writeln!(body, "<section>\n<h2>{}</h2>", escape(&table::heading(measured)));
    let _ = writeln!(body, "<p class=\"machine\">{}</p>", escape(&measured.machine.to_string()));
    for plot in plots::all(measured) {
        let caption = escape(&plot.description);
        let _ = writeln!(body, "<figure>\n{}<figcaption>{caption}</figcaption>\n</figure>", plot.svg(""));
    }
    let _ = writeln!(body, "<p>{}</p>", escape(&table::explanation(measured)));
    for table in table::levels(measured).iter().chain(&table::ratios(measured)) {
        html_table(body, table);
    }
    for remark in table::remarks(measured) {
        let _ = writeln!(body, "<p>{}</p>", escape(&remark));
    }
    let _ = writeln!(
        body,
        "<p>{}</p>\n</section>",
        table::provenance(measured, |command| format!("<code>{}</code>", escape(command)))
    );
}

fn html_table(body: &mut String, table: &Table) {
    let mut lines = table.lines.iter();
    let cells = |line: &[String], tag: &str| -> String {
        line.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect()
    };
    let head = lines.next().map(|line| cells(line, "th")).unwrap_or_default();
    let _ = writeln!(body, "<div class=\"wide\"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>");
    for line in lines {
        let _ = writeln!(body, "<tr>{}</tr>", cells(line, "td"));
    }
    let _ = writeln!(body, "</tbody>\n</table></div>");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::super::measurement::tests::measurement;
    use super::*;

    #[test]
    fn the_page_is_whole_and_refers_to_nothing_outside() {
        let hostile = Measurement { model: "<script>alert(1)</script>".into(), ..measurement() };
        let page = html(&[measurement(), hostile]);
        // The page is XML but for its first line and the tags that HTML leaves open.
        let (_, document) = page.split_once('\n').unwrap();
        let mut document =
            document.replace("<meta charset=\"utf-8\">", "").replace("<meta name=", "<meta-viewport name=");
        document = document.replace("initial-scale=1\">", "initial-scale=1\"/>");
        let document = roxmltree::Document::parse(&document).unwrap();
        let count = |name: &str| document.descendants().filter(|node| node.tag_name().name() == name).count();
        assert_eq!((count("section"), count("svg"), count("figcaption")), (2, 10, 10));
        assert_eq!((count("script"), count("link"), count("img"), count("table")), (0, 0, 0, 8));
        for node in document.descendants() {
            assert!(["src", "href"].iter().all(|name| node.attribute(*name).is_none()), "{node:?}");
        }
        assert!(!page.contains("url(") && !page.contains("@import"));
    }

    #[test]
    fn every_class_of_a_plot_has_a_style_and_every_variable_a_value() {
        let page = html(&[measurement()]);
        let style = LIGHT.style();
        for class in page.split("class=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
            for class in class.split(' ').filter(|class| !["machine", "wide"].contains(class)) {
                assert!(style.contains(&format!(".{class} {{")), "{class}");
            }
        }
        for variable in page.split("var(").skip(1).filter_map(|rest| rest.split(')').next()) {
            assert_eq!(page.matches(&format!("{variable}:")).count(), 2, "{variable}");
        }
    }
}
