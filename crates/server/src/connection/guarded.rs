//! A socket with deadlines: for headers, between requests, and for a client that does not read.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::{Activity, Transport};
use crate::config::HttpLimits;

/// How often a socket that nobody reads is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// What is awaited from the client while no request is being answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaited {
    /// The first byte of a request.
    Request,
    /// The rest of its headers.
    Headers,
}

/// A connection that fails with `TimedOut` where its client takes too long.
#[derive(Debug)]
pub(super) struct GuardedStream {
    inner: Transport,
    activity: Arc<Activity>,
    header_timeout: Duration,
    keep_alive: Duration,
    write_timeout: Duration,
    awaited: Awaited,
    /// Requests that had ended when `read_deadline` was set.
    ended: u64,
    read_deadline: Pin<Box<Sleep>>,
    write_deadline: Option<Pin<Box<Sleep>>>,
    timed_out: bool,
    /// Whether the last read found nothing: the next event of the socket wakes whoever reads.
    is_listening: bool,
    /// When to look next whether the client is gone, while nobody reads.
    look: Option<Pin<Box<Sleep>>>,
}

impl GuardedStream {
    pub(super) fn new(inner: Transport, activity: Arc<Activity>, limits: &HttpLimits) -> Self {
        GuardedStream {
            inner,
            activity,
            header_timeout: limits.header_timeout,
            keep_alive: limits.keep_alive,
            write_timeout: limits.write_timeout,
            awaited: Awaited::Request,
            ended: 0,
            // A client that connects has something to say.
            read_deadline: Box::pin(tokio::time::sleep(limits.header_timeout)),
            write_deadline: None,
            timed_out: false,
            is_listening: false,
            look: None,
        }
    }

    /// Whether a deadline has passed.
    pub(super) fn has_timed_out(&self) -> bool {
        self.timed_out
    }

    /// Begins to wait for the next request, where the last has just ended.
    fn note_end(&mut self) {
        let ended = self.activity.ended();
        if self.activity.is_idle() && ended != self.ended {
            self.ended = ended;
            self.awaited = Awaited::Request;
            self.read_deadline.as_mut().reset(Instant::now() + self.keep_alive);
        }
    }

    /// All that was written is on its way.
    fn sent(&mut self, context: &mut Context<'_>) {
        self.activity.sent();
        self.note_end();
        // The next read may have been tried before, when there was no deadline yet to wake anybody.
        if self.activity.is_idle() && self.read_deadline.as_mut().poll(context).is_ready() {
            context.waker().wake_by_ref();
        }
    }

    /// Whether the client has closed its side while a request is being answered. Who reads finds that out without us; but nobody reads
    /// while there are bytes of a next request, and these may be any that a client left behind.
    fn is_abandoned(&mut self, context: &mut Context<'_>) -> bool {
        if self.is_listening || self.activity.is_idle() {
            self.look = None;
            return false;
        }
        let look = self.look.get_or_insert_with(|| Box::pin(tokio::time::sleep(LOOK_INTERVAL)));
        while look.as_mut().poll(context).is_ready() {
            if self.inner.is_closed_by_client() {
                return true;
            }
            look.as_mut().reset(Instant::now() + LOOK_INTERVAL);
        }
        false
    }

    fn timeout(&mut self, what: &'static str) -> io::Error {
        self.timed_out = true;
        io::Error::new(io::ErrorKind::TimedOut, what)
    }

    /// Passes on the result of a write, or fails where it was awaited for too long.
    fn check_write<T>(&mut self, context: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.write_deadline = None;
            return result;
        }
        let timeout = self.write_timeout;
        let deadline = self.write_deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        match deadline.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(self.timeout("the client reads too slowly"))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for GuardedStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.note_end();
        let is_idle = this.activity.is_idle();
        let before = buffer.filled().len();
        let result = Pin::new(&mut this.inner).poll_read(context, buffer);
        this.is_listening = result.is_pending();
        if !is_idle {
            return result;
        }
        if result.is_ready() {
            if buffer.filled().len() > before && this.awaited == Awaited::Request {
                this.awaited = Awaited::Headers;
                this.read_deadline.as_mut().reset(Instant::now() + this.header_timeout);
            }
            return result;
        }
        match this.read_deadline.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(this.timeout("no request came in time"))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncWrite for GuardedStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_write(context, bytes);
        this.check_write(context, result)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_flush(context);
        let result = this.check_write(context, result);
        if matches!(result, Poll::Ready(Ok(()))) {
            this.sent(context);
            // This is the one call that comes whatever is waited for.
            if this.is_abandoned(context) {
                let gone =
                    io::Error::new(io::ErrorKind::ConnectionReset, "the client left before its answer was there");
                return Poll::Ready(Err(gone));
            }
        }
        result
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_shutdown(context);
        this.check_write(context, result)
    }
}
