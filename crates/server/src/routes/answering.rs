//! What both kinds of answers begin with: reading the request, and the head of whatever is said of it.

use std::sync::Arc;

use axum::body::Body;
use axum::http::Request;

use super::Failure;
use crate::body::read_json;
use crate::config::ServerConfig;
use crate::model::ServedModel;
use crate::prompt::Job;
use crate::protocol::{ApiError, RequestContext, RequestOptions, identifiers};
use crate::state::App;

/// Reads a request by `parse` and makes its prompts ready by `ready`, out of the way of other requests.
pub(super) async fn read<R: Send + 'static>(
    app: &Arc<App>,
    model: &Arc<ServedModel>,
    request: Request<Body>,
    parse: fn(&[u8], &RequestContext) -> Result<R, ApiError>,
    ready: fn(&ServedModel, &ServerConfig, &R) -> Result<Job, ApiError>,
) -> Result<(R, Job), Failure> {
    let body = read_json(app, request).await?;
    let (owner, model) = (Arc::clone(app), Arc::clone(model));
    let prepared = app.prepare(move || {
        let request = parse(&body, &model.context)?;
        drop(body);
        let job = ready(&model, &owner.config, &request)?;
        Ok((request, job))
    });
    Ok(prepared.await?)
}

/// What all chunks of an answer share.
pub(super) struct Head {
    pub(super) id: String,
    pub(super) created: u64,
    /// The name by which the request asked for the model.
    pub(super) model: String,
}

impl Head {
    pub(super) fn new(id: String, options: &RequestOptions, model: &ServedModel) -> Self {
        let name = options.model.clone().unwrap_or_else(|| model.name().to_owned());
        Head { id, created: identifiers::created_now(), model: name }
    }
}
