//! What is wrong on the command line, and how the program says so.

use tempfile::TempDir;

use crate::support::{command, generate, run, with_model};

#[test]
fn help_and_version_are_results() {
    let help = run(&["--help"]).ok();
    for name in ["generate", "chat", "complete", "bench", "logits", "explain", "settings", "completions"] {
        assert!(help.stdout.contains(name), "{}", help.stdout);
    }
    assert_eq!(run(&["--version"]).ok().stdout, format!("allotrope {}\n", env!("CARGO_PKG_VERSION")));
    let generate = run(&["generate", "--help"]).ok().stdout;
    for part in ["--optimization-level", "-cc.KEY=VALUE", "--repetition-penalty", "Examples:"] {
        assert!(generate.contains(part), "no {part} in\n{generate}");
    }
}

#[test]
fn a_command_line_that_cannot_be_exits_with_2() {
    let cases: [&[&str]; 15] = [
        &[],
        &["--prompts", "x.jsonl", "and a prompt"],
        &["--system", "a", "--raw", "b"],
        &["-O4", "x"],
        &["-O", "fast", "x"],
        &["--format", "yaml", "x"],
        &["--temperature", "nan", "x"],
        &["--temperature", "-1", "x"],
        &["--temperature", "2.1", "x"],
        &["--top-p", "0", "x"],
        &["--min-p", "inf", "x"],
        &["--repetition-penalty", "0", "x"],
        &["--max-tokens", "0", "x"],
        &["--stop", "", "x"],
        &["-cc.pass_config.fuse_everything=true", "x"],
    ];
    for case in cases {
        let message = generate(case).failed(2);
        assert!(message.starts_with("error: "), "{case:?}: {message}");
    }
    assert!(generate(&["--top-p", "1.5", "x"]).failed(2).contains("`top_p` is 1.5, but must be above 0 and at most 1"));
}

#[test]
fn no_command_shows_the_help_and_exits_with_2() {
    let none: [&str; 0] = [];
    let run = run(&none);
    assert_eq!(run.status, 2);
    assert!(run.stderr.contains("Usage: allotrope"), "{}", run.stderr);
}

#[test]
fn a_checkpoint_that_is_not_there_exits_with_1() {
    for command in ["generate", "explain"] {
        let prompt: &[&str] = if command == "generate" { &["x"] } else { &[] };
        let message = run(&[&[command, "--model", "/nowhere/model"], prompt].concat()).failed(1);
        assert!(message.starts_with("error: ") && message.contains("/nowhere/model"), "{message}");
    }
}

#[test]
fn what_is_wrong_is_found_before_the_model_is_loaded() {
    let message = run(&["generate", "--model", "/nowhere/model", "--temperature", "9", "x"]).failed(2);
    assert!(message.contains("temperature"), "{message}");
    let message = run(&["generate", "--model", "/nowhere/model", "--prompts", "/nowhere/x.jsonl"]).failed(1);
    assert!(message.contains("/nowhere/x.jsonl"), "{message}");
}

#[test]
fn settings_come_from_the_environment_and_from_files_too() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("allotrope.toml"), "[scheduler]\nmax_num_seqs = 3\n").unwrap();
    let output = command(&folder, &with_model("explain", &[]))
        .env("ALLOTROPE_CACHE__BLOCK_SIZE", "8")
        .env("ALLOTROPE_CACHE__BLOCK_SIZ", "8")
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    for part in ["allotrope.toml:2", "environment ALLOTROPE_CACHE__BLOCK_SIZE"] {
        assert!(stdout.contains(part), "no {part} in\n{stdout}");
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("ALLOTROPE_CACHE__BLOCK_SIZ"), "an unknown variable is told: {stderr}");
}

#[test]
fn a_wrong_log_filter_is_named() {
    let folder = TempDir::new().unwrap();
    let output = command(&folder, &with_model("explain", &[])).env("ALLOTROPE_LOG", "a=b=c").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("ALLOTROPE_LOG"));
}
