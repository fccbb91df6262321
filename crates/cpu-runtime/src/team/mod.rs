//! The thread team: a fixed set of threads that run one closure together, meet at barriers and share out work.
//!
//! A dispatch wakes the workers, runs the closure on every member and returns when all have finished. Members that wait
//! spin for a few microseconds and then sleep, so an idle team uses no processor time and a team whose members are not
//! all scheduled (a busy or limited machine) gives its processors away instead of burning them. A worker whose processor
//! others use is left out for a while (`roster`).

mod meeting;
mod placement;
mod roster;
mod sync;

pub use placement::available_threads;

use meeting::{Call, Meetings};
use roster::Roster;
use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use sync::{Moment, lock};

/// The most threads a team may have; larger requests are an error of [`Team::new`].
pub const MAX_THREADS: usize = 1024;

/// Up to so many members each waits for every other at a barrier.
const FLAT: usize = 8;

/// Why a [`Team`] could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TeamError {
    /// The requested number of threads is zero or above [`MAX_THREADS`].
    #[error("a team of {threads} threads is not possible: ask for 1 to {MAX_THREADS}")]
    Threads {
        /// The number that was asked for.
        threads: usize,
    },
    /// The operating system did not give a thread.
    #[error(
        "the operating system refused thread {index} of {threads}: {source}; ask for fewer threads or raise the limit"
    )]
    Spawn {
        /// Index of the thread that failed.
        index: usize,
        /// The size of the team.
        threads: usize,
        /// The operating system's error.
        source: std::io::Error,
    },
}

type Job<'a> = &'a (dyn Fn(&Worker<'_>) + Sync);

/// A counter on a cache line of its own.
#[repr(align(128))]
struct Cursor(AtomicUsize);

/// How long a worker stays where it is after it has moved: whoever put it back had a reason.
const MOVES_APART: Duration = Duration::from_micros(500);

/// The index of a thread that takes no part in the present dispatch.
const LEFT_OUT: usize = usize::MAX;

/// The processor of a thread of which it is not known.
const UNKNOWN: usize = usize::MAX;

/// What belongs to one worker thread.
struct Seat {
    call: Call,
    /// The member that it is in the present dispatch. Written before it is called.
    index: AtomicUsize,
    /// Where the system says how long the thread has waited for a processor; `None` where it does not.
    delays: OnceLock<Option<PathBuf>>,
    /// The processor that it was on last.
    processor: AtomicUsize,
}

/// What members are told about the present dispatch, on one cache line.
#[repr(align(128))]
struct Brief {
    /// Dispatches so far.
    dispatch: AtomicU32,
    /// Members of the dispatch.
    present: AtomicUsize,
    /// The processor that the caller was on.
    processor: AtomicUsize,
    /// Barriers passed before it. The two sets of cursors take turns across dispatches too.
    passed: AtomicU32,
    /// What they run.
    job: UnsafeCell<Option<Job<'static>>>,
}

struct Shared {
    count: usize,
    /// Whether all members can be running at once, so that it makes sense to spin for one.
    spins: bool,
    /// Of the workers, from thread 1 on.
    seats: Box<[Seat]>,
    meetings: Meetings,
    brief: Brief,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// The most nanoseconds that a member has waited in the present dispatch where it had to sleep.
    waited: AtomicU64,
    /// Two sets of unit cursors, used by alternate phases (see [`Worker::for_each_unit`]).
    cursors: [Box<[Cursor]>; 2],
}

// SAFETY: the brief's `job` is all that is not Sync by itself. The caller writes it while no worker runs (before the
// release store that starts a dispatch, after the acquire load that ends one), and workers only read it in between.
unsafe impl Sync for Shared {}
// SAFETY: as above; the closure it refers to is Sync, so it may be called from any thread.
unsafe impl Send for Shared {}

/// Unwinds a member out of a barrier after another member panicked.
struct Abandoned;

/// A team of threads: the calling thread and `threads - 1` workers.
///
/// ```
/// # use allotrope_cpu_runtime::Team;
/// # use std::sync::atomic::{AtomicUsize, Ordering};
/// let team = Team::new(2)?;
/// let sum = AtomicUsize::new(0);
/// team.run(|worker| {
///     worker.for_each_unit(100, |unit| {
///         sum.fetch_add(unit, Ordering::Relaxed);
///     });
/// });
/// assert_eq!(sum.into_inner(), 4950);
/// # Ok::<(), allotrope_cpu_runtime::TeamError>(())
/// ```
pub struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// One dispatch at a time, and who takes part.
    roster: Mutex<Roster>,
}

impl std::fmt::Debug for Team {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Team").field("threads", &self.shared.count).finish_non_exhaustive()
    }
}

