//! What the pages about serving name must exist, and what exists must be on them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use regex::Regex;
use serde_json::{Value, json};

use crate::process::{Server, settle};

const PREFIX: &str = "allotrope:";
/// The groups of flags that only `serve` has.
const HEADINGS: [&str; 3] = ["Address and access", "Answers", "Operation"];
/// What stands in a table where there is no default.
const NO_DEFAULT: &str = "–";

fn document(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn captures(pattern: &str, text: &str) -> BTreeSet<String> {
    let pattern = Regex::new(pattern).unwrap();
    pattern.captures_iter(text).map(|found| found[1].to_owned()).collect()
}

/// The text under a heading of a page, up to the next heading of the same or a higher level.
fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let start = page.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no heading {heading:?}"));
    let rest = &page[start + heading.len() + 2..];
    let level = heading.split(' ').next().unwrap_or_default().len();
    let next = Regex::new(&format!("\n#{{1,{level}}} ")).unwrap();
    next.find(rest).map_or(rest, |found| &rest[..found.start()])
}

/// The cells of the rows of tables whose first cell is code.
fn rows(text: &str) -> Vec<Vec<String>> {
    let row = |line: &str| -> Vec<String> {
        // A bar inside a cell has a backslash before it.
        let line = line.replace("\\|", "/");
        line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    text.lines().filter(|line| line.starts_with("| `")).map(row).collect()
}

/// The code in a cell.
fn code(cell: &str) -> Vec<String> {
    captures("`([^`]*)`", cell).into_iter().collect()
}

/// A metric as the exposition has it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Metric {
    kind: String,
    labels: BTreeSet<String>,
}

/// The metrics of an exposition by name, without the prefix; `model_name` and `le` are left out of the labels.
fn metrics(exposition: &str) -> BTreeMap<String, Metric> {
    let kinds = Regex::new(r"(?m)^# TYPE (?:allotrope:)?(\S+) (\S+)$").unwrap();
    let mut metrics: BTreeMap<String, Metric> = BTreeMap::new();
    for found in kinds.captures_iter(exposition) {
        metrics.insert(found[1].to_owned(), Metric { kind: found[2].to_owned(), ..Metric::default() });
    }
    for line in exposition.lines().filter(|line| !line.starts_with('#')) {
        let (name, labels) = line.split_once('{').unwrap_or_else(|| panic!("a sample without labels: {line}"));
        let name = base(name.strip_prefix(PREFIX).unwrap_or(name), &metrics);
        let metric = metrics.get_mut(&name).unwrap_or_else(|| panic!("a sample without a type: {line}"));
        let found = captures(r#"([a-z_]+)=""#, labels);
        metric.labels.extend(found.into_iter().filter(|label| label != "model_name" && label != "le"));
    }
    metrics
}

/// The metric that a series belongs to.
fn base(series: &str, metrics: &BTreeMap<String, Metric>) -> String {
    let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| series.strip_suffix(end));
    let is_histogram = |name: &&str| metrics.get(*name).is_some_and(|metric| metric.kind == "histogram");
    of_histogram.filter(is_histogram).unwrap_or(series).to_owned()
}

/// A server that has answered something, and its metrics.
async fn used_server() -> (Server, BTreeMap<String, Metric>) {
    let server = Server::start(&[]);
    let body = json!({ "prompt": "Once upon a time", "max_tokens": 4 });
    let answer =
        reqwest::Client::new().post(format!("{}/v1/completions", server.url)).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    settle(&server.url).await;
    let exposition = reqwest::get(format!("{}/metrics", server.url)).await.unwrap().text().await.unwrap();
    let metrics = metrics(&exposition);
    assert!(metrics.len() > 30, "{exposition}");
    (server, metrics)
}

