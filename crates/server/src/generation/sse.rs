//! Answers as server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use allotrope_engine::Delta;
use axum::body::Body;
use axum::http::{HeaderValue, Response, header};
use bytes::Bytes;
use futures_util::{FutureExt, stream};
use tokio::time::Instant;

use super::Generation;
use crate::protocol::response::Usage;
use crate::protocol::{ApiError, sse};

/// How many parts that are there already go into one write.
const MOST_AT_ONCE: usize = 64;

/// Turns parts of answers into events.
pub(crate) trait Chunks: Send + 'static {
    /// Adds the events of the next part to `events`, if it makes any.
    fn push(&mut self, delta: Delta, generation: &Generation, events: &mut String) -> Result<(), ApiError>;

    /// The event that tells the usage at the end.
    fn usage(&self, usage: Usage) -> Result<String, ApiError>;
}

struct EventStream<C> {
    generation: Generation,
    chunks: C,
    /// Whether the usage is told at the end.
    tells_usage: bool,
    keep_alive: Option<Duration>,
    last_sent: Instant,
    is_done: bool,
}

/// The response with all events. Its head is written now, so the first token must be there.
pub(crate) fn respond<C: Chunks>(generation: Generation, chunks: C, tells_usage: bool) -> Response<Body> {
    let keep_alive = generation.app.config.sse_keep_alive_interval;
    let active = generation.active.clone();
    let events = EventStream { generation, chunks, tells_usage, keep_alive, last_sent: Instant::now(), is_done: false };
    let body = Body::from_stream(stream::unfold(events, |mut events| async {
        let bytes = events.next().await?;
        Some((Ok::<Bytes, Infallible>(bytes), events))
    }));
    let mut response = Response::new(body);
    response.extensions_mut().insert(active);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // For proxies that would otherwise collect the events.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

impl<C: Chunks> EventStream<C> {
    /// The next bytes to send.
    async fn next(&mut self) -> Option<Bytes> {
        let mut events = String::new();
        while !self.is_done && events.is_empty() {
            let next = match self.keep_alive {
                None => self.generation.next().await,
                Some(interval) => {
                    match tokio::time::timeout_at(self.last_sent + interval, self.generation.next()).await {
                        Ok(next) => next,
                        Err(_) => {
                            events.push_str(sse::KEEP_ALIVE);
                            break;
                        }
                    }
                }
            };
            self.take(next, &mut events);
            // What is there already goes along.
            for _ in 0..MOST_AT_ONCE {
                if self.is_done {
                    break;
                }
                let Some(next) = self.generation.next().now_or_never() else { break };
                self.take(next, &mut events);
            }
        }
        self.last_sent = Instant::now();
        (!events.is_empty()).then(|| events.into())
    }

    fn take(&mut self, next: Option<Result<Delta, ApiError>>, events: &mut String) {
        let result = match next {
            Some(Ok(delta)) => self.chunks.push(delta, &self.generation, events),
            Some(Err(error)) => Err(error),
            None => {
                self.is_done = true;
                let usage = self.tells_usage.then(|| self.chunks.usage(self.generation.usage())).transpose();
                usage.map(|event| events.push_str(&event.unwrap_or_default()))
            }
        };
        if let Err(error) = result {
            self.is_done = true;
            events.push_str(&sse::error_event(&error));
        }
        if self.is_done {
            events.push_str(sse::DONE);
        }
    }
}
