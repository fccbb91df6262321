//! Decoding while another process keeps one of the processors busy: what happens in containers and on shared machines.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::Prompts;
use super::contender::{Contender, Engine, Workload};
use super::report::{Measure, Results};
use crate::error::TaskError;

/// With more processors than threads there would be no contention: whoever waits for one gets another.
///
/// # Errors
/// If this process may use more or fewer processors than `threads`.
pub(super) fn check_processors(threads: u32) -> Result<(), TaskError> {
    let usable = usable()?.len();
    if usable == threads as usize && threads >= 2 {
        return Ok(());
    }
    Err(TaskError::Message(format!(
        "contention is for two or more threads on as many processors, and here are {threads} threads on {usable} processors; \
         run it under `taskset --cpu-list 0-{}`, or leave contention out of --only",
        threads.max(2) - 1
    )))
}

/// The processors that this process may use.
fn usable() -> Result<Vec<usize>, TaskError> {
    let set = sched_getaffinity(None)
        .map_err(|error| TaskError::Message(format!("which processors may be used is not known: {error}")))?;
    Ok((0..CpuSet::MAX_CPU).filter(|&processor| set.is_set(processor)).collect())
}

/// One turn of every engine: with one thread alone, with all threads alone, and with all while this process keeps the last
/// processor busy.
///
/// # Errors
/// If a run fails, or the processor can't be had.
pub(super) fn measure_round(
    contenders: &[Contender],
    prompts: &Prompts,
    threads: u32,
    results: &mut Results,
) -> Result<(), TaskError> {
    let takes_part = |contender: &&Contender| {
        matches!(contender.engine, Engine::Allotrope | Engine::LlamaCpp) && contender.runs(Workload::Short)
    };
    for contender in contenders.iter().filter(takes_part) {
        let mut decode = |threads, measure| {
            eprintln!("  {}: {measure:?}", contender.name);
            let answers = contender.answers(Workload::Short, prompts, threads)?;
            for answer in &answers {
                results.add(contender, measure, answer.decode_rate());
                results.add_intervals(contender, measure, answer.intervals());
            }
            Ok(())
        };
        decode(1, Measure::OneThread)?;
        decode(threads, Measure::AllThreads)?;
        while_busy(|| decode(threads, Measure::Contended))?;
    }
    Ok(())
}

/// Does something while a thread of this process keeps the last usable processor busy.
fn while_busy<T>(work: impl FnOnce() -> Result<T, TaskError>) -> Result<T, TaskError> {
    let last = usable()?.last().copied().unwrap_or_default();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let busy = scope.spawn(|| {
            let mut set = CpuSet::new();
            set.set(last);
            let pinned = sched_setaffinity(None, &set);
            while pinned.is_ok() && !done.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
            pinned
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        match busy.join() {
            Ok(Ok(())) => result,
            _ => Err(TaskError::Message(format!("a thread can't be bound to processor {last}"))),
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_other_thread_ends_and_leaves_the_processors_of_this_one() {
        let before = usable().unwrap();
        assert_eq!(while_busy(|| Ok(usable().unwrap())).unwrap(), before);
        let failed = while_busy(|| Err::<(), _>(TaskError::Message("why".into()))).unwrap_err();
        assert_eq!(failed.to_string(), "why");
    }

    #[test]
    fn threads_must_be_as_many_as_processors() {
        let usable = u32::try_from(usable().unwrap().len()).unwrap();
        assert_eq!(check_processors(usable).is_ok(), usable >= 2);
        let error = check_processors(usable + 1).unwrap_err().to_string();
        assert!(error.contains("taskset") && error.contains(&usable.to_string()), "{error}");
    }
}
