//! Pages of other origins whose scripts may read answers (CORS).

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};

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

/// What scripts may send where the browser does not say what they want to.
const USUAL_HEADERS: &str = "authorization, content-type, x-request-id";
/// The longest list of headers that is granted, in bytes.
const MAX_REQUESTED: usize = 4096;

/// The headers that a script wants to send, if they are headers. It may send any: libraries tell about themselves in theirs, which
/// change with their versions, and the server ignores what it does not know.
fn requested_headers(headers: &HeaderMap) -> Option<HeaderValue> {
    let value = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS)?;
    let text = value.to_str().ok().filter(|text| text.len() <= MAX_REQUESTED)?;
    let names: Vec<HeaderName> = text.split(',').map(|name| name.trim().parse()).collect::<Result<_, _>>().ok()?;
    let names: Vec<&str> = names.iter().map(HeaderName::as_str).collect();
    HeaderValue::from_str(&names.join(", ")).ok()
}

/// Whether a browser asks what it may ask.
pub(crate) fn is_preflight(request: &Request<Body>) -> bool {
    let headers = request.headers();
    request.method() == Method::OPTIONS
        && headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// The answer to a preflight that came with these headers. It says nothing about the server but what every server of this kind has.
pub(crate) fn preflight(asked: &HeaderMap, is_allowed: bool) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    if is_allowed {
        let headers = response.headers_mut();
        let allow = requested_headers(asked).unwrap_or(HeaderValue::from_static(USUAL_HEADERS));
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allow);
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }
    response
}
