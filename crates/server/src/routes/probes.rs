//! Routes for those who watch the server.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::Response;

use super::{Failure, json};
use crate::protocol::ApiError;
use crate::state::App;

/// Alive: an empty 200, or 503 where only a new start can help.
pub(super) async fn health(State(app): State<Arc<App>>) -> Result<Response<Body>, Failure> {
    match app.ailment() {
        Some(ailment) => Err(ApiError::unavailable(ailment, None).into()),
        None => Ok(Response::new(Body::empty())),
    }
}

/// Ready: an empty 200 while requests are taken, else 503.
pub(super) async fn ready(State(app): State<Arc<App>>) -> Result<Response<Body>, Failure> {
    app.lifecycle.model()?;
    health(State(app)).await
}

pub(super) async fn version() -> Result<Response<Body>, Failure> {
    json(&serde_json::json!({"version": env!("CARGO_PKG_VERSION")}))
}

/// How many requests of the model are being answered.
pub(super) async fn load(State(app): State<Arc<App>>) -> Result<Response<Body>, Failure> {
    json(&serde_json::json!({"server_load": app.lifecycle.active()}))
}