/// What `allotrope serve --help` says: each long flag with its group and default.
fn flags() -> BTreeMap<String, (String, Option<String>)> {
    let output = Command::new(env!("CARGO_BIN_EXE_allotrope")).args(["serve", "--help"]).output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let heading = Regex::new(r"^([A-Z][^:]*):$").unwrap();
    let flag = Regex::new(r"^ +(?:-\w, +)?(--[a-z0-9-]+)").unwrap();
    let default = Regex::new(r"^ +\[default: (.*)\]$").unwrap();
    let (mut group, mut last) = (String::new(), String::new());
    let mut flags = BTreeMap::new();
    for line in help.lines() {
        if let Some(found) = heading.captures(line) {
            group = found[1].to_owned();
        } else if let Some(found) = flag.captures(line) {
            last = found[1].to_owned();
            flags.insert(last.clone(), (group.clone(), None));
        } else if let Some(found) = default.captures(line)
            && let Some((_, place)) = flags.get_mut(&last)
        {
            *place = Some(found[1].to_owned()).filter(|text| text != "\"\"");
        }
    }
    assert!(flags.contains_key("--shutdown-timeout") && flags.contains_key("--optimization-level"), "{help}");
    flags
}

#[tokio::test]
async fn the_table_of_metrics_is_what_a_server_exposes() {
    let (_server, exposed) = used_server().await;
    let page = document("serving.md");
    let mut told = BTreeMap::new();
    for row in rows(section(&page, "## Metrics")) {
        let [name, kind, labels, _] = row.as_slice() else { panic!("not four cells: {row:?}") };
        let metric = Metric { kind: kind.clone(), labels: code(labels).into_iter().collect() };
        assert_eq!(told.insert(code(name).concat(), metric), None, "{name} twice");
    }
    for (name, metric) in &exposed {
        assert_eq!(told.get(name), Some(metric), "{name}");
    }
    let names = |metrics: &BTreeMap<String, Metric>| metrics.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&told), names(&exposed));
    // What the text names beside the table exists as well.
    for name in captures(r"`((?:num|kv_cache|prefix_cache|graph|request|http)_[a-z_]+)`", &page) {
        let is_label = exposed.values().any(|metric| metric.labels.contains(&name));
        assert!(exposed.contains_key(&name) || is_label, "{name}");
    }
}

