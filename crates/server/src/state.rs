//! What all requests of a server share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::config::ServerConfig;
use crate::error::ServerError;
use crate::lifecycle::{Lifecycle, Phase};
use crate::metrics::Metrics;
use crate::middleware::{AllowedOrigins, ApiKeys};
use crate::model::{Progress, ServedModel};
use crate::protocol::ApiError;

/// What all requests of a server share.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) config: ServerConfig,
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) metrics: Metrics,
    pub(crate) keys: ApiKeys,
    pub(crate) origins: AllowedOrigins,
    progress: Mutex<Progress>,
    preparations: Arc<Semaphore>,
    body_bytes: AtomicUsize,
}

impl App {
    pub(crate) fn new(config: ServerConfig) -> Result<Self, ServerError> {
        Ok(App {
            lifecycle: Arc::new(Lifecycle::new()),
            metrics: Metrics::new(&config)?,
            keys: ApiKeys::new(&config.api_keys),
            origins: AllowedOrigins::new(&config.allowed_origins)?,
            progress: Mutex::new(Progress::new()),
            preparations: Arc::new(Semaphore::new(config.limits.preparations)),
            body_bytes: AtomicUsize::new(0),
            config,
        })
    }

    /// How long the engine has had work without doing any.
    pub(crate) fn stalled_for(&self, model: &ServedModel) -> Duration {
        // A lock whose holder panicked holds whole values all the same.
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).look(model)
    }

    /// What is wrong with the engine, if anything is.
    pub(crate) fn ailment(&self) -> Option<&'static str> {
        match self.lifecycle.phase() {
            Phase::Loading => None,
            Phase::Failed(_) => Some("the model could not be loaded"),
            Phase::Ready(model) if model.death().is_some() => Some("the engine has stopped"),
            Phase::Ready(model) => {
                let is_stalled = self.stalled_for(&model) > self.config.step_watchdog;
                is_stalled.then_some("the engine makes no progress")
            }
        }
    }

    /// Runs work that takes a while on a thread of its own, when one is free.
    ///
    /// # Errors
    /// That of the work, 503 if it does not end in time, or 500 if it panics. Work that takes too long keeps its thread until it
    /// ends, so that no more than the allowed number ever run.
    pub(crate) async fn prepare<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        const RETRY_AFTER: u64 = 1;
        let permits = Arc::clone(&self.preparations);
        let run = async {
            // The semaphore is never closed.
            let permit = permits.acquire_owned().await.map_err(|_| ApiError::internal())?;
            let done = tokio::task::spawn_blocking(move || {
                let result = work();
                drop(permit);
                result
            });
            done.await.unwrap_or_else(|error| {
                tracing::error!("preparing a request: {error} (a bug)");
                Err(ApiError::internal())
            })
        };
        tokio::time::timeout(self.config.limits.preparation_time, run).await.unwrap_or_else(|_| {
            tracing::warn!("preparing a request took longer than {:?}", self.config.limits.preparation_time);
            Err(ApiError::overloaded(RETRY_AFTER))
        })
    }

    /// Room for a request body, none yet.
    pub(crate) fn body_room(self: &Arc<Self>) -> BodyRoom {
        BodyRoom { app: Arc::clone(self), bytes: 0 }
    }
}

/// Room for the bytes of a request body, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct BodyRoom {
    app: Arc<App>,
    bytes: usize,
}

impl BodyRoom {
    /// Takes room for more bytes, if there is any.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<(), ApiError> {
        const RETRY_AFTER: u64 = 1;
        let limit = self.app.config.limits.total_body_bytes;
        let add = |held: usize| held.checked_add(bytes).filter(|held| *held <= limit);
        let added = self.app.body_bytes.fetch_update(Relaxed, Relaxed, add);
        added.map_err(|_| ApiError::overloaded(RETRY_AFTER))?;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for BodyRoom {
    fn drop(&mut self) {
        self.app.body_bytes.fetch_sub(self.bytes, Relaxed);
    }
}
