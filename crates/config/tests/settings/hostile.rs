//! Input that means harm: it ends with an error that points at the place, never with a panic.

use allotrope_config::environment::Environment;
use allotrope_config::{Options, Source, Sources, load_from};
use proptest::prelude::*;

use crate::facts::{matches, options};

#[test]
fn wrong_arguments_are_usage_errors_that_name_the_place() {
    let deep = format!("{}1{}", r#"{"a":"#.repeat(5000), "}".repeat(5000));
    let long = "9".repeat(100_000);
    let wide = format!("-cc.{}=1", "x".repeat(100_000));
    for (arguments, part) in [
        (vec!["-O"], "--optimization-level"),
        (vec!["-O4"], "it must be one of O0, O1, O2, O3"),
        (vec!["-Ofoo"], "it must be one of O0, O1, O2, O3"),
        (vec!["-O", ""], "--optimization-level"),
        (vec!["-cc"], "--compilation-config"),
        (vec!["-cc."], "a value is missing"),
        (vec!["-cc.mode"], "a value is missing; write -cc.mode=VALUE"),
        (vec!["-cc.=1"], "there is no setting `compilation.`"),
        (vec!["-cc.pass_config=1"], "it is a group of settings: write `compilation.pass_config.NAME`"),
        (vec!["-cc", &deep], "recursion limit"),
        (vec!["-cc", "{"], "is not valid JSON"),
        (vec!["-cc", "{\"mode\": NaN}"], "is not valid JSON"),
        (vec!["-cc", "{\"max_cudagraph_capture_size\": 1e999}"], "is not valid JSON"),
        (vec!["-cc", "{\"max_cudagraph_capture_size\": 1e30}"], "it must be a whole number"),
        (vec!["-cc", "{\"max_cudagraph_capture_size\": -1}"], "it must be a whole number"),
        (vec!["-cc", "{\"cudagraph_capture_sizes\": [1, [2]]}"], "it must be a whole number"),
        (vec!["-cc", "{\"cudagraph_capture_sizes\": [0]}"], "it must be from 1 to 1048576"),
        (vec!["-cc", "{\"splitting_ops\": \"attention\"}"], "it must be a list of names"),
        (vec!["-cc", "{\"splitting_ops\": [1]}"], "`1` is in the list, and it must be a name"),
        (vec!["-cc.splitting_ops=[attention]"], "such as attention,linear or [\"attention\", \"linear\"] ("),
        (vec!["-cc.splitting_ops=attention,,linear"], "`` is in the list, and it must be a name"),
        (vec!["-cc.splitting_ops=Attention"], "`Attention` is in the list, and it must be a name"),
        (vec!["-cc.splitting_ops=_attention"], "it must be a name"),
        (vec!["-cc.splitting_ops=aten::add"], "it must be a name"),
        (vec!["--debug-dump-path", ""], "it must be the path of a folder"),
        (vec!["--debug-dump-path", " "], "it must be the path of a folder"),
        (vec!["--debug-dump-path", "a\u{1b}[31m"], "it must be a path without control characters"),
        (vec!["-cc", "{\"debug_dump_path\": [\"a\"]}"], "it must be the path of a folder"),
        (vec!["--fuel", "none"], "it must be a whole number"),
        (vec!["--fuel", "1073741825"], "it must be from 0 to 1073741824"),
        (vec!["-cc", "{\"fuel\": -1}"], "it must be a whole number"),
        (vec!["-cc", "{\"mode\": {\"x\": 1}}"], "`compilation.mode` cannot be"),
        (vec!["--threads", &long], "the number is too large"),
        (vec!["--threads", "0"], "it must be from 1 to 4096"),
        (vec!["--threads", "NaN"], "it must be a whole number"),
        (vec!["--threads", "1e3"], "it must be a whole number"),
        (vec!["--threads", "٣"], "it must be a whole number"),
        (vec!["--threads", "_1"], "it must be a whole number"),
        (vec!["--kv-cache-memory", "9999TiB"], "it must be from 1 to"),
        (vec!["--kv-cache-memory", "20000000000TiB"], "the number is too large"),
        (vec!["--kv-cache-memory", "-1"], "unexpected argument"),
        (vec!["--cudagraph-capture-sizes", "1", "hello"], "hello"),
        (vec![wide.as_str()], "there is no setting"),
        (vec!["--enforce-eager=maybe"], "it must be true or false"),
    ] {
        let refusal = options(&arguments).expect_err(part);
        assert!(refusal.message.contains(part), "{part}: {}", refusal.message);
        assert_eq!(refusal.status, 2, "{}", refusal.message);
    }
}

#[test]
fn messages_of_our_own_stay_short_and_printable() {
    let mut said = Options::new();
    let hostile = format!("\u{1b}[31m{}", "x".repeat(1_000_000));
    for error in [
        said.set(&hostile, "1", Source::Builder).expect_err("no setting"),
        said.set("cpu.threads", &hostile, Source::Builder).expect_err("no number"),
        said.set("compilation.mode", &hostile, Source::Builder).expect_err("no mode"),
        said.set("compilation.splitting_ops", &hostile, Source::Builder).expect_err("no name"),
        said.set("compilation.debug_dump_path", &hostile, Source::Builder).expect_err("no folder"),
    ] {
        let message = error.to_string();
        assert!(message.len() < 1000, "{} bytes", message.len());
        assert!(!message.chars().any(char::is_control), "{message:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_argument_panics(arguments in prop::collection::vec(".{0,24}|-cc[.]?[a-z_.+=]{0,12}|-cc=\\PC{0,12}|\\{[\"a-z:,0-9\\[\\]{}]{0,20}", 0..6)) {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        if let Err(refusal) = options(&arguments) {
            prop_assert!(!refusal.message.is_empty());
        }
    }

    #[test]
    fn no_value_panics(path in prop::sample::select(vec![
        "optimization_level", "enforce_eager", "compilation.mode", "compilation.cudagraph_capture_sizes",
        "compilation.splitting_ops", "compilation.debug_dump_path", "compilation.fuel", "cache.kv_cache_memory",
        "model.max_model_len",
    ]), value in ".{0,40}|[0-9_]{0,30} ?[kKmMgGiBb]{0,4}|\\[[0-9, ]{0,30}\\]?") {
        let mut said = Options::new();
        if let Err(error) = said.set(path, &value, Source::Builder) {
            prop_assert!(error.is_usage());
            prop_assert!(error.to_string().contains(path));
        }
    }

    #[test]
    fn no_file_panics(bytes in prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        "(\\[?(cpu|compilation|cache|x)[.a-z]{0,8}\\]?|threads|mode) ?=? ?(1|'none'|\\[\\]|\\{\\}|nan|)\n{0,2}".prop_map(String::into_bytes),
    ]) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("settings.toml");
        std::fs::write(&file, &bytes).unwrap();
        let sources = Sources { config_file: Some(file), strict_environment: false };
        if let Err(error) = load_from(Options::new(), &sources, &Environment::default()) {
            prop_assert!(error.to_string().contains("settings.toml:"), "{}", error);
        }
    }
}

#[test]
fn arguments_that_are_not_utf8_are_left_to_the_command() {
    use std::os::unix::ffi::OsStringExt;
    let bytes = std::ffi::OsString::from_vec(vec![b'-', b'c', 0xff]);
    let normal = allotrope_config::command_line::normalize([bytes.clone()]).unwrap();
    assert_eq!(normal, [bytes]);
    assert!(matches(&["plain text"]).is_ok());
}
