//! Where the members of a team meet: counters that one member writes and others wait for.
//!
//! All that threads of a team say to each other goes through this file, over the types of `sync`, so that a model
//! checker can put its own in their place (`tests/loom.rs`).

use super::sync::{AtomicBool, AtomicU32, Condvar, Moment, Mutex, Ordering, fence, lock, poll, polled};

/// A counter on a cache line of its own (two, since processors fetch lines in pairs).
#[repr(align(128))]
struct Counter(AtomicU32);

impl Counter {
    fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Whether it is at `number` or beyond. Numbers wrap around: what is less than half of them behind is reached.
    fn reached(&self, number: u32) -> bool {
        self.0.load(Ordering::Acquire).wrapping_sub(number).cast_signed() >= 0
    }
}

/// Where threads sleep until somebody has counted.
struct Bed {
    sleepers: AtomicU32,
    mutex: Mutex<()>,
    condition: Condvar,
}

impl Bed {
    fn new() -> Self {
        Self { sleepers: AtomicU32::new(0), mutex: Mutex::new(()), condition: Condvar::new() }
    }

    /// Wakes the sleepers, who look whether what they wait for has come. To be called after counting.
    fn wake(&self) {
        // Counting, then looking for sleepers, here; there, registering as a sleeper, then looking at the counter. Of
        // two such pairs with a fence in each, one sees the other's write.
        fence(Ordering::SeqCst);
        if self.sleepers.load(Ordering::Relaxed) > 0 {
            drop(lock(&self.mutex));
            self.condition.notify_all();
        }
    }

    /// Sleeps until `ready`, and says for how many nanoseconds.
    fn sleep(&self, ready: impl Fn() -> bool) -> u64 {
        let begin = Moment::now();
        let mut guard = lock(&self.mutex);
        self.sleepers.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        while !ready() {
            guard = self.condition.wait(guard).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::Relaxed);
        begin.nanoseconds()
    }
}

/// A thread's call to work.
pub(super) struct Call {
    number: Counter,
    bed: Bed,
}

impl Call {
    /// Nothing was called yet; the first number is 1.
    pub(super) fn new() -> Self {
        Self { number: Counter::new(), bed: Bed::new() }
    }

    /// Calls the thread for the next dispatch. What was written before is visible to it.
    pub(super) fn call(&self) {
        let next = self.number.0.load(Ordering::Relaxed).wrapping_add(1);
        self.number.0.store(next, Ordering::Release);
        self.bed.wake();
    }

    /// Waits for call number `number`; `spins`: whether polling first makes sense.
    pub(super) fn wait(&self, number: u32, spins: bool) {
        let ready = || self.number.reached(number);
        if !poll(spins, ready) {
            self.bed.sleep(ready);
        }
    }
}

/// What one member writes, each on a line of its own, since others poll it.
struct Seat {
    /// The last meeting that the member has come to; for the first of a group: that its whole group has come to.
    arrived: Counter,
    /// The last meeting that is over for the members of its group.
    released: Counter,
    /// The last dispatch that the member, or its whole group, has finished.
    finished: Counter,
}

/// The meetings of a team's members, numbered from 1.
pub(super) struct Meetings {
    seats: Box<[Seat]>,
    /// Up to so many members each waits for every other. In larger teams, members of a group of so many wait for the
    /// first of them, and the first ones for each other.
    flat: usize,
    bed: Bed,
    /// Set when a member will come to no meeting any more.
    abandoned: AtomicBool,
}

impl Meetings {
    /// Meetings of at most `members` members, each of which waits for every other where they are at most `flat`.
    pub(super) fn new(members: usize, flat: usize) -> Self {
        let seat = |_| Seat { arrived: Counter::new(), released: Counter::new(), finished: Counter::new() };
        Self { seats: (0..members).map(seat).collect(), flat, bed: Bed::new(), abandoned: AtomicBool::new(false) }
    }

    /// Comes to meeting `number`, and waits for the others of `count` members. What any of them wrote before is visible
    /// to all after it. The nanoseconds that this member has waited if it had to sleep, else 0; `None` if the meeting was
    /// abandoned.
    pub(super) fn meet(&self, index: usize, count: usize, number: u32, spins: bool) -> Option<u64> {
        let group = if count <= self.flat { 1 } else { self.flat };
        let first = index - index % group;
        let mut waited = 0;
        let mut wait = |counter: &Counter| waited += self.wait(counter, number, spins);
        if index == first {
            for member in first + 1..count.min(first + group) {
                wait(&self.seats[member].arrived);
            }
            self.seats[index].arrived.0.store(number, Ordering::Release);
            for other in (0..count).step_by(group).filter(|other| *other != index) {
                wait(&self.seats[other].arrived);
            }
            if group > 1 {
                self.seats[index].released.0.store(number, Ordering::Release);
            }
            // Who sleeps has come already, and nobody leaves before the last: so it is early enough to look for sleepers
            // once all are here, when that costs least.
            self.bed.wake();
        } else {
            self.seats[index].arrived.0.store(number, Ordering::Release);
            self.bed.wake();
            wait(&self.seats[first].released);
        }
        (!self.abandoned.load(Ordering::Relaxed)).then_some(waited)
    }

    /// Finishes dispatch `number`. For member 0, all are done when it returns.
    pub(super) fn finish(&self, index: usize, count: usize, number: u32, spins: bool) -> u64 {
        let group = if count <= self.flat { 1 } else { self.flat };
        let mut waited = 0;
        let mut wait = |member: usize| waited += self.wait_finished(&self.seats[member].finished, number, spins);
        if index.is_multiple_of(group) {
            (index + 1..count.min(index + group)).for_each(&mut wait);
        }
        if index == 0 {
            (group..count).step_by(group).for_each(&mut wait);
        } else {
            self.seats[index].finished.0.store(number, Ordering::Release);
            self.bed.wake();
        }
        waited
    }

    /// Lets nobody wait at this dispatch's meetings any more.
    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
        self.bed.wake();
    }

    /// Whether a meeting of the dispatch that all have finished was abandoned. From now on members meet again, and the
    /// last meeting was `number`.
    pub(super) fn restart(&self, number: u32) -> bool {
        let abandoned = self.abandoned.load(Ordering::Acquire);
        if abandoned {
            for seat in &self.seats {
                seat.arrived.0.store(number, Ordering::Relaxed);
                seat.released.0.store(number, Ordering::Relaxed);
            }
            self.abandoned.store(false, Ordering::Relaxed);
        }
        abandoned
    }

    fn wait(&self, counter: &Counter, number: u32, spins: bool) -> u64 {
        let ready = || counter.reached(number) || self.abandoned.load(Ordering::Acquire);
        if poll(spins, ready) {
            return 0;
        }
        self.bed.wake();
        polled(spins) + self.bed.sleep(ready)
    }

    fn wait_finished(&self, counter: &Counter, number: u32, spins: bool) -> u64 {
        let ready = || counter.reached(number);
        if poll(spins, ready) { 0 } else { polled(spins) + self.bed.sleep(ready) }
    }
}
