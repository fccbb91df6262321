//! Laws of layers and of resolving, over random layers of random values of every setting.

use std::collections::BTreeMap;
use std::path::Path;

use allotrope_config::environment::Environment;
use allotrope_config::{
    OptimizationLevel, Options, Settings, Source, Sources, capture_sizes, command_line, explain, load_from, resolve,
    resolve_with, schema,
};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Value as Json, json};

use crate::facts::{device, matches, model};

/// Every setting with values to draw from, taken from the schema of settings files.
fn values() -> Vec<(String, Vec<Json>)> {
    fn walk(schema: &Json, path: &str, found: &mut Vec<(String, Vec<Json>)>) {
        if let Some(properties) = schema.get("properties").and_then(Json::as_object) {
            for (key, inner) in properties {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                walk(inner, &path, found);
            }
            return;
        }
        let first = schema.get("anyOf").and_then(|any| any.get(0)).unwrap_or(schema);
        let without_value = schema.pointer("/anyOf/1/enum/0").is_some_and(Json::is_null);
        let names = first
            .get("enum")
            .and_then(Json::as_array)
            .map(|names| names.iter().filter(|name| name.is_string()).cloned().collect::<Vec<_>>());
        let drawn = match (names, first.get("type").and_then(Json::as_str)) {
            (Some(names), _) => names,
            (None, Some("boolean")) => vec![json!(true), json!(false)],
            (None, Some("string")) => vec![json!("dump"), json!("a folder/über \"uns\"")],
            (None, Some("array")) if first.pointer("/items/type") == Some(&json!("string")) => {
                vec![json!([]), json!(["attention"]), json!(["linear", "attention"]), json!(["rms_norm"])]
            }
            (None, Some("array")) => vec![json!([]), json!([1, 2]), json!([1, 2, 4, 8]), json!([16])],
            (None, Some("integer")) => {
                let least = first.get("minimum").and_then(Json::as_u64).unwrap();
                [least, 16, 64, 512, 1 << 20].into_iter().filter(|number| *number >= least).map(|n| json!(n)).collect()
            }
            other => panic!("{path}: {other:?}"),
        };
        // A bound that this draws may be beyond what the setting takes.
        let most = first.get("maximum").and_then(Json::as_u64).unwrap_or(u64::MAX);
        let within = |value: &Json| value.as_u64().is_none_or(|number| number <= most);
        let drawn = drawn.into_iter().filter(within).chain(without_value.then_some(Json::Null)).collect();
        found.push((path.to_owned(), drawn));
    }
    let mut found = Vec::new();
    walk(&schema(), "", &mut found);
    found
}

type Layer = BTreeMap<String, Json>;

fn layer(most: usize) -> impl Strategy<Value = Layer> {
    prop::collection::vec((select(values()), any::<Index>()), 0..most)
        .prop_map(|drawn| drawn.into_iter().map(|((path, values), index)| (path, index.get(&values).clone())).collect())
}

/// The four layers as they reach a person's program, strongest first.
#[derive(Clone, Debug)]
struct Layers {
    command_line: Layer,
    environment: Layer,
    project: Layer,
    user: Layer,
}

fn layers() -> impl Strategy<Value = Layers> {
    (layer(6), layer(6), layer(6), layer(6)).prop_map(|(command_line, environment, project, user)| Layers {
        command_line,
        environment,
        project,
        user,
    })
}

/// A value as the command line and the environment have it.
fn text(path: &str, value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        Json::Null => word_for_none(path),
        other => other.to_string(),
    }
}

/// How a setting that may be without a value shows that; what is shown can be said.
fn word_for_none(path: &str) -> String {
    resolve_with(&Options::new(), None, None).unwrap().row(path).unwrap().shown
}

fn variable(path: &str) -> String {
    format!("ALLOTROPE_{}", path.replace('.', "__").to_uppercase())
}

fn flag(path: &str) -> String {
    match path.strip_prefix("compilation.") {
        Some(key) => format!("-cc.{key}"),
        None => format!("--{}", path.rsplit('.').next().unwrap().replace('_', "-")),
    }
}