thread_local! {
    static INSIDE_DISPATCH: Cell<bool> = const { Cell::new(false) };
}

impl Team {
    /// Starts a team of `threads` members: the caller of [`Team::run`] and `threads - 1` workers.
    ///
    /// # Errors
    /// [`TeamError`] if the number is out of range or a thread can't be started.
    pub fn new(threads: usize) -> Result<Self, TeamError> {
        if !(1..=MAX_THREADS).contains(&threads) {
            return Err(TeamError::Threads { threads });
        }
        let cursors = || (0..threads).map(|_| Cursor(AtomicUsize::new(0))).collect::<Box<[_]>>();
        let seat = |_| Seat {
            call: Call::new(),
            index: AtomicUsize::new(LEFT_OUT),
            delays: OnceLock::new(),
            processor: AtomicUsize::new(UNKNOWN),
        };
        let shared = Arc::new(Shared {
            count: threads,
            // Spinning for a member that can't be running at the same time only delays it.
            spins: threads <= available_threads(),
            seats: (1..threads).map(seat).collect(),
            meetings: Meetings::new(threads, FLAT),
            brief: Brief {
                dispatch: AtomicU32::new(0),
                present: AtomicUsize::new(threads),
                processor: AtomicUsize::new(UNKNOWN),
                passed: AtomicU32::new(0),
                job: UnsafeCell::new(None),
            },
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
            waited: AtomicU64::new(0),
            cursors: [cursors(), cursors()],
        });
        let roster = Mutex::new(Roster::new(threads));
        let mut team = Self { shared, threads: Vec::with_capacity(threads - 1), roster };
        let processors = placement::processors(threads);
        for thread in 1..threads {
            let shared = Arc::clone(&team.shared);
            let processor = processors.as_ref().and_then(|processors| processors.get(thread).copied());
            let handle = std::thread::Builder::new()
                .name(format!("allotrope-cpu-{thread}"))
                .spawn(move || {
                    if let Some(processor) = processor {
                        placement::stay_on(processor);
                    }
                    work(&shared, thread, processor.is_some());
                })
                // Dropping the half-made team stops the threads that did start.
                .map_err(|source| TeamError::Spawn { index: thread, threads, source })?;
            team.threads.push(handle);
        }
        Ok(team)
    }

    /// The number of members, the caller included.
    pub fn threads(&self) -> usize {
        self.shared.count
    }

    /// Runs `job` on every member and returns when all have finished. Two threads that call it at once take turns.
    /// Workers that others keep from running are left out for a while, so there may be fewer members than threads.
    ///
    /// # Panics
    /// With the panic of the first member that panicked, after all have stopped. Also if called from inside a job.
    pub fn run<F: Fn(&Worker<'_>) + Sync>(&self, job: F) {
        assert!(!INSIDE_DISPATCH.get(), "a team can't be dispatched from inside one of its own jobs");
        let mut roster = lock(&self.roster);
        let shared = &*self.shared;
        if shared.count == 1 {
            member(shared, 0, &job);
            return;
        }
        if roster.changes() {
            self.seat(&mut roster);
        }
        let begin = Moment::now();
        let job: Job<'_> = &job;
        // SAFETY: only the lifetime changes. The reference is dropped below, before `run` returns, and every worker has
        // by then finished with it (or, if the caller's own part panics, is still waited for before unwinding).
        let job = unsafe { std::mem::transmute::<Job<'_>, Job<'static>>(job) };
        // SAFETY: no worker runs now (see `Shared`).
        unsafe { *shared.brief.job.get() = Some(job) };
        let dispatch = shared.brief.dispatch.load(Ordering::Relaxed).wrapping_add(1);
        shared.brief.dispatch.store(dispatch, Ordering::Relaxed);
        shared.brief.processor.store(placement::current().unwrap_or(UNKNOWN), Ordering::Relaxed);
        for seat in &shared.seats {
            if seat.index.load(Ordering::Relaxed) != LEFT_OUT {
                seat.call.call();
            }
        }
        let passed = guarded_member(shared, 0, job);
        // SAFETY: all workers have finished.
        unsafe { *shared.brief.job.get() = None };
        shared.brief.passed.store(passed, Ordering::Relaxed);
        let waited = shared.waited.load(Ordering::Relaxed);
        // In a team of more threads than processors, members wait for each other's.
        if waited > 0 && shared.spins {
            shared.waited.store(0, Ordering::Relaxed);
            roster.judge(waited, begin.nanoseconds(), |thread| self.delays(thread));
        }
        if shared.meetings.restart(passed) {
            self.reset_cursors();
            let panic = lock(&shared.panic).take();
            resume_unwind(panic.unwrap_or_else(|| Box::new("a member of the team panicked")));
        }
    }

