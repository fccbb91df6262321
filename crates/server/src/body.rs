//! Reading the body of a request: as much as is allowed, in the time that is allowed.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, Request, header};
use bytes::BytesMut;
use http_body_util::BodyExt;
use hyper::body::Body as _;

use crate::protocol::ApiError;
use crate::state::{App, BodyRoom};

/// A body that was read. It counts among those that are held until it is dropped, which is when it was parsed.
#[derive(Debug)]
pub(crate) struct ReadBody {
    bytes: BytesMut,
    room: BodyRoom,
}

impl std::ops::Deref for ReadBody {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads a body that is JSON.
///
/// # Errors
/// 415 if it is said to be something else, 413 if it is too large, 408 if it takes too long, and 503 if too many bodies are read.
pub(crate) async fn read_json(app: &Arc<App>, request: Request<Body>) -> Result<ReadBody, ApiError> {
    check_headers(request.headers())?;
    let limits = &app.config.limits;
    let body = request.into_body();
    // An honest length is refused before a byte is read.
    if body.size_hint().lower() > limits.body_bytes as u64 {
        return Err(ApiError::payload_too_large(limits.body_bytes));
    }
    let collected = tokio::time::timeout(limits.body_timeout, collect(app, body)).await;
    collected.unwrap_or_else(|_| Err(ApiError::request_timeout()))
}

async fn collect(app: &Arc<App>, mut body: Body) -> Result<ReadBody, ApiError> {
    let limit = app.config.limits.body_bytes;
    let mut read = ReadBody { bytes: BytesMut::new(), room: app.body_room() };
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            tracing::debug!("reading a body: {error}");
            ApiError::malformed_body("The body ended early or is not framed as its headers say.")
        })?;
        // Trailers say nothing to us.
        let Ok(data) = frame.into_data() else { continue };
        if read.bytes.len().saturating_add(data.len()) > limit {
            return Err(ApiError::payload_too_large(limit));
        }
        read.room.grow(data.len())?;
        read.bytes.extend_from_slice(&data);
    }
    Ok(read)
}

fn check_headers(headers: &HeaderMap) -> Result<(), ApiError> {
    let shown = |name| headers.get(name).map(|value| String::from_utf8_lossy(axum::http::HeaderValue::as_bytes(value)));
    if let Some(encoding) =
        shown(header::CONTENT_ENCODING).filter(|encoding| !encoding.eq_ignore_ascii_case("identity"))
    {
        return Err(ApiError::unsupported_media_type(&format!("in the encoding {encoding}")));
    }
    let Some(found) = shown(header::CONTENT_TYPE) else { return Ok(()) };
    let essence = found.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_json = essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"));
    if is_json { Ok(()) } else { Err(ApiError::unsupported_media_type(&found)) }
}
