//! Who takes part in a dispatch.
//!
//! Where another process keeps a processor busy, a member that shares it runs only part of the time, and all others wait
//! for it at every barrier. The system says how long a thread has waited for a processor. A worker that has waited for a
//! fair part of the time is left out of dispatches, at first for a moment, and for longer each time that it comes back
//! too early.

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The system is asked once members have waited for so many nanoseconds, in one dispatch or many,
const WAITED: u64 = 200_000;
/// in the last of them for at least one in so many parts of its time,
const WAITED_PART: u64 = 16;
/// and only so often, since asking takes time.
const INTERVAL: Duration = Duration::from_millis(10);
/// A worker that has waited for a processor for one in so many parts of the time may be left out.
const DELAYED_PART: u32 = 20;
/// How long a worker is left out, at first and at most.
const PAUSES: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(1)];
/// Two answers must be so close together, or so many times as far apart as a dispatch is long, to tell of now.
const WINDOW: (Duration, u32) = (Duration::from_millis(50), 4);

/// What is known of one thread.
#[derive(Clone, Debug)]
struct Standing {
    /// How long it had waited for a processor when it was last asked, where the system says so.
    waited: Option<Duration>,
    /// Until when it is left out.
    until: Option<Instant>,
    /// How long it was left out the last time, and when it came back.
    pause: Duration,
    back: Instant,
}

/// The threads of a team, the caller first.
#[derive(Debug)]
pub(super) struct Roster {
    threads: Vec<Standing>,
    asked: Instant,
    /// Nanoseconds that members have waited since then.
    waits: u64,
    /// Whether places are to be given anew.
    stale: bool,
    /// The earliest return of a thread that is left out.
    next_return: Option<Instant>,
}

impl Roster {
    pub(super) fn new(threads: usize) -> Self {
        let now = Instant::now();
        let standing = Standing { waited: None, until: None, pause: Duration::ZERO, back: now };
        Self { threads: vec![standing; threads], asked: now, waits: 0, stale: true, next_return: None }
    }

    /// Whether other threads take part than in the dispatch before.
    pub(super) fn changes(&self) -> bool {
        self.stale || self.next_return.is_some_and(|next| Instant::now() >= next)
    }

    /// Whether each worker, from thread 1 on, takes part from now on.
    pub(super) fn choose(&mut self) -> impl Iterator<Item = bool> {
        self.take_back(Instant::now());
        self.stale = false;
        self.next_return = self.threads.iter().filter_map(|thread| thread.until).min();
        self.threads.iter().skip(1).map(|thread| thread.until.is_none())
    }

    fn take_back(&mut self, now: Instant) {
        for thread in &mut self.threads {
            if thread.until.is_some_and(|until| until <= now) {
                thread.until = None;
                thread.back = now;
            }
        }
    }

    /// Looks at a dispatch that took `wall` nanoseconds, of which some member waited for others `waits` and had to sleep.
    /// `delays` says where it is to be found how long a thread has waited for a processor.
    pub(super) fn judge(&mut self, waits: u64, wall: u64, delays: impl Fn(usize) -> Option<PathBuf>) {
        self.waits = self.waits.saturating_add(waits);
        if self.waits < WAITED || waits < wall / WAITED_PART || self.asked.elapsed() < INTERVAL {
            return;
        }
        self.waits = 0;
        let waited: Vec<_> = (0..self.threads.len()).map(|thread| waited(&delays(thread)?)).collect();
        self.decide(Instant::now(), Duration::from_nanos(wall), &waited);
    }

    /// Decides from how long each thread has waited for a processor in its life.
    fn decide(&mut self, now: Instant, wall: Duration, waited: &[Option<Duration>]) {
        let passed = now.saturating_duration_since(self.asked);
        self.asked = now;
        let mut latest: Option<(Duration, usize)> = None;
        for (index, (thread, &waited)) in self.threads.iter_mut().zip(waited).enumerate() {
            let before = std::mem::replace(&mut thread.waited, waited);
            let waits = waited.zip(before).map(|(now, before)| now.saturating_sub(before));
            if let Some(waits) = waits.filter(|_| thread.until.is_none()) {
                latest = latest.max(Some((waits, index)));
            }
        }
        let Some((waits, index)) = latest else { return };
        if passed > WINDOW.0.max(wall * WINDOW.1) || waits < passed / DELAYED_PART {
            return;
        }
        // A team of n that waits for one part in n of its time is as fast as one of n - 1, where work divides evenly, which
        // it does not quite.
        let present = self.threads.iter().filter(|thread| thread.until.is_none()).count();
        if waits * 3 * u32::try_from(present).unwrap_or(u32::MAX) < passed * 2 {
            return;
        }
        // The caller can't be left out. Without one of the workers there is a processor for it to move to.
        let there = |thread: &Standing| thread.until.is_none();
        let Some(index) = (index > 0).then_some(index).or_else(|| self.threads.iter().rposition(there)) else { return };
        let Some(thread) = self.threads.get_mut(index).filter(|_| index > 0) else { return };
        // Who has run well for long begins anew.
        let lately = now.saturating_duration_since(thread.back) <= PAUSES[1];
        thread.pause = if lately { (thread.pause * 2).clamp(PAUSES[0], PAUSES[1]) } else { PAUSES[0] };
        thread.until = Some(now + thread.pause);
        self.stale = true;
        tracing::debug!(thread = index, pause = ?thread.pause, "left out, as it waits for a processor");
    }
}