    /// Gives the threads of the next dispatches their places.
    fn seat(&self, roster: &mut Roster) {
        let mut present = 1;
        for (seat, takes_part) in self.shared.seats.iter().zip(roster.choose()) {
            let index = if takes_part { present } else { LEFT_OUT };
            seat.index.store(index, Ordering::Relaxed);
            present += usize::from(takes_part);
        }
        self.shared.brief.present.store(present, Ordering::Relaxed);
        self.reset_cursors();
    }

    fn reset_cursors(&self) {
        for cursor in self.shared.cursors.iter().flatten() {
            cursor.0.store(0, Ordering::Relaxed);
        }
    }

    /// Where the system says how long a thread of the team has waited for a processor.
    fn delays(&self, thread: usize) -> Option<PathBuf> {
        match thread.checked_sub(1) {
            None => roster::delays_of_this_thread(),
            Some(seat) => self.shared.seats.get(seat)?.delays.get().cloned().flatten(),
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for seat in &self.shared.seats {
            seat.call.call();
        }
        for thread in self.threads.drain(..) {
            // A worker catches every panic, so there is nothing to learn from its result.
            let _ = thread.join();
        }
    }
}

/// The life of a worker thread.
fn work(shared: &Shared, thread: usize, stays: bool) {
    let Some(seat) = shared.seats.get(thread - 1) else { return };
    let _ = seat.delays.set(roster::delays_of_this_thread());
    let mut calls = 0u32;
    let mut moved = None;
    loop {
        calls = calls.wrapping_add(1);
        seat.call.wait(calls, shared.spins);
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        if shared.spins && !stays {
            shared.part_from_others(thread, &mut moved);
        }
        // SAFETY: the caller wrote the job before it called, and writes again only after this worker has finished.
        if let Some(job) = unsafe { *shared.brief.job.get() } {
            guarded_member(shared, seat.index.load(Ordering::Relaxed), job);
        }
    }
}

impl Shared {
    /// Moves the calling worker to another processor if it was woken on that of the caller or of a worker before it. Linux does
    /// so where processors have been busy, and parts two threads that wait for each other only after some of its ticks.
    fn part_from_others(&self, thread: usize, moved: &mut Option<Instant>) {
        let Some((seat, here)) = self.seats.get(thread - 1).zip(placement::current()) else { return };
        seat.processor.store(here, Ordering::Relaxed);
        let taken = |seats: &[Seat], processor| {
            let on = |place: &AtomicUsize| place.load(Ordering::Relaxed) == processor;
            let present = |seat: &&Seat| seat.index.load(Ordering::Relaxed) != LEFT_OUT;
            on(&self.brief.processor) || seats.iter().filter(present).any(|seat| on(&seat.processor))
        };
        let before = self.seats.get(..thread - 1).unwrap_or_default();
        if taken(before, here) && moved.is_none_or(|moved| moved.elapsed() > MOVES_APART) {
            *moved = Some(Instant::now());
            placement::leave_for(|processor| !taken(&self.seats, processor));
            seat.processor.store(placement::current().unwrap_or(UNKNOWN), Ordering::Relaxed);
        }
    }
}

/// Runs one member's part, and gives the number of barriers that the team has passed, and how long the member has waited.
fn member(shared: &Shared, index: usize, job: Job<'_>) -> (u32, u64) {
    struct Inside;
    impl Drop for Inside {
        fn drop(&mut self) {
            INSIDE_DISPATCH.set(false);
        }
    }
    INSIDE_DISPATCH.set(true);
    let _inside = Inside;
    let passed = Cell::new(shared.brief.passed.load(Ordering::Relaxed));
    let present = shared.brief.present.load(Ordering::Relaxed);
    let (shared_out, sharing, waited) = (Cell::new(false), Cell::new(Sharing::TakeOver), Cell::new(0));
    let worker = Worker { shared, index, present, passed, shared_out, sharing, waited };
    job(&worker);
    (worker.next_phase(), worker.waited.get())
}

/// Runs one member's part and says that it is done; for member 0, all are done then. A panic is kept for the caller and
/// releases the members that wait at a barrier.
fn guarded_member(shared: &Shared, index: usize, job: Job<'_>) -> u32 {
    let (dispatch, present) =
        (shared.brief.dispatch.load(Ordering::Relaxed), shared.brief.present.load(Ordering::Relaxed));
    let (passed, waited) = catch_unwind(AssertUnwindSafe(|| member(shared, index, job))).unwrap_or_else(|panic| {
        if !panic.is::<Abandoned>() {
            lock(&shared.panic).get_or_insert(panic);
        }
        shared.meetings.abandon();
        (shared.brief.passed.load(Ordering::Relaxed), 0)
    });
    let note = |nanoseconds: u64| {
        if nanoseconds > 0 {
            shared.waited.fetch_max(nanoseconds, Ordering::Relaxed);
        }
    };
    note(waited);
    let finishing = shared.meetings.finish(index, present, dispatch, shared.spins);
    if index == 0 {
        note(waited + finishing);
    }
    passed
}

/// How [`Worker::for_each_unit`] shares out units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// A member that is done early takes over what is left of others' shares.
    TakeOver,
    /// A member does all units, as it was given work of its own.
    Alone,
}

