//! The signals that ask a server to end.

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use crate::error::ServerError;
use crate::server::ServerHandle;

/// Passes SIGTERM, SIGINT and SIGHUP on to a server: the first asks it to finish what it has, the second to end now.
///
/// # Errors
/// If the operating system refuses to tell us of signals. Must be called on a runtime of tokio.
pub fn signals(handle: ServerHandle) -> Result<JoinHandle<()>, ServerError> {
    let listen = |kind| {
        let failed = |cause| ServerError::System { action: "listening for signals", cause };
        signal(kind).map_err(failed)
    };
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut hangup = listen(SignalKind::hangup())?;
    Ok(tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                Some(()) = terminate.recv() => "SIGTERM",
                Some(()) = interrupt.recv() => "SIGINT",
                Some(()) = hangup.recv() => "SIGHUP",
                else => return,
            };
            tracing::info!("{name}: shutting down");
            handle.shutdown();
        }
    }))
}
