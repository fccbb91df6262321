//! Which part of the machine's ceilings each benchmark of this run reached: of reading as many bytes in the best way known, or
//! of bf16 dot products in registers, both measured by the same threads right after.

use allotrope_cpu_runtime::{BandwidthProbe, Isa, Team, available_threads, measure_dot_product_peak};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// How often a ceiling is measured; the best counts.
const ROUNDS: usize = 10;

/// What a benchmark does in an iteration, by its throughput.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    Bytes(u64),
    FloatingPoint(u64),
}

/// Prints the table of all benchmarks that wrote results since `begin`; nothing if there are none, as in a run that only
/// tests them.
pub(crate) fn print(begin: SystemTime) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("criterion");
    let mut results = BTreeMap::new();
    collect(&folder, begin, &mut results);
    if results.is_empty() {
        return;
    }
    let team = Team::new(available_threads()).unwrap();
    let peak = (0..ROUNDS).map(|_| measure_dot_product_peak(&team, Isa::detect())).fold(0.0, f64::max);
    let mut bandwidths = BTreeMap::new();
    println!("| benchmark | floor | median | reached | of the ceiling |\n|---|--:|--:|--:|--:|");
    for (name, (work, seconds)) in results {
        let (amount, unit, ceiling) = match work {
            Work::Bytes(bytes) => (bytes, "GB/s", *bandwidths.entry(bytes).or_insert_with(|| bandwidth(&team, bytes))),
            Work::FloatingPoint(operations) => (operations, "GFLOP/s", peak),
        };
        let (floor, rate) = (amount as f64 / ceiling, amount as f64 / seconds);
        println!(
            "| {name} | {} | {} | {:.1} {unit} | {:.0} % |",
            show(floor),
            show(seconds),
            rate / 1e9,
            100.0 * floor / seconds
        );
    }
    println!("{} threads, {}; {:.0} GFLOP/s of bf16 dot products", team.threads(), Isa::detect(), peak / 1e9);
}

/// Bytes per second of reading so many.
fn bandwidth(team: &Team, bytes: u64) -> f64 {
    let mut probe = BandwidthProbe::new(team, usize::try_from(bytes).unwrap()).unwrap();
    (0..ROUNDS).map(|_| probe.measure(team)).fold(0.0, f64::max)
}

fn show(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 1e-3 => format!("{:.2} µs", seconds * 1e6),
        seconds => format!("{:.2} ms", seconds * 1e3),
    }
}

/// Work and median time of every benchmark below a folder whose results are new.
fn collect(folder: &Path, begin: SystemTime, results: &mut BTreeMap<String, (Work, f64)>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()) {
        if path.ends_with("new") {
            let result = read(&path, begin);
            results.extend(result);
        } else {
            collect(&path, begin, results);
        }
    }
}

/// The benchmark whose results a folder has, if they are new and it has a throughput.
fn read(folder: &Path, begin: SystemTime) -> Option<(String, (Work, f64))> {
    let json = |file: &str| -> Option<Value> {
        let path: PathBuf = folder.join(file);
        let changed = std::fs::metadata(&path).ok()?.modified().ok()?;
        (changed >= begin).then(|| serde_json::from_slice(&std::fs::read(&path).ok()?).ok())?
    };
    let (about, estimates) = (json("benchmark.json")?, json("estimates.json")?);
    let throughput = about.get("throughput")?;
    let amount = |kind: &str| throughput.get(kind).and_then(Value::as_u64);
    let work = amount("Bytes").map(Work::Bytes).or_else(|| amount("Elements").map(Work::FloatingPoint))?;
    let nanoseconds = estimates.get("median")?.get("point_estimate")?.as_f64()?;
    Some((about.get("full_id")?.as_str()?.to_owned(), (work, nanoseconds / 1e9)))
}
