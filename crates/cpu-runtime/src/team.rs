//! The thread team: a fixed set of threads that run one closure together, meet at barriers and share out work.
//!
//! A dispatch wakes the workers, runs the closure on every member and returns when all have finished. Members that wait
//! spin for a few microseconds and then sleep, so an idle team uses no processor time and a team whose members are not
//! all scheduled (a busy or limited machine) gives its processors away instead of burning them.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a waiting member polls before it sleeps. Long enough for the skew between phases of a decode step, far
/// shorter than a scheduling quantum.
const SPIN: Duration = Duration::from_micros(30);

/// Polls between two looks at the clock while spinning.
const POLLS_PER_CLOCK_READ: u32 = 16;

/// The most threads a team may have; larger requests are an error of [`Team::new`].
pub const MAX_THREADS: usize = 1024;

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

/// The number of threads that this process may run at once: the processors of its affinity mask, lowered to the limit of
/// its control group.
pub fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS)
}

type Job<'a> = &'a (dyn Fn(&Worker<'_>) + Sync);

/// A number that threads can wait for: polled first, slept on afterwards.
struct Gate {
    value: AtomicU32,
    sleepers: AtomicU32,
    mutex: Mutex<()>,
    condition: Condvar,
}

impl Gate {
    fn new() -> Self {
        Self { value: AtomicU32::new(0), sleepers: AtomicU32::new(0), mutex: Mutex::new(()), condition: Condvar::new() }
    }

    fn wake(&self) {
        // A sleeper registers before it reads the value, and the value was written before this read (both in the one
        // total order of SeqCst), so either the sleeper is seen here or it sees the value.
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.mutex));
            self.condition.notify_all();
        }
    }

    fn wait(&self, spin: Duration, ready: impl Fn(u32) -> bool) {
        if ready(self.value.load(Ordering::Acquire)) {
            return;
        }
        if !spin.is_zero() {
            let begin = Instant::now();
            loop {
                for _ in 0..POLLS_PER_CLOCK_READ {
                    if ready(self.value.load(Ordering::Acquire)) {
                        return;
                    }
                    std::hint::spin_loop();
                }
                if begin.elapsed() >= spin {
                    break;
                }
            }
        }
        let mut guard = lock(&self.mutex);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while !ready(self.value.load(Ordering::SeqCst)) {
            guard = self.condition.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The mutexes here guard no data, so a poisoned one is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A counter on a cache line of its own.
#[repr(align(128))]
struct Cursor(AtomicUsize);

struct Shared {
    count: usize,
    spin: Duration,
    /// Number of dispatches so far; a change starts the workers.
    dispatches: Gate,
    /// Workers (without the caller) that finished the present dispatch.
    finished: Gate,
    /// Barriers passed so far, and members that arrived at the next.
    barriers: Gate,
    arrived: AtomicU32,
    /// The closure of the present dispatch.
    job: UnsafeCell<Option<Job<'static>>>,
    stop: AtomicBool,
    /// Set when a member panicked: members at a barrier must not wait for it.
    abandoned: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Two sets of unit cursors, used by alternate phases (see [`Worker::for_each_unit`]).
    cursors: [Box<[Cursor]>; 2],
}

// SAFETY: `job` is the only field that is not Sync by itself. The caller writes it while no worker runs (before the
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
    /// One dispatch at a time.
    dispatch: Mutex<()>,
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
        // Spinning for a member that can't be running at the same time only delays it.
        let spin = if threads <= available_threads() { SPIN } else { Duration::ZERO };
        let shared = Arc::new(Shared {
            count: threads,
            spin,
            dispatches: Gate::new(),
            finished: Gate::new(),
            barriers: Gate::new(),
            arrived: AtomicU32::new(0),
            job: UnsafeCell::new(None),
            stop: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            panic: Mutex::new(None),
            cursors: [cursors(), cursors()],
        });
        let mut team = Self { shared, threads: Vec::with_capacity(threads - 1), dispatch: Mutex::new(()) };
        for index in 1..threads {
            let shared = Arc::clone(&team.shared);
            let handle = std::thread::Builder::new()
                .name(format!("allotrope-cpu-{index}"))
                .spawn(move || work(&shared, index))
                // Dropping the half-made team stops the threads that did start.
                .map_err(|source| TeamError::Spawn { index, threads, source })?;
            team.threads.push(handle);
        }
        Ok(team)
    }

    /// The number of members, the caller included.
    pub fn threads(&self) -> usize {
        self.shared.count
    }

    /// Runs `job` on every member and returns when all have finished. Two threads that call it at once take turns.
    ///
    /// # Panics
    /// With the panic of the first member that panicked, after all have stopped. Also if called from inside a job.
    pub fn run<F: Fn(&Worker<'_>) + Sync>(&self, job: F) {
        assert!(!INSIDE_DISPATCH.get(), "a team can't be dispatched from inside one of its own jobs");
        let _turn = lock(&self.dispatch);
        let shared = &*self.shared;
        if shared.count == 1 {
            member(shared, 0, &job);
            return;
        }
        let job: Job<'_> = &job;
        // SAFETY: only the lifetime changes. The reference is dropped below, before `run` returns, and every worker has
        // by then finished with it (or, if the caller's own part panics, is still waited for before unwinding).
        let job = unsafe { std::mem::transmute::<Job<'_>, Job<'static>>(job) };
        for cursor in &shared.cursors[0] {
            cursor.0.store(0, Ordering::Relaxed);
        }
        // SAFETY: no worker runs now (see `Shared`).
        unsafe { *shared.job.get() = Some(job) };
        shared.finished.value.store(0, Ordering::Relaxed);
        shared.dispatches.value.fetch_add(1, Ordering::SeqCst);
        shared.dispatches.wake();

        guarded_member(shared, 0, job);

        let others = u32::try_from(shared.count - 1).unwrap_or(u32::MAX);
        shared.finished.wait(shared.spin, |value| value == others);
        // SAFETY: all workers have finished (acquired just above).
        unsafe { *shared.job.get() = None };
        if shared.abandoned.swap(false, Ordering::Relaxed) {
            shared.arrived.store(0, Ordering::Relaxed);
            let panic = lock(&shared.panic).take();
            resume_unwind(panic.unwrap_or_else(|| Box::new("a member of the team panicked")));
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.dispatches.value.fetch_add(1, Ordering::SeqCst);
        self.shared.dispatches.wake();
        for thread in self.threads.drain(..) {
            // A worker catches every panic, so there is nothing to learn from its result.
            let _ = thread.join();
        }
    }
}

/// The life of a worker thread.
fn work(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        shared.dispatches.wait(shared.spin, |value| value != seen);
        seen = seen.wrapping_add(1);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        // SAFETY: the caller wrote the job before it counted the dispatch up, and writes again only after this worker
        // has counted itself as finished.
        if let Some(job) = unsafe { *shared.job.get() } {
            guarded_member(shared, index, job);
        }
        shared.finished.value.fetch_add(1, Ordering::SeqCst);
        shared.finished.wake();
    }
}

