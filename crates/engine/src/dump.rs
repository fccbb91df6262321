//! The dump of a plan: the graph before and after every pass, the launches, the generated kernels, the memory plan, the
//! capture plan, the settings and the recordings, as files for people to read and compare.
//!
//! The same input gives the same bytes, so that two dumps can be compared file by file. Times would make every dump another:
//! they are in `explain` and in the log.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::Path;

use allotrope_config::{Format, explain};
use allotrope_graph::Graph;
use allotrope_graph::history::PassReport;
use allotrope_graph::passes::PIPELINE;
use allotrope_graph::text::{Stage, page};
use allotrope_runtime::{CapturePlan, GeneratedCode};

use crate::error::EngineError;
use crate::plan::{Plan, limits};

/// Where the dump is written: another dump is the same wherever it lies.
const DUMP_SETTING: &str = "compilation.debug_dump_path";

/// The file that lists all others.
const INDEX: &str = "index.md";

/// The folder of the recordings within a dump.
const RECORDINGS: &str = "recordings";

/// The folder of generated kernels within a dump.
const KERNELS: &str = "kernels";

/// The name of the last graph of a dump.
const AS_RUN: &str = "as-run";

/// A file of a dump.
struct File {
    name: String,
    text: String,
}

/// Writes the dump of a plan into a folder, which is made if it is not there. Files of an earlier dump are replaced, and those
/// that this one lacks removed; nothing else in the folder is touched. The index comes last: where it is, all is.
///
/// # Errors
/// If a file can't be written.
pub(crate) fn write(plan: &Plan, folder: &Path) -> Result<(), EngineError> {
    let kernels = Kernels::of(plan)?;
    // The index that says that all is there comes after everything that it names.
    remove_index(folder)?;
    write_folder(&folder.join(KERNELS), &kernels.files, is_kernel)?;
    // Of an earlier run, perhaps of another model.
    write_recordings(&[], folder)?;
    write_files(folder, &files(plan, &kernels)?)?;
    for report in plan.passes().iter().filter(|report| report.enabled) {
        tracing::info!(pass = report.name, matches = report.matches, time = ?report.time, "dumped");
    }
    Ok(())
}

/// Removes the index of an earlier dump.
fn remove_index(folder: &Path) -> Result<(), EngineError> {
    let path = folder.join(INDEX);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(EngineError::Dump { path, error }),
        _ => Ok(()),
    }
}

/// Writes recordings, by name, beside the dump of the plan. Those of an earlier run that are not among them are removed.
///
/// # Errors
/// If a file can't be written.
pub(crate) fn write_recordings(recordings: &[(String, String)], folder: &Path) -> Result<(), EngineError> {
    let files = recordings.iter().map(|(name, text)| File { name: format!("{name}.dot"), text: text.clone() });
    let files: Vec<File> = files.collect();
    write_folder(&folder.join(RECORDINGS), &files, is_recording)
}

/// Writes files into a folder of a dump. Those that are named like such and are not among them are removed.
fn write_folder(folder: &Path, files: &[File], is_ours: fn(&str) -> bool) -> Result<(), EngineError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| EngineError::Dump { path, error }
    };
    if !files.is_empty() {
        fs::create_dir_all(folder).map_err(failed(folder))?;
    }
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.map_err(failed(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if is_ours(&name) && !files.iter().any(|file| file.name == *name) {
            fs::remove_file(&path).map_err(failed(&path))?;
        }
    }
    if files.is_empty() {
        // An empty folder is no part of a dump; one that holds something else stays.
        let _ = fs::remove_dir(folder);
    }
    files.iter().try_for_each(|file| write_file(folder, file))
}

/// Whether a file is named like a recording: `step-8.dot`, `body-64.dot`, `piece-3-16.dot`.
fn is_recording(name: &str) -> bool {
    let Some(name) = name.strip_suffix(".dot") else { return false };
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match name.split('-').collect::<Vec<_>>()[..] {
        ["step" | "body", size] => number(size),
        ["piece", piece, size] => number(piece) && number(size),
        _ => false,
    }
}

