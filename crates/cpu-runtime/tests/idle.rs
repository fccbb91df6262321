//! A team that has nothing to do takes no processor time. Alone in its process, whose time is measured.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests")]

use allotrope_cpu_runtime::Team;
use std::time::Duration;

/// Processor time of all threads of this process: the first numbers of their `schedstat`.
fn processor_time() -> Duration {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let times = threads.map(|thread| {
        let text = std::fs::read_to_string(thread.unwrap().path().join("schedstat")).unwrap();
        text.split_ascii_whitespace().next().unwrap().parse::<u64>().unwrap()
    });
    Duration::from_nanos(times.sum())
}

#[test]
fn an_idle_team_sleeps() {
    let team = Team::new(4).unwrap();
    (0..100).for_each(|_| team.run(|worker| worker.barrier()));
    let before = processor_time();
    std::thread::sleep(Duration::from_millis(500));
    let used = processor_time() - before;
    // One member that kept polling would use 500 ms where it can run, and what the test itself takes is far below 50.
    assert!(used < Duration::from_millis(50), "an idle team used {used:?} of 500 ms");
    // It still works.
    team.run(|worker| worker.barrier());
}
