//! Compiles sources: nvcc to PTX, and ptxas from that text to machine code. The same sources and the same toolkit give
//! the same bytes: nothing in an output depends on the folder or the time.

use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use allotrope_cuda_runtime::bundle::{Architecture, Kind, Output};

use super::manifest::KernelRecord;
use super::source::Source;
use super::toolkit::Toolkit;
use super::{FLAGS, PTX_VERSION};
use crate::error::TaskError;
use crate::workspace;

/// How many compilers run at once.
const JOBS: usize = 2;

/// What was made of a source.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// In the order that the source lists them.
    pub(super) outputs: Vec<Output>,
    /// By name, and for each name by architecture.
    pub(super) kernels: Vec<KernelRecord>,
}

/// A source, for one architecture.
struct Job<'a> {
    source: &'a Source,
    architecture: Architecture,
    kinds: Vec<Kind>,
}

/// Compiles sources; an outcome for each, in their order.
///
/// # Errors
/// What nvcc and ptxas print if a source does not compile; if PTX is of another version, or an output names a folder of
/// this machine.
pub(super) fn all(folder: &Path, sources: &[Source], toolkit: &Toolkit) -> Result<Vec<Outcome>, TaskError> {
    let scratch = tempfile::tempdir().map_err(TaskError::file(&std::env::temp_dir()))?;
    let jobs: Vec<Job<'_>> = sources.iter().flat_map(jobs_of).collect();
    let results: Mutex<Vec<Option<Result<Outcome, TaskError>>>> = Mutex::new(jobs.iter().map(|_| None).collect());
    let next = Mutex::new(0..jobs.len());
    let work = || {
        while let Some(index) = take(&next) {
            let result = compile(folder, scratch.path(), &jobs[index], toolkit);
            let failed = result.is_err();
            if let Ok(mut results) = results.lock() {
                results[index] = Some(result);
            }
            if failed && let Ok(mut next) = next.lock() {
                *next = 0..0;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..JOBS {
            scope.spawn(work);
        }
    });
    let results = results.into_inner().unwrap_or_default();
    let mut outcomes: Vec<Outcome> = sources.iter().map(|_| Outcome::default()).collect();
    for (job, result) in jobs.iter().zip(results) {
        // Jobs that never began are those after one that failed, whose error ends this loop: jobs begin in order.
        let result = result.unwrap_or_else(|| Err(TaskError::Message("a compiler's thread ended early".into())))?;
        if let Some(index) = sources.iter().position(|source| source == job.source) {
            outcomes[index].outputs.extend(result.outputs);
            outcomes[index].kernels.extend(result.kernels);
        }
    }
    for outcome in &mut outcomes {
        outcome.outputs.sort_by_key(|output| (output.kind, output.architecture));
        // Stable: for each name the architectures stay in the order of the jobs.
        outcome.kernels.sort_by(|left, right| left.name.cmp(&right.name));
    }
    Ok(outcomes)
}

fn take(next: &Mutex<std::ops::Range<usize>>) -> Option<usize> {
    next.lock().ok()?.next()
}

fn jobs_of(source: &Source) -> impl Iterator<Item = Job<'_>> {
    source.architectures().into_iter().map(move |architecture| {
        let outputs = source.outputs().into_iter().filter(|(_, of)| *of == architecture);
        Job { source, architecture, kinds: outputs.map(|(kind, _)| kind).collect() }
    })
}

/// Compiles for one architecture, in a scratch folder that all jobs share.
fn compile(folder: &Path, scratch: &Path, job: &Job<'_>, toolkit: &Toolkit) -> Result<Outcome, TaskError> {
    let Job { source, architecture, kinds } = job;
    let (name, target) = (&source.name, format!("compute_{architecture}"));
    let (ptx, cubin) = (format!("{name}.{architecture}.ptx"), format!("{name}.{architecture}.cubin"));
    let ptx_path = scratch.join(&ptx);
    let mut nvcc = Command::new(&toolkit.nvcc);
    nvcc.current_dir(folder).args(FLAGS).args(["-gencode", &format!("arch={target},code={target}"), "-ptx", "-o"]);
    report(&run(nvcc.arg(&ptx_path).arg(format!("{name}.cu")))?);
    let text = tidied(&workspace::read(&ptx_path)?);
    if !text.lines().any(|line| line == PTX_VERSION) {
        let found = text.lines().find(|line| line.starts_with(".version")).unwrap_or("no version");
        return Err(TaskError::Message(format!(
            "{name} for {target}: the PTX says `{found}`, not `{PTX_VERSION}`: the parts of this toolkit are of different \
             releases; use another, or remove target/cuda-toolkit if it is that"
        )));
    }
    std::fs::write(&ptx_path, &text).map_err(TaskError::file(&ptx_path))?;
    let mut ptxas = Command::new(&toolkit.ptxas);
    ptxas.current_dir(scratch).args(["-O3", "-v", "-arch", &format!("sm_{architecture}"), "-o", &cubin, &ptx]);
    let log = run(&mut ptxas)?;
    report(&log);
    let cubin_path = scratch.join(cubin);
    let mut outputs = Vec::new();
    for kind in kinds {
        let content = match kind {
            Kind::Ptx => text.clone().into_bytes(),
            Kind::Cubin => std::fs::read(&cubin_path).map_err(TaskError::file(&cubin_path))?,
        };
        for place in [folder, scratch, &workspace::root()] {
            if contains(&content, place.as_os_str().as_encoded_bytes()) {
                let place = place.display();
                return Err(TaskError::Message(format!("{kind} {architecture} of {name} names {place}: no __FILE__")));
            }
        }
        outputs.push(Output { source: name.clone(), kind: *kind, architecture: *architecture, content });
    }
    let kernels = resources(&log, &format!("sm_{architecture}"));
    let kernels = kernels.ok_or_else(|| TaskError::Message(format!("can't read what ptxas says:\n{log}")))?;
    Ok(Outcome { outputs, kernels })
}