/// A file with one line for each value, dotted, so that the line is known.
fn write(file: &Path, layer: &Layer) {
    let written = |path: &str, value: &Json| match value {
        Json::Null => json!(word_for_none(path)),
        other => other.clone(),
    };
    let lines: Vec<String> = layer.iter().map(|(path, value)| format!("{path} = {}", written(path, value))).collect();
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, lines.join("\n")).unwrap();
}

/// Says the layers the way a person does: arguments, variables, files.
fn load(layers: &Layers, folder: &Path) -> Options {
    let arguments: Vec<String> =
        layers.command_line.iter().map(|(path, value)| format!("{}={}", flag(path), text(path, value))).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let said = command_line::options_from(&matches(&arguments).unwrap()).unwrap();
    write(&folder.join("work/allotrope.toml"), &layers.project);
    write(&folder.join("home/.config/allotrope/config.toml"), &layers.user);
    let variables = layers.environment.iter().map(|(path, value)| (variable(path).into(), text(path, value).into()));
    let home = ("HOME".into(), folder.join("home").into_os_string());
    let environment = Environment::new(variables.chain([home]), Some(folder.join("work")));
    load_from(said, &Sources::default(), &environment).unwrap()
}

/// The value that must hold for each setting that was said, and where it was said.
fn strongest(layers: &Layers, folder: &Path) -> BTreeMap<String, (Json, Source)> {
    let file = |layer: &Layer, name: &str, path: &str| Source::File {
        path: folder.join(name),
        line: 1 + layer.keys().position(|key| key == path).unwrap(),
    };
    let mut all = BTreeMap::new();
    for (path, value) in &layers.user {
        let source = file(&layers.user, "home/.config/allotrope/config.toml", path);
        all.insert(path.clone(), (value.clone(), source));
    }
    for (path, value) in &layers.project {
        all.insert(path.clone(), (value.clone(), file(&layers.project, "work/allotrope.toml", path)));
    }
    for (path, value) in &layers.environment {
        all.insert(path.clone(), (value.clone(), Source::Environment { variable: variable(path) }));
    }
    for (path, value) in &layers.command_line {
        let mut flag = flag(path);
        if path == "optimization_level" {
            "-O".clone_into(&mut flag);
        }
        all.insert(path.clone(), (value.clone(), Source::CommandLine { flag }));
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_strongest_explicit_value_wins_and_its_source_is_true(layers in layers()) {
        let folder = tempfile::tempdir().unwrap();
        let options = load(&layers, folder.path());
        let expected = strongest(&layers, folder.path());
        for (path, (value, source)) in &expected {
            prop_assert_eq!(options.get(path), Some((value, source)));
        }
        for (name, on) in [("plain", "capable"), ("fp8-static", "uniform"), ("qk-norms", "never")] {
            match resolve(&options, &model(name), &device(on)) {
                Ok(settings) => {
                    for row in settings.rows() {
                        match expected.get(row.setting) {
                            // A switch that forces names itself, and forces only what was said too.
                            Some((value, source)) => {
                                prop_assert_eq!(&row.value, value, "{}", row.setting);
                                prop_assert!(&row.source == source || row.source == Source::Forced, "{:?}", row);
                            }
                            None => prop_assert!(!row.source.is_explicit(), "{:?}", row),
                        }
                    }
                }
                Err(error) => {
                    prop_assert!(error.is_usage());
                    let named = expected.iter().any(|(path, (_, source))| {
                        let message = error.to_string();
                        message.contains(path.as_str()) && message.contains(&source.to_string())
                    });
                    prop_assert!(named, "the error names no setting that was said: {}", error);
                }
            }
        }
    }

    #[test]
    fn no_level_changes_an_explicit_value(said in layer(5), level in select(OptimizationLevel::ALL.to_vec())) {
        let mut options = Options::new();
        for (path, value) in said.iter().filter(|(path, _)| *path != "optimization_level") {
            options.set_json(path, value, Source::Builder).unwrap();
        }
        options.set_optimization_level(level, Source::Builder);
        if let Ok(settings) = resolve(&options, &model("fp8-static"), &device("capable")) {
            prop_assert_eq!(settings.optimization_level.value, level);
            for row in settings.rows().iter().filter(|row| row.setting != "optimization_level") {
                if let Some(value) = said.get(row.setting) {
                    prop_assert_eq!(&row.value, value, "{}", row.setting);
                }
            }
        }
    }

    #[test]
    fn one_explicit_pass_holds_at_every_level(
        path in select(values().into_iter().map(|(path, _)| path).filter(|path| path.contains("pass_config")).collect::<Vec<_>>()),
        on in any::<bool>(),
        level in select(OptimizationLevel::ALL.to_vec()),
    ) {
        let mut options = Options::new();
        options.set_optimization_level(level, Source::Builder);
        options.set_json(&path, &json!(on), Source::Builder).unwrap();
        let row = resolve(&options, &model("plain"), &device("cpu")).unwrap().row(&path).unwrap();
        prop_assert_eq!(row.value, json!(on));
        prop_assert_eq!(row.source, Source::Builder);
    }

    #[test]
    fn resolving_is_deterministic_down_to_its_reasons(layers in layers()) {
        let folder = tempfile::tempdir().unwrap();
        let options = load(&layers, folder.path());
        let rows = || resolve(&options, &model("plain"), &device("cpu")).map(|settings| settings.rows());
        match (rows(), rows()) {
            (Ok(first), Ok(second)) => prop_assert_eq!(first, second),
            (Err(first), Err(second)) => prop_assert_eq!(first.to_string(), second.to_string()),
            _ => prop_assert!(false, "once settings, once an error"),
        }
    }

    #[test]
    fn settings_written_as_a_file_and_read_back_are_equal(layers in layers(), known in any::<bool>()) {
        let folder = tempfile::tempdir().unwrap();
        let options = load(&layers, folder.path());
        let facts = known.then(|| (model("fp8-dynamic"), device("cpu")));
        let resolved = |options: &Options| match &facts {
            Some((model, device)) => resolve(options, model, device),
            None => resolve_with(options, None, None),
        };
        if let Ok(settings) = resolved(&options) {
            let again = read_back(&settings, folder.path());
            let again = resolved(&again).map_err(|error| TestCaseError::fail(format!("{error}\n{}", settings.to_toml())))?;
            prop_assert_eq!(again, settings);
        }
    }

    #[test]
    fn every_explanation_can_be_printed(layers in layers()) {
        let folder = tempfile::tempdir().unwrap();
        if let Ok(settings) = resolve_with(&load(&layers, folder.path()), None, None) {
            let text = explain(&settings, &[], None, &allotrope_config::Format::Text { color: false }).unwrap();
            for row in settings.rows() {
                let name = row.setting.rsplit('.').next().unwrap();
                prop_assert!(text.contains(name) && text.contains(&row.source.to_string()), "{}", row.setting);
            }
        }
    }

    #[test]
    fn capture_sizes_are_ascending_and_bounded(
        sequences in 1..3000_usize,
        tokens in 1..40_000_usize,
        maximum in prop::option::of(1..5000_usize),
    ) {
        let sizes = capture_sizes(sequences, tokens, maximum, None).unwrap();
        prop_assert!(!sizes.is_empty() && sizes.is_sorted_by(|low, high| low < high), "{:?}", sizes);
        let bound = maximum.unwrap_or((2 * sequences).min(512)).min(tokens);
        prop_assert!(sizes.iter().all(|size| (1..=bound).contains(size)), "{:?}", sizes);
        if maximum.is_none() && sequences <= bound {
            prop_assert!(sizes.contains(&sequences));
        }
    }
}

fn read_back(settings: &Settings, folder: &Path) -> Options {
    let file = folder.join("written.toml");
    std::fs::write(&file, settings.to_toml()).unwrap();
    let sources = Sources { config_file: Some(file), strict_environment: false };
    load_from(Options::new(), &sources, &Environment::default()).unwrap()
}

#[test]
fn every_setting_is_drawn() {
    let drawn: Vec<String> = values().into_iter().map(|(path, _)| path).collect();
    let rows = resolve_with(&Options::new(), None, None).unwrap().rows();
    let mut declared: Vec<String> = rows.iter().map(|row| row.setting.to_owned()).collect();
    let mut sorted = drawn.clone();
    sorted.sort();
    declared.sort();
    assert_eq!(sorted, declared);
    assert!(values().iter().all(|(_, values)| values.len() >= 2));
}
