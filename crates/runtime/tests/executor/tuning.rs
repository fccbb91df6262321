//! When kernels are tuned, and what is kept of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use allotrope_config::{GraphCapture, GraphMode};
use allotrope_graph::{WeightData, WeightSource};
use allotrope_runtime::{Executor, ExecutorError, StartupLedger, StartupReport, Tuning};

use crate::support::{Call, Scribe, graph, options};

const LONG: Duration = Duration::from_secs(60);

struct Nothing;
impl WeightSource for Nothing {
    fn weight(&self, _: &str) -> Option<WeightData<'_>> {
        None
    }
}

fn start(device: Scribe, tuning: Option<Tuning>) -> Result<(Executor<Scribe>, StartupReport), ExecutorError> {
    let options =
        allotrope_runtime::ExecutorOptions { tuning, ..options(GraphMode::Full, GraphCapture::Startup, false) };
    let mut ledger = StartupLedger::since(Instant::now());
    let executor = Executor::build(device, graph(), Arc::new(Nothing), options, &mut ledger)?;
    Ok((executor, ledger.finish()))
}

fn of(fingerprint: &'static str) -> Scribe {
    Scribe { tunable: Some((fingerprint, false)), ..Scribe::default() }
}

fn kept_in(folder: &Path, budget: Duration) -> Option<Tuning> {
    Some(Tuning { cache: Some(folder.to_path_buf()), budget })
}

/// What came from the cache, was searched and was left.
fn counts(executor: &Executor<Scribe>) -> (usize, usize, usize) {
    let report = executor.tuning().unwrap();
    (report.cached, report.searched, report.left)
}

#[test]
fn tuning_comes_after_memory_is_allocated_and_before_anything_is_prepared_or_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let (executor, startup) = start(of("one"), kept_in(folder.path(), LONG)).unwrap();
    let calls = executor.device().calls();
    assert_eq!(calls[..3], [Call::Allocate, Call::Tune([None, None]), Call::Prepare(0)]);
    assert!(matches!(calls.last(), Some(Call::Record(..))));
    assert!(startup.phases.iter().any(|phase| phase.name == "tune kernels"), "{startup}");
    assert_eq!(counts(&executor), (0, 2, 0));
}

#[test]
fn a_second_start_searches_nothing_and_another_device_everything() {
    let folder = tempfile::tempdir().unwrap();
    start(of("one"), kept_in(folder.path(), LONG)).unwrap();
    let (again, _) = start(of("one"), kept_in(folder.path(), Duration::ZERO)).unwrap();
    assert!(again.device().calls().contains(&Call::Tune([Some(vec![0, 16]), Some(vec![1, 16])])));
    assert_eq!(counts(&again), (2, 0, 0));
    let (other, _) = start(of("another"), kept_in(folder.path(), LONG)).unwrap();
    assert_eq!(counts(&other), (0, 2, 0));
    std::fs::remove_dir_all(folder.path()).unwrap();
    let (anew, _) = start(of("one"), kept_in(folder.path(), Duration::ZERO)).unwrap();
    assert_eq!(counts(&anew), (0, 0, 2), "there was no time to search");
    assert!(!folder.path().exists(), "where nothing was found nothing is kept");
}

#[test]
fn without_a_folder_tuning_works_and_keeps_nothing() {
    for _ in 0..2 {
        let (executor, _) = start(of("one"), Some(Tuning { cache: None::<PathBuf>, budget: LONG })).unwrap();
        assert_eq!(counts(&executor), (0, 2, 0));
    }
}

#[test]
fn nothing_is_tuned_unless_it_is_asked_for_and_there_is_something() {
    let folder = tempfile::tempdir().unwrap();
    for (device, tuning) in [(of("one"), None), (Scribe::default(), kept_in(folder.path(), LONG))] {
        let (executor, _) = start(device, tuning).unwrap();
        assert!(!executor.device().calls().iter().any(|call| matches!(call, Call::Tune(_))));
        assert_eq!(executor.tuning(), None);
    }
}

#[test]
fn what_was_found_before_a_failure_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let failing = Scribe { tunable: Some(("one", true)), ..Scribe::default() };
    let error = start(failing, kept_in(folder.path(), LONG)).err().unwrap();
    assert!(error.to_string().contains("it got dark"), "{error}");
    let (executor, _) = start(of("one"), kept_in(folder.path(), LONG)).unwrap();
    assert_eq!(counts(&executor), (1, 1, 0));
}
