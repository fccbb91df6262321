//! The rows of `tests/parity/*.toml`: what vLLM's levels give, and what ours give.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use allotrope_config::{
    AttentionGraphSupport, GraphMode, Settings, Sources, command_line, environment::Environment, load_from, resolve,
};
use serde::Deserialize;
use serde_json::Value as Json;

use crate::facts::{Refusal, device, matches, model};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    rows: Vec<String>,
    case: Vec<Case>,
    #[serde(default)]
    lowering: Vec<Lowering>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Case {
    row: String,
    absent: Option<String>,
    differs: Option<String>,
    arguments: Option<Vec<String>>,
    #[serde(default = "plain")]
    model: String,
    #[serde(default = "capable")]
    device: String,
    file: Option<String>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    #[serde(default)]
    expect: BTreeMap<String, Json>,
    number_of_sizes: Option<usize>,
    largest_size: Option<usize>,
    #[serde(default)]
    nothing_said: bool,
    equal_to: Option<Vec<String>>,
    #[serde(default)]
    warnings: usize,
    error: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Lowering {
    mode: String,
    attention: String,
    query_length: usize,
    expect: String,
}

fn plain() -> String {
    "plain".to_owned()
}

fn capable() -> String {
    "capable".to_owned()
}

fn sections() -> Vec<(PathBuf, Section)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    assert_eq!(files.len(), 6, "sections A to F: {files:?}");
    files
        .into_iter()
        .map(|file| {
            let text = std::fs::read_to_string(&file).unwrap();
            let section = toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            (file, section)
        })
        .collect()
}

/// The settings of a command line over the case's environment and file, and the number of warnings.
fn settle(case: &Case, arguments: &[String]) -> Result<(Settings, usize), Refusal> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let said = command_line::options_from(&matches(&arguments)?)?;
    let folder = tempfile::tempdir().unwrap();
    let config_file = case.file.as_ref().map(|text| {
        let file = folder.path().join("settings.toml");
        std::fs::write(&file, text).unwrap();
        file
    });
    let variables = case.environment.iter().map(|(name, value)| (name.into(), value.into()));
    let sources = Sources { config_file, strict_environment: false };
    let options = load_from(said, &sources, &Environment::new(variables, None))?;
    if case.nothing_said {
        assert!(options.is_empty(), "{case:?}");
    }
    let warnings = options.warnings().len();
    Ok((resolve(&options, &model(&case.model), &device(&case.device))?, warnings))
}

fn check(case: &Case) {
    let Some(arguments) = &case.arguments else {
        let reason = case.absent.as_deref().unwrap_or_default();
        assert!(!reason.is_empty(), "a row without arguments says why it is absent: {case:?}");
        return;
    };
    assert!(case.absent.is_none(), "{case:?}");
    assert!(case.differs.as_ref().is_none_or(|reason| !reason.is_empty()), "{case:?}");
    let settled = settle(case, arguments);
    if let Some(part) = &case.error {
        let refusal = settled.expect_err(&format!("{case:?}"));
        assert!(refusal.message.contains(part.as_str()), "{case:?}: {}", refusal.message);
        assert_eq!(refusal.status, 2, "{case:?}: {}", refusal.message);
        return;
    }
    let (settings, warnings) = settled.unwrap_or_else(|refusal| panic!("{case:?}: {}", refusal.message));
    assert_eq!(warnings, case.warnings, "{case:?}");
    for (path, expected) in &case.expect {
        let row = settings.row(path).unwrap_or_else(|| panic!("no setting {path}: {case:?}"));
        assert_eq!(&row.value, expected, "{path}: {case:?}");
    }
    let sizes = settings.compilation.cudagraph_capture_sizes.get();
    if let Some(expected) = case.number_of_sizes {
        assert_eq!(sizes.len(), expected, "{case:?}: {sizes:?}");
    }
    if let Some(expected) = case.largest_size {
        assert_eq!(sizes.last(), Some(&expected), "{case:?}: {sizes:?}");
    }
    if let Some(other) = &case.equal_to {
        let (mut same, _) = settle(case, other).unwrap();
        same.optimization_level = settings.optimization_level.clone();
        assert_eq!(settings, same, "{case:?}");
    }
    let checks = case.expect.len()
        + usize::from(case.number_of_sizes.is_some())
        + usize::from(case.largest_size.is_some())
        + usize::from(case.nothing_said);
    assert!(checks > 0, "the case checks nothing: {case:?}");
}

#[test]
fn every_row_gives_what_it_says() {
    for (_, section) in sections() {
        for case in &section.case {
            check(case);
        }
    }
}

#[test]
fn no_row_is_dropped_and_none_is_invented() {
    for (file, section) in sections() {
        let listed: BTreeSet<&str> = section.rows.iter().map(String::as_str).collect();
        let present: BTreeSet<&str> = section.case.iter().map(|case| case.row.as_str()).collect();
        assert_eq!(listed, present, "{}", file.display());
    }
}

#[test]
fn modes_are_lowered_to_what_attention_can_do() {
    let mut rows = 0;
    for (_, section) in sections() {
        for Lowering { mode, attention, query_length, expect } in section.lowering {
            let support = match attention.as_str() {
                "always" => AttentionGraphSupport::Always,
                "uniform" => AttentionGraphSupport::UniformBatch,
                "single" => AttentionGraphSupport::SingleTokenDecode,
                "never" => AttentionGraphSupport::Never,
                other => panic!("{other}"),
            };
            let mode: GraphMode = mode.parse().unwrap();
            let expected: GraphMode = expect.parse().unwrap();
            assert_eq!(mode.lowered_for(support, query_length), expected, "{mode} {attention} {query_length}");
            rows += 1;
        }
    }
    assert_eq!(rows, 25);
}