fn member(shared: &Shared, index: usize, job: Job<'_>) {
    struct Inside;
    impl Drop for Inside {
        fn drop(&mut self) {
            INSIDE_DISPATCH.set(false);
        }
    }
    INSIDE_DISPATCH.set(true);
    let _inside = Inside;
    job(&Worker { shared, index, phase: Cell::new(0), shared_out: Cell::new(false) });
}

/// Runs one member's part; a panic is kept for the caller and releases the members that wait at a barrier.
fn guarded_member(shared: &Shared, index: usize, job: Job<'_>) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| member(shared, index, job))) {
        if !panic.is::<Abandoned>() {
            lock(&shared.panic).get_or_insert(panic);
        }
        shared.abandoned.store(true, Ordering::SeqCst);
        // Any change of the value makes the waiting members look at `abandoned`.
        shared.barriers.value.fetch_add(1, Ordering::SeqCst);
        shared.barriers.wake();
    }
}

/// One member of a [`Team`] during a dispatch.
pub struct Worker<'a> {
    shared: &'a Shared,
    index: usize,
    /// Barriers passed in this dispatch.
    phase: Cell<usize>,
    /// Whether this phase already shared out units.
    shared_out: Cell<bool>,
}

impl Worker<'_> {
    /// This member's number, from 0 to `count() - 1`; the caller of [`Team::run`] is 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The number of members.
    pub fn count(&self) -> usize {
        self.shared.count
    }

    /// Waits until every member has called `barrier` as often as this one. What members wrote before it is visible to
    /// all after it.
    pub fn barrier(&self) {
        let shared = self.shared;
        if shared.count == 1 {
            return;
        }
        // The other set was last used in the phase before this one, which every member has left.
        let next = self.phase.get() + 1;
        if let Some(cursor) = shared.cursors[next % 2].get(self.index) {
            cursor.0.store(0, Ordering::Relaxed);
        }
        self.phase.set(next);
        self.shared_out.set(false);
        let passed = shared.barriers.value.load(Ordering::SeqCst);
        if shared.abandoned.load(Ordering::SeqCst) {
            resume_unwind(Box::new(Abandoned));
        }
        let arrived = shared.arrived.fetch_add(1, Ordering::AcqRel) + 1;
        if arrived as usize == shared.count {
            shared.arrived.store(0, Ordering::Relaxed);
            shared.barriers.value.fetch_add(1, Ordering::SeqCst);
            shared.barriers.wake();
        } else {
            shared.barriers.wait(shared.spin, |value| value != passed);
            if shared.abandoned.load(Ordering::SeqCst) {
                resume_unwind(Box::new(Abandoned));
            }
        }
    }

    /// This member's contiguous share of `units`: shares differ by one at most, and the first ones are the larger.
    pub fn partition(&self, units: usize) -> Range<usize> {
        partition(units, self.index, self.shared.count)
    }

    /// Calls `f` for units of `0..units` so that all members together call it once for each. A member takes its own
    /// contiguous share in order; one that is done early takes over what is left of others' shares, so a member that
    /// the operating system does not schedule does not hold up the rest. Every member must call it with the same
    /// `units`. The work is complete after the next [`Worker::barrier`] or the end of the dispatch; a second sharing
    /// within one phase begins with a barrier of its own.
    pub fn for_each_unit(&self, units: usize, mut f: impl FnMut(usize)) {
        let count = self.shared.count;
        if count == 1 {
            (0..units).for_each(f);
            return;
        }
        if self.shared_out.replace(true) {
            self.barrier();
            self.shared_out.set(true);
        }
        let cursors = &self.shared.cursors[self.phase.get() % 2];
        for turn in 0..count {
            let owner = (self.index + turn) % count;
            let share = partition(units, owner, count);
            let Some(cursor) = cursors.get(owner) else {
                continue;
            };
            loop {
                let taken = cursor.0.fetch_add(1, Ordering::Relaxed);
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
