//! Recordings made on a thread of their own while steps run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread::JoinHandle;

use allotrope_graph::Sizes;

use crate::capture_plan::Part;
use crate::device::{DeviceError, Recorder};

/// One recording to make.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// What is recorded.
    pub(crate) part: Part,
    /// At the capture size of this place.
    pub(crate) size: usize,
    /// Its launches.
    pub(crate) launches: std::ops::Range<usize>,
    /// The largest batch that it can run.
    pub(crate) sizes: Sizes,
}

/// One recording that was made, or why not.
pub(crate) struct Made<R> {
    pub(crate) part: Part,
    pub(crate) size: usize,
    pub(crate) recording: Result<R, DeviceError>,
}

/// The thread that works through the jobs in order. Dropping it stops the thread after the recording that is under way.
pub(crate) struct Background<R> {
    made: Receiver<Made<R>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl<R: Send + 'static> Background<R> {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system has no thread to give.
    pub(crate) fn start<K: Send + Sync + 'static>(
        mut recorder: impl Recorder<K, R> + Send + 'static,
        kernels: Arc<[K]>,
        jobs: Vec<Job>,
    ) -> Result<Self, std::io::Error> {
        let (send, made) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let work = move || {
            for Job { part, size, launches, sizes } in jobs {
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                let recording = recorder.record(&kernels[launches], &sizes);
                if send.send(Made { part, size, recording }).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("recorder".to_owned()).spawn(work)?;
        Ok(Background { made, stop, thread: Some(thread) })
    }

    /// The next recording that has arrived, if there is one. `Err` after the last, or where the thread has died.
    pub(crate) fn arrived(&self) -> Result<Option<Made<R>>, Ended> {
        match self.made.try_recv() {
            Ok(made) => Ok(Some(made)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(Ended),
        }
    }
}

/// The thread has ended, and all that it made has been taken.
pub(crate) struct Ended;

impl<R> Drop for Background<R> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // If it panicked, the recordings that it owed have been missed already.
            let _ = thread.join();
        }
    }
}