/// Whether a file is named like a generated kernel: `row_program-3.ptx`.
fn is_kernel(name: &str) -> bool {
    let parts = name.strip_suffix(".ptx").and_then(|name| name.rsplit_once('-'));
    parts.is_some_and(|(name, number)| {
        let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        !name.is_empty() && is_name && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// The kernels that are generated for a plan.
struct Kernels {
    /// Each text once, in the order of the launches.
    files: Vec<File>,
    /// For each launch, the names of its files.
    of_launches: Vec<Vec<String>>,
}

impl Kernels {
    fn of(plan: &Plan) -> Result<Self, EngineError> {
        let mut files: Vec<File> = Vec::new();
        // The file of each text, and how many a kernel's name has so far.
        let (mut known, mut counts) = (HashMap::<String, String>::new(), HashMap::<String, usize>::new());
        let mut of_launches = Vec::with_capacity(plan.launches());
        for launch in 0..plan.launches() {
            let mut names = Vec::new();
            for GeneratedCode { name, extension, text } in plan.generated_code(launch)? {
                let file = known.get(&text).cloned().unwrap_or_else(|| {
                    let count = counts.entry(name.clone()).or_default();
                    *count += 1;
                    let file = format!("{name}-{count}.{extension}");
                    files.push(File { name: file.clone(), text: text.clone() });
                    known.insert(text, file.clone());
                    file
                });
                names.push(file);
            }
            of_launches.push(names);
        }
        Ok(Self { files, of_launches })
    }
}

/// Writes the graphs alone: of a pipeline that did not come to its end.
///
/// # Errors
/// As [`write`].
pub(crate) fn write_graphs(as_built: &Graph, stages: &[(PassReport, Graph)], folder: &Path) -> Result<(), EngineError> {
    write_files(folder, &graph_files(as_built, stages))
}

fn write_files(folder: &Path, files: &[File]) -> Result<(), EngineError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| EngineError::Dump { path, error }
    };
    fs::create_dir_all(folder).map_err(failed(folder))?;
    let earlier = (0..=PIPELINE.len() + 1).map(graph_file).chain([INDEX.to_owned()]);
    for name in earlier.filter(|name| *name == INDEX || !files.iter().any(|file| file.name == *name)) {
        let path = folder.join(&name);
        // A link is removed itself, and not what it leads to.
        if fs::symlink_metadata(&path).is_ok() {
            fs::remove_file(&path).map_err(failed(&path))?;
        }
    }
    files.iter().try_for_each(|file| write_file(folder, file))
}

fn write_file(folder: &Path, File { name, text }: &File) -> Result<(), EngineError> {
    let path = folder.join(name);
    // Written beside its place and moved there, it is there whole or not at all.
    let partial = folder.join(format!(".{name}.{}.partial", std::process::id()));
    let written = fs::File::create_new(&partial).and_then(|mut file| file.write_all(text.as_bytes()));
    let moved = written.and_then(|()| fs::rename(&partial, &path));
    moved.map_err(|error| {
        let _ = fs::remove_file(&partial);
        EngineError::Dump { path, error }
    })
}

/// The name of the file with the graph after so many passes; one after the last has the launches in the order in which they
/// run.
fn graph_file(place: usize) -> String {
    let name = match place.checked_sub(1) {
        None => "as-built",
        Some(pass) => PIPELINE.get(pass).map_or(AS_RUN, |pass| pass.name),
    };
    format!("{place:02}-{name}.air")
}

fn files(plan: &Plan, kernels: &Kernels) -> Result<Vec<File>, EngineError> {
    let stages = plan.stages()?;
    let file = |name: &str, text: String| File { name: name.to_owned(), text };
    let mut files = graph_files(plan.as_built(), &stages);
    files.extend([
        file("passes.html", passes_page(plan, &stages)),
        file("launches.txt", launches(plan, kernels)),
        file("memory.txt", plan.memory()?.to_text(plan.graph())),
        file("captures.txt", capture_plan(plan)?.to_text()),
        file("settings.json", settings(plan)?),
        file(&graph_file(PIPELINE.len() + 1), plan.graph().to_string()),
        file(INDEX, index(plan, &stages)?),
    ]);
    Ok(files)
}

/// The graph as built, and after each pass that ran.
fn graph_files(as_built: &Graph, stages: &[(PassReport, Graph)]) -> Vec<File> {
    let file = |place: usize, graph: &Graph| File { name: graph_file(place), text: graph.to_string() };
    let ran = stages.iter().enumerate().filter(|(_, (report, _))| report.enabled);
    [file(0, as_built)].into_iter().chain(ran.map(|(place, (_, graph))| file(place + 1, graph))).collect()
}

fn index(plan: &Plan, stages: &[(PassReport, Graph)]) -> Result<String, EngineError> {
    let mut text =
        format!("# {}\n\n| file | pass | matches | operations | launches |\n|---|---|--:|--:|--:|\n", plan.title());
    let as_built = plan.as_built();
    let mut row = |place: usize, what: &str, matches: &str, ops: usize, launches: usize| {
        let name = graph_file(place);
        let _ = writeln!(text, "| [{name}]({name}) | {what} | {matches} | {ops} | {launches} |");
    };
    row(0, "the graph as the model builder wrote it", "", as_built.ops().len(), as_built.groups().len());
    for (place, (report, _)) in stages.iter().enumerate().filter(|(_, (report, _))| report.enabled) {
        row(place + 1, report.description, &report.matches.to_string(), report.ops, report.launches);
    }
    let order = plan.schedule().map_or_else(
        || "launches in the order of the graph".to_owned(),
        |schedule| format!("launches put in order: {} have another place", schedule.moved),
    );
    row(PIPELINE.len() + 1, &order, "", plan.graph().ops().len(), plan.launches());
    let off = stages.iter().filter(|(report, _)| !report.enabled).map(|(report, _)| report.name);
    let off: Vec<&str> = off.collect();
    if !off.is_empty() {
        let _ = writeln!(text, "\nOff: {}. [settings.json](settings.json) says why.", off.join(", "));
    }
    let misses = stages.iter().flat_map(|(report, _)| report.near_misses.iter().map(|miss| (report.name, miss)));
    let misses: Vec<String> = misses.map(|(name, miss)| format!("- {name}: {miss}")).collect();
    if !misses.is_empty() {
        let _ = writeln!(text, "\n## Left alone\n\n{}", misses.join("\n"));
    }
    let memory = plan.memory()?;
    let _ = writeln!(
        text,
        "\n## Further files\n\n\
         - [passes.html](passes.html): the graph before and after each pass, side by side\n\
         - [launches.txt](launches.txt): what the device runs for each launch\n\
         - `kernels/`: the code that is generated for launches, where the device generates any: each text once, [launches.txt](launches.txt) says whose it is\n\
         - [memory.txt](memory.txt): where values between launches are kept: {} bytes, of which at most {} are alive at once, with {} results in place\n\
         - [captures.txt](captures.txt): which parts of a step are recorded, at which sizes\n\
         - `recordings/`: each recording as a Graphviz graph, where the model was loaded and recorded at startup\n\
         - [settings.json](settings.json): every setting with its source and reason\n\n\
         The same input gives the same bytes; how long each pass took is in `allotrope explain`.",
        memory.bytes,
        memory.lower_bound,
        memory.in_place.len()
    );
    Ok(text)
}

/// The page that shows the graph before and after each pass.
pub(crate) fn passes_page(plan: &Plan, stages: &[(PassReport, Graph)]) -> String {
    let stages: Vec<Stage<'_>> = stages.iter().map(|(report, graph)| Stage { report, graph }).collect();
    page(&plan.title(), plan.as_built(), &stages)
}

fn launches(plan: &Plan, kernels: &Kernels) -> String {
    let mut text = String::new();
    for (launch, label) in plan.launch_labels().iter().enumerate() {
        let _ = writeln!(text, "launch {launch}: {label}");
        for line in plan.describe_launch(launch).lines() {
            let _ = writeln!(text, "  {line}");
        }
        for file in kernels.of_launches.get(launch).into_iter().flatten() {
            let _ = writeln!(text, "  code in {KERNELS}/{file}");
        }
    }
    text
}

fn capture_plan(plan: &Plan) -> Result<CapturePlan, EngineError> {
    let compilation = &plan.settings().compilation;
    let (mode, sizes) = (*compilation.cudagraph_mode, &compilation.cudagraph_capture_sizes);
    Ok(CapturePlan::new(plan.graph(), plan.splitting_ops(), mode, sizes, limits(plan.settings()))?)
}

fn settings(plan: &Plan) -> Result<String, EngineError> {
    let text = explain(plan.settings(), &plan.pass_lines(false), None, &Format::Json)?;
    let Ok(mut json) = serde_json::from_str::<serde_json::Value>(&text) else { return Ok(text) };
    if let Some(rows) = json.get_mut("settings").and_then(serde_json::Value::as_array_mut) {
        rows.retain(|row| row.get("setting").and_then(serde_json::Value::as_str) != Some(DUMP_SETTING));
    }
    Ok(format!("{json:#}\n"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use allotrope_graph::passes::{Fuel, run_passes};
    use allotrope_graph::text::parse;

    /// Of a pipeline that did not come to its end, the graphs are there, and no index that would say that all is.
    #[test]
    fn graphs_of_a_pipeline_that_broke_off_are_written_without_an_index() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(INDEX), "of an earlier dump").unwrap();
        let text = "graph {\n  input %token_ids: i32[T]\n  weight %table: bf16[4, 8]\n  \
                    %x: bf16[T, 8] = embedding(%table, %token_ids)\n  %y: bf16[T, 8] = cast<to=bf16>(%x)\n  return %y\n}";
        let (as_built, mut stages) = (parse(text).unwrap(), Vec::new());
        let target = allotrope_cpu_runtime::CpuTarget;
        let observe = &mut |report: &PassReport, graph: &Graph| stages.push((report.clone(), graph.clone()));
        run_passes(&mut as_built.clone(), &PIPELINE[..1], |_| true, &target, Fuel::UNLIMITED, observe).unwrap();
        write_graphs(&as_built, &stages, folder.path()).unwrap();
        let read = |name: &str| parse(&fs::read_to_string(folder.path().join(name)).unwrap()).unwrap();
        assert_eq!(read("00-as-built.air"), as_built);
        assert_eq!(read("01-eliminate_noops.air").ops().len(), 1);
        assert!(!folder.path().join(INDEX).exists());
    }
}
