//! `allotrope graph`, `--debug-dump-path`, `--fuel` and `-cc.splitting_ops`: the graph as people see it.

use std::collections::BTreeMap;
use std::path::Path;

use allotrope_engine::graph::text::parse;
use tempfile::TempDir;

use crate::support::{Run, generate, run, with_model};

fn graph(more: &[&str]) -> Run {
    run(&with_model("graph", more))
}

#[test]
fn the_graph_is_printed_as_text_that_reads_back() {
    for (level, launches) in [("-O0", 75), ("-O1", 62), ("-O2", 23)] {
        let text = graph(&[level]).ok().stdout;
        let read = parse(&text).unwrap();
        assert_eq!(read.groups().len(), launches, "{level}");
        assert!(text.ends_with(&read.to_string()), "{level}: the graph follows its legend");
        assert!(text.starts_with("; ") && text.contains("T: tokens of the batch"), "{text}");
    }
}

#[test]
fn a_layer_is_shown_with_its_launches_and_what_it_reads() {
    let text = graph(&["-O2", "--layer", "1"]).ok().stdout;
    for part in [
        "; layer 1: launches 6 to 11",
        "  group { ; launch 7: linear×3+rope×2+kv_write\n    %layers.1.q_proj: bf16[T, 160] = linear<to=bf16>(%layers.1.input_norm,",
        "  %layers.1.attention: bf16[T, 160] = attention<heads=5, scale=",
        "; from before: %rope_angles: f32[T, 32]",
    ] {
        assert!(text.contains(part), "no {part} in\n{text}");
    }
    assert!(!text.contains("%layers.3."), "{text}");
}

#[test]
fn a_layer_that_is_not_there_and_a_layer_of_a_page_are_refused() {
    let error = graph(&["--layer", "9"]).failed(2);
    assert!(error.contains("there is no layer 9; the model has layers 0 to 3"), "{error}");
    let error = graph(&["--layer", "1", "--format", "html"]).failed(2);
    assert!(error.contains("--layer does not go with --format html"), "{error}");
    let error = graph(&["--format", "svg"]).failed(2);
    assert!(error.contains("air, dot, html"), "{error}");
}

#[test]
fn the_graph_is_drawn_and_shown_as_a_page() {
    let whole = graph(&["-O2", "--format", "dot"]).ok().stdout;
    let layer = graph(&["-O2", "--format", "dot", "--layer", "1"]).ok().stdout;
    assert!(whole.starts_with("digraph") && layer.starts_with("digraph"));
    assert_eq!((whole.matches("subgraph").count(), layer.matches("subgraph").count()), (23, 6));
    let page = graph(&["-O2", "--format", "html"]).ok().stdout;
    assert!(page.starts_with("<!doctype html>") || page.starts_with("<!DOCTYPE html>"), "{}", &page[..80]);
    for pass in ["eliminate_noops", "fuse_qkv_proj", "fuse_gemm_epilogue"] {
        assert!(page.contains(pass), "no {pass} on the page");
    }
}

/// The files of a dump.
fn dump(folder: &Path, more: &[&str]) -> BTreeMap<String, Vec<u8>> {
    let path = folder.to_str().unwrap();
    graph(&[&["--debug-dump-path", path], more].concat()).ok();
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap())).collect()
}

#[test]
fn two_identical_runs_give_byte_identical_dumps() {
    let folder = TempDir::new().unwrap();
    for level in ["-O0", "-O1", "-O2", "-O3"] {
        let first = dump(&folder.path().join(format!("first{level}")), &[level]);
        let second = dump(&folder.path().join(format!("second{level}")), &[level]);
        assert_eq!(first.keys().collect::<Vec<_>>(), second.keys().collect::<Vec<_>>(), "{level}");
        for (name, bytes) in first {
            assert!(second[&name] == bytes, "{name} differs at {level}");
        }
    }
}

