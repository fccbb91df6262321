//! `allotrope settings`, `allotrope completions`, help about settings, and the layers that settings come from.

use std::path::Path;

use allotrope_config::{command_line, settings_markdown};
use serde_json::Value;
use tempfile::TempDir;

use crate::json_schema::faults;
use crate::support::{Run, command, generate, model, run, with_model};

const COMMANDS: [&str; 4] = ["generate", "chat", "logits", "explain"];

/// The paths of all settings, as `explain` has them.
fn paths() -> Vec<String> {
    let explained = explained(&[]);
    let rows = explained["settings"].as_array().unwrap();
    rows.iter().map(|row| row["setting"].as_str().unwrap().to_owned()).collect()
}

fn explained(more: &[&str]) -> Value {
    serde_json::from_str(&run(&with_model("explain", &[&["--format", "json"], more].concat())).ok().stdout).unwrap()
}

/// The row of one setting.
fn row(explained: &Value, setting: &str) -> Value {
    explained["settings"].as_array().unwrap().iter().find(|row| row["setting"] == setting).unwrap().clone()
}

/// The long flag of a setting, where it has one.
fn long_flag(path: &str) -> Option<String> {
    let arguments = command_line::arguments();
    let argument = arguments.iter().find(|argument| argument.get_id() == path)?;
    argument.get_long().map(str::to_owned)
}

fn schema(of: &[&str]) -> Value {
    serde_json::from_str(&run(&[&["settings", "--schema"], of].concat()).ok().stdout).unwrap()
}

#[test]
fn all_settings_are_listed_without_a_model() {
    let listed = run(&["settings"]).ok().stdout;
    for path in paths() {
        let (group, name) = path.rsplit_once('.').unwrap_or(("", &path));
        assert!(group.is_empty() || listed.contains(&format!("[{group}]")), "no group {group} in\n{listed}");
        assert!(listed.lines().any(|line| line.split_whitespace().next() == Some(name)), "no {path} in\n{listed}");
    }
    assert!(listed.contains("level O2") && listed.contains("no model given"), "{listed}");
}

#[test]
fn explanations_are_valid_by_the_schema_that_is_printed() {
    let schema = schema(&["explain"]);
    for more in
        [&[][..], &["-O0"], &["-O1"], &["-O3", "--threads", "1"], &["--only", "compilation"], &["--enforce-eager"]]
    {
        let explained = explained(more);
        let found = faults(&schema, &explained, "");
        assert!(found.is_empty(), "{more:?}: {found:#?}");
        // The schema does find what is wrong.
        let mut wrong = explained;
        wrong["settings"][0]["value"] = "sometimes".into();
        assert_eq!(faults(&schema, &wrong, "").len(), 1);
    }
}

#[test]
fn settings_files_are_valid_by_the_schema_that_is_printed() {
    let by_default = schema(&[]);
    assert_eq!(by_default, schema(&["file"]));
    let mut file = Value::Object(serde_json::Map::new());
    for row in explained(&["-O1"])["settings"].as_array().unwrap() {
        let path = row["setting"].as_str().unwrap();
        let place = path.split('.').fold(&mut file, |place, key| &mut place[key]);
        *place = row["value"].clone();
    }
    assert_eq!(faults(&by_default, &file, ""), Vec::<String>::new());
    file["cache"]["kv_cache_memory"] = "4GiB".into();
    assert_eq!(faults(&by_default, &file, ""), Vec::<String>::new());
    file["scheduler"]["max_num_seqs"] = 0.into();
    file["threads"] = 1.into();
    assert_eq!(faults(&by_default, &file, "").len(), 2);
    run(&["settings", "--schema", "files"]).failed(2);
    run(&["settings", "--schema", "--init"]).failed(2);
}

#[test]
fn a_settings_file_is_begun_and_never_overwritten() {
    let folder = TempDir::new().unwrap();
    let init = |more: &[&str]| Run::from(command(&folder, &[&["settings", "--init"], more].concat()).output().unwrap());
    let run = init(&[]).ok();
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", "wrote allotrope.toml\n"));
    let path = folder.path().join("allotrope.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    for setting in paths() {
        let key = setting.rsplit('.').next().unwrap();
        assert!(text.contains(&format!("\n# {key} = ")), "no {setting} in\n{text}");
    }
    // It is a settings file, and the one that is found.
    let uncommented = text.replace("# block_size = 16", "block_size = 8");
    std::fs::write(&path, &uncommented).unwrap();
    let explained = Run::from(command(&folder, &with_model("explain", &["--only", "cache"])).output().unwrap()).ok();
    assert!(explained.stdout.contains("allotrope.toml:"), "{}", explained.stdout);

    let message = init(&[]).failed(1);
    assert!(message.contains("allotrope.toml exists and is left as it is"), "{message}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), uncommented);
    init(&["other.toml"]).ok();
    assert_eq!(std::fs::read_to_string(folder.path().join("other.toml")).unwrap(), text);
    assert!(init(&["nowhere/other.toml"]).failed(1).contains("nowhere/other.toml"));
    let mut names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["allotrope.toml", "other.toml"], "nothing else is left behind");
}

