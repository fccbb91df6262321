//! One connection: HTTP/1.1 over a socket that waits for nobody for ever.

mod activity;
mod guarded;

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;

use crate::config::HttpLimits;
use crate::lifecycle::Stage;
use crate::middleware;
use crate::state::App;

pub(crate) use activity::{Activity, ActivityGuard};
use guarded::GuardedStream;

/// How long a client may take to read the last answer of a connection that we close, and to stop sending.
const LINGER: Duration = Duration::from_secs(2);

/// A connection of either kind.
#[derive(Debug)]
pub(crate) enum Transport {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Transport {
    /// Whether the client has closed its side, or all of it, as far as it is known; whatever was not read before.
    fn is_closed_by_client(&self) -> bool {
        let ready = match self {
            Transport::Tcp(stream) => stream.ready(Interest::READABLE).now_or_never(),
            Transport::Unix(stream) => stream.ready(Interest::READABLE).now_or_never(),
        };
        ready.is_some_and(|ready| ready.is_ok_and(|ready| ready.is_read_closed()))
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Transport::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Transport::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Transport::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Transport::Unix(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// Serves a connection until either side closes it or the server aborts.
pub(crate) async fn serve(transport: Transport, app: Arc<App>, router: Router, mut stage: watch::Receiver<Stage>) {
    let limits = &app.config.limits;
    let activity = Arc::new(Activity::default());
    let stream = GuardedStream::new(transport, Arc::clone(&activity), limits);
    let service = {
        let app = Arc::clone(&app);
        service_fn(move |request: Request<Incoming>| -> Answering {
            Box::pin(middleware::answer(Arc::clone(&app), router.clone(), activity.begin(), request))
        })
    };
    let mut connection = builder(limits).serve_connection(TokioIo::new(stream), service);
    let mut is_closing = false;
    loop {
        tokio::select! {
            result = poll_fn(|context| connection.poll_without_shutdown(context)) => {
                if let Err(error) = &result {
                    tracing::debug!("a connection ended: {error}");
                }
                break;
            }
            changed = stage.changed() => match *stage.borrow_and_update() {
                _ if changed.is_err() => return,
                Stage::Aborting => return,
                Stage::Closing if !is_closing => {
                    is_closing = true;
                    Pin::new(&mut connection).graceful_shutdown();
                }
                Stage::Serving | Stage::Draining | Stage::Closing => {}
            }
        }
    }
    let stream = connection.into_parts().io.into_inner();
    if !stream.has_timed_out() {
        tokio::select! {
            () = linger(stream) => {}
            _ = stage.wait_for(|stage| *stage == Stage::Aborting) => {}
        }
    }
}

fn builder(limits: &HttpLimits) -> hyper::server::conn::http1::Builder {
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // The stream itself tells idle connections from slow headers; this is the bound on both together.
        .header_read_timeout(limits.keep_alive.saturating_add(limits.header_timeout))
        .max_headers(limits.header_count)
        .max_header_size(limits.header_bytes)
        .max_buf_size(limits.header_bytes.max(64 << 10))
        .keep_alive(true);
    builder
}

/// Closes our side, and reads what the client still sends. A socket that is closed with bytes unread is reset, and the reset
/// can overtake the answer.
async fn linger(mut stream: GuardedStream) {
    let drain = async {
        if poll_fn(|context| Pin::new(&mut stream).poll_shutdown(context)).await.is_err() {
            return;
        }
        let mut bytes = [0; 8192];
        loop {
            let mut buffer = ReadBuf::new(&mut bytes);
            let read = poll_fn(|context| Pin::new(&mut stream).poll_read(context, &mut buffer)).await;
            if read.is_err() || buffer.filled().is_empty() {
                return;
            }
        }
    };
    // A client that goes on sending is cut off.
    let _ = tokio::time::timeout(LINGER, drain).await;
}