#[tokio::test]
async fn the_dashboard_asks_for_metrics_and_labels_that_exist() {
    let (_server, exposed) = used_server().await;
    let board: Value = serde_json::from_str(&document("serving/grafana.json")).unwrap();
    let variables = board["templating"]["list"].as_array().unwrap();
    let of = |name: &str| variables.iter().find(|variable| variable["name"] == name).unwrap();
    assert_eq!(of("prefix")["query"], PREFIX);
    assert_eq!(of("datasource")["type"], "datasource");
    let mut queries: Vec<String> =
        variables.iter().filter_map(|variable| Some(variable["definition"].as_str()?.to_owned())).collect();
    let mut ids = BTreeSet::new();
    for panel in board["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "two panels of one id: {panel}");
        let targets = panel["targets"].as_array().into_iter().flatten();
        queries.extend(targets.map(|target| target["expr"].as_str().unwrap().to_owned()));
    }
    assert!(queries.len() > 30, "{queries:?}");
    let mut asked = BTreeSet::new();
    for query in queries {
        // Whatever stands before a selector, or first in `label_values`, is a series.
        let bare = query.replace("${prefix}", "");
        let series = captures(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\{", &bare);
        let series: BTreeSet<String> = series.union(&captures(r"label_values\(([a-z_]+)", &bare)).cloned().collect();
        assert!(!series.is_empty(), "{query}");
        for name in series {
            let metric = base(&name, &exposed);
            let labels = &exposed.get(&metric).unwrap_or_else(|| panic!("{name} does not exist: {query}")).labels;
            assert_eq!(query.contains(&format!("${{prefix}}{name}")), !metric.starts_with("http_"), "{query}");
            let is_histogram = exposed.get(&metric).is_some_and(|metric| metric.kind == "histogram");
            assert_eq!(is_histogram, metric != name, "{name} of a histogram: {query}");
            let by = captures(r"by \(([^)]*)\)", &query);
            let matched = captures(r"[{,]([a-z_]+)[=!]", &query);
            let used = by.iter().flat_map(|list| list.split(", ")).map(str::to_owned).chain(matched);
            for label in used {
                let is_known =
                    labels.contains(&label) || ["le", "job", "instance", "model_name"].contains(&label.as_str());
                assert!(is_known, "{name} has no label {label}: {query}");
            }
            asked.insert(metric);
        }
    }
    for name in ["time_to_first_token_seconds", "kv_cache_usage_perc", "graph_steps_total", "startup_seconds"] {
        assert!(asked.contains(name), "{name}");
    }
}

#[test]
fn the_tables_of_flags_are_what_the_help_says() {
    let page = document("serving.md");
    let known = flags();
    let mut told = BTreeSet::new();
    for heading in HEADINGS {
        for row in rows(section(&page, &format!("### {heading}"))) {
            let flag = captures("^`(--[a-z-]+)", &row[0]).pop_first().unwrap_or_else(|| panic!("{row:?}"));
            let default = code(&row[1]).pop();
            assert!(default.is_some() || row[1] == NO_DEFAULT, "{row:?}");
            assert_eq!(known.get(&flag), Some(&(heading.to_owned(), default)), "{flag}");
            told.insert(flag);
        }
    }
    let of_serve = known.iter().filter(|(_, (group, _))| HEADINGS.contains(&group.as_str())).map(|(flag, _)| flag);
    assert_eq!(told, of_serve.cloned().collect());
    // Flags in other tables are of `serve` too.
    for flag in page.lines().filter(|line| line.starts_with('|')).flat_map(|line| captures("`(--[a-z-]+)", line)) {
        assert!(known.contains_key(&flag), "{flag}");
    }
}

#[tokio::test]
async fn the_routes_and_their_keys_are_those_of_a_server() {
    let page = document("serving.md");
    let server = Server::start(&["--api-key", "secret"]);
    let client = reqwest::Client::new();
    let openapi = client.get(format!("{}/openapi.json", server.url)).bearer_auth("secret").send().await.unwrap();
    let described: Value = openapi.json().await.unwrap();
    let mut told = BTreeSet::new();
    for row in rows(section(&page, "## Routes")).into_iter().filter(|row| row[0].starts_with("`/")) {
        let (route, method, key) = (code(&row[0]).concat(), row[1].to_lowercase(), &row[2]);
        assert!(described["paths"][&route][&method].is_object(), "{route} {method}");
        let status = match method.as_str() {
            "get" => client.get(format!("{}{route}", server.url)).send().await.unwrap().status(),
            _ => client.post(format!("{}{route}", server.url)).send().await.unwrap().status(),
        };
        assert_eq!(if status == 401 { "yes" } else { "no" }, key, "{route}: {status}");
        told.insert(route);
    }
    let routes: BTreeSet<String> = described["paths"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(told, routes);
}

#[tokio::test]
async fn the_deployment_probes_routes_and_gives_flags_that_exist() {
    let yaml = document("serving/kubernetes.yaml");
    let server = Server::start(&[]);
    let paths = captures(r"(?m)\bpath: (\S+)$", &yaml);
    assert!(paths.contains("/health") && paths.contains("/ready") && paths.contains("/metrics"), "{paths:?}");
    for path in paths {
        assert_eq!(reqwest::get(format!("{}{path}", server.url)).await.unwrap().status(), 200, "{path}");
    }
    let known = flags();
    // Those of other programs stand in its introduction.
    let (_, manifest) = yaml.split_once("apiVersion").unwrap();
    let given = captures(r"(--[a-z][a-z-]*)", manifest);
    assert!(given.contains("--host") && given.contains("--shutdown-timeout"), "{given:?}");
    for flag in given {
        assert!(known.contains_key(&flag), "{flag}");
    }
    let number = |pattern: &str| captures(pattern, &yaml).pop_first().unwrap().parse::<u64>().unwrap();
    let grace = number(r"terminationGracePeriodSeconds: (\d+)");
    let pause = number(r"(?m)^ +sleep:\n +seconds: (\d+)$");
    assert!(grace >= pause + number(r"--shutdown-timeout=(\d+)") + 5, "{grace}");
}
