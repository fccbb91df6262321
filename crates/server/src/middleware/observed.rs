//! Metrics and log lines of requests, from their headers to the last byte of their answers.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::Body;
use axum::http::{Method, Request, Response};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

use super::RequestId;
use crate::connection::ActivityGuard;
use crate::lifecycle::ActiveRequest;
use crate::protocol::for_log;
use crate::routes;
use crate::state::App;

/// A request that is being answered. It is counted when it is dropped, with its answer or without.
pub(super) struct Observation {
    app: Arc<App>,
    activity: ActivityGuard,
    started: Instant,
    method: &'static str,
    route: &'static str,
    path: String,
    id: RequestId,
    /// None for a client that left before.
    status: Option<u16>,
}

/// The longest path that the log shows, in characters.
const MAX_SHOWN: usize = 200;
/// The status that is counted for a client that left before there was one.
const CLIENT_CLOSED: u16 = 499;

impl Observation {
    pub(super) fn begin(app: Arc<App>, activity: ActivityGuard, request: &Request<Body>, id: RequestId) -> Self {
        Observation {
            app,
            activity,
            started: Instant::now(),
            method: method_label(request.method()),
            route: routes::label(request.uri().path()),
            path: for_log(&request.uri().path().chars().take(MAX_SHOWN).collect::<String>()),
            id,
            status: None,
        }
    }

    /// Goes on to the end of the answer.
    pub(super) fn attach(mut self, mut response: Response<Body>) -> Response<Body> {
        self.status = Some(response.status().as_u16());
        if let Some(request) = response.extensions_mut().remove::<ActiveRequest>() {
            self.activity.hold(request);
        }
        response.map(|inner| Body::new(ObservedBody { inner, _observation: self }))
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        let status = self.status.unwrap_or(CLIENT_CLOSED);
        let elapsed = self.started.elapsed();
        self.app.metrics.http_request(self.method, self.route, status, elapsed);
        let (method, path, id) = (self.method, &self.path, self.id.as_str());
        if routes::is_probe(self.route) {
            tracing::debug!("{method} {path} {status} {elapsed:.1?} {id}");
        } else {
            tracing::info!("{method} {path} {status} {elapsed:.1?} {id}");
        }
    }
}

/// Methods by name; clients can make up as many as they like, and each would be a series of its own.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        _ => "other",
    }
}

/// The body of an answer.
struct ObservedBody {
    inner: Body,
    _observation: Observation,
}

impl hyper::body::Body for ObservedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.get_mut().inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
