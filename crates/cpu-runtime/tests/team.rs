//! The thread team: every member runs, barriers order, panics travel, nobody waits for ever.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use allotrope_cpu_runtime::{MAX_THREADS, Team, TeamError, partition};
use proptest::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn sizes_out_of_range_are_refused() {
    for threads in [0, MAX_THREADS + 1, usize::MAX] {
        assert!(matches!(Team::new(threads), Err(TeamError::Threads { threads: found }) if found == threads));
    }
}

#[test]
fn every_member_runs_every_job_once() {
    for threads in [1, 2, 5] {
        let team = Team::new(threads).unwrap();
        assert_eq!(team.threads(), threads);
        for _ in 0..200 {
            let runs: Vec<_> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
            let present = AtomicUsize::new(0);
            team.run(|worker| {
                assert_eq!(worker.count(), threads);
                present.store(worker.present(), Ordering::Relaxed);
                runs[worker.index()].fetch_add(1, Ordering::Relaxed);
            });
            // On a busy machine, some may be left out.
            let (there, left_out) = runs.split_at(present.into_inner());
            assert!(!there.is_empty() && there.iter().all(|runs| runs.load(Ordering::Relaxed) == 1));
            assert!(left_out.iter().all(|runs| runs.load(Ordering::Relaxed) == 0));
        }
    }
}

#[test]
fn writes_before_a_barrier_are_seen_after_it() {
    // More members than processors, so that some sleep at most barriers.
    for threads in [1, 2, 4, 7] {
        let team = Team::new(threads).unwrap();
        let cells: Vec<_> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
        team.run(|worker| {
            for round in 1..300 {
                cells[worker.index()].store(round, Ordering::Relaxed);
                worker.barrier();
                assert!(cells.iter().all(|cell| cell.load(Ordering::Relaxed) == round));
                worker.barrier();
            }
        });
    }
}

#[test]
fn units_are_shared_out_once_each_whoever_is_slow() {
    for threads in [1, 2, 3, 6] {
        let team = Team::new(threads).unwrap();
        for units in [0, 1, 2, 17, 1000] {
            let taken: Vec<_> = (0..units).map(|_| AtomicUsize::new(0)).collect();
            team.run(|worker| {
                // Twice in a row without a barrier between, then after one.
                for round in 0..3 {
                    worker.for_each_unit(units, |unit| {
                        taken[unit].fetch_add(1, Ordering::Relaxed);
                        if worker.index() == 0 {
                            std::thread::yield_now();
                        }
                    });
                    if round == 1 {
                        worker.barrier();
                    }
                }
            });
            assert!(taken.iter().all(|taken| taken.load(Ordering::Relaxed) == 3), "{threads} threads, {units} units");
        }
    }
}

#[test]
fn a_stalled_member_does_not_hold_up_the_units_of_its_share() {
    let team = Team::new(2).unwrap();
    let done = AtomicUsize::new(0);
    team.run(|worker| {
        worker.for_each_unit(100, |unit| {
            if unit == 0 {
                // The first unit of member 0's share waits until the other member has done all that is left.
                while done.load(Ordering::Acquire) < 99 {
                    std::thread::yield_now();
                }
            }
            done.fetch_add(1, Ordering::Release);
        });
    });
    assert_eq!(done.into_inner(), 100);
}

#[test]
fn a_panic_reaches_the_caller_and_the_team_goes_on() {
    for threads in [1, 2, 4] {
        let team = Team::new(threads).unwrap();
        for culprit in 0..threads {
            let result = catch_unwind(AssertUnwindSafe(|| {
                team.run(|worker| {
                    if worker.index() == culprit % worker.present() {
                        panic!("member {culprit} of {threads}");
                    }
                    // The others wait for one that never comes.
                    worker.barrier();
                    worker.barrier();
                });
            }));
            let payload = result.unwrap_err();
            assert_eq!(*payload.downcast::<String>().unwrap(), format!("member {culprit} of {threads}"));
            let runs = AtomicUsize::new(0);
            let present = AtomicUsize::new(0);
            team.run(|worker| {
                worker.barrier();
                present.store(worker.present(), Ordering::Relaxed);
                runs.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(runs.into_inner(), present.into_inner());
        }
    }
}

#[test]
fn a_dispatch_inside_a_dispatch_is_a_panic_and_not_a_deadlock() {
    for threads in [1, 2] {
        let team = Team::new(threads).unwrap();
        let result = catch_unwind(AssertUnwindSafe(|| team.run(|_| team.run(|_| ()))));
        assert!(result.is_err());
        team.run(|_| ());
    }
}

#[test]
fn threads_that_share_a_team_take_turns() {
    let team = Team::new(2).unwrap();
    let inside = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    team.run(|worker| {
                        let members = inside.fetch_add(1, Ordering::SeqCst) + 1;
                        assert!(members <= 2);
                        worker.barrier();
                        inside.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            });
        }
    });
}

proptest! {
    #[test]
    fn shares_are_contiguous_and_even(units in 0usize..10_000, count in 1usize..100) {
        let mut next = 0;
        let mut sizes = Vec::new();
        for index in 0..count {
            let share = partition(units, index, count);
            prop_assert_eq!(share.start, next);
            next = share.end;
            sizes.push(share.len());
        }
        prop_assert_eq!(next, units);
        prop_assert!(sizes[0] - sizes[count - 1] <= 1);
        prop_assert!(sizes.is_sorted_by(|a, b| a >= b));
    }
}
