//! `GET /v1/models`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::Response;

use super::{Failure, json};
use crate::protocol::response::ModelList;
use crate::state::App;

pub(super) async fn list(State(app): State<Arc<App>>) -> Result<Response<Body>, Failure> {
    let model = app.lifecycle.model()?;
    let context = &model.context;
    json(&ModelList::new(&context.model_names, &model.root, model.created, context.max_model_len))
}
