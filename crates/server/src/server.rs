//! The server: from the socket to the last answer.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use allotrope_engine::AsyncLlm;
use axum::Router;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::config::ServerConfig;
use crate::connection::{self, Transport};
use crate::error::ServerError;
use crate::lifecycle::{Phase, Stage};
use crate::listener::{BoundListener, Listener};
use crate::metrics::Summary;
use crate::model::ServedModel;
use crate::routes;
use crate::state::App;

/// How long the accept loop waits where the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long answers that were aborted have to reach their clients.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How often the engine is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// A server that has its socket, and no model yet.
#[derive(Debug)]
pub struct Server {
    listener: BoundListener,
    app: Arc<App>,
}

impl Server {
    /// Opens the socket. Needs no runtime, and no model: whoever can't listen need not load one.
    ///
    /// # Errors
    /// If a setting is wrong, the address is in use or not ours, or others could reach it and there is no key.
    pub fn bind(config: ServerConfig) -> Result<Self, ServerError> {
        config.validate()?;
        let listener = BoundListener::bind(&config)?;
        Ok(Server { listener, app: Arc::new(App::new(config)?) })
    }

    /// What clients connect to: `http://ADDRESS:PORT`, or `unix:PATH`.
    pub fn address(&self) -> String {
        self.listener.address()
    }

    /// The TCP address; `None` for a Unix socket.
    pub fn socket_address(&self) -> Option<SocketAddr> {
        self.listener.socket_address()
    }

    /// What gives the server its model and ends it, from any thread.
    pub fn handle(&self) -> ServerHandle {
        ServerHandle { app: Arc::clone(&self.app) }
    }

    /// The routes with their methods, for a log.
    pub fn routes() -> &'static [(&'static str, &'static str)] {
        &routes::ROUTES
    }

    /// Serves until [`ServerHandle::shutdown`]: at once, although requests of the model are refused until it is there.
    ///
    /// # Errors
    /// If the model could not be loaded, or the engine died; the server has ended then. Must be called on a runtime of tokio with
    /// several threads, I/O and time.
    pub async fn run(self) -> Result<(), ServerError> {
        let Server { listener, app } = self;
        let listener = listener.into_async()?;
        let router = routes::router(Arc::clone(&app));
        let mut connections = Connections::new(&app, router);
        let ended = tokio::select! {
            never = connections.accept_all(&listener) => match never {},
            ended = until_end(&app) => ended,
        };
        drop(listener);
        connections.close(&app).await;
        ended
    }
}

/// Gives a server its model, and ends it. Clones are of the same server.
#[derive(Debug, Clone)]
pub struct ServerHandle {
    app: Arc<App>,
}

impl ServerHandle {
    /// Gives the server its model; from now on it is ready.
    ///
    /// # Errors
    /// If the chat template that the server was told to use can't be used; the server ends then, as with [`ServerHandle::fail`].
    pub fn set_model(&self, llm: AsyncLlm) -> Result<(), ServerError> {
        match ServedModel::new(llm, &self.app.config) {
            Ok(model) => {
                self.app.lifecycle.loaded(Phase::Ready(Arc::new(model)));
                Ok(())
            }
            Err(error) => {
                let message = error.to_string();
                self.fail(&message);
                Err(ServerError::Model(message))
            }
        }
    }

    /// Says that the model can't be loaded; [`Server::run`] ends with this message.
    pub fn fail(&self, message: &str) {
        self.app.lifecycle.loaded(Phase::Failed(message.into()));
    }

    /// The first call lets the server finish what it has, in the time that its configuration allows; a second one ends it now.
    pub fn shutdown(&self) {
        self.app.lifecycle.shut_down();
    }

    /// Whether the server was asked to end, or has.
    pub fn is_shutting_down(&self) -> bool {
        self.app.lifecycle.stage() != Stage::Serving
    }
}

/// The open connections.
struct Connections {
    app: Arc<App>,
    router: Router,
    room: Arc<Semaphore>,
    tasks: JoinSet<()>,
}

impl Connections {
    fn new(app: &Arc<App>, router: Router) -> Self {
        let room = Arc::new(Semaphore::new(app.config.limits.connections));
        Connections { app: Arc::clone(app), router, room, tasks: JoinSet::new() }
    }