/// Runs a compiler; what it printed.
fn run(command: &mut Command) -> Result<String, TaskError> {
    let line = || {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    };
    let line = line();
    let output = command.output().map_err(|source| TaskError::Start { command: line.clone(), source })?;
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed).into_owned();
    match output.status.success() {
        true => Ok(printed),
        false => Err(TaskError::Message(format!("`{line}` failed ({}):\n{printed}", output.status))),
    }
}

/// Shows what a compiler printed beside its usual statistics: warnings.
fn report(printed: &str) {
    let usual = |line: &str| line.starts_with("ptxas info") || line.trim_end().ends_with("bytes spill loads");
    for line in printed.lines().filter(|line| !usual(line) && !line.trim().is_empty()) {
        println!("{line}");
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// PTX without the compiler's comments, which can name files, and without empty lines. Comments that begin with `//@`
/// stay: they are the slots of templates.
fn tidied(ptx: &str) -> String {
    let is_kept = |line: &&str| {
        let line = line.trim_start();
        !line.is_empty() && (!line.starts_with("//") || line.starts_with("//@"))
    };
    ptx.lines().map(str::trim_end).filter(is_kept).flat_map(|line| [line, "\n"]).collect()
}

/// What `ptxas -v` says about each kernel; `None` if it is not understood.
fn resources(log: &str, architecture: &str) -> Option<Vec<KernelRecord>> {
    let mut kernels: Vec<KernelRecord> = Vec::new();
    let mut described = String::new();
    for line in log.lines() {
        if line.contains("Compiling entry function") {
            let mut quoted = line.split('\'').skip(1).step_by(2);
            let name = quoted.next()?.to_owned();
            let architecture = quoted.next().filter(|of| *of == architecture)?.to_owned();
            kernels.push(KernelRecord { name, architecture, registers: 0, shared: 0, spills: 0 });
        } else if let Some((_, name)) = line.split_once("Function properties for ") {
            name.trim().clone_into(&mut described);
        } else if line.contains("bytes spill stores") {
            // A function that was not inlined has a line of its own, which belongs to no kernel.
            if let Some(kernel) = kernels.last_mut().filter(|kernel| kernel.name == described) {
                kernel.spills =
                    number_before(line, " bytes spill stores")? + number_before(line, " bytes spill loads")?;
            }
        } else if line.contains(" registers") {
            let kernel = kernels.last_mut()?;
            kernel.registers = number_before(line, " registers")?;
            kernel.shared = number_before(line, " bytes smem").unwrap_or(0);
        }
    }
    let is_complete = kernels.iter().all(|kernel| kernel.registers > 0);
    is_complete.then_some(kernels)
}

fn number_before(line: &str, unit: &str) -> Option<u32> {
    line.split_once(unit)?.0.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const LOG: &str = "ptxas info    : 0 bytes gmem\n\
        ptxas info    : Compiling entry function 'second' for 'sm_80'\n\
        ptxas info    : Function properties for second\n    \
            24 bytes stack frame, 20 bytes spill stores, 28 bytes spill loads\n\
        ptxas info    : Used 255 registers, used 1 barriers, 24 bytes cumulative stack size, 4608 bytes smem\n\
        ptxas info    : Compile time = 13.754 ms\n\
        ptxas info    : Compiling entry function 'first' for 'sm_80'\n\
        ptxas info    : Function properties for first\n    \
            0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
        ptxas info    : Used 16 registers, used 0 barriers, 376 bytes cmem[0]\n\
        ptxas info    : Function properties for helper\n    \
            8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads\n";

    #[test]
    fn resources_are_read_for_each_kernel() {
        let kernel = |name: &str, registers, shared, spills| KernelRecord {
            name: name.into(),
            architecture: "sm_80".into(),
            registers,
            shared,
            spills,
        };
        assert_eq!(resources(LOG, "sm_80").unwrap(), [kernel("second", 255, 4608, 48), kernel("first", 16, 0, 0)]);
    }

    #[test]
    fn what_ptxas_says_in_another_form_is_not_taken_for_nothing() {
        for (from, to) in [("registers", "regs"), (" spill loads", " spilled"), ("'second'", "second")] {
            assert_eq!(resources(&LOG.replace(from, to), "sm_80"), None, "{to}");
        }
    }

    #[test]
    fn comments_go_and_slots_stay() {
        let ptx = "//\n// Generated by a compiler, in /some/folder\n//\n\n.version 9.0\n\n.entry f() {\n\t// begin inline asm\n\
                   \t//@rows %r1\n\t// end inline asm\n\n\tret;  \n}\n\n";
        assert_eq!(tidied(ptx), ".version 9.0\n.entry f() {\n\t//@rows %r1\n\tret;\n}\n");
    }
}