#[test]
fn help_has_every_setting() {
    for command in COMMANDS {
        let (short, long) = (run(&[command, "-h"]).ok().stdout, run(&[command, "--help"]).ok().stdout);
        assert!(short.contains("--help=GROUP"), "{short}");
        for path in paths() {
            match long_flag(&path) {
                Some(flag) => {
                    assert!(short.contains(&format!("--{flag}")), "no --{flag} in\n{short}");
                    assert!(long.contains(&format!("In files: {path}")), "no {path} in\n{long}");
                }
                None => {
                    let key = path.strip_prefix("compilation.").unwrap();
                    assert!(long.contains(&format!("  {key}: ")), "no -cc.{key} in\n{long}");
                }
            }
        }
    }
}

#[test]
fn help_is_given_for_one_group() {
    let all = paths();
    let groups: Vec<&str> = all.iter().filter_map(|path| Some(path.rsplit_once('.')?.0)).collect();
    for group in groups {
        let help = run(&["generate", &format!("--help={group}")]).ok().stdout;
        for path in &all {
            let within = path.starts_with(&format!("{group}."));
            assert_eq!(help.lines().any(|line| line == path), within, "{path} in\n{help}");
        }
    }
    let one = run(&["explain", "--help=cpu.threads"]).ok().stdout;
    assert!(one.starts_with("cpu.threads\n") && one.contains("--threads N"), "{one}");
    let message = run(&["generate", "--help=compilatoin"]).failed(2);
    for part in [
        "`compilatoin`",
        "did you mean `compilation`?",
        "compilation.pass_config, kernel, model, scheduler, cache, cpu",
    ] {
        assert!(message.contains(part), "no {part} in {message}");
    }
}

#[test]
fn shells_can_complete_every_flag_and_the_names_of_values() {
    for (shell, before) in [("bash", "--"), ("zsh", "--"), ("fish", "-l "), ("powershell", "--"), ("elvish", "--")] {
        let script = run(&["completions", shell]).ok().stdout;
        for command in ["generate", "chat", "logits", "explain", "settings", "completions"] {
            assert!(script.contains(command), "{shell} completes no {command}");
        }
        for flag in paths().iter().filter_map(|path| long_flag(path)) {
            assert!(script.contains(&format!("{before}{flag}")), "{shell} completes no --{flag}");
        }
    }
    for (shell, values) in [("bash", "O0 O1 O2 O3"), ("zsh", "(O0 O1 O2 O3)")] {
        let script = run(&["completions", shell]).ok().stdout;
        assert!(script.contains(values), "{shell} completes no {values}");
    }
    let message = run(&["completions", "tcsh"]).failed(2);
    assert!(message.contains("bash, elvish, fish, powershell, zsh"), "{message}");
    run(&["completions"]).failed(2);
}

