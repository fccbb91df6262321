//! What the driver knows, and the thread that does the work of all streams.
//!
//! A stream is a queue. A task can begin when all that it comes after is done; among the streams whose first task can
//! begin, one is chosen at random.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::api::Link;
use super::capture::Capture;
use super::graph::{Executable, Graph};
use super::options::Options;
use super::status::Status;
use super::work::Work;
use crate::machine::memory::Memory;
use crate::machine::{Counts, Random};
use crate::program::{Kernel, Program};

/// A handle: a number that looks like a pointer and is never followed.
pub(super) type Handle = u64;

/// The legacy default stream.
pub(super) const LEGACY: Handle = 1;

/// The default stream of a thread. All threads have the same one here.
const PER_THREAD: Handle = 2;

/// A task's place: a stream, and how many tasks of it are done then.
pub(super) type Mark = (Handle, u64);

/// A task in a queue.
struct Task {
    work: Work,
    after: Vec<Mark>,
}

/// A stream.
#[derive(Default)]
pub(super) struct Stream {
    queue: VecDeque<Task>,
    entered: u64,
    done: u64,
    /// Whether it waits for the legacy stream, and that for it.
    pub(super) blocking: bool,
    pub(super) priority: i32,
    pub(super) capture: Option<Handle>,
    /// What the next task waits for beside the one before it.
    pub(super) waits: Vec<Mark>,
    destroyed: bool,
}

impl Stream {
    /// An empty stream.
    pub(super) fn new(blocking: bool, priority: i32) -> Self {
        Self { blocking, priority, ..Self::default() }
    }
}

/// An event.
#[derive(Default)]
pub(super) struct Event {
    pub(super) mark: Option<Mark>,
    pub(super) time: Option<Instant>,
    pub(super) round: u64,
    /// The capture and the nodes, if it was recorded in one.
    pub(super) captured: Option<(Handle, Vec<usize>)>,
}

/// A kernel as a function.
pub(super) struct Function {
    pub(super) kernel: Arc<Kernel>,
    pub(super) module: Handle,
    pub(super) name: std::ffi::CString,
    pub(super) dynamic_limit: u32,
}

/// Everything.
pub(super) struct State {
    pub(super) options: Options,
    pub(super) initialized: bool,
    pub(super) retained: u32,
    pub(super) error: Option<Status>,
    pub(super) memory: Memory,
    pub(super) streams: HashMap<Handle, Stream>,
    pub(super) events: HashMap<Handle, Event>,
    pub(super) modules: HashMap<Handle, Program>,
    pub(super) functions: HashMap<Handle, Function>,
    pub(super) graphs: HashMap<Handle, Graph>,
    pub(super) executables: HashMap<Handle, Executable>,
    pub(super) captures: HashMap<Handle, Capture>,
    pub(super) links: HashMap<Handle, Link>,
    /// Pools that were made, with their release thresholds.
    pub(super) pools: HashMap<Handle, u64>,
    next_handle: Handle,
}

/// The state, its lock, and those who wait.
pub(super) struct Driver {
    state: Mutex<State>,
    changed: Condvar,
}

static DRIVER: LazyLock<Driver> = LazyLock::new(|| {
    let mut streams = HashMap::new();
    streams.insert(LEGACY, Stream::default());
    streams.insert(PER_THREAD, Stream { blocking: true, ..Stream::default() });
    let state = State {
        options: Options::read(),
        initialized: false,
        retained: 0,
        error: None,
        memory: Memory::default(),
        streams,
        events: HashMap::new(),
        modules: HashMap::new(),
        functions: HashMap::new(),
        graphs: HashMap::new(),
        executables: HashMap::new(),
        captures: HashMap::new(),
        links: HashMap::new(),
        pools: HashMap::new(),
        next_handle: 0x1000,
    };
    Driver { state: Mutex::new(state), changed: Condvar::new() }
});

static INSTRUCTIONS: AtomicU64 = AtomicU64::new(0);
static THREAD_INSTRUCTIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Whether the context is current to this thread.
    pub(super) static CURRENT: Cell<bool> = const { Cell::new(false) };
    /// The capture mode of this thread: global at first.
    pub(super) static MODE: Cell<u32> = const { Cell::new(0) };
}

/// Adds to the counts of the process.
pub(super) fn count(counts: Counts) {
    INSTRUCTIONS.fetch_add(counts.instructions, Relaxed);
    THREAD_INSTRUCTIONS.fetch_add(counts.thread_instructions, Relaxed);
}

/// Instructions of warps and of threads so far.
pub(super) fn counts() -> (u64, u64) {
    (INSTRUCTIONS.load(Relaxed), THREAD_INSTRUCTIONS.load(Relaxed))
}

/// The driver.
pub(super) fn driver() -> &'static Driver {
    &DRIVER
}

/// The state, for a call that needs a context and no error before it.
pub(super) fn enter() -> Result<MutexGuard<'static, State>, Status> {
    let state = DRIVER.lock();
    if !state.initialized {
        return Err(Status::NOT_INITIALIZED);
    }
    if !CURRENT.get() || state.retained == 0 {
        return Err(Status::INVALID_CONTEXT);
    }
    state.error.map_or(Ok(state), Err)
}

impl Driver {
    /// The state.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the thread that works.
    pub(super) fn start(&'static self) -> Result<(), Status> {
        let thread = std::thread::Builder::new().name("cuda-emulator".into()).spawn(|| self.work());
        thread.map(|_| ()).map_err(|_| Status::OUT_OF_MEMORY)
    }

