//! The types that members of a team talk with.

pub(super) use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
pub(super) use std::sync::{Condvar, Mutex};
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a waiting member polls before it sleeps. Long enough for the skew between phases of a decode step, far
/// shorter than a scheduling quantum.
const SPIN: Duration = Duration::from_micros(30);

/// Nanoseconds that a member has polled before it sleeps.
pub(super) fn polled(spins: bool) -> u64 {
    if spins { SPIN.as_nanos() as u64 } else { 0 }
}

/// Polls without a pause in between, which takes longer than another member needs to answer.
const EAGER_POLLS: u32 = 48;

/// Polls between two looks at the clock.
const POLLS_PER_CLOCK_READ: u32 = 16;

/// A moment on the clock.
pub(super) struct Moment(Instant);

impl Moment {
    pub(super) fn now() -> Self {
        Self(Instant::now())
    }

    /// Nanoseconds since then.
    pub(super) fn nanoseconds(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// The mutexes of a team guard no data that could be half written, so a poisoned one is as good as any.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether something becomes ready soon: with `spins`, within the time that waiting members poll.
#[inline]
pub(super) fn poll(spins: bool, ready: impl Fn() -> bool) -> bool {
    if ready() {
        return true;
    }
    if !spins {
        return false;
    }
    for _ in 0..EAGER_POLLS {
        if ready() {
            return true;
        }
    }
    let begin = Instant::now();
    loop {
        for _ in 0..POLLS_PER_CLOCK_READ {
            if ready() {
                return true;
            }
            std::hint::spin_loop();
        }
        if begin.elapsed() >= SPIN {
            return false;
        }
    }
}