/// A folder with a project file two folders above `work/here`, a user file, and a file for `--config`.
fn layers() -> TempDir {
    let folder = TempDir::new().unwrap();
    let write = |path: &str, text: &str| {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("allotrope.toml", "optimization_level = \"O1\"\n[cache]\nblock_size = 8\n");
    write("given.toml", "optimization_level = \"O3\"\n");
    write("home/.config/allotrope/config.toml", "optimization_level = \"O3\"\n[scheduler]\nmax_num_seqs = 5\n");
    std::fs::create_dir_all(folder.path().join("work/here")).unwrap();
    folder
}

/// Runs the binary two folders below the project file, with the user file and one more variable in its environment.
fn run_below(folder: &TempDir, arguments: &[String], variable: Option<&str>) -> Run {
    let mut command = command(folder, arguments);
    command.current_dir(folder.path().join("work/here")).env("HOME", folder.path().join("home"));
    if let Some(level) = variable {
        command.env("ALLOTROPE_OPTIMIZATION_LEVEL", level);
    }
    command.output().unwrap().into()
}

/// What the layers say of the level, strongest last: more arguments, the variable, the level that holds, and the kind of its source.
fn ways(folder: &TempDir) -> Vec<(Vec<String>, Option<&'static str>, &'static str, &'static str)> {
    let given = vec!["--config".to_owned(), folder.path().join("given.toml").to_str().unwrap().to_owned()];
    let said = [&given[..], &["-O2".to_owned()]].concat();
    vec![
        (Vec::new(), None, "O1", "file"),
        (given.clone(), None, "O3", "file"),
        (given, Some("O0"), "O0", "environment"),
        (said, Some("O0"), "O2", "command line"),
    ]
}

#[test]
fn every_layer_reaches_explain() {
    let folder = layers();
    for (more, variable, level, kind) in ways(&folder) {
        let arguments = [with_model("explain", &["--format", "json"]), more.clone()].concat();
        let explained: Value = serde_json::from_str(&run_below(&folder, &arguments, variable).ok().stdout).unwrap();
        let found = row(&explained, "optimization_level");
        assert_eq!((&found["value"], &found["source"]["kind"]), (&level.into(), &kind.into()), "{more:?} {found}");
        let sequences = row(&explained, "scheduler.max_num_seqs");
        let file = Path::new(sequences["source"]["path"].as_str().unwrap());
        assert!(file.ends_with("home/.config/allotrope/config.toml"), "{sequences}");
        assert_eq!((&sequences["value"], &sequences["source"]["line"]), (&5.into(), &3.into()));
        let blocks = row(&explained, "cache.block_size");
        assert_eq!(blocks["value"], if more.is_empty() { 8 } else { 16 }, "--config is instead of the project's file");
    }
}

#[test]
fn every_layer_reaches_generate() {
    let folder = layers();
    for (more, variable, level, _) in ways(&folder) {
        let asked = ["--format", "json", "--temperature", "0", "What is 7 + 8?"];
        let arguments = [with_model("generate", &asked), more.clone()].concat();
        let run = run_below(&folder, &arguments, variable).ok();
        let report: Value = serde_json::from_str(run.stderr.lines().last().unwrap()).unwrap();
        assert_eq!(report["optimization_level"], level, "{more:?}");
        assert_eq!(run.json_lines()[0]["text"], "7 + 8 = 15.");
    }
}

#[test]
fn what_is_wrong_in_a_layer_stops_generate_and_says_where() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("wrong.toml");
    std::fs::write(&file, "[compilation]\ncudagraph_mod = \"FULL\"\n").unwrap();
    let message = generate(&["--config", file.to_str().unwrap(), "x"]).failed(2);
    for part in ["wrong.toml:2", "did you mean `compilation.cudagraph_mode`?"] {
        assert!(message.contains(part), "no {part} in {message}");
    }
    assert!(generate(&["--config", "/nowhere/x.toml", "x"]).failed(1).contains("/nowhere/x.toml"));
    let wrong = command(&folder, &with_model("generate", &["x"])).env("ALLOTROPE_OPTIMIZATION_LEVEL", "O7").output();
    assert!(Run::from(wrong.unwrap()).failed(2).contains("ALLOTROPE_OPTIMIZATION_LEVEL"));
    let unknown =
        command(&folder, &with_model("generate", &["--strict-environment", "x"])).env("ALLOTROPE_THREAD", "1").output();
    assert!(Run::from(unknown.unwrap()).failed(2).contains("ALLOTROPE_THREAD"));
}

#[test]
fn the_settings_page_shows_what_the_binary_prints() {
    let page = settings_markdown();
    let blocks = |language: &str| -> Vec<String> {
        let opening = format!("```{language}\n");
        page.split(&opening).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
    };
    let [flags] = &blocks("text")[..] else { panic!("one block of text: {page}") };
    for command in ["explain", "generate", "chat", "logits"] {
        let help = run(&[command, "-h"]).ok().stdout;
        assert!(help.contains(flags.trim_end()), "`allotrope {command} -h` is not as on the page:\n{help}\n{flags}");
    }
    let folder = TempDir::new().unwrap();
    let [file] = &blocks("toml")[..] else { panic!("one file: {page}") };
    std::fs::write(folder.path().join("few.toml"), file).unwrap();
    let shown = blocks("console");
    assert_eq!(shown.len(), 7, "help, four mistakes, two explanations: {shown:#?}");
    for block in shown {
        let (line, expected) = block.strip_prefix("$ ").unwrap().split_once('\n').unwrap();
        let model = model().to_str().unwrap().to_owned();
        let words: Vec<String> = line.replace("tests/models/tiny-chat", &model).split(' ').map(str::to_owned).collect();
        let program = words.iter().position(|word| word == "allotrope").unwrap();
        let mut command = command(&folder, &words[program + 1..]);
        command.envs(words[..program].iter().filter_map(|word| word.split_once('=')));
        let run = Run::from(command.output().unwrap());
        if expected.starts_with("error: ") {
            assert_eq!(run.failed(2), expected, "{line}");
        } else {
            let printed = run.ok().stdout;
            assert!(printed.starts_with(expected), "`{line}` prints\n{printed}\nand the page shows\n{expected}");
        }
    }
}
