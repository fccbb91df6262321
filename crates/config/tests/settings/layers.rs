//! Environment variables and files, and which of them holds.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use allotrope_config::environment::Environment;
use allotrope_config::{Options, SettingsError, Source, Sources, load_from};
use serde_json::json;

fn environment(variables: &[(&str, &str)], directory: Option<&Path>) -> Environment {
    let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
    Environment::new(variables, directory.map(Path::to_owned))
}

fn load(variables: &[(&str, &str)]) -> Result<Options, SettingsError> {
    load_from(Options::new(), &Sources::default(), &environment(variables, None))
}

fn load_text(text: &str) -> Result<Options, SettingsError> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("settings.toml");
    fs::write(&file, text).unwrap();
    let sources = Sources { config_file: Some(file), ..Sources::default() };
    load_from(Options::new(), &sources, &environment(&[], None))
}

fn value_of(options: &Options, path: &str) -> (serde_json::Value, Source) {
    let (value, source) = options.get(path).unwrap_or_else(|| panic!("nothing says {path}"));
    (value.clone(), source.clone())
}

#[test]
fn a_variable_says_a_setting() {
    let options =
        load(&[("ALLOTROPE_OPTIMIZATION_LEVEL", "1"), ("ALLOTROPE_COMPILATION__CUDAGRAPH_MODE", "piecewise")]).unwrap();
    let (value, source) = value_of(&options, "compilation.cudagraph_mode");
    assert_eq!(value, json!("PIECEWISE"));
    assert_eq!(source, Source::Environment { variable: "ALLOTROPE_COMPILATION__CUDAGRAPH_MODE".to_owned() });
    assert_eq!(value_of(&options, "optimization_level").0, json!("O1"));
    assert!(options.warnings().is_empty());
}

#[test]
fn a_wrong_variable_is_named() {
    let error = load(&[("ALLOTROPE_CPU__THREADS", "many")]).expect_err("no number");
    assert_eq!(
        error.to_string(),
        "environment ALLOTROPE_CPU__THREADS: `cpu.threads` cannot be `many`: it must be a whole number, such as 512 \
         (k, m, g mean powers of 1000, K, M, G powers of 1024)"
    );
    assert!(error.is_usage());
    let latin = OsString::from_vec(vec![b'c', 0xe9]);
    let environment = Environment::new([("ALLOTROPE_COMPILATION__MODE".into(), latin)], None);
    let error = load_from(Options::new(), &Sources::default(), &environment).expect_err("no UTF-8");
    assert!(error.to_string().contains("ALLOTROPE_COMPILATION__MODE"), "{error}");
    assert!(error.to_string().contains("not UTF-8"), "{error}");
}

#[test]
fn an_unknown_variable_is_a_warning_or_under_strict_an_error() {
    let variables = [("ALLOTROPE_OPTIMISATION_LEVEL", "1"), ("ALLOTROPE_LOG", "debug"), ("ALLOTROPES", "x")];
    let options = load(&variables).unwrap();
    assert!(options.is_empty());
    assert_eq!(
        options.warnings(),
        ["the environment variable `ALLOTROPE_OPTIMISATION_LEVEL` names no setting and is ignored; \
          did you mean ALLOTROPE_OPTIMIZATION_LEVEL?"]
    );
    let strict = Sources { strict_environment: true, ..Sources::default() };
    let error = load_from(Options::new(), &strict, &environment(&variables, None)).expect_err("it is strict");
    assert!(error.to_string().contains("did you mean ALLOTROPE_OPTIMIZATION_LEVEL?"), "{error}");
    assert!(error.is_usage());
}

#[test]
fn the_variables_of_the_cuda_emulator_are_none_of_ours() {
    let variables = [("ALLOTROPE_EMULATOR_SEED", "1"), ("ALLOTROPE_EMULATOR_FAIL", "cuInit:1:100")];
    let strict = Sources { strict_environment: true, ..Sources::default() };
    let options = load_from(Options::new(), &strict, &environment(&variables, None)).unwrap();
    assert!(options.is_empty() && options.warnings().is_empty());
}

