//! The routes, and how their errors become answers.

mod answering;
mod chat;
mod completions;
mod models;
mod probes;
mod tokenize;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, Method, Request, Response, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use bytes::Bytes;
use serde::Serialize;

use crate::lifecycle::ActiveRequest;
use crate::metrics::EXPOSITION_TYPE;
use crate::protocol::ApiError;
use crate::state::App;

/// The description of the routes that clients may ask for.
pub(crate) const OPENAPI: &str = include_str!("openapi.json");
/// What unknown paths are counted as: clients can make up as many as they like.
const UNKNOWN: &str = "unknown";
const GET: &str = "GET, HEAD";
const POST: &str = "POST";

/// Every route with what it accepts. The paths are compared as they come, so that there is one spelling of each.
pub(crate) const ROUTES: [(&str, &str); 12] = [
    ("/health", GET),
    ("/ready", GET),
    ("/ping", GET),
    ("/version", GET),
    ("/load", GET),
    ("/metrics", GET),
    ("/openapi.json", GET),
    ("/v1/models", GET),
    ("/v1/completions", POST),
    ("/v1/chat/completions", POST),
    ("/tokenize", POST),
    ("/detokenize", POST),
];

/// The router over all routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/health", get(probes::health))
        .route("/ready", get(probes::ready))
        .route("/ping", get(probes::health))
        .route("/version", get(probes::version))
        .route("/load", get(probes::load))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(openapi))
        .route("/v1/models", get(models::list))
        .route("/v1/completions", post(completions::answer))
        .route("/v1/chat/completions", post(chat::answer))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .with_state(app)
}

/// What a path is counted as.
pub(crate) fn label(path: &str) -> &'static str {
    ROUTES.iter().find(|(route, _)| *route == path).map_or(UNKNOWN, |(route, _)| route)
}

/// Whether machines ask for this route all the time.
pub(crate) fn is_probe(route: &str) -> bool {
    ["/health", "/ready", "/ping", "/metrics", "/load"].contains(&route)
}

async fn unknown_route(request: Request<Body>) -> Failure {
    Failure(ApiError::route_not_found(request.uri().path()))
}

async fn wrong_method(method: Method, request: Request<Body>) -> Response<Body> {
    let allowed = ROUTES.iter().find(|(route, _)| *route == request.uri().path()).map_or(GET, |(_, allowed)| allowed);
    let mut response = Failure(ApiError::method_not_allowed(method.as_str(), allowed)).into_response();
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}

async fn metrics(State(app): State<Arc<App>>) -> Result<Response<Body>, Failure> {
    let text = app.metrics.expose(&app.lifecycle.phase()).map_err(|error| {
        tracing::error!("writing the metrics: {error}");
        ApiError::internal()
    })?;
    Ok(with_type(EXPOSITION_TYPE, text.into()))
}

async fn openapi() -> Response<Body> {
    with_type("application/json", Bytes::from_static(OPENAPI.as_bytes()))
}

fn with_type(content_type: &'static str, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// An answer that is one small JSON value.
fn json<T: Serialize>(value: &T) -> Result<Response<Body>, Failure> {
    Ok(with_type("application/json", to_json(value)?))
}

/// An answer of the model that is JSON. Its request is active until it is sent.
fn json_of_model(text: Bytes, active: ActiveRequest) -> Response<Body> {
    let mut response = with_type("application/json", text);
    response.extensions_mut().insert(active);
    response
}

/// The text of a value. Takes long for large ones.
fn to_json<T: Serialize>(value: &T) -> Result<Bytes, ApiError> {
    let text = serde_json::to_vec(value).map_err(|error| {
        tracing::error!("writing an answer: {error} (a bug)");
        ApiError::internal()
    })?;
    Ok(text.into())
}

/// An error as an answer.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) ApiError);

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Failure(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response<Body> {
        let Failure(error) = self;
        let mut response = with_type("application/json", error.to_json().into());
        *response.status_mut() = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        if let Some(seconds) = error.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if error.status() == StatusCode::UNAUTHORIZED.as_u16() {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use serde_json::Value;

    #[test]
    fn the_description_has_exactly_the_routes() {
        let description: Value = serde_json::from_str(OPENAPI).unwrap();
        let paths = description["paths"].as_object().unwrap();
        let mut described: Vec<(&str, &str)> = Vec::new();
        for (path, item) in paths {
            let methods: Vec<&str> = item.as_object().unwrap().keys().map(String::as_str).collect();
            match methods.as_slice() {
                ["get"] => described.push((path, GET)),
                ["post"] => described.push((path, POST)),
                other => panic!("{path}: {other:?}"),
            }
        }
        let mut routes = ROUTES.to_vec();
        routes.sort_unstable();
        described.sort_unstable();
        assert_eq!(described, routes);
        assert!(description["openapi"].as_str().unwrap().starts_with("3."));
    }

    #[test]
    fn references_of_the_description_point_to_something() {
        fn check(value: &Value, root: &Value) {
            match value {
                Value::Object(fields) => {
                    if let Some(target) = fields.get("$ref").and_then(Value::as_str) {
                        assert!(root.pointer(target.strip_prefix('#').unwrap()).is_some(), "{target}");
                    }
                    fields.values().for_each(|value| check(value, root));
                }
                Value::Array(values) => values.iter().for_each(|value| check(value, root)),
                _ => {}
            }
        }
        let description: Value = serde_json::from_str(OPENAPI).unwrap();
        check(&description, &description);
    }
}
