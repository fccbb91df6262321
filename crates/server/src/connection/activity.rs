//! Whether a connection has a request in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

/// The requests of one connection that are being answered.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    active: AtomicUsize,
    ended: AtomicU64,
}

impl Activity {
    /// A request begins; it ends with the guard.
    pub(crate) fn begin(self: &Arc<Self>) -> ActivityGuard {
        self.active.fetch_add(1, SeqCst);
        ActivityGuard(Arc::clone(self))
    }

    /// Whether no request is being answered.
    pub(crate) fn is_idle(&self) -> bool {
        self.active.load(SeqCst) == 0
    }

    /// How many requests have ended.
    pub(crate) fn ended(&self) -> u64 {
        self.ended.load(SeqCst)
    }
}

/// A request that is being answered, up to the last byte of its answer.
#[derive(Debug)]
pub(crate) struct ActivityGuard(Arc<Activity>);

impl Drop for ActivityGuard {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, SeqCst);
        self.0.active.fetch_sub(1, SeqCst);
    }
}