#[test]
fn what_kubernetes_injects_is_passed_over() {
    let injected = [
        "ALLOTROPE_PORT",
        "ALLOTROPE_SERVICE_HOST",
        "ALLOTROPE_SERVICE_PORT",
        "ALLOTROPE_SERVICE_PORT_HTTP",
        "ALLOTROPE_PORT_8000_TCP",
        "ALLOTROPE_PORT_8000_TCP_PROTO",
        "ALLOTROPE_PORT_8000_TCP_PORT",
        "ALLOTROPE_PORT_8000_TCP_ADDR",
        "ALLOTROPE_CHAT_PORT_53_UDP_ADDR",
    ];
    let variables: Vec<(&str, &str)> = injected.iter().map(|name| (*name, "tcp://10.0.0.1:8000")).collect();
    let strict = Sources { strict_environment: true, ..Sources::default() };
    let options = load_from(Options::new(), &strict, &environment(&variables, None)).unwrap();
    assert!(options.is_empty() && options.warnings().is_empty());
    // Not everything that looks a little like it.
    for name in ["ALLOTROPE_SERVER__PORT", "ALLOTROPE_PORT_http_TCP", "ALLOTROPE_PORT_80_TCP_NAME"] {
        assert_eq!(load(&[(name, "1")]).unwrap().warnings().len(), 1, "{name}");
    }
}

/// A home with a user's file, a project with a file, and a folder deep inside it.
fn project(user: &str, project: &str) -> (tempfile::TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let configuration = folder.path().join("home/.config/allotrope");
    fs::create_dir_all(&configuration).unwrap();
    fs::write(configuration.join("config.toml"), user).unwrap();
    let deep = folder.path().join("project/some/folder");
    fs::create_dir_all(&deep).unwrap();
    fs::write(folder.path().join("project/allotrope.toml"), project).unwrap();
    let home = folder.path().join("home");
    (folder, home, deep)
}

#[test]
fn the_strongest_layer_holds_key_by_key() {
    let user = "optimization_level = 0\n[cpu]\nthreads = 1\n[cache]\nblock_size = 8\n[scheduler]\nmax_num_seqs = 1\n";
    let of_project = "optimization_level = 1\n[cpu]\nthreads = 2\n[cache]\nblock_size = 32\n";
    let (folder, home, deep) = project(user, of_project);
    let mut said = Options::new();
    said.set_optimization_level(allotrope_config::OptimizationLevel::O3, Source::Builder);
    let home = home.to_str().unwrap();
    let variables = [("HOME", home), ("ALLOTROPE_CPU__THREADS", "3"), ("ALLOTROPE_OPTIMIZATION_LEVEL", "2")];
    let around = environment(&variables, Some(&deep));
    let options = load_from(said.clone(), &Sources::default(), &around).unwrap();
    assert_eq!(value_of(&options, "optimization_level"), (json!("O3"), Source::Builder));
    let variable = "ALLOTROPE_CPU__THREADS".to_owned();
    assert_eq!(value_of(&options, "cpu.threads"), (json!(3), Source::Environment { variable }));
    let path = folder.path().join("project/allotrope.toml");
    assert_eq!(value_of(&options, "cache.block_size"), (json!(32), Source::File { path, line: 5 }));
    let path = folder.path().join("home/.config/allotrope/config.toml");
    assert_eq!(value_of(&options, "scheduler.max_num_seqs"), (json!(1), Source::File { path, line: 7 }));

    // A file that is named takes the project's place, and the user's stays.
    let named = folder.path().join("named.toml");
    fs::write(&named, "[compilation]\nmode = 'none'\n").unwrap();
    let sources = Sources { config_file: Some(named.clone()), ..Sources::default() };
    let options = load_from(said, &sources, &around).unwrap();
    assert_eq!(value_of(&options, "cache.block_size").0, json!(8));
    assert_eq!(value_of(&options, "compilation.mode"), (json!("none"), Source::File { path: named, line: 2 }));
}

#[test]
fn the_user_file_follows_the_convention() {
    let (folder, _, deep) = project("", "");
    let elsewhere = folder.path().join("elsewhere");
    fs::create_dir_all(elsewhere.join("allotrope")).unwrap();
    fs::write(elsewhere.join("allotrope/config.toml"), "[cpu]\nthreads = 5\n").unwrap();
    let variables = [("XDG_CONFIG_HOME", elsewhere.to_str().unwrap()), ("HOME", "/nonexistent")];
    let options = load_from(Options::new(), &Sources::default(), &environment(&variables, Some(&deep))).unwrap();
    assert_eq!(value_of(&options, "cpu.threads").0, json!(5));
}

