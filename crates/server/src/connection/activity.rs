//! Whether a connection has a request in it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use crate::lifecycle::ActiveRequest;

/// The requests of one connection that are being answered.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    active: AtomicUsize,
    ended: AtomicU64,
    /// Those whose answers were given to the connection, and are not all sent.
    unsent: Mutex<Vec<Option<ActiveRequest>>>,
}

impl Activity {
    /// A request begins. It ends when all is sent that was there to send when the guard was dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> ActivityGuard {
        self.active.fetch_add(1, SeqCst);
        ActivityGuard { activity: Arc::clone(self), request: None }
    }

    /// Whether no request is being answered.
    pub(crate) fn is_idle(&self) -> bool {
        self.active.load(SeqCst) == 0
    }

    /// How many requests have ended.
    pub(crate) fn ended(&self) -> u64 {
        self.ended.load(SeqCst)
    }

    /// All that was there to send has been sent.
    pub(super) fn sent(&self) {
        // A lock whose holder panicked holds whole values all the same.
        let sent = std::mem::take(&mut *self.unsent.lock().unwrap_or_else(PoisonError::into_inner));
        self.ended.fetch_add(sent.len() as u64, SeqCst);
        self.active.fetch_sub(sent.len(), SeqCst);
    }
}

/// A request that is being answered, up to the last byte of its answer.
#[derive(Debug)]
pub(crate) struct ActivityGuard {
    activity: Arc<Activity>,
    request: Option<ActiveRequest>,
}

impl ActivityGuard {
    /// Keeps a request of the model active for as long as its answer is not sent.
    pub(crate) fn hold(&mut self, request: ActiveRequest) {
        self.request = Some(request);
    }
}

impl Drop for ActivityGuard {
    fn drop(&mut self) {
        let mut unsent = self.activity.unsent.lock().unwrap_or_else(PoisonError::into_inner);
        unsent.push(self.request.take());
    }
}