    /// Waits until a task is done.
    pub(super) fn wait<'s>(
        &self,
        state: MutexGuard<'s, State>,
        (stream, number): Mark,
    ) -> Result<MutexGuard<'s, State>, Status> {
        let late = |state: &mut State| !state.is_done((stream, number));
        let state = self.changed.wait_while(state, late).unwrap_or_else(PoisonError::into_inner);
        state.error.map_or(Ok(state), Err)
    }

    /// Waits until nothing is left to do.
    pub(super) fn wait_all<'s>(&self, state: MutexGuard<'s, State>) -> Result<MutexGuard<'s, State>, Status> {
        let busy = |state: &mut State| state.streams.values().any(|stream| stream.done < stream.entered);
        let state = self.changed.wait_while(state, busy).unwrap_or_else(PoisonError::into_inner);
        state.error.map_or(Ok(state), Err)
    }

    /// Tells all who wait that something is different.
    pub(super) fn wake(&self) {
        self.changed.notify_all();
    }

    fn work(&self) {
        let mut random = Random::new(self.lock().options.seed);
        let mut state = self.lock();
        loop {
            let mut ready: Vec<Handle> =
                state.streams.iter().filter(|(_, s)| state.can_begin(s)).map(|(h, _)| *h).collect();
            // A map has an order of its own, which must not be part of the random one.
            ready.sort_unstable();
            if ready.is_empty() {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let chosen = ready[random.below(ready.len())];
            let task = state.streams.get_mut(&chosen).and_then(|stream| stream.queue.pop_front());
            let failed = state.error.is_some();
            drop(state);
            // After an error nothing runs any more, but who waits must not wait for ever.
            let outcome = match &task {
                Some(task) if !failed => task.work.perform(self, &mut random),
                _ => Ok(()),
            };
            drop(task);
            state = self.lock();
            if let Err(status) = outcome {
                state.error.get_or_insert(status);
            }
            if let Some(stream) = state.streams.get_mut(&chosen) {
                stream.done += 1;
                if stream.destroyed && stream.done == stream.entered {
                    state.streams.remove(&chosen);
                }
            }
            self.changed.notify_all();
        }
    }
}

impl State {
    /// A new handle.
    pub(super) fn handle(&mut self) -> Handle {
        self.next_handle += 0x10;
        self.next_handle
    }

    /// The stream of a pointer.
    pub(super) fn stream(&self, pointer: usize) -> Result<Handle, Status> {
        let handle = if pointer == 0 { LEGACY } else { pointer as Handle };
        let known = self.streams.get(&handle).is_some_and(|stream| !stream.destroyed);
        if known { Ok(handle) } else { Err(Status::INVALID_HANDLE) }
    }

    /// Whether a task is done. One of a stream that is no more is.
    pub(super) fn is_done(&self, (stream, number): Mark) -> bool {
        self.streams.get(&stream).is_none_or(|stream| stream.done >= number)
    }

    fn can_begin(&self, stream: &Stream) -> bool {
        stream.queue.front().is_some_and(|task| task.after.iter().all(|mark| self.is_done(*mark)))
    }

    /// The mark of a stream's last task.
    pub(super) fn last(&self, stream: Handle) -> Mark {
        (stream, self.streams.get(&stream).map_or(0, |stream| stream.entered))
    }

    /// Marks that a stream's end must wait for when the host waits for it: the legacy stream's include those of
    /// blocking streams.
    pub(super) fn is_idle(&self, stream: Handle) -> bool {
        let others = || self.streams.iter().filter(|(_, other)| other.blocking).map(|(handle, _)| *handle);
        self.is_done(self.last(stream)) && (stream != LEGACY || others().all(|other| self.is_done(self.last(other))))
    }

    /// Puts work into a queue, behind all that it must come after.
    pub(super) fn enqueue(&mut self, handle: Handle, work: Work) -> Mark {
        let blocking = self.streams.get(&handle).is_some_and(|stream| stream.blocking);
        let mut after: Vec<Mark> = Vec::new();
        if handle == LEGACY {
            let others = self.streams.iter().filter(|(_, stream)| stream.blocking);
            after.extend(others.map(|(other, stream)| (*other, stream.entered)));
        } else if blocking {
            after.push(self.last(LEGACY));
        }
        let Some(stream) = self.streams.get_mut(&handle) else { return (handle, 0) };
        after.append(&mut stream.waits);
        stream.entered += 1;
        let mark = (handle, stream.entered);
        stream.queue.push_back(Task { work, after });
        driver().wake();
        mark
    }

    /// Makes a stream unknown, once its tasks are done.
    pub(super) fn destroy_stream(&mut self, handle: Handle) -> Result<(), Status> {
        let stream = self.streams.get_mut(&handle).filter(|_| handle > PER_THREAD).ok_or(Status::INVALID_HANDLE)?;
        stream.destroyed = true;
        if stream.done == stream.entered {
            self.streams.remove(&handle);
        }
        Ok(())
    }

    /// Forgets everything of the context.
    pub(super) fn reset(&mut self) {
        self.error = None;
        self.streams.retain(|handle, _| *handle <= PER_THREAD);
        self.events.clear();
        self.modules.clear();
        self.functions.clear();
        self.graphs.clear();
        self.executables.clear();
        self.captures.clear();
        self.links.clear();
        self.memory.clear();
    }
}
