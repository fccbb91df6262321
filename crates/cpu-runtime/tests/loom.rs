//! The meetings of a team under a model checker: every order in which two or three members can run is tried.
#![allow(clippy::unwrap_used, reason = "tests")]

/// What members talk with, as the model checker has it.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
    pub(crate) use loom::sync::{Condvar, Mutex};

    /// The model has no clock.
    pub(crate) struct Moment;

    impl Moment {
        pub(crate) fn now() -> Self {
            Self
        }

        pub(crate) fn nanoseconds(&self) -> u64 {
            1
        }
    }

    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> loom::sync::MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn polled(_spins: bool) -> u64 {
        0
    }

    /// Polls once: to poll again changes nothing but the time.
    pub(crate) fn poll(_spins: bool, ready: impl Fn() -> bool) -> bool {
        ready()
    }
}

#[path = "../src/team/meeting.rs"]
#[allow(dead_code, reason = "not every model uses all of it")]
mod meeting;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use meeting::{Call, Meetings};

/// Runs `check` in every order of a few preemptions, which finds nearly all that more would (Musuvathi and Qadeer, 2007).
fn model(preemptions: usize, check: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(check);
}

/// Numbers that one member each writes and all read. The checker reports an access that is not ordered after a write.
struct Cells(Vec<UnsafeCell<u32>>);

// SAFETY: the checker itself finds accesses that race.
unsafe impl Sync for Cells {}
// SAFETY: as above.
unsafe impl Send for Cells {}

impl Cells {
    fn new(count: usize) -> Self {
        Self((0..count).map(|_| UnsafeCell::new(0)).collect())
    }

    fn set(&self, index: usize, value: u32) {
        // SAFETY: as for `Sync`.
        self.0[index].with_mut(|cell| unsafe { *cell = value });
    }

    fn all_are(&self, value: u32) -> bool {
        // SAFETY: as for `Sync`.
        self.0.iter().all(|cell| cell.with(|cell| unsafe { *cell == value }))
    }
}

/// Members write and meet, as often as `meetings`, in groups where they are more than `flat`.
fn meet(preemptions: usize, members: usize, flat: usize, meetings: u32) {
    model(preemptions, move || {
        let shared = Arc::new((Meetings::new(members, flat), Cells::new(members)));
        let part = move |index: usize, (all, cells): &(Meetings, Cells)| {
            cells.set(index, 1);
            for meeting in 1..=meetings {
                assert!(all.meet(index, members, meeting, false).is_some());
                // Every second phase reads, every other writes.
                match meeting % 2 {
                    1 => assert!(cells.all_are(meeting.div_ceil(2))),
                    _ => cells.set(index, meeting / 2 + 1),
                }
            }
            all.finish(index, members, 1, false);
        };
        for index in 1..members {
            let shared = Arc::clone(&shared);
            loom::thread::spawn(move || part(index, &shared));
        }
        part(0, &shared);
        // All are done: nobody looks any more.
        (0..members).for_each(|index| shared.1.set(index, 0));
    });
}

#[test]
fn what_members_write_before_a_barrier_is_there_after_it() {
    meet(2, 2, 8, 3);
}

#[test]
fn three_members_meet_each_other() {
    meet(1, 3, 8, 1);
}

#[test]
fn members_of_a_group_meet_through_the_first_of_it() {
    meet(1, 3, 2, 1);
}

#[test]
fn who_is_called_finds_the_work_and_the_caller_the_result() {
    model(2, || {
        let shared = Arc::new((Call::new(), Meetings::new(2, 8), Cells::new(1)));
        let worker = {
            let shared = Arc::clone(&shared);
            loom::thread::spawn(move || {
                let (call, meetings, cells) = &*shared;
                for dispatch in 1..=2 {
                    call.wait(dispatch, false);
                    assert!(cells.all_are(dispatch * 10));
                    cells.set(0, dispatch * 10 + 1);
                    meetings.finish(1, 2, dispatch, false);
                }
            })
        };
        let (call, meetings, cells) = &*shared;
        for dispatch in 1..=2 {
            cells.set(0, dispatch * 10);
            call.call();
            meetings.finish(0, 2, dispatch, false);
            assert!(cells.all_are(dispatch * 10 + 1));
        }
        worker.join().unwrap();
    });
}

#[test]
fn nobody_waits_for_a_member_that_has_given_up() {
    model(2, || {
        let meetings = Arc::new(Meetings::new(2, 8));
        let worker = {
            let meetings = Arc::clone(&meetings);
            loom::thread::spawn(move || {
                meetings.abandon();
                meetings.finish(1, 2, 1, false);
            })
        };
        assert!(meetings.meet(0, 2, 1, false).is_none());
        meetings.finish(0, 2, 1, false);
        assert!(meetings.restart(0));
        assert!(!meetings.restart(0));
        worker.join().unwrap();
    });
}