#[test]
fn a_dump_has_the_graph_after_every_pass_and_an_index_that_names_its_files() {
    let folder = TempDir::new().unwrap();
    let files = dump(folder.path(), &["-O2", "-cc.pass_config.fuse_act_mul=false"]);
    let text = |name: &str| String::from_utf8(files[name].clone()).unwrap();
    let index = text("index.md");
    for name in files.keys().filter(|name| *name != "index.md") {
        assert!(index.contains(&format!("[{name}]({name})")), "the index does not name {name}");
    }
    let launches = |name: &str| parse(&text(name)).unwrap().groups().len();
    assert_eq!((launches("00-as-built.air"), launches("14-as-run.air")), (75, 27));
    assert!(launches("03-fuse_add_norm.air") < launches("02-eliminate_common_subexpressions.air"));
    assert!(index.contains("| residual add and RMSNorm in one launch | 7 | 73 | 66 |"), "{index}");
    // q/k norms are not in this model, and the activation was turned off.
    assert!(index.contains("Off: fuse_act_mul, fuse_norm_quant, fuse_act_quant, fuse_qk_norm_rope"), "{index}");
    assert!(!files.contains_key("04-fuse_act_mul.air"));
    assert!(text("memory.txt").starts_with("arena of "), "{}", text("memory.txt"));
    assert!(
        text("captures.txt").contains("the whole step (launches 0 to 26) at 32, 24, 16, 8, 4, 2, 1"),
        "{}",
        text("captures.txt")
    );
    assert!(
        text("launches.txt").contains("launch 8: linear×3+rope×2+kv_write\n  phase 0: projections over T rows: "),
        "{}",
        text("launches.txt")
    );
    let settings: serde_json::Value = serde_json::from_str(&text("settings.json")).unwrap();
    assert!(settings["passes"].as_array().unwrap().len() == 13 && !text("settings.json").contains("debug_dump_path"));
}

#[test]
fn another_dump_into_the_same_folder_replaces_the_first_and_nothing_else() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("notes.txt"), "mine").unwrap();
    assert!(dump(folder.path(), &["-O2"]).contains_key("03-fuse_add_norm.air"));
    let files = dump(folder.path(), &["-O0"]);
    let graphs: Vec<&String> = files.keys().filter(|name| name.ends_with(".air")).collect();
    assert_eq!(graphs, ["00-as-built.air", "14-as-run.air"]);
    assert_eq!(files["notes.txt"], b"mine");
}

#[cfg(unix)]
#[test]
fn a_dump_replaces_links_and_not_what_they_lead_to() {
    let (folder, elsewhere) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let victim = elsewhere.path().join("victim");
    std::fs::write(&victim, "precious").unwrap();
    for name in ["index.md", "02-eliminate_common_subexpressions.air", "04-fuse_act_mul.air"] {
        std::os::unix::fs::symlink(&victim, folder.path().join(name)).unwrap();
    }
    let files = dump(folder.path(), &["-O2", "-cc.pass_config.fuse_act_mul=false"]);
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
    assert!(files["index.md"].starts_with(b"# ") && !files.contains_key("04-fuse_act_mul.air"));
}

#[test]
fn without_its_index_a_dump_is_not_whole() {
    let folder = TempDir::new().unwrap();
    dump(folder.path(), &["-O2"]);
    std::fs::remove_file(folder.path().join("memory.txt")).unwrap();
    std::fs::create_dir_all(folder.path().join("memory.txt/in/the/way")).unwrap();
    let error = graph(&["-O2", "--debug-dump-path", folder.path().to_str().unwrap()]).failed(1);
    assert!(error.contains("memory.txt"), "{error}");
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name != "index.md" && !name.to_str().unwrap().ends_with(".partial")), "{left:?}");
}

#[test]
fn a_dump_that_cannot_be_written_is_an_error_that_names_the_place() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let inside = file.join("dump");
    let error = graph(&["--debug-dump-path", inside.to_str().unwrap()]).failed(1);
    assert!(error.contains("compilation.debug_dump_path: writing") && error.contains("file/dump"), "{error}");
}

