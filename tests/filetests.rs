//! IR filetests: `filetests/**.air` hold a graph, what is to be done with it, and what must come out. `BLESS=1` writes what
//! comes out into the files; read the difference before you commit it. `filetests/README.md` describes the form.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use allotrope_config::OptimizationLevel;
use allotrope_cpu_runtime::CpuTarget;
use allotrope_cuda_runtime::CudaTarget;
use allotrope_graph::passes::{Fuel, PIPELINE, Pass, find, passes_at, run_passes};
use allotrope_graph::text::{parse, parse_unverified};
use allotrope_graph::verify::verify;
use allotrope_graph::{Graph, OpId, Target};
use allotrope_tests::here;

/// Between what goes in and what must come out.
const SEPARATOR: &str = ";; expected";

/// A target that takes every group, or none.
struct Always(bool);

impl Target for Always {
    fn name(&self) -> &str {
        if self.0 { "everything" } else { "nothing" }
    }

    fn accepts(&self, _: &Graph, ops: &[OpId]) -> Result<(), String> {
        if self.0 || ops.len() == 1 { Ok(()) } else { Err("no kernel for more than one operation".into()) }
    }
}

/// What the lines `; key: value` at the top of a file say.
#[derive(Default)]
struct Header {
    run: Vec<&'static Pass>,
    level: Option<OptimizationLevel>,
    target: Option<String>,
    fuel: Option<usize>,
    checks_only: bool,
}

impl Header {
    fn read(text: &str) -> Result<Self, String> {
        let mut header = Header::default();
        for line in text.lines().take_while(|line| line.starts_with(';')) {
            // Lines with more than a word before the colon, or without one, are remarks.
            let key_and_value = line[1..].split_once(':').map(|(key, value)| (key.trim(), value.trim()));
            let Some((key, value)) = key_and_value.filter(|(key, _)| !key.contains(' ')) else { continue };
            match key {
                "run" => {
                    for name in value.split(',').map(str::trim) {
                        header.run.push(find(name).ok_or_else(|| format!("there is no pass {name}"))?);
                    }
                }
                "level" => header.level = Some(value.parse().map_err(|error| format!("{value}: {error:?}"))?),
                "target" => header.target = Some(value.to_owned()),
                "fuel" => header.fuel = Some(value.parse().map_err(|_| format!("fuel {value} is no number"))?),
                "check" if value == "only" => header.checks_only = true,
                other => return Err(format!("the header has no key {other}")),
            }
        }
        if header.run.is_empty() && header.level.is_none() && !header.checks_only {
            return Err("the header says neither run, nor level, nor check".to_owned());
        }
        Ok(header)
    }

    fn target(&self) -> Result<Box<dyn Target>, String> {
        Ok(match self.target.as_deref().unwrap_or("everything") {
            "everything" => Box::new(Always(true)),
            "nothing" => Box::new(Always(false)),
            "cpu" => Box::new(CpuTarget),
            "cuda" => Box::new(CudaTarget),
            other => return Err(format!("there is no target {other}")),
        })
    }
}

/// What comes out of the graph of a file.
fn outcome(input: &str) -> Result<String, String> {
    let header = Header::read(input)?;
    if header.checks_only {
        return Ok(match parse(input) {
            Ok(_) => "; sound\n".to_owned(),
            Err(error) => error.to_string().lines().map(|line| format!("; {line}\n")).collect(),
        });
    }
    let mut graph = parse(input).map_err(|error| error.to_string())?;
    let before = graph.clone();
    let target = header.target()?;
    let fuel = header.fuel.map_or(Fuel::UNLIMITED, Fuel::limited);
    let passes = match header.level {
        Some(level) => passes_at(level, &graph).unwrap(),
        None => header.run.iter().map(|pass| **pass).collect(),
    };
    run_passes(&mut graph, &passes, |_| true, &*target, fuel, &mut |_, _| {}).map_err(|error| error.to_string())?;
    verify(&graph).map_err(|error| error.to_string())?;
    assert_eq!(parse_unverified(&graph.to_string()).unwrap(), graph, "what is printed reads back");
    let mut text = if graph == before { "; nothing changes\n".to_owned() } else { graph.to_string() };
    for report in graph.history().iter().filter(|report| report.enabled) {
        let matches = if report.matches == 1 { "match" } else { "matches" };
        writeln!(text, "; {}: {} {matches}, {} launches", report.name, report.matches, report.launches).unwrap();
        // Whole layers report what every pass left alone, which the tests of each pass show better.
        for miss in report.near_misses.iter().filter(|_| header.level.is_none()) {
            writeln!(text, ";   left alone: {miss}").unwrap();
        }
    }
    Ok(text)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "air") {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn every_file_gives_what_it_expects() {
    let bless = std::env::var_os("BLESS").is_some_and(|value| value == "1");
    let mut failures = Vec::new();
    let all = files(&here().join("filetests"));
    for path in &all {
        let text = fs::read_to_string(path).unwrap();
        let name = path.strip_prefix(here()).unwrap().display();
        let (input, expected) = text.split_once(&format!("{SEPARATOR}\n")).unwrap_or((&text, ""));
        let found = outcome(input).unwrap_or_else(|error| panic!("{name}: {error}"));
        if found == expected {
            continue;
        }
        if bless {
            fs::write(path, format!("{}\n\n{SEPARATOR}\n{found}", input.trim_end())).unwrap();
            println!("blessed {name}");
        } else {
            failures.push(format!("{name}: expected\n{expected}\nfound\n{found}"));
        }
    }
    assert!(failures.is_empty(), "{}\nBLESS=1 writes what was found", failures.join("\n\n"));
    println!("{} filetests", all.len());
}

/// Every pass has a test where it matches and one where it must not.
#[test]
fn every_pass_has_a_positive_and_a_negative_test() {
    let texts: Vec<String> =
        files(&here().join("filetests")).iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    for pass in PIPELINE {
        let runs = |text: &&String| text.lines().any(|line| line == format!("; run: {}", pass.name));
        let nothing = format!("; {}: 0 matches", pass.name);
        let (negative, positive): (Vec<&String>, Vec<&String>) =
            texts.iter().filter(runs).partition(|text| text.contains(&nothing));
        assert!(!positive.is_empty(), "no filetest shows {} matching", pass.name);
        assert!(
            negative.iter().any(|text| text.contains("left alone")),
            "no filetest shows what {} leaves alone, and why",
            pass.name
        );
    }
}
