//! Where a server is between its start and its end.

use std::sync::Arc;

use tokio::sync::watch;

use crate::model::ServedModel;
use crate::protocol::ApiError;

/// The model, from the server's point of view.
#[derive(Debug, Clone)]
pub(crate) enum Phase {
    /// It is not there yet.
    Loading,
    /// It is there.
    Ready(Arc<ServedModel>),
    /// It will never be.
    Failed(Arc<str>),
}

/// How far the end of a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// It takes requests.
    Serving,
    /// It takes none, and finishes those that it has.
    Draining,
    /// Connections end as soon as they have nothing to send.
    Closing,
    /// Everything ends now.
    Aborting,
}

/// Phase and stage, and the requests that are being answered, for anyone to watch.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    phase: watch::Sender<Phase>,
    stage: watch::Sender<Stage>,
    active: watch::Sender<usize>,
}

impl Lifecycle {
    pub(crate) fn new() -> Self {
        Lifecycle {
            phase: watch::Sender::new(Phase::Loading),
            stage: watch::Sender::new(Stage::Serving),
            active: watch::Sender::new(0),
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    pub(crate) fn watch_phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Leaves the phase of loading, once.
    pub(crate) fn loaded(&self, phase: Phase) {
        self.phase.send_if_modified(|current| {
            let is_first = matches!(current, Phase::Loading);
            if is_first {
                *current = phase;
            }
            is_first
        });
    }

    pub(crate) fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    pub(crate) fn watch_stage(&self) -> watch::Receiver<Stage> {
        self.stage.subscribe()
    }

    /// Goes on to a stage; never back.
    pub(crate) fn advance(&self, stage: Stage) {
        self.stage.send_if_modified(|current| {
            let is_later = stage > *current;
            *current = stage.max(*current);
            is_later
        });
    }

    /// The first call asks for a graceful end, any other for an end now.
    pub(crate) fn shut_down(&self) {
        self.stage.send_modify(|stage| {
            *stage = if *stage == Stage::Serving { Stage::Draining } else { Stage::Aborting };
        });
    }

    /// The model, for a request that needs it.
    pub(crate) fn model(&self) -> Result<Arc<ServedModel>, ApiError> {
        /// What clients are told to wait; a model takes seconds to minutes to load.
        const RETRY_AFTER: u64 = 5;
        if self.stage() != Stage::Serving {
            return Err(ApiError::unavailable("it is shutting down", Some(RETRY_AFTER)));
        }
        match self.phase() {
            Phase::Ready(model) => Ok(model),
            Phase::Loading => Err(ApiError::unavailable("the model is still being loaded", Some(RETRY_AFTER))),
            Phase::Failed(_) => Err(ApiError::unavailable("the model could not be loaded", None)),
        }
    }

    /// Counts a request of the model until the guard and its clones are dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> ActiveRequest {
        self.active.send_modify(|active| *active += 1);
        ActiveRequest { _counted: Arc::new(Counted(Arc::clone(self))) }
    }

    /// Requests of the model that are being answered.
    pub(crate) fn active(&self) -> usize {
        *self.active.borrow()
    }

    /// Waits until no request of the model is being answered.
    pub(crate) async fn until_idle(&self) {
        // The sender is ours, so it is there for as long as we wait.
        let _ = self.active.subscribe().wait_for(|active| *active == 0).await;
    }
}

/// A request of the model that is being answered. As an extension of a response it lasts until that is sent.
#[derive(Debug, Clone)]
pub(crate) struct ActiveRequest {
    _counted: Arc<Counted>,
}

#[derive(Debug)]
struct Counted(Arc<Lifecycle>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.active.send_modify(|active| *active = active.saturating_sub(1));
    }
}