#[test]
fn a_dump_of_a_run_has_its_recordings() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().to_str().unwrap();
    let recordings = |more: &[&str]| -> BTreeMap<String, String> {
        generate(&[&["--debug-dump-path", path, "--quiet"], more, &["hi"]].concat()).ok();
        let files = std::fs::read_dir(folder.path().join("recordings")).into_iter().flatten();
        let files = files.map(|entry| entry.unwrap());
        files
            .map(|file| (file.file_name().into_string().unwrap(), std::fs::read_to_string(file.path()).unwrap()))
            .collect()
    };
    let first = recordings(&["-O2"]);
    let step = &first["step-8.dot"];
    assert!(step.starts_with("digraph recording {") && step.contains("launch0 -> launch1;"), "{step}");
    assert!(step.contains("phase 0: projections over T rows"), "{step}");
    assert_eq!(recordings(&["-O2"]), first);
    // What another run does not record is gone, and what is not ours stays.
    std::fs::write(folder.path().join("recordings/mine.dot"), "mine").unwrap();
    let whole = recordings(&["-cc.cudagraph_mode=FULL", "-cc.cudagraph_capture_sizes=4"]);
    assert_eq!(whole.keys().filter(|name| *name != "mine.dot").count(), 3, "{:?}", whole.keys());
    assert!(whole.contains_key("body-4.dot") && whole.contains_key("mine.dot"));
    std::fs::remove_file(folder.path().join("recordings/mine.dot")).unwrap();
    assert!(recordings(&["-O0"]).is_empty() && !folder.path().join("recordings").exists());
}

#[test]
fn answers_are_the_same_while_dumping_and_with_little_fuel() {
    let folder = TempDir::new().unwrap();
    let question = ["--quiet", "What is 7 + 8?"];
    let expected = generate(&question).ok().stdout;
    let path = folder.path().to_str().unwrap();
    for more in [&["--debug-dump-path", path][..], &["--fuel", "0"], &["--fuel", "20"], &["-cc.splitting_ops=linear"]] {
        assert_eq!(generate(&[more, &question].concat()).ok().stdout, expected, "{more:?}");
    }
    assert!(folder.path().join("index.md").is_file());
}

#[test]
fn fuel_stops_rewriting() {
    let launches = |fuel: &str| parse(&graph(&["-O2", "--fuel", fuel]).ok().stdout).unwrap().groups().len();
    assert_eq!((launches("0"), launches("2"), launches("3")), (75, 73, 72));
    assert_eq!(launches("unlimited"), 23);
    let explained = run(&with_model("explain", &["-O2", "--fuel", "3"])).ok().stdout;
    assert!(explained.contains("out of fuel"), "{explained}");
}

#[test]
fn steps_are_cut_where_the_settings_say() {
    let pieces = |ops: &str| {
        let run = run(&with_model("explain", &["-O1", "--format", "json", &format!("-cc.splitting_ops={ops}")])).ok();
        serde_json::from_str::<serde_json::Value>(&run.stdout).unwrap()["step"]["pieces"].as_u64().unwrap()
    };
    assert_eq!((pieces("attention"), pieces("[]")), (10, 2));
    let every = "-cc.splitting_ops=linear,attention,embedding,rms_norm,select_rows,rope_angles";
    let piecewise = [every, "-cc.cudagraph_mode=PIECEWISE", "--require-graphs", "hi"];
    let error = generate(&piecewise).failed(1);
    assert!(error.contains("every launch is of a splitting operation, so no piece is recorded"), "{error}");
    assert!(pieces("linear") > 10);
    let error = graph(&["-cc.splitting_ops=atention"]).failed(2);
    assert!(error.contains("compilation.splitting_ops (command line -cc.splitting_ops)"), "{error}");
    assert!(error.contains("there is no operation `atention` to cut steps at; did you mean `attention`?"), "{error}");
}