/// Where the system says how long the calling thread has waited for a processor.
pub(super) fn delays_of_this_thread() -> Option<PathBuf> {
    let path = std::fs::read_link("/proc/thread-self").ok()?;
    Some(PathBuf::from("/proc").join(path).join("schedstat"))
}

/// How long a thread has waited for a processor in its life: the second number.
fn waited(path: &std::path::Path) -> Option<Duration> {
    let text = std::fs::read_to_string(path).ok()?;
    text.split_ascii_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
    use super::*;

    const STEP: Duration = Duration::from_millis(8);

    /// Dispatches of 8 milliseconds, one after the other, in each of which threads wait for the given milliseconds.
    fn after(roster: &mut Roster, now: &mut Instant, dispatches: usize, waits: &[u64]) -> Vec<bool> {
        for _ in 0..dispatches {
            *now += STEP;
            let before = |thread: &Standing| thread.waited.unwrap_or_default();
            let waited: Vec<_> = roster.threads.iter().map(before).collect();
            let waited: Vec<_> =
                waited.iter().zip(waits).map(|(before, more)| Some(*before + Duration::from_millis(*more))).collect();
            roster.decide(*now, STEP, &waited);
        }
        roster.take_back(*now);
        roster.threads.iter().map(|thread| thread.until.is_none()).collect()
    }

    #[test]
    fn a_worker_that_waits_for_its_processor_is_left_out_for_longer_each_time() {
        let (mut roster, mut now) = (Roster::new(3), Instant::now());
        assert_eq!(after(&mut roster, &mut now, 1, &[0, 0, 4]), [true, true, true], "nothing to compare with");
        assert_eq!(after(&mut roster, &mut now, 1, &[0, 0, 4]), [true, true, false]);
        let mut pauses = vec![roster.threads[2].pause];
        for _ in 0..8 {
            now = roster.threads[2].until.unwrap();
            roster.take_back(now);
            after(&mut roster, &mut now, 2, &[0, 0, 4]);
            pauses.push(roster.threads[2].pause);
        }
        assert!(pauses.is_sorted() && pauses[1] == pauses[0] * 2, "{pauses:?}");
        assert_eq!(*pauses.last().unwrap(), PAUSES[1]);
        // It ran well for a while: the next time is a first time.
        now = roster.threads[2].until.unwrap();
        roster.take_back(now);
        now += PAUSES[1] * 2;
        after(&mut roster, &mut now, 2, &[0, 0, 4]);
        assert_eq!(roster.threads[2].pause, PAUSES[0]);
    }

    #[test]
    fn for_a_caller_that_waits_the_last_worker_makes_room() {
        let (mut roster, mut now) = (Roster::new(3), Instant::now());
        assert_eq!(after(&mut roster, &mut now, 2, &[4, 0, 0]), [true, true, false]);
        assert_eq!(after(&mut roster, &mut now, 1, &[4, 0, 0]), [true, false, false]);
        assert_eq!(after(&mut roster, &mut now, 1, &[4, 0, 0]), [true, false, false], "nobody is left to make room");
    }

    #[test]
    fn short_waits_and_systems_that_say_nothing_change_nothing() {
        let (mut roster, mut now) = (Roster::new(2), Instant::now());
        assert_eq!(after(&mut roster, &mut now, 9, &[1, 1]), [true, true]);
        roster.decide(now + STEP, STEP, &[None, None]);
        roster.decide(now + STEP * 2, STEP, &[None, None]);
        assert!(roster.threads.iter().all(|thread| thread.until.is_none()));
    }

    #[test]
    fn waiting_times_are_found_where_the_system_has_them() {
        let folder = std::env::temp_dir().join(format!("allotrope-schedstat-{}", std::process::id()));
        std::fs::write(&folder, "1122498 1788939 20\n").unwrap();
        assert_eq!(waited(&folder), Some(Duration::from_nanos(1_788_939)));
        std::fs::write(&folder, "1122498\n").unwrap();
        assert_eq!(waited(&folder), None);
        std::fs::remove_file(&folder).unwrap();
        assert_eq!(waited(&folder), None);
    }
}
