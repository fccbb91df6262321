//! The forms of the command line, beyond the rows of the parity data.

use allotrope_config::{Source, command_line};
use serde_json::json;

use crate::facts::{matches, options};

fn said(arguments: &[&str], path: &str) -> serde_json::Value {
    let options = options(arguments).unwrap_or_else(|refusal| panic!("{arguments:?}: {}", refusal.message));
    options.get(path).map(|(value, _)| value.clone()).unwrap_or_else(|| panic!("{arguments:?} say nothing of {path}"))
}

#[test]
fn clap_finds_no_fault_with_the_arguments() {
    clap::Command::new("program").args(command_line::arguments()).debug_assert();
}

#[test]
fn every_form_says_the_same() {
    for (forms, path, value) in [
        (
            vec![vec!["-O2"], vec!["-O=2"], vec!["-O", "2"], vec!["-O", "o2"], vec!["--optimization-level", "O2"]],
            "optimization_level",
            json!("O2"),
        ),
        (
            vec![
                vec!["-cc.cudagraph_mode=FULL"],
                vec!["-cc.cudagraph-mode=full"],
                vec!["-cc.cudagraph_mode", "2"],
                vec!["-cc", "cudagraph_mode=FULL"],
                vec!["-cc=cudagraph_mode=FULL"],
                vec!["--compilation-config.cudagraph_mode=FULL"],
                vec!["--compilation_config.cudagraph_mode", "FULL"],
                vec!["--compilation-config", r#"{"cudagraph_mode": "Full"}"#],
                vec![r#"--compilation-config={"cudagraph_mode": 2}"#],
                vec!["-cc", r#"{"cudagraph_mode": "FULL"}"#],
            ],
            "compilation.cudagraph_mode",
            json!("FULL"),
        ),
        (
            vec![
                vec!["--cudagraph-capture-sizes", "1", "2", "4"],
                vec!["--cudagraph-capture-sizes", "4,2,1"],
                vec!["--cudagraph-capture-sizes=1,2,4"],
                vec!["--cudagraph_capture_sizes", "[1, 2, 4]"],
                vec!["-cc.cudagraph_capture_sizes=[1,2,4]"],
                vec!["-cc.cudagraph_capture_sizes=1", "-cc.cudagraph_capture_sizes+=2,4"],
                vec!["-cc.cudagraph_capture_sizes+=1", "-cc.cudagraph_capture_sizes+", "2,4"],
            ],
            "compilation.cudagraph_capture_sizes",
            json!([1, 2, 4]),
        ),
        (
            vec![
                vec!["--enforce-eager"],
                vec!["--enforce-eager=true"],
                vec!["--enforce_eager"],
                vec!["--enforce-eager=ON"],
            ],
            "enforce_eager",
            json!(true),
        ),
        (
            vec![
                vec!["--kv-cache-memory", "512MiB"],
                vec!["--kv-cache-memory=536870912"],
                vec!["--kv-cache-memory", "512 mib"],
                vec!["--kv-cache-memory-bytes", "536_870_912"],
                vec!["--kv_cache_memory", "0.5GiB", "--kv-cache-memory", "512M"],
            ],
            "cache.kv_cache_memory",
            json!(536_870_912),
        ),
        (
            vec![vec!["--max-model-len", "2048"], vec!["--max-model-len", "2K"], vec!["--max_model_len=2048"]],
            "model.max_model_len",
            json!(2048),
        ),
    ] {
        for form in forms {
            if form.iter().any(|argument| argument.contains("0.5GiB")) {
                let refusal = options(&form).expect_err("half a unit is no whole number");
                assert!(refusal.message.contains("512MiB"), "{}", refusal.message);
                continue;
            }
            assert_eq!(said(&form, path), value, "{form:?}");
        }
    }
}

#[test]
fn every_form_says_the_same_of_names_and_of_what_may_be_without_a_value() {
    for (forms, path, value) in [
        (
            vec![
                vec!["-cc.splitting_ops=linear,attention"],
                vec!["-cc.splitting-ops", "linear, attention,linear"],
                vec!["-cc", r#"{"splitting_ops": ["linear", "attention", "attention"]}"#],
                vec![r#"-cc.splitting_ops=["linear","attention"]"#],
                vec!["-cc.splitting_ops=linear", "-cc.splitting_ops+=attention,linear"],
            ],
            "compilation.splitting_ops",
            json!(["linear", "attention"]),
        ),
        (
            vec![vec!["-cc.splitting_ops=[]"], vec!["-cc.splitting_ops="], vec!["-cc", r#"{"splitting_ops": []}"#]],
            "compilation.splitting_ops",
            json!([]),
        ),
        (
            vec![
                vec!["--debug-dump-path", "a folder/of dumps"],
                vec!["--debug_dump_path=a folder/of dumps"],
                vec!["-cc.debug_dump_path=a folder/of dumps"],
                vec!["-cc", r#"{"debug_dump_path": "a folder/of dumps"}"#],
            ],
            "compilation.debug_dump_path",
            json!("a folder/of dumps"),
        ),
        (
            vec![
                vec!["--debug-dump-path", "none"],
                vec!["-cc.debug_dump_path=None"],
                vec!["-cc", r#"{"debug_dump_path": null}"#],
            ],
            "compilation.debug_dump_path",
            json!(null),
        ),
        (vec![vec!["--fuel", "0"], vec!["-cc.fuel=0"], vec!["-cc", r#"{"fuel": 0}"#]], "compilation.fuel", json!(0)),
        (
            vec![vec!["--fuel", "Unlimited"], vec!["-cc.fuel=unlimited"], vec!["-cc", r#"{"fuel": null}"#]],
            "compilation.fuel",
            json!(null),
        ),
    ] {
        for form in forms {
            assert_eq!(said(&form, path), value, "{form:?}");
        }
    }
}

#[test]
fn the_source_is_the_flag_that_said_it() {
    for (arguments, path, flag) in [
        (vec!["-O1"], "optimization_level", "-O"),
        (vec!["--threads", "2"], "cpu.threads", "--threads"),
        (vec!["-cc", r#"{"mode": "none"}"#], "compilation.mode", "-cc.mode"),
        (
            vec!["--compilation-config.pass_config.fuse_add_norm=false"],
            "compilation.pass_config.fuse_add_norm",
            "-cc.pass_config.fuse_add_norm",
        ),
    ] {
        let options = options(&arguments).unwrap();
        let (_, source) = options.get(path).unwrap();
        assert_eq!(source, &Source::CommandLine { flag: flag.to_owned() });
    }
}

#[test]
fn the_later_of_two_holds_whatever_their_forms() {
    let options = options(&[
        "-cc.cudagraph_mode=FULL",
        "--cudagraph-capture-sizes",
        "1",
        "2",
        "-cc",
        r#"{"cudagraph_mode": "NONE", "mode": "none", "mode": "compile"}"#,
        "--compilation-config.cudagraph_capture_sizes=8",
    ])
    .unwrap();
    let value = |path| options.get(path).map(|(value, _)| value.clone());
    assert_eq!(value("compilation.cudagraph_mode"), Some(json!("NONE")));
    assert_eq!(value("compilation.mode"), Some(json!("compile")));
    assert_eq!(value("compilation.cudagraph_capture_sizes"), Some(json!([8])));
    assert_eq!(
        options.warnings(),
        [
            "`compilation.cudagraph_mode` is said twice on the command line: \
             -cc.cudagraph_mode FULL is ignored, -cc.cudagraph_mode NONE holds",
            "`compilation.mode` is said twice on the command line: -cc.mode none is ignored, -cc.mode compile holds",
            "`compilation.cudagraph_capture_sizes` is said twice on the command line: \
             --cudagraph-capture-sizes 1, 2 is ignored, -cc.cudagraph_capture_sizes 8 holds",
        ]
    );
}

#[test]
fn what_follows_two_dashes_is_no_setting() {
    let matches = matches(&["-O1", "--", "-cc.mode=none"]).unwrap();
    assert_eq!(matches.get_one::<String>("prompt").map(String::as_str), Some("-cc.mode=none"));
    let options = command_line::options_from(&matches).unwrap();
    assert!(options.get("compilation.mode").is_none());
}

#[test]
fn a_command_may_take_only_some_arguments() {
    let threads = command_line::arguments().into_iter().filter(|argument| argument.get_id() == "cpu.threads");
    let command = clap::Command::new("program").args(threads);
    let matches = command.try_get_matches_from(["program", "--threads", "3"]).unwrap();
    let options = command_line::options_from(&matches).unwrap();
    assert_eq!(options.get("cpu.threads").map(|(value, _)| value.clone()), Some(json!(3)));
}

#[test]
fn nothing_can_be_appended_to_a_single_value() {
    let refusal = options(&["-cc.mode+=none"]).expect_err("it is no list");
    assert!(refusal.message.contains("it is no list"), "{}", refusal.message);
    assert_eq!(refusal.status, 2);
}

#[test]
fn former_names_are_understood_with_a_warning() {
    let options = options(&["-cc.pass_config.enable_noop=false"]).unwrap();
    let (value, _) = options.get("compilation.pass_config.eliminate_noops").unwrap();
    assert_eq!(value, &json!(false));
    assert_eq!(
        options.warnings(),
        ["command line -cc.pass_config.enable_noop: `compilation.pass_config.enable_noop` \
          is now called `compilation.pass_config.eliminate_noops`"]
    );
}

#[test]
fn help_is_given_for_a_group() {
    let arguments = ["program", "--help=compilation.pass_config", "--", "--help=kernel"].map(Into::into);
    let topic = command_line::help_topic(&arguments).unwrap();
    assert_eq!(topic, "compilation.pass_config");
    let help = command_line::group_help(&topic).unwrap();
    assert!(help.contains("compilation.pass_config.fuse_add_norm"), "{help}");
    assert!(!help.contains("compilation.mode"), "{help}");
    let error = command_line::group_help("compilatoin").expect_err("no such group");
    assert!(error.is_usage());
    for part in ["did you mean `compilation`?", "compilation.pass_config, kernel, model", "--help: "] {
        assert!(error.to_string().contains(part), "no {part} in {error}");
    }
    assert!(command_line::help_topic(&["program", "--", "--help=kernel"].map(Into::into)).is_none());
}

#[test]
fn shells_can_complete_the_names_of_values() {
    let arguments = command_line::arguments();
    let level = arguments.iter().find(|argument| argument.get_id() == "optimization_level").unwrap();
    let names: Vec<String> = level.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
    assert_eq!(names, ["O0", "O1", "O2", "O3"]);
}

#[test]
fn a_switch_is_turned_off_by_its_negation_in_either_spelling() {
    for given in ["--no-enable-prefix-caching", "--no_enable_prefix_caching", "--enable-prefix-caching=false"] {
        assert_eq!(said(&[given], "cache.enable_prefix_caching"), json!(false), "{given}");
    }
    assert!(options(&["--no-max-num-seqs", "3"]).is_err());
}
