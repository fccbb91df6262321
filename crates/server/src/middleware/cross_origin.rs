//! Pages of other origins whose scripts may read answers (CORS).

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};

use crate::error::ServerError;

/// Origins that may read answers.
#[derive(Debug)]
pub(crate) struct AllowedOrigins {
    any: bool,
    origins: Vec<HeaderValue>,
}

impl AllowedOrigins {
    pub(crate) fn new(origins: &[String]) -> Result<Self, ServerError> {
        let any = origins.iter().any(|origin| origin == "*");
        let parse = |origin: &String| {
            HeaderValue::from_str(origin).map_err(|_| ServerError::Config {
                field: "allowed_origins",
                problem: format!("{origin:?} is no origin; expected one such as https://example.com, or *"),
            })
        };
        Ok(AllowedOrigins { any, origins: origins.iter().map(parse).collect::<Result<_, _>>()? })
    }

    /// What to answer to the origin of a request, if it may read the answer.
    pub(crate) fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        if self.any {
            return Some(HeaderValue::from_static("*"));
        }
        self.origins.contains(origin).then(|| origin.clone())
    }
}

/// Whether a browser asks what it may ask.
pub(crate) fn is_preflight(request: &Request<Body>) -> bool {
    let headers = request.headers();
    request.method() == Method::OPTIONS
        && headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// The answer to a preflight. It says nothing about the server but what every server of this kind has.
pub(crate) fn preflight(is_allowed: bool) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    if is_allowed {
        let headers = response.headers_mut();
        let allow = "authorization, content-type, x-request-id";
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(allow));
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }
    response
}
