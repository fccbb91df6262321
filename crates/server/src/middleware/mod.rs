//! What happens to every request before and after its route.

mod authentication;
mod cross_origin;
mod observed;
mod request_id;

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use axum::response::IntoResponse;
use futures_util::FutureExt;
use hyper::body::Incoming;
use tower::ServiceExt;

use crate::connection::ActivityGuard;
use crate::lifecycle::Stage;
use crate::protocol::ApiError;
use crate::routes::Failure;
use crate::state::App;

pub(crate) use authentication::ApiKeys;
pub(crate) use cross_origin::AllowedOrigins;
use observed::Observation;
pub(crate) use request_id::RequestId;

/// Answers a request, whatever happens.
pub(crate) async fn answer(
    app: Arc<App>,
    router: Router,
    activity: ActivityGuard,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let mut request = request.map(Body::new);
    strip_root(&app.config.root_path, request.uri_mut());
    let id = RequestId::of(request.headers());
    let origin = app.origins.allowed(request.headers());
    // Others may see another end of such a request than we do, so nothing that follows it is read.
    let is_chunked = request.headers().contains_key(header::TRANSFER_ENCODING);
    let observation = Observation::begin(Arc::clone(&app), activity, &request, id.clone());
    request.extensions_mut().insert(id.clone());
    let mut response = if cross_origin::is_preflight(&request) {
        cross_origin::preflight(request.headers(), origin.is_some())
    } else if let Err(error) = app.keys.check(&request) {
        Failure(error).into_response()
    } else {
        route(router, request).await
    };
    let headers = response.headers_mut();
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
    }
    if app.config.enable_request_id_headers {
        headers.insert(request_id::HEADER, id.to_header());
    }
    // A body that was not read to its end would be taken for the next request; and a server that ends has no next one.
    let must_close = is_chunked
        || response.status() == StatusCode::PAYLOAD_TOO_LARGE
        || response.status() == StatusCode::REQUEST_TIMEOUT
        || app.lifecycle.stage() != Stage::Serving;
    if must_close {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(observation.attach(response))
}

/// A panic is a bug, and must not be more than an error of one request.
async fn route(router: Router, request: Request<Body>) -> Response<Body> {
    let answer = AssertUnwindSafe(router.oneshot(request)).catch_unwind();
    match answer.await {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        Err(_) => {
            tracing::error!("a request ended in a panic (a bug)");
            Failure(ApiError::internal()).into_response()
        }
    }
}

/// Takes away what a proxy put before the path.
fn strip_root(root: &str, uri: &mut Uri) {
    if root.is_empty() {
        return;
    }
    let Some(rest) = uri.path_and_query().and_then(|path| path.as_str().strip_prefix(root)) else { return };
    if !rest.starts_with('/') {
        return;
    }
    if let Ok(stripped) = rest.parse() {
        *uri = stripped;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_a_whole_root_is_taken_away() {
        let strip = |root: &str, uri: &str| {
            let mut uri: Uri = uri.parse().unwrap();
            strip_root(root, &mut uri);
            uri.to_string()
        };
        assert_eq!(strip("/llm", "/llm/v1/models?a=b"), "/v1/models?a=b");
        assert_eq!(strip("/llm", "/llmv1/models"), "/llmv1/models");
        assert_eq!(strip("/llm", "/v1/models"), "/v1/models");
        assert_eq!(strip("", "/v1/models"), "/v1/models");
        assert_eq!(strip("/llm", "/llm//v1/models"), "//v1/models");
    }
}