#[test]
fn kernels_are_kept_where_the_convention_says() {
    let folder = |variables: &[(&str, &str)]| environment(variables, None).kernel_cache();
    assert_eq!(folder(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/c")]), Some("/c/allotrope/kernels".into()));
    assert_eq!(folder(&[("HOME", "/h"), ("XDG_CACHE_HOME", "relative")]), Some("/h/.cache/allotrope/kernels".into()));
    assert_eq!(folder(&[("XDG_CACHE_HOME", "")]), None);
    let options = load(&[("ALLOTROPE_KERNEL__KERNEL_CACHE", "none")]).unwrap();
    assert_eq!(value_of(&options, "kernel.kernel_cache").0, json!(null));
}

#[test]
fn a_list_is_appended_to_what_weaker_layers_say() {
    let mut said = Options::new();
    let source = Source::CommandLine { flag: "-cc.cudagraph_capture_sizes".to_owned() };
    said.append("compilation.cudagraph_capture_sizes", "16", source.clone()).unwrap();
    let variables = [("ALLOTROPE_COMPILATION__CUDAGRAPH_CAPTURE_SIZES", "1,2")];
    let options = load_from(said, &Sources::default(), &environment(&variables, None)).unwrap();
    assert_eq!(value_of(&options, "compilation.cudagraph_capture_sizes"), (json!([1, 2, 16]), source));
}

#[test]
fn a_stronger_layer_can_take_a_value_away_again() {
    let (_folder, _, deep) = project("", "[compilation]\ndebug_dump_path = 'dump'\nfuel = 3\n");
    let variables = [("ALLOTROPE_COMPILATION__FUEL", "unlimited")];
    let options = load_from(Options::new(), &Sources::default(), &environment(&variables, Some(&deep))).unwrap();
    assert_eq!(value_of(&options, "compilation.debug_dump_path").0, json!("dump"));
    let settings = allotrope_config::resolve_with(&options, None, None).unwrap();
    assert_eq!(settings.compilation.debug_dump_path.value.as_deref(), Some(Path::new("dump")));
    assert_eq!(settings.compilation.fuel.value, None);
    let variable = "ALLOTROPE_COMPILATION__FUEL".to_owned();
    assert_eq!(settings.compilation.fuel.source, Source::Environment { variable });
    let error = load(&[("ALLOTROPE_COMPILATION__DEBUG_DUMP_PATH", "")]).expect_err("no path");
    assert_eq!(
        error.to_string(),
        "environment ALLOTROPE_COMPILATION__DEBUG_DUMP_PATH: `compilation.debug_dump_path` cannot be ``: \
         it must be the path of a folder, such as ./dump"
    );
}

#[test]
fn mistakes_in_a_file_have_their_line() {
    for (text, line, part) in [
        ("[cpu]\nthreads = 1\nthreds = 2\n", 3, "did you mean `cpu.threads`?"),
        ("\n\n[compilatoin]\nmode = 'none'\n", 4, "did you mean `compilation.mode`?"),
        ("fuse_add_norm = true\n", 1, "did you mean `compilation.pass_config.fuse_add_norm`?"),
        ("compilation = 3\n", 1, "it is a group of settings"),
        ("# x\n[cpu.threads]\nx = 1\n", 2, "`cpu.threads` cannot be"),
        ("[cpu]\nthreads = 1.5\n", 2, "it must be a whole number"),
        ("[cpu]\nthreads = -1\n", 2, "it must be a whole number"),
        ("[cpu]\nthreads = 0\n", 2, "it must be from 1 to 4096"),
        ("[cpu]\nthreads = nan\n", 2, "no finite number"),
        ("[cpu]\nthreads = 99999999999999999999999\n", 2, "too large"),
        ("[cpu]\nthreads = 1979-05-27\n", 2, "is a date"),
        ("[cpu]\nthreads = 1\nthreads = 2\n", 3, "not valid TOML"),
        ("[cpu]\nthreads =\n", 2, "not valid TOML"),
        ("[[cpu]]\nthreads = 1\n", 1, "no setting is a list of tables"),
        ("[compilation]\nmode = 'all'\n", 2, "it must be one of none, compile"),
        ("[compilation.pass_config]\nfuse_add_norm = 'yes'\n", 2, "it must be true or false"),
        ("[compilation]\ncudagraph_capture_sizes = [1, 'x']\n", 2, "it must be a whole number"),
        ("[compilation]\nsplitting_ops = ['attention', 'X']\n", 2, "it must be a name"),
        ("[compilation]\nfuel = -1\n", 2, "it must be a whole number"),
    ] {
        let error = load_text(text).expect_err(text);
        let message = error.to_string();
        assert!(message.contains(&format!("settings.toml:{line}: ")), "{text:?}: {message}");
        assert!(message.contains(part), "{text:?}: {message}");
        assert!(error.is_usage(), "{message}");
    }
}

#[test]
fn values_may_be_written_in_every_toml_form() {
    let options = load_text(
        "optimization_level = 'o1'\ncpu.threads = 0x10\n[compilation]\ncudagraph_mode = 1\n\
         cudagraph_capture_sizes = [\n 4,\n 1,\n]\nsplitting_ops = ['linear', \"attention\"]\n\
         fuel = 0\npass_config = { fuse_add_norm = false }\n[cache]\nkv_cache_memory = '2GiB'\n",
    )
    .unwrap();
    for (path, value) in [
        ("optimization_level", json!("O1")),
        ("cpu.threads", json!(16)),
        ("compilation.cudagraph_mode", json!("PIECEWISE")),
        ("compilation.cudagraph_capture_sizes", json!([1, 4])),
        ("compilation.splitting_ops", json!(["linear", "attention"])),
        ("compilation.fuel", json!(0)),
        ("compilation.pass_config.fuse_add_norm", json!(false)),
        ("cache.kv_cache_memory", json!(2_u64 << 30)),
    ] {
        assert_eq!(value_of(&options, path).0, value, "{path}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_no_usage_error() {
    let folder = tempfile::tempdir().unwrap();
    for (file, part) in
        [(folder.path().join("none.toml"), "No such file"), (folder.path().to_owned(), "not a regular file")]
    {
        let sources = Sources { config_file: Some(file), ..Sources::default() };
        let error = load_from(Options::new(), &sources, &environment(&[], None)).expect_err(part);
        assert!(error.to_string().contains(part), "{error}");
        assert!(!error.is_usage());
    }
}

#[test]
fn huge_and_binary_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("settings.toml");
    let sources = Sources { config_file: Some(file.clone()), ..Sources::default() };
    let read = || load_from(Options::new(), &sources, &environment(&[], None));
    fs::File::create(&file).unwrap().set_len(1 << 40).unwrap();
    assert!(read().expect_err("too large").to_string().contains("larger than 1048576 bytes"));
    fs::write(&file, b"[cpu]\nthreads = 1\n\xff\xfe\n").unwrap();
    let message = read().expect_err("not UTF-8").to_string();
    assert!(message.contains("settings.toml:3: ") && message.contains("not UTF-8"), "{message}");
    fs::write(&file, "a.".repeat(200_000) + "b = 1").unwrap();
    assert!(read().expect_err("too deep").is_usage());
    fs::write(&file, "x = ".to_owned() + &"[".repeat(500_000)).unwrap();
    assert!(read().expect_err("too deep").is_usage());
}

#[test]
fn a_large_file_of_nonsense_is_refused_at_its_first_line() {
    let text: String = (0..90_000).map(|number| format!("k{number} = 1\n")).collect();
    let error = load_text(&text).expect_err("no such settings");
    assert!(error.to_string().contains("settings.toml:1: there is no setting `k0`"), "{error}");
}

#[test]
fn the_environment_answers_what_is_no_setting() {
    let around = environment(&[("ALLOTROPE_LOG", "debug"), ("NO_COLOR", "1")], None);
    assert_eq!(around.log_filter().as_deref(), Some("debug"));
    assert!(around.no_color());
    assert_eq!(around.cuda_visible_devices(), None);
    let empty = environment(&[("ALLOTROPE_LOG", ""), ("NO_COLOR", ""), ("CUDA_VISIBLE_DEVICES", "")], None);
    assert_eq!(empty.log_filter(), None);
    assert!(!empty.no_color());
    assert_eq!(empty.cuda_visible_devices().as_deref(), Some(""), "no text hides all GPUs");
}