/// One member of a [`Team`] during a dispatch.
pub struct Worker<'a> {
    shared: &'a Shared,
    index: usize,
    /// Members of this dispatch.
    present: usize,
    /// Barriers that the team has passed.
    passed: Cell<u32>,
    /// Whether this phase already shared out units.
    shared_out: Cell<bool>,
    /// How units are shared out.
    sharing: Cell<Sharing>,
    /// Nanoseconds that this member has waited where it had to sleep.
    waited: Cell<u64>,
}

impl Worker<'_> {
    /// This member's number, from 0 on; the caller of [`Team::run`] is 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The number of threads of the team, of which some may be left out of this dispatch: what sizes of work and scratch
    /// are planned for. Shares ([`Worker::partition`], [`Worker::for_each_unit`]) are those of the members that are there.
    pub fn count(&self) -> usize {
        self.shared.count
    }

    /// The number of members that take part in this dispatch: their numbers are below it.
    pub fn present(&self) -> usize {
        self.present
    }

    /// Waits until every member has called `barrier` as often as this one. What members wrote before it is visible to
    /// all after it.
    pub fn barrier(&self) {
        let shared = self.shared;
        if self.present == 1 {
            return;
        }
        let number = self.next_phase();
        match shared.meetings.meet(self.index, self.present, number, shared.spins) {
            Some(waited) => self.waited.set(self.waited.get() + waited),
            None => resume_unwind(Box::new(Abandoned)),
        }
    }

    /// Goes on to the next phase, with this member's cursor of it at the begin of its share.
    fn next_phase(&self) -> u32 {
        // The other set was last used in the phase before this one, which every member has left.
        let next = self.passed.get().wrapping_add(1);
        if let Some(cursor) = self.shared.cursors[next as usize % 2].get(self.index) {
            cursor.0.store(0, Ordering::Relaxed);
        }
        self.passed.set(next);
        self.shared_out.set(false);
        next
    }

    /// Runs `f`, in which units are shared out in another way.
    pub(crate) fn with_sharing(&self, sharing: Sharing, f: impl FnOnce()) {
        let before = self.sharing.replace(sharing);
        f();
        self.sharing.set(before);
    }

    /// This member's contiguous share of `units`: shares differ by one at most, and the first ones are the larger.
    pub fn partition(&self, units: usize) -> Range<usize> {
        partition(units, self.index, self.present)
    }

    /// Calls `f` for units of `0..units` so that all members together call it once for each. A member takes its own
    /// contiguous share in order; one that is done early takes over what is left of others' shares, so a member that
    /// the operating system does not schedule does not hold up the rest. Every member must call it with the same
    /// `units`. The work is complete after the next [`Worker::barrier`] or the end of the dispatch; a second sharing
    /// within one phase begins with a barrier of its own.
    pub fn for_each_unit(&self, units: usize, mut f: impl FnMut(usize)) {
        let count = self.present;
        match self.sharing.get() {
            Sharing::Alone => return (0..units).for_each(f),
            Sharing::TakeOver if count == 1 => return (0..units).for_each(f),
            Sharing::TakeOver => {}
        }
        if self.shared_out.replace(true) {
            self.barrier();
            self.shared_out.set(true);
        }
        let cursors = &self.shared.cursors[self.passed.get() as usize % 2];
        for turn in 0..count {
            let owner = (self.index + turn) % count;
            let share = partition(units, owner, count);
            let Some(Cursor(cursor)) = cursors.get(owner) else {
                continue;
            };
            // Only looking leaves the cursor's line with its owner.
            while cursor.load(Ordering::Relaxed) < share.len() {
                let taken = cursor.fetch_add(1, Ordering::Relaxed);
                if taken >= share.len() {
                    break;
                }
                f(share.start + taken);
            }
        }
    }
}

/// Share `index` of `units` divided among `count`: contiguous, in order, sizes differing by one at most.
pub fn partition(units: usize, index: usize, count: usize) -> Range<usize> {
    let (each, more) = (units / count, units % count);
    let begin = index * each + index.min(more);
    begin..begin + each + usize::from(index < more)
}