    async fn accept_all(&mut self, listener: &Listener) -> std::convert::Infallible {
        loop {
            // Where there is no room, clients wait in the queue of the kernel. The semaphore is never closed.
            let Ok(permit) = Arc::clone(&self.room).acquire_owned().await else { continue };
            match listener.accept().await {
                Ok(transport) => self.serve(transport, permit),
                Err(error) if is_of_one_connection(&error) => tracing::debug!("accepting a connection: {error}"),
                Err(error) => {
                    tracing::warn!("accepting a connection: {error}; trying again in {ACCEPT_PAUSE:?}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
            // Ended tasks are kept until someone asks for them.
            while self.tasks.try_join_next().is_some() {}
        }
    }

    fn serve(&mut self, transport: Transport, permit: OwnedSemaphorePermit) {
        let (app, router) = (Arc::clone(&self.app), self.router.clone());
        let stage = app.lifecycle.watch_stage();
        self.tasks.spawn(async move {
            connection::serve(transport, app, router, stage).await;
            drop(permit);
        });
    }

    /// Ends all connections: after what they have to send, but soon.
    async fn close(mut self, app: &App) {
        app.lifecycle.advance(Stage::Closing);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        let mut stage = app.lifecycle.watch_stage();
        tokio::select! {
            _ = tokio::time::timeout(LAST_WORDS, all) => {}
            _ = stage.wait_for(|stage| *stage == Stage::Aborting) => {}
        }
        app.lifecycle.advance(Stage::Aborting);
        self.tasks.shutdown().await;
    }
}

/// Errors that say nothing about the next connection.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Waits until the server is to end, and its requests have.
async fn until_end(app: &Arc<App>) -> Result<(), ServerError> {
    let mut stage = app.lifecycle.watch_stage();
    let ended = tokio::select! {
        _ = stage.wait_for(|stage| *stage != Stage::Serving) => Ok(()),
        error = watch_model(app) => Err(error),
    };
    if ended.is_ok() {
        drain(app).await;
    }
    ended
}

/// Lets requests finish in the time that they have, then ends them.
async fn drain(app: &App) {
    let timeout = app.config.shutdown_timeout;
    let engine = match app.lifecycle.phase() {
        Phase::Ready(model) => Some(model.llm.engine().clone()),
        Phase::Loading | Phase::Failed(_) => None,
    };
    if let Some(engine) = &engine {
        engine.drain();
    }
    let mut stage = app.lifecycle.watch_stage();
    let active = app.lifecycle.active();
    tracing::info!("shutting down: {active} requests are open and have {timeout:?}");
    tokio::select! {
        finished = tokio::time::timeout(timeout, app.lifecycle.until_idle()) => {
            if finished.is_err() {
                tracing::warn!("{} requests are still open and are aborted", app.lifecycle.active());
            }
        }
        _ = stage.wait_for(|stage| *stage == Stage::Aborting) => tracing::warn!("asked again: ending now"),
    }
    if let Some(engine) = &engine {
        engine.stop();
    }
}

/// Looks after the model; ends with what makes it useless.
async fn watch_model(app: &Arc<App>) -> ServerError {
    let mut phase = app.lifecycle.watch_phase();
    let model = loop {
        match &*phase.borrow_and_update() {
            Phase::Loading => {}
            Phase::Ready(model) => break Arc::clone(model),
            Phase::Failed(message) => return ServerError::Model(message.to_string()),
        }
        if phase.changed().await.is_err() {
            // The sender is in the app, which we hold.
            std::future::pending::<()>().await;
        }
    };
    let mut looks = tokio::time::interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut summary = Summary::default();
    let mut summarized = Instant::now();
    let mut was_stalled = false;
    loop {
        looks.tick().await;
        if let Some(reason) = model.death() {
            match app.config.engine_death_grace {
                Some(grace) => tokio::time::sleep(grace).await,
                None => std::future::pending().await,
            }
            return ServerError::EngineDead(reason);
        }
        let stalled = app.stalled_for(&model);
        let is_stalled = stalled > app.config.step_watchdog;
        if is_stalled && !was_stalled {
            tracing::error!("requests run, but the engine has made no step for {stalled:.0?}");
        }
        was_stalled = is_stalled;
        let elapsed = summarized.elapsed();
        if !app.config.disable_log_stats && elapsed >= app.config.stats_interval {
            summarized = Instant::now();
            if let Some(line) = summary.next_line(&app.metrics, &model, elapsed) {
                tracing::info!("{line}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_of_one_connection_are_passed_over_without_a_pause() {
        // ECONNABORTED and EINTR are of one connection; EMFILE, ENFILE and ENOBUFS would come again at once.
        for (code, is_of_one) in [(103, true), (4, true), (24, false), (23, false), (105, false)] {
            assert_eq!(is_of_one_connection(&io::Error::from_raw_os_error(code)), is_of_one, "{code}");
        }
    }
}
